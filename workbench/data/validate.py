"""Turns a source into preference pairs or prompts, checked as a whole: everything wrong is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from workbench.data.columns import LOOKED_AT, check_columns, rename
from workbench.data.findings import Finding, Findings
from workbench.data.formats import RowError, Texts, parse_pair, parse_prompt
from workbench.data.layout import Layout
from workbench.data.pairing import Pairing
from workbench.data.scan import Later, PairIndex, row_of
from workbench.data.sources import Row, read_rows
from workbench.data.splits import assign_split, check_disjoint, prompt_id
from workbench.data.spool import Spool
from workbench.data.table import PairTable
from workbench.types import PreferencePair, Prompt, Split


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a validation saw: rows read (unreadable ones included), pairs or prompts kept, and all findings.

    `pairing` counts how pairs were made of ratings, rankings or labels; None where every row is one pair. `own_splits`:
    the rows name their splits, and none is drawn.
    """

    rows: int
    kept: int
    findings: tuple[Finding, ...]
    pairing: Mapping[str, Any] | None = None
    own_splits: bool = False

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        pairing = {} if self.pairing is None else {"pairing": dict(self.pairing)}
        return {"rows": self.rows, "kept": self.kept, "findings": [one.to_json() for one in self.findings], **pairing}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a source is read.

    Args:
        drop_invalid: Rows with errors are dropped, counted and listed, instead of stopping.
        deduplicate: Of equal pairs only the first is kept.
        max_identical_fraction: Above this share of pairs with equal responses the data is refused.
        limit: Read only this many rows from the top.
        fractions: Share of prompts for "validation" and "test"; the rest is train.
        seed: Seeds the split.
        split: Put every row into this split, whatever it says itself.
        layout: Which columns mean what, and how pairs are made of ratings, rankings or labels.
    """

    drop_invalid: bool = False
    deduplicate: bool = False
    max_identical_fraction: float = 0.01
    limit: int | None = None
    fractions: Mapping[str, float] | None = None
    seed: int = 0
    split: Split | None = None
    layout: Layout = field(default_factory=Layout)


class Observer(Protocol):
    """Sees every row that could be parsed, in the order of the source, before any is dropped as equal or duplicate."""

    def see(self, row: int, texts: Texts) -> None:
        """One parsed row and its 1-based row number."""

    def finish(self, findings: Findings) -> None:
        """Called once, after the last row and before the report is made: adds what the rows show together."""


def source_name(source: str | Path) -> str:
    """How messages and records name a source: a file's own name, so that nothing depends on where it lies."""
    path = Path(source)
    return path.name if path.exists() else str(source)


def scan_pairs(
    source: str | Path,
    options: Options,
    *,
    tokenizer: Any = None,
    stop: bool = True,
    observers: Sequence[Observer] = (),
    scratch: Path | None = None,
) -> tuple[PairTable, Report]:
    """Reads and checks preference pairs of any known format in bounded memory: texts stay on disk.

    Args:
        source: Path or hub id.
        options: What to do with what is found.
        tokenizer: Renders conversational rows; not needed for others.
        stop: Raise if there is an error; else the report tells.
        observers: Further checks; each sees every parsed row once.
        scratch: Folder on a disk with room for the texts; None: the system's place for temporary files.

    Raises:
        DataError: There is an error (with `stop`), or the source does not exist.
        ConfigError: The layout does not say how pairs are made of such rows.
    """
    findings = Findings(source_name(source), drop_invalid=options.drop_invalid)
    index, parsing = PairIndex(findings.name, Spool(scratch)), Later()
    rows = _Counted(read_rows(source, findings, limit=options.limit, split=options.layout.split))
    pairing = Pairing(options.layout, findings.name, seed=options.seed, scratch=scratch)

    def refuse(number: int, error: RowError) -> None:
        parsing.add(error.code, row_of(error.code, number), error.message)

    for number, _, texts in parsed_rows(pairing, rows, tokenizer, refuse):
        for observer in observers:
            observer.see(number, texts)
        index.take(number, texts)
    total = rows.count + _unreadable(findings)
    parsing.pass_on(findings)
    pairing.note(findings)
    index.note_formats(findings)
    index.note_doubts(findings)
    index.note_identical(findings, total if pairing.one_to_one else index.parsed, options.max_identical_fraction)
    table = index.table(
        findings, deduplicate=options.deduplicate, split=options.split, fractions=dict(options.fractions or {}),
        seed=options.seed,
    )  # fmt: skip
    _check_any(len(table), total, findings)
    for observer in observers:
        observer.finish(findings)
    report = Report(
        rows=total, kept=len(table), findings=tuple(findings.all()), pairing=pairing.facts(),
        own_splits=index.own_splits,
    )  # fmt: skip
    if stop:
        findings.raise_errors()
        table.check_disjoint()
    return table, report


def parsed_rows(
    pairing: Pairing, rows: Iterable[Row], tokenizer: Any, refuse: Callable[[int, RowError], None]
) -> Iterator[tuple[int, dict[str, Any], Texts]]:
    """(row number, row of one pair, its texts); what cannot be used goes to `refuse`.

    Raises:
        ConfigError: The layout does not fit the source.
    """
    for number, row in pairing.pair_rows(rows, refuse):
        try:
            texts = parse_pair(row, tokenizer)
        except RowError as error:
            refuse(number, error)
            continue
        yield number, row, texts


def load_pairs(
    source: str | Path,
    options: Options,
    *,
    tokenizer: Any = None,
    stop: bool = True,
    observers: Sequence[Observer] = (),
) -> tuple[list[PreferencePair], Report]:
    """`scan_pairs` with every pair in memory: for sources that are known to be small."""
    table, report = scan_pairs(source, options, tokenizer=tokenizer, stop=stop, observers=observers)
    return list(table.pairs()), report


def load_prompts(
    source: str | Path, options: Options, *, tokenizer: Any = None, stop: bool = True
) -> tuple[list[Prompt], Report]:
    """Reads rows {"prompt": text or messages}. Prompts that differ only in case or spacing are one prompt.

    Raises:
        DataError: There is an error (with `stop`), or the source does not exist.
        ConfigError: A mapped column is missing.
    """
    findings = Findings(source_name(source), drop_invalid=options.drop_invalid)
    parsing = Later()
    rows = _Counted(read_rows(source, findings, limit=options.limit, split=options.layout.split))
    parsed: list[tuple[int, Texts]] = []
    iterator = iter(rows)
    first_rows = list(islice(iterator, LOOKED_AT))
    read = ("prompt",) if options.split is not None else ("prompt", "split")
    asked = {name: own for name, own in options.layout.columns.items() if name in read}
    check_columns([row for _, row in first_rows], asked, findings.name)
    for number, row in chain(first_rows, iterator):
        try:
            parsed.append((number, parse_prompt(rename(row, options.layout.columns), tokenizer)))
        except RowError as error:
            parsing.add(error.code, row_of(error.code, number), error.message)
    total = rows.count + _unreadable(findings)
    parsing.pass_on(findings)
    splits = _splits(parsed, findings, options)
    if stop:
        findings.raise_errors()
        check_disjoint((texts.prompt, split) for (_, texts), split in zip(parsed, splits, strict=True))
    first: dict[str, int] = {}
    prompts = []
    for (number, texts), split in zip(parsed, splits, strict=True):
        key = prompt_id(texts.prompt)
        if key in first:
            findings.add("duplicate_prompt", number, f"the same prompt as in row {first[key]}")
            continue
        first[key] = number
        prompts.append(Prompt(prompt_id=key, prompt=texts.prompt, split=split))
    _check_any(len(prompts), total, findings)
    own = any(texts.split is not None for _, texts in parsed)
    report = Report(rows=total, kept=len(prompts), findings=tuple(findings.all()), own_splits=own)
    if stop:
        findings.raise_errors()
    return prompts, report


class _Counted:
    """Passes rows on and knows how many there were."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            yield row


def _unreadable(findings: Findings) -> int:
    """Rows that a reader could not turn into an object."""
    codes = ("malformed_json", "duplicate_key", "malformed_csv", "not_utf8", "nul", "giant_row")
    return sum(findings.count(code) for code in codes)


def _splits(parsed: Sequence[tuple[int, Texts]], findings: Findings, options: Options) -> list[Split]:
    """The split of every row: the one that is asked for, else the rows' own, else a seeded hash of the prompt."""
    if options.split is not None:
        return [options.split] * len(parsed)
    given = [texts.split for _, texts in parsed if texts.split is not None]
    if given and len(given) < len(parsed):
        for number, texts in parsed:
            if texts.split is None:
                findings.add("mixed_splits", number, "the row has no 'split', but others have one")
    if given:
        return [texts.split or "train" for _, texts in parsed]
    fractions = options.fractions or {}
    return [assign_split(prompt_id(texts.prompt), fractions, options.seed) for _, texts in parsed]


def _check_any(kept: int, total: int, findings: Findings) -> None:
    """No row left is an error of its own, unless other errors already say why."""
    if not kept and findings.ok:
        message = f"no usable row is left of {total}" if total else "the file has no row"
        findings.add("empty_file", None, message)


def unique_prompts(pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """Every prompt of the pairs once, in order of first appearance, with its split."""
    seen: dict[str, Prompt] = {}
    for pair in pairs:
        if pair.prompt_id not in seen:
            seen[pair.prompt_id] = Prompt(prompt_id=pair.prompt_id, prompt=pair.prompt, split=pair.split)
    return list(seen.values())
