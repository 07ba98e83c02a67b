"""Agreement beyond chance of two annotators (Cohen) and of several (Fleiss).

Labels fall into three categories: the second response, a tie, the first. `mirrored` is for pairs whose two responses
have no order of their own (see krippendorff.py): chance then comes from even marginals, and without ties kappa is
2 agreement - 1.

Source: Cohen 1960; Fleiss 1971. Units with different numbers of labels: Fleiss's formula with each unit's own number.
"""

from __future__ import annotations

import math

import numpy as np

from workbench.metrics.estimates import Array

SECOND, TIE, FIRST = range(3)


def categories(value: Array) -> Array:
    """(L,) preference for the first response in [0, 1] -> (L, 3) one-hot over second, tie, first."""
    which = np.where(value > 0.5, FIRST, np.where(value < 0.5, SECOND, TIE))
    found: Array = np.eye(3)[which]
    return found


def _chance(one: Array, other: Array, mirrored: bool) -> Array:
    """Chance agreement of two distributions over categories (B, C), each normalized."""
    if mirrored:
        one, other = (one + one[:, ::-1]) / 2, (other + other[:, ::-1]) / 2
    found: Array = (one * other).sum(axis=1)
    return found


def _beyond(agreement: Array, chance: Array) -> Array:
    found: Array = np.where(
        chance < 1 - 1e-12, (agreement - chance) / np.where(chance < 1 - 1e-12, 1 - chance, 1.0), math.nan
    )
    return found


def cohen_kappa(a: Array, b: Array, weights: Array, *, mirrored: bool = False) -> Array:
    """Two annotators on the units that both labeled.

    Args:
        a, b: (N, C) one-hot.
        weights: (B, N).

    Returns:
        (B,); NaN where chance agreement is complete.
    """
    total = np.maximum(weights.sum(axis=1), 1e-300)
    agreement = weights @ (a * b).sum(axis=1) / total
    return _beyond(agreement, _chance(weights @ a / total[:, None], weights @ b / total[:, None], mirrored))


def fleiss_kappa(counts: Array, weights: Array, *, mirrored: bool = False) -> Array:
    """Several annotators.

    Args:
        counts: (N, C) labels of each unit by category; units with fewer than two labels do not count.
        weights: (B, N).

    Returns:
        (B,); NaN where chance agreement is complete or no unit has two labels.
    """
    labels = counts.sum(axis=1)
    several = labels > 1
    within = np.where(several, ((counts**2).sum(axis=1) - labels) / np.maximum(labels * (labels - 1), 1), 0.0)
    used = weights * several
    units = used.sum(axis=1)
    share = used @ counts
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    found = _beyond(used @ within / np.maximum(units, 1e-300), _chance(share, share, mirrored))
    return np.where(units > 0, found, math.nan)
