"""Fewer training pairs for a reward model or dpo arm: subsets in one order of their own, the smaller in the larger."""

from __future__ import annotations

import hashlib

from workbench.errors import DataError
from workbench.packed import PackedPairs


def subset_rows(pairs: PackedPairs, count: int, seed: int) -> list[int]:
    """Row numbers of `count` training pairs, in the order of the file.

    Pairs are ranked by a hash of seed and pair id: whatever the count, the first ones are the same, and which they are
    depends on neither their number nor their order in the file.

    Args:
        pairs: The packed pairs that every arm shares.
        count: Training pairs wanted.
        seed: One for all reward models and dpo arms of a run seed.

    Raises:
        DataError: There are not that many.
    """
    train = pairs.split_rows("train")
    if count > len(train):
        raise DataError(
            f"`pairs` of a reward model or dpo arm asks for {count} training pairs, the filtered train split has "
            f"{len(train)}; lower it, or leave it out to use all"
        )
    return sorted(sorted(train, key=lambda row: _rank(seed, str(pairs.meta(row)["pair_id"])))[:count])


def _rank(seed: int, pair_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{pair_id}".encode()).digest()
