"""Writes the usable rows of a source to another file, and a list of the dropped ones with the reason of each."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from workbench.data.check_rows import key_of
from workbench.data.columns import LOOKED_AT, with_margin
from workbench.data.findings import CODES, Findings
from workbench.data.formats import RowError
from workbench.data.pairing import Pairing
from workbench.data.scan import Later
from workbench.data.sources import Row, read_rows
from workbench.data.validate import Options, parsed_rows, source_name
from workbench.errors import ConfigError, DataError


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
    """Writes usable rows as the source has them, one JSON object a line (gzipped where `out` ends with .gz).

    The same config reads them again; where pairs are made of ratings, rankings or labels, they are the pairs with their
    margins, which say the rest themselves. Left out, and listed, are rows that cannot be read or used, rows of which no
    pair came (too small a gap, a tie, one response), pairs with equal responses and, with `options.deduplicate`, pairs
    that stand a second time. The source is never changed; both files appear whole or not at all.

    Raises:
        ConfigError: `out` is the source, or exists already, or cannot be written.
        DataError: A row holds what JSON has no form for.
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
            findings = _Listed(source_name(source), stack.enter_context(_open_list(parts[1])))
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


def _open_list(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="backslashreplace")  # messages quote the rows


def _write(source: str | Path, options: Options, findings: _Listed, file: IO[str], tokenizer: Any) -> int:
    seen: dict[int, int] = {}
    kept = 0
    notes = _Passed(findings)
    pairing = Pairing(options.layout, findings.name, seed=options.seed, notes=notes)
    rows = _Own(read_rows(source, findings, limit=options.limit, split=options.layout.split), pairing)

    def refuse(number: int, error: RowError) -> None:
        findings.add(error.code, number, error.message)

    for number, row, texts in parsed_rows(pairing, rows, tokenizer, refuse):
        notes.made(number)
        if texts.chosen == texts.rejected:
            findings.add("identical_pair", number, "chosen and rejected are the same text")
            continue
        if options.deduplicate:
            key = key_of("\0".join([texts.prompt, texts.chosen or "", texts.rejected or ""]))
            if key in seen:
                findings.add("duplicate_pair", number, f"the same pair as in row {seen[key]}")
                continue
            seen[key] = number
        try:
            file.write(_line(number, rows.held[number] if pairing.one_to_one else row))
        except RowError as error:
            refuse(number, error)
            continue
        kept += 1
    notes.flush()
    return kept


class _Passed(Later):
    """What the pairing notes of a row goes to the list once it is clear that no pair came of that row."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings
        self._row: int | None = None
        self._waiting: list[tuple[str, str]] = []

    def add(self, code: str, row: int | None, message: str) -> None:
        if row != self._row:
            self.flush()
            self._row = row
        self._waiting.append((code, message))

    def made(self, row: int) -> None:
        """A pair came of this row."""
        if row == self._row:
            self._waiting.clear()

    def flush(self) -> None:
        """Lists what waits."""
        for code, message in self._waiting:
            self._findings.add(code, self._row, message)
        self._waiting.clear()


class _Own:
    """Passes rows on to the pairing and holds each until it comes back, since it comes back renamed or with a margin.

    The pairing looks at the first rows together, and from there on takes one when it is done with all before.
    """

    def __init__(self, rows: Iterable[Row], pairing: Pairing) -> None:
        self._rows, self._pairing = rows, pairing
        self.held: dict[int, Mapping[str, Any]] = {}

    def __iter__(self) -> Iterator[Row]:
        for number, row in self._rows:
            if len(self.held) >= LOOKED_AT:
                self.held.clear()
            if self._pairing.one_to_one:
                self.held[number] = with_margin(row, self._pairing.layout.columns)
            yield number, row


def _line(number: int, row: Mapping[str, Any]) -> str:
    """The row as a line of JSON.

    Raises:
        RowError: It cannot be written as UTF-8.
        DataError: It holds what JSON has no form for.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, default=_plain) + "\n"
        text.encode()
    except UnicodeEncodeError:
        raise RowError("bad_unicode", "a lone surrogate stands in a column that is not read") from None
    except TypeError as error:
        raise DataError(
            f"row {number} cannot be written as JSON: {error}; expected text, numbers, dates, lists or objects: take "
            "that column out of the source"
        ) from None
    return text


def _plain(value: object) -> Any:
    """JSON's form of what parquet files and datasets hold beside texts, numbers and lists."""
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError(f"it holds {type(value).__name__}")
