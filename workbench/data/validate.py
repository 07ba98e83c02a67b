"""Turns a source into preference pairs or prompts, checked as a whole: everything wrong is reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workbench.data.findings import CODES, Finding, Findings
from workbench.data.formats import RowError, Texts, parse_pair, parse_prompt
from workbench.data.sources import Row, read_rows
from workbench.data.splits import assign_split, check_disjoint, normalize, pair_id, prompt_id
from workbench.types import PreferencePair, Prompt, Split


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a validation saw: rows read (unreadable ones included), rows kept, and all findings."""

    rows: int
    kept: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        return {"rows": self.rows, "kept": self.kept, "findings": [one.to_json() for one in self.findings]}


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
    """

    drop_invalid: bool = False
    deduplicate: bool = False
    max_identical_fraction: float = 0.01
    limit: int | None = None
    fractions: Mapping[str, float] | None = None
    seed: int = 0
    split: Split | None = None


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


def load_pairs(
    source: str | Path,
    options: Options,
    *,
    tokenizer: Any = None,
    stop: bool = True,
    observers: Sequence[Observer] = (),
) -> tuple[list[PreferencePair], Report]:
    """Reads preference pairs of any known format.

    Args:
        source: Path or hub id.
        options: What to do with what is found.
        tokenizer: Renders conversational rows; not needed for others.
        stop: Raise if there is an error; else the report tells.
        observers: Further checks; each sees every parsed row once.

    Raises:
        DataError: There is an error (with `stop`), or the source does not exist.
    """
    findings = Findings(source_name(source), drop_invalid=options.drop_invalid)
    rows = list(read_rows(source, findings, limit=options.limit))
    total = len(rows) + _unreadable(findings)
    parsed = _parse(rows, findings, lambda row: parse_pair(row, tokenizer))
    _check_formats(parsed, findings)
    kept = _drop_identical(parsed, findings, total, options.max_identical_fraction)
    kept = _find_duplicates(kept, findings, deduplicate=options.deduplicate)
    _find_contradictions(kept, findings)
    splits = _splits(kept, findings, options)
    _check_any(kept, total, findings)
    for observer in observers:
        for number, texts in parsed:
            observer.see(number, texts)
        observer.finish(findings)
    report = Report(rows=total, kept=len(kept), findings=tuple(findings.all()))
    if stop:
        findings.raise_errors()
        check_disjoint((texts.prompt, split) for (_, texts), split in zip(kept, splits, strict=True))
    return _records(kept, splits, findings.name), report


def load_prompts(
    source: str | Path, options: Options, *, tokenizer: Any = None, stop: bool = True
) -> tuple[list[Prompt], Report]:
    """Reads rows {"prompt": text or messages}. Prompts that differ only in case or spacing are one prompt.

    Raises:
        DataError: There is an error (with `stop`), or the source does not exist.
    """
    findings = Findings(source_name(source), drop_invalid=options.drop_invalid)
    rows = list(read_rows(source, findings, limit=options.limit))
    total = len(rows) + _unreadable(findings)
    parsed = _parse(rows, findings, lambda row: parse_prompt(row, tokenizer))
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
    _check_any(prompts, total, findings)
    report = Report(rows=total, kept=len(prompts), findings=tuple(findings.all()))
    if stop:
        findings.raise_errors()
    return prompts, report


Parsed = list[tuple[int, Texts]]


def _unreadable(findings: Findings) -> int:
    """Rows that a reader could not turn into an object."""
    codes = ("malformed_json", "duplicate_key", "malformed_csv", "not_utf8", "nul", "giant_row")
    return sum(findings.count(code) for code in codes)


def _parse(rows: Sequence[Row], findings: Findings, parse: Callable[[dict[str, Any]], Texts]) -> Parsed:
    parsed = []
    for number, row in rows:
        try:
            parsed.append((number, parse(row)))
        except RowError as error:
            findings.add(error.code, number if CODES[error.code].scope == "row" else None, error.message)
    return parsed


def _check_formats(parsed: Parsed, findings: Findings) -> None:
    counts = Counter(texts.format for _, texts in parsed)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for number, texts in parsed:
        if texts.format != usual:
            findings.add("mixed_formats", number, f"the row is {texts.format}, but {counts[usual]} rows are {usual}")


def _drop_identical(parsed: Parsed, findings: Findings, total: int, max_fraction: float) -> Parsed:
    kept = []
    for number, texts in parsed:
        if texts.chosen == texts.rejected:
            findings.add("identical_pair", number, "chosen and rejected are the same text")
        else:
            kept.append((number, texts))
    identical = len(parsed) - len(kept)
    if total and identical / total > max_fraction:
        message = (
            f"{identical} of {total} pairs ({identical / total:.1%}) have equal responses; allowed {max_fraction:.1%}"
        )
        findings.add("too_many_identical", None, message)
    return kept


def _find_duplicates(parsed: Parsed, findings: Findings, *, deduplicate: bool) -> Parsed:
    first: dict[tuple[str, str | None, str | None], int] = {}
    kept = []
    for number, texts in parsed:
        key = (texts.prompt, texts.chosen, texts.rejected)
        if key in first:
            dropped = "; dropped" if deduplicate else ""
            findings.add("duplicate_pair", number, f"the same pair as in row {first[key]}{dropped}")
            if deduplicate:
                continue
        first.setdefault(key, number)
        kept.append((number, texts))
    return kept


def _find_contradictions(parsed: Parsed, findings: Findings) -> None:
    first: dict[tuple[str, str | None, str | None], int] = {}
    opposite = []
    for number, texts in parsed:
        other = (texts.prompt, texts.rejected, texts.chosen)
        if other in first:
            opposite.append((number, first[other]))
        first.setdefault((texts.prompt, texts.chosen, texts.rejected), number)
    rate = len(opposite) / max(1, len(parsed))
    for number, earlier in opposite:
        message = f"the opposite label of the same pair in row {earlier} (contradiction rate {rate:.2%} of rows)"
        findings.add("contradiction", number, message)


def _splits(parsed: Parsed, findings: Findings, options: Options) -> list[Split]:
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


def _check_any(kept: Sequence[object], total: int, findings: Findings) -> None:
    """No row left is an error of its own, unless other errors already say why."""
    if not kept and findings.ok:
        message = f"no usable row is left of {total}" if total else "the file has no row"
        findings.add("empty_file", None, message)


def _records(kept: Parsed, splits: Sequence[Split], source: str) -> list[PreferencePair]:
    occurrences: Counter[str] = Counter()
    pairs = []
    for (_, texts), split in zip(kept, splits, strict=True):
        assert texts.chosen is not None
        assert texts.rejected is not None
        base = pair_id(texts.prompt, texts.chosen, texts.rejected)
        pairs.append(
            PreferencePair(
                pair_id=pair_id(texts.prompt, texts.chosen, texts.rejected, occurrences[base]),
                prompt_id=prompt_id(texts.prompt),
                prompt=texts.prompt,
                chosen=texts.chosen,
                rejected=texts.rejected,
                source=source,
                split=split,
                annotations=texts.annotations,
                target_margin=texts.target_margin,
            )
        )
        occurrences[base] += 1
    return pairs


def unique_prompts(pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """Every prompt of the pairs once, in order of first appearance, with its split."""
    seen: dict[str, Prompt] = {}
    for pair in pairs:
        if pair.prompt_id not in seen:
            seen[pair.prompt_id] = Prompt(prompt_id=pair.prompt_id, prompt=pair.prompt, split=pair.split)
    return list(seen.values())


def describe_pairs(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Statistics of preference pairs.

    Returns:
        Counts by split; prompts; pairs per prompt; words of prompt, chosen and rejected (mean, median, 95%, longest);
        share of pairs whose chosen response is the longer one (ties half); annotators and labels.
    """
    if not pairs:
        return {"pairs": 0}
    words = {role: [len(getattr(pair, role).split()) for pair in pairs] for role in ("prompt", "chosen", "rejected")}
    longer = [
        0.5 if chosen == rejected else float(chosen > rejected)
        for chosen, rejected in zip(words["chosen"], words["rejected"], strict=True)
    ]
    prompts = {pair.prompt_id for pair in pairs}
    return {
        "pairs": len(pairs),
        "prompts": len(prompts),
        "pairs_per_prompt": len(pairs) / len(prompts),
        "splits": dict(Counter(pair.split for pair in pairs)),
        "words": {role: _spread(values) for role, values in words.items()},
        "chosen_longer": sum(longer) / len(longer),
        "annotators": len({one.annotator for pair in pairs for one in pair.annotations}),
        "labels": sum(len(pair.annotations) for pair in pairs),
        "distinct_texts": len({normalize(text) for pair in pairs for text in (pair.chosen, pair.rejected)}),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "mean": sum(ordered) / len(ordered),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }
