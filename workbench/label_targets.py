"""What a training label is, as two numbers of a pair: the target and the margin that every arm's loss takes.

    target = (1 - 2 smoothing) share + smoothing    share: of the (weighted) annotators who prefer the chosen response
    margin = margin_scale * target_margin           an offset in log-odds, from the data

Packed pairs without a targets file have hard labels: target 1, margin 0. numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError, IntegrityError
from workbench.packed import PackedPairs, row_hash, rows_digest

TARGETS_FILE: Final = "targets.npz"
TARGET, MARGIN = "target", "margin"


def preferring_share(annotations: Sequence[Mapping[str, Any]], rule: str, weights: Mapping[str, float]) -> float:
    """Share of the annotators who prefer the chosen response, in [0, 1]; 1 for a pair that nobody signed.

    Args:
        annotations: {"annotator", "prefers_first"} each, in terms of (chosen, rejected).
        rule: "majority": the data's own choice stands, whatever the shares; "soft": each annotator counts 1;
            "weighted": each counts `weights[annotator]`.
        weights: Above 0; used by "weighted" alone.

    Raises:
        DataError: An annotator has no weight.
    """
    if rule == "majority" or not annotations:
        return 1.0
    names = [one["annotator"] for one in annotations]
    if rule == "weighted" and (missing := sorted(set(names) - set(weights))):
        raise DataError(
            f"data.labels.weights has no weight for {', '.join(missing[:10])}, who labeled training pairs; expected "
            f"one above 0 for each annotator (it names {', '.join(sorted(weights)) or 'none'})"
        )
    counts = [weights[name] if rule == "weighted" else 1.0 for name in names]
    kept = [count for count, one in zip(counts, annotations, strict=True) if one["prefers_first"]]
    return float(sum(kept) / sum(counts))


def smoothed(share: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """(N,) targets: with probability `smoothing` a label is the other one.

    Source: https://ericmitchell.ai/cdpo.pdf, eq. 4; Szegedy et al. 2016, section 7 (https://arxiv.org/abs/1512.00567).
    """
    return np.asarray((1.0 - 2.0 * smoothing) * share + smoothing)


def noisy(pair_ids: Sequence[str], probability: float, seed: int) -> NDArray[np.bool_]:
    """(N,) which labels are turned: by a hash of seed and pair id, so that a larger probability turns those and more.

    Neither the order nor the number of pairs changes which they are, so a subset has its share of the same turns.
    """
    chance = [int.from_bytes(hashlib.sha256(f"{seed}/noise/{name}".encode()).digest()[:8]) / 2**64 for name in pair_ids]
    return np.asarray(np.array(chance, dtype=np.float64) < probability)


def write_targets(folder: Path, target: NDArray[Any], margin: NDArray[Any]) -> None:
    """Writes targets.npz: (N,) each, one number for each pair."""
    np.savez(folder / TARGETS_FILE, target=target.astype(np.float32), margin=margin.astype(np.float32))


def read_targets(folder: Path, rows: int) -> dict[str, NDArray[np.float32]]:
    """{"target", "margin"}, (N,) each, beside packed pairs; {} where their labels are hard.

    Raises:
        IntegrityError: There is not one for each pair, or one is no probability.
    """
    if not (folder / TARGETS_FILE).exists():
        return {}
    with np.load(folder / TARGETS_FILE, allow_pickle=False) as found:
        values = {name: np.asarray(found[name], dtype=np.float32) for name in (TARGET, MARGIN)}
    target, margin = values[TARGET], values[MARGIN]
    fine = target.shape == margin.shape == (rows,) and np.isfinite(margin).all()
    if not fine or not ((target >= 0) & (target <= 1)).all():
        raise IntegrityError(
            f"{TARGETS_FILE} does not hold a probability and a finite margin for each of {rows} pairs; delete the "
            "stage's artifact and run again",
            where=str(folder),
        )
    return values


def labels_digest(
    hashes: Iterable[str], targets: Iterable[float] | None = None, margins: Iterable[float] | None = None
) -> str:
    """Digest of a set of labeled pairs: their ids, chosen first, with float32 target and margin (default 1 and 0)."""
    rows = list(hashes)
    target = np.ones(len(rows), "<f4") if targets is None else np.fromiter(targets, "<f4", len(rows))
    margin = np.zeros(len(rows), "<f4") if margins is None else np.fromiter(margins, "<f4", len(rows))
    return rows_digest(
        hashlib.sha256(f"{row}/{p.tobytes().hex()}/{m.tobytes().hex()}".encode()).hexdigest()
        for row, p, m in zip(rows, target, margin, strict=True)
    )


def expected_digest(folder: Path, rows: Sequence[int]) -> str:
    """`labels_digest` of some rows of packed pairs, from the files: what a trainer on them must have consumed."""
    pairs = PackedPairs(folder)
    values = read_targets(folder, len(pairs))
    hashes = [row_hash(*pairs.row(row)) for row in rows]
    if not values:
        return labels_digest(hashes)
    return labels_digest(hashes, values[TARGET][list(rows)], values[MARGIN][list(rows)])
