"""Pairs whose texts lie on disk: what is written of them, in which order, without holding them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.data.findings import SHOWN
from workbench.data.records_io import PAIRS_FILE, PROMPTS_FILE, PairParts, pair_from_line, prompt_line
from workbench.data.splits import refuse_shared
from workbench.data.spool import Spool
from workbench.types import SPLITS, PreferencePair, Prompt, Split

Rows = NDArray[np.int64]
Digests = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """Pairs of one source: their texts on disk, the rest in arrays of one entry a pair, in the order of the source.

    Args:
        name: The source as records name it.
        rows: (N,) 1-based row number in the source.
        pair_ids, prompt_ids: (N,) ids as numbers; `hex_id` writes them.
        splits: (N,) index into `SPLITS`.
        records: (N,) number of each pair's texts in `spool`.
        spool: The texts, as `PairParts` writes them.
    """

    name: str
    rows: Rows
    pair_ids: Digests
    prompt_ids: Digests
    splits: NDArray[np.int8]
    records: Rows
    spool: Spool

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, index: int) -> Split:
        """The split of one pair."""
        return SPLITS[int(self.splits[index])]

    def parts(self, index: int) -> PairParts:
        """The texts of one pair, as they stand in pairs.jsonl."""
        return PairParts.from_bytes(self.spool[int(self.records[index])])

    def line(self, index: int) -> bytes:
        """The line of pairs.jsonl of one pair."""
        return self.parts(index).pair_line(
            hex_id(self.pair_ids[index]), hex_id(self.prompt_ids[index]), self.split(index)
        )

    def prompt_line(self, index: int) -> bytes:
        """The line of prompts.jsonl of one pair's prompt."""
        return self.parts(index).prompt_line(hex_id(self.prompt_ids[index]), self.split(index))

    def pairs(self) -> Iterator[PreferencePair]:
        """Every pair, in the order of the source."""
        for index in range(len(self)):
            yield pair_from_line(self.line(index))

    def first_of_prompts(self) -> Rows:
        """Index of the first pair of every prompt, in the order of the source."""
        return np.sort(np.unique(self.prompt_ids, return_index=True)[1]).astype(np.int64)

    def check_disjoint(self) -> None:
        """Refuses a prompt that stands in two splits.

        Raises:
            DataError: Names the first ten such prompts, their splits and the total.
        """
        prompts, first, inverse = np.unique(self.prompt_ids, return_index=True, return_inverse=True)
        members = np.zeros((len(prompts), len(SPLITS)), dtype=bool)
        members[inverse, self.splits] = True
        shared = np.flatnonzero(members.sum(axis=1) > 1)
        shared = shared[np.argsort(first[shared])]
        listed = [
            (self.parts(int(first[one])).prompt, {SPLITS[at] for at in np.flatnonzero(members[one])})
            for one in shared[:SHOWN]
        ]
        refuse_shared(listed, len(shared), len(prompts))


def write_tables(folder: Path, tables: Sequence[PairTable], prompts: Sequence[Prompt] = ()) -> dict[str, int]:
    """Writes pairs.jsonl and prompts.jsonl (every prompt once), both by id and not as the sources have them: what is
    trained on and evaluated first must not hang on the order of rows.

    Args:
        folder: Where to.
        tables: Pairs of one or more sources that share no prompt.
        prompts: Further prompts, without pairs.

    Returns:
        Pairs by split, in the order in which the splits first turn up.
    """
    counts: Counter[str] = Counter()
    with (folder / PAIRS_FILE).open("wb") as file:
        for table, index in _merged([(table, table.pair_ids, np.arange(len(table))) for table in tables]):
            counts[table.split(index)] += 1
            file.write(table.line(index))
    firsts = [(table, table.first_of_prompts()) for table in tables]
    asked = [(table, table.prompt_ids[first], first) for table, first in firsts]
    alone = sorted(prompts, key=lambda prompt: prompt.prompt_id, reverse=True)
    with (folder / PROMPTS_FILE).open("wb") as file:
        for table, index in _merged(asked):
            while alone and int(alone[-1].prompt_id, 16) < int(table.prompt_ids[index]):
                file.write(prompt_line(alone.pop()))
            file.write(table.prompt_line(index))
        while alone:
            file.write(prompt_line(alone.pop()))
    return dict(counts)


def _merged(tables: Sequence[tuple[PairTable, Digests, Rows]]) -> Iterator[tuple[PairTable, int]]:
    """(table, index) of every entry by its id, whichever table it is in.

    Args:
        tables: (table, (N,) ids, (N,) indices into the table).
    """
    order = np.argsort(np.concatenate([ids for _, ids, _ in tables]), kind="stable")
    owners = np.repeat(np.arange(len(tables)), [len(ids) for _, ids, _ in tables])[order]
    indices = np.concatenate([index for _, _, index in tables])[order]
    for owner, index in zip(owners, indices, strict=True):
        yield tables[owner][0], int(index)


def hex_id(number: np.uint64 | int) -> str:
    """An 8-byte id as its 16 hex digits; numbers and texts sort alike."""
    return f"{int(number):016x}"
