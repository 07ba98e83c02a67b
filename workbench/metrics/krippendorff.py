"""Krippendorff's alpha: 1 less the observed disagreement over the one that chance would give.

    alpha = 1 - (n - 1) sum_ck o_ck d_ck / sum_ck n_c n_k d_ck

o_ck are coincidences of the values c and k within units, each unit's weighted by 1 / (its labels - 1); n_c their sums;
d is 0 or 1 (nominal), the squared difference of values (interval) or of their mid-ranks (ordinal). Units with one label
say nothing about agreement and are left out; missing labels are no problem.

Where a pair's two responses have no order of their own (chosen and rejected: which is which comes from the labels
themselves), each unit stands for itself and its mirror image: chance is then taken from marginals that are even.
Without that, labels that were turned so that the majority is always "chosen" look as if agreement came from the
marginals.

Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability"; Hayes & Krippendorff 2007.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from workbench.metrics.estimates import Array, Index

Level = Literal["nominal", "ordinal", "interval"]
MOST_GRADES = 21


def unit_counts(unit: Index, value: Array, units: int) -> tuple[Array, Array]:
    """How often each unit got each value.

    Args:
        unit: (L,) unit of each label.
        value: (L,) finite.
        units: How many units there are.

    Returns:
        (units, V) counts, and the V different values in order.
    """
    values, place = np.unique(value, return_inverse=True)
    counts = np.zeros((units, len(values)))
    np.add.at(counts, (unit, place), 1.0)
    return counts, values


def coincidences(counts: Array) -> Array:
    """(N, V) counts -> (N, V, V) coincidences of each unit; all 0 for a unit with fewer than two labels."""
    labels = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, np.arange(counts.shape[1]), np.arange(counts.shape[1])] -= counts
    found: Array = np.where(labels > 1, 1 / np.maximum(labels - 1, 1), 0.0)[:, None, None] * pairs
    return found


def alpha(coincident: Array, values: Array, level: Level, *, mirrored: bool = False) -> Array:
    """Alpha of summed coincidences.

    Args:
        coincident: (B, V, V), for example weights (B, N) @ `coincidences`.
        values: (V,) in order; used by the interval metric. With `mirrored` symmetric about their middle.
        level: Metric.
        mirrored: Units have no order of their own; see the top of this file.

    Returns:
        (B,); NaN where nothing could disagree.
    """
    o = (coincident + coincident[:, ::-1, ::-1]) / 2 if mirrored else coincident
    n_c = o.sum(axis=2)
    n = n_c.sum(axis=1)
    if level == "nominal":
        apart = np.broadcast_to(1.0 - np.eye(len(values)), o.shape)
    else:
        scale = np.cumsum(n_c, axis=1) - n_c / 2 if level == "ordinal" else np.broadcast_to(values, n_c.shape)
        apart = (scale[:, :, None] - scale[:, None, :]) ** 2
    observed = (o * apart).sum(axis=(1, 2))
    expected = (n_c[:, :, None] * n_c[:, None, :] * apart).sum(axis=(1, 2))
    found: Array = np.where(expected > 0, 1 - (n - 1) * observed / np.where(expected > 0, expected, 1.0), math.nan)
    return found


def interval_moments(unit: Index, value: Array, units: int) -> Array:
    """(units, 4) labels, sum, sum of squares and disagreement of each unit with two labels or more, for continuous
    values, of which there are too many for a table of coincidences."""
    labels, total = np.bincount(unit, minlength=units).astype(float), np.bincount(unit, value, units)
    squares = np.bincount(unit, value**2, units)
    apart = 2 * (labels * squares - total**2) / np.maximum(labels - 1, 1)
    moments: Array = np.stack([labels, total, squares, apart], axis=1) * (labels > 1)[:, None]
    return moments


def alpha_of_moments(moments: Array, *, middle: float | None = None) -> Array:
    """Interval alpha of summed `interval_moments` (B, 4) -> (B,).

    Args:
        middle: The value that stands for "equal", where units have no order of their own; None: they have.
    """
    n, total, squares, observed = moments.T
    if middle is None:
        expected = 2 * (n * squares - total**2)
    else:
        expected = 2 * n * (squares - 2 * middle * total + n * middle**2)
    found: Array = np.where(
        expected > 1e-12, 1 - (n - 1) * observed / np.where(expected > 1e-12, expected, 1.0), math.nan
    )
    return found
