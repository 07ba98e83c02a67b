"""Writes the usable rows of a source to another file, and a list of the dropped ones with the reason of each."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from workbench.data.check_rows import key_of
from workbench.data.findings import CODES, Findings
from workbench.data.formats import RowError, parse_pair
from workbench.data.pairing import Pairing
from workbench.data.sources import read_rows
from workbench.data.validate import Options, source_name
from workbench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Where the rows went.

    Args:
        kept: Rows written to `out`.
        reasons: Code -> dropped rows.
        out, listed: The usable rows; one {"row", "code", "message"} for each dropped one.
    """

    kept: int
    reasons: Mapping[str, int]
    out: Path
    listed: Path


class _Listed(Findings):
    """Findings that write each dropped row down as it is met."""

    def __init__(self, name: str, file: IO[str]) -> None:
        super().__init__(name, drop_invalid=True)
        self.file, self.reasons = file, Counter[str]()

    def add(self, code: str, row: int | None, message: str, *, count: int = 1) -> None:
        super().add(code, row, message, count=count)
        if row is None or CODES[code].scope == "file":
            return
        self.reasons[code] += count
        self.file.write(json.dumps({"row": row, "code": code, "message": message}, ensure_ascii=False) + "\n")


def drop_into(source: str | Path, options: Options, out: Path, *, tokenizer: Any = None) -> Dropped:
    """Writes usable rows as they are, one JSON object a line (gzipped where `out` ends with .gz); where pairs are made
    of ratings, rankings or labels, the pairs.

    Left out are rows that cannot be read or used, pairs with equal responses and, with `options.deduplicate`, pairs
    that stand a second time. The source is never changed; both files appear whole or not at all.

    Raises:
        ConfigError: `out` is the source, or exists already, or cannot be written.
    """
    listed = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".dropped.jsonl")
    if Path(source).exists() and out.resolve() == Path(source).resolve():
        raise ConfigError("--out names the source itself, which is never changed; give another name", where=str(out))
    for path in (out, listed):
        if path.exists():
            raise ConfigError("exists already; give another name, or remove it", where=str(path))
    parts = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (out, listed)]
    try:
        with ExitStack() as stack:
            kept_file = stack.enter_context(_open(parts[0], zipped=out.suffix == ".gz"))
            findings = _Listed(source_name(source), stack.enter_context(parts[1].open("w", encoding="utf-8")))
            kept = _write(source, options, findings, kept_file, tokenizer)
        for part, path in zip(parts, (out, listed), strict=True):
            os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(out)) from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return Dropped(kept=kept, reasons=dict(findings.reasons), out=out, listed=listed)


def _open(path: Path, *, zipped: bool) -> IO[str]:
    return gzip.open(path, "wt", encoding="utf-8") if zipped else path.open("w", encoding="utf-8")


def _write(source: str | Path, options: Options, findings: _Listed, file: IO[str], tokenizer: Any) -> int:
    seen: dict[int, int] = {}
    kept = 0
    pairing = Pairing(options.layout, findings.name, seed=options.seed)
    rows = read_rows(source, findings, limit=options.limit, split=options.layout.split)
    for number, row in pairing.pair_rows(rows, lambda at, error: findings.add(error.code, at, error.message)):
        try:
            texts = parse_pair(row, tokenizer)
        except RowError as error:
            findings.add(error.code, number, error.message)
            continue
        if texts.chosen == texts.rejected:
            findings.add("identical_pair", number, "chosen and rejected are the same text")
            continue
        key = key_of("\0".join([texts.prompt, texts.chosen or "", texts.rejected or ""]))
        if options.deduplicate and key in seen:
            findings.add("duplicate_pair", number, f"the same pair as in row {seen[key]}")
            continue
        seen.setdefault(key, number)
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        kept += 1
    return kept
