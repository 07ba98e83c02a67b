"""Preference pairs checked as a whole in bounded memory: texts go to disk as they come, a few numbers a row stay.

Pass one parses every row once, spools its texts and keeps digests (16 bytes of a pair, 16 of its opposite, 8 of its
prompt). Duplicates, contradictions and splits are then found on arrays, and pass two reads texts back in any order.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.data.findings import CODES, SHOWN, Findings
from workbench.data.formats import Texts
from workbench.data.records_io import PairParts
from workbench.data.splits import assign_split, pair_id, prompt_id
from workbench.data.spool import Spool
from workbench.data.table import Digests, PairTable, Rows, hex_id
from workbench.types import SPLITS, Split

_NO_SPLIT: Final = -1


class Later:
    """Findings of one check, held back so that a report lists them check by check, however the rows were read."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[list[int], list[tuple[int | None, str]]]] = {}

    def add(self, code: str, row: int | None, message: str) -> None:
        """Notes one finding; beyond the first ten different ones only the count is kept."""
        count, shown = self._entries.setdefault(code, ([0], []))
        count[0] += 1
        if len(shown) < SHOWN and (row, message) not in shown:
            shown.append((row, message))

    def pass_on(self, findings: Findings) -> None:
        """Adds everything to `findings`."""
        for code, (count, shown) in self._entries.items():
            note(findings, code, shown, count[0])


def note(findings: Findings, code: str, shown: Sequence[tuple[int | None, str]], count: int) -> None:
    """Adds `count` findings of which the first ones are spelled out."""
    for row, message in shown:
        findings.add(code, row, message)
    if count > len(shown) > 0:
        findings.add(code, *shown[-1], count=count - len(shown))


class PairIndex:
    """Takes the parsed rows of a source one by one and ends as a `PairTable`.

    Args:
        name: The source as records name it.
        spool: Takes the texts.
    """

    def __init__(self, name: str, spool: Spool) -> None:
        self.name = name
        self.parsed = 0
        self._spool = spool
        self._rows, self._splits = array("q"), array("b")
        self._keys, self._opposites, self._prompts = bytearray(), bytearray(), bytearray()
        self._formats: Counter[str] = Counter()
        self._format_rows: dict[str, list[int]] = {}
        self._identical = Later()
        self._guessed: list[tuple[int | None, str]] = []
        self._guesses = 0
        self._negative = Later()
        self.identical = 0

    def take(self, number: int, texts: Texts) -> None:
        """One parsed row and its 1-based number."""
        assert texts.chosen is not None
        assert texts.rejected is not None
        self.parsed += 1
        self._formats[texts.format] += 1
        rows = self._format_rows.setdefault(texts.format, [])
        if len(rows) < SHOWN:
            rows.append(number)
        if texts.prompt_guessed:
            self._guesses += 1
            if len(self._guessed) < SHOWN:
                self._guessed.append((number, f"the prompt is taken to be {texts.prompt[:60]!r}"))
        if texts.target_margin is not None and texts.target_margin < 0:
            self._negative.add("negative_margin", number, f"target_margin is {texts.target_margin:g}, below 0")
        if texts.chosen == texts.rejected:
            self.identical += 1
            self._identical.add("identical_pair", number, "chosen and rejected are the same text")
            return
        self._rows.append(number)
        self._splits.append(_NO_SPLIT if texts.split is None else SPLITS.index(texts.split))
        # One hash serves twice: its first 8 bytes are the pair's id, 16 tell pairs apart.
        prompt, chosen, rejected = _measured(texts.prompt), _measured(texts.chosen), _measured(texts.rejected)
        self._keys += _digest(prompt, chosen, rejected)
        self._opposites += _digest(prompt, rejected, chosen)
        self._prompts += bytes.fromhex(prompt_id(texts.prompt))
        self._spool.append(PairParts.of(texts, self.name).to_bytes())

    @property
    def own_splits(self) -> bool:
        """A row says which split it belongs to."""
        return any(one != _NO_SPLIT for one in self._splits)

    def note_formats(self, findings: Findings) -> None:
        """Rows of another format than most have."""
        if len(self._formats) < 2:
            return
        usual, most = self._formats.most_common(1)[0]
        others = sorted((row, name) for name, rows in self._format_rows.items() if name != usual for row in rows)
        shown = [(row, f"the row is {name}, but {most} rows are {usual}") for row, name in others[:SHOWN]]
        note(findings, "mixed_formats", shown, self.parsed - most)

    def note_doubts(self, findings: Findings) -> None:
        """Rows that are read, but perhaps not as they were meant: guessed prompts, margins below 0."""
        rate = self._guesses / max(1, self.parsed)
        why = f", where both responses part; nothing marks its end ({self._guesses:,} rows, {rate:.1%}, are read so)"
        note(findings, "guessed_prompt", [(row, message + why) for row, message in self._guessed], self._guesses)
        self._negative.pass_on(findings)

    def note_identical(self, findings: Findings, total: int, max_fraction: float) -> None:
        """Rows of equal responses, which `take` has passed over; an error above `max_fraction` of `total`."""
        self._identical.pass_on(findings)
        if total and self.identical / total > max_fraction:
            share = f"{self.identical} of {total} pairs ({self.identical / total:.1%})"
            message = f"{share} have equal responses; allowed {max_fraction:.1%}"
            findings.add("too_many_identical", None, message)

    def table(
        self, findings: Findings, *, deduplicate: bool, split: Split | None, fractions: dict[str, float], seed: int
    ) -> PairTable:
        """Finds duplicates and contradictions, and gives every pair its id and split.

        Args:
            findings: Takes what is found.
            deduplicate: Of equal pairs only the first is kept.
            split: Every row's split, whatever it says itself; None: its own, else by a seeded hash of the prompt.
            fractions: Share of prompts for "validation" and "test".
            seed: Seeds the split.
        """
        rows = np.frombuffer(self._rows, dtype=np.int64)
        prompts = np.frombuffer(bytes(self._prompts), dtype=">u8").astype(np.uint64)
        keys, opposites = (
            np.frombuffer(bytes(data), dtype=">u8").astype(np.uint64).reshape(-1, 2)
            for data in (self._keys, self._opposites)
        )
        numbers, opposite_numbers = _numbered(keys, opposites)
        first = _first_of(numbers)
        kept = np.arange(len(rows))
        repeated = np.flatnonzero(first < kept)
        shown = [
            (int(rows[one]), f"the same pair as in row {rows[first[one]]}{'; dropped' if deduplicate else ''}")
            for one in repeated[:SHOWN]
        ]
        note(findings, "duplicate_pair", shown, len(repeated))
        if deduplicate:
            kept = np.flatnonzero(first == kept)
        _note_contradictions(findings, rows[kept], numbers[kept], opposite_numbers[kept])
        splits = self._split_of(findings, rows, prompts, kept, split, fractions, seed)
        table = PairTable(
            name=self.name, rows=rows[kept], pair_ids=keys[kept, 0].copy(), prompt_ids=prompts[kept], splits=splits,
            records=kept.astype(np.int64), spool=self._spool,
        )  # fmt: skip
        _tell_apart(table)
        return table

    def _split_of(
        self, findings: Findings, rows: Rows, prompts: Digests, kept: Rows, split: Split | None,
        fractions: dict[str, float], seed: int,
    ) -> NDArray[np.int8]:  # fmt: skip
        """The split of every kept row: what is asked for, else the rows' own, else a seeded hash of the prompt."""
        if split is not None:
            return np.full(len(kept), SPLITS.index(split), dtype=np.int8)
        given = np.frombuffer(self._splits, dtype=np.int8)[kept]
        without = np.flatnonzero(given == _NO_SPLIT)
        if len(without) < len(kept):
            shown = [(int(rows[kept[one]]), "the row has no 'split', but others have one") for one in without[:SHOWN]]
            note(findings, "mixed_splits", shown, len(without))
            return np.where(given == _NO_SPLIT, np.int8(SPLITS.index("train")), given)
        found, inverse = np.unique(prompts[kept], return_inverse=True)
        drawn = [SPLITS.index(assign_split(hex_id(one), fractions, seed)) for one in found.tolist()]
        return np.array(drawn, dtype=np.int8)[inverse]


def _measured(text: str) -> bytes:
    """A text with its length before it, as `splits.pair_id` reads it."""
    data = text.encode()
    return len(data).to_bytes(8, "big") + data


_FIRST_OF_ITS_KIND: Final = _measured("0")


def _digest(*texts: bytes) -> bytes:
    """16 bytes that begin as `splits.pair_id` of measured texts does."""
    return hashlib.sha256(b"".join((*texts, _FIRST_OF_ITS_KIND))).digest()[:16]


def _numbered(keys: Digests, opposites: Digests) -> tuple[Rows, Rows]:
    """Equal digests get equal numbers, in both arrays alike."""
    both = np.concatenate([keys, opposites])
    order = np.lexsort((both[:, 1], both[:, 0]))
    ordered = both[order]
    starts = np.ones(len(both), dtype=np.int64)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(both), dtype=np.int64)
    numbers[order] = np.cumsum(starts) - 1
    return numbers[: len(keys)], numbers[len(keys) :]


def _first_of(numbers: Rows) -> Rows:
    """(N,) index at which each entry's number stands first."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _note_contradictions(findings: Findings, rows: Rows, numbers: Rows, opposites: Rows) -> None:
    """Pairs whose opposite stands in an earlier row, as a share of the rows."""
    found, first = np.unique(numbers, return_index=True)
    at = np.minimum(np.searchsorted(found, opposites), max(0, len(found) - 1))
    earlier = first[at] if len(found) else np.zeros(0, dtype=np.int64)
    wrong = np.flatnonzero((found[at] == opposites) & (earlier < np.arange(len(rows)))) if len(found) else earlier
    rate = len(wrong) / max(1, len(rows))
    shown = [
        (
            int(rows[one]),
            f"the opposite label of the same pair in row {rows[earlier[one]]} (contradiction rate {rate:.2%} of rows)",
        )
        for one in wrong[:SHOWN]
    ]
    note(findings, "contradiction", shown, len(wrong))


def _tell_apart(table: PairTable) -> None:
    """Gives the second and later ones of equal pairs ids of their own, by their occurrence."""
    repeated = np.flatnonzero(_first_of(table.pair_ids.astype(np.int64)) < np.arange(len(table)))
    seen: Counter[int] = Counter()
    for index in repeated.tolist():
        base = int(table.pair_ids[index])
        seen[base] += 1
        parts = table.parts(index)
        table.pair_ids[index] = int(pair_id(parts.prompt, *parts.responses, seen[base]), 16)


def row_of(code: str, number: int) -> int | None:
    """The row that a finding of this code names: none where it is about the whole source."""
    return number if CODES[code].scope == "row" else None
