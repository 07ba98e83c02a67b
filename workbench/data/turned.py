"""Packed pairs with some of them turned round: what was chosen is rejected, the log-probabilities go with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workbench.errors import IntegrityError
from workbench.packed import PackedPairs, row_hash, rows_digest, write_packed_pairs

FLIPS_FILE: Final = "flips.npy"


def write_turned(
    source: Path, reference: Path, flips: NDArray[np.bool_], meta: Iterable[dict[str, Any]], out: Path
) -> None:
    """Writes packed pairs, flips.npy and logprobs.npz; nothing is computed anew.

    Args:
        source: Packed pairs.
        reference: The reference's log-probabilities of them.
        flips: (N,) which pairs are turned.
        meta: One line of rows.jsonl for each pair, as it stands after the turns; read once.
        out: Where to.

    Raises:
        IntegrityError: The log-probabilities are of other pairs.
    """
    pairs = PackedPairs(source)
    before = np.load(reference / "logprobs.npz", allow_pickle=False)
    if str(before["pairs_digest"]) != pairs.ids_digest():
        raise IntegrityError(
            "the reference log-probabilities are of other pairs; delete the stage's artifact and run again",
            where=str(reference),
        )

    def rows() -> Iterator[tuple[Any, Any, Any]]:
        for index, flip in enumerate(flips.tolist()):
            prompt, chosen, rejected = pairs.row(index)
            yield (prompt, rejected, chosen) if flip else (prompt, chosen, rejected)

    write_packed_pairs(out, rows(), meta)
    np.save(out / FLIPS_FILE, flips, allow_pickle=False)
    np.savez(
        out / "logprobs.npz",
        chosen=np.where(flips, before["rejected"], before["chosen"]),
        rejected=np.where(flips, before["chosen"], before["rejected"]),
        pairs_digest=PackedPairs(out).ids_digest(),
        reference_tensors=before["reference_tensors"],
    )


def train_digests(folder: Path, rows: Sequence[int] | None = None) -> tuple[str, str]:
    """Digests of training pairs as they stand, and with every turn undone: from the ids and flips themselves.

    Args:
        folder: What `write_turned` wrote.
        rows: Which training pairs; None: all.

    Raises:
        IntegrityError: There is not one flip for each pair.
    """
    pairs = PackedPairs(folder)
    flips = np.load(folder / FLIPS_FILE, allow_pickle=False)
    if flips.shape != (len(pairs),):
        raise IntegrityError(f"{len(pairs)} pairs but flips of shape {flips.shape}", where=str(folder))
    picked = pairs.split_rows("train") if rows is None else list(rows)
    restored = (
        row_hash(prompt, rejected, chosen) if flips[row] else row_hash(prompt, chosen, rejected)
        for row, (prompt, chosen, rejected) in ((row, pairs.row(row)) for row in picked)
    )
    return pairs.ids_digest(picked), rows_digest(restored)
