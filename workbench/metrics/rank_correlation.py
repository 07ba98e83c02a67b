"""Spearman's correlation under weightings: of plain values, and of margins, whose pairs are taken in both orders.

A pair has no natural order, so each is taken both ways; the correlation does not depend on which response stands first.
Among {x, -x} the midrank of x is sign(x) (2 #{|x_j| < |x|} + #{|x_j| = |x|}) but for a constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from workbench.metrics.estimates import Array, Labels
from workbench.metrics.resampling import Rows, bootstrap_vector
from workbench.types import Estimate


def midranks(values: Array, weights: Array) -> Array:
    """(M,) values -> (B, M) twice the midrank of each, less a constant, in the sample of each weighting (B, M)."""
    ordered = np.sort(values)
    mass = np.cumsum(weights[:, np.argsort(values)], axis=1)
    mass = np.concatenate([np.zeros((len(weights), 1)), mass], axis=1)
    below, up_to = (mass[:, np.searchsorted(ordered, values, side=side)] for side in ("left", "right"))
    ranks: Array = below + up_to
    return ranks


def signed_ranks(margins: Array, weights: Array) -> Array:
    """(M,) margins -> (B, M) centered midranks among the pairs in both orders, under each weighting (B, M)."""
    ranks: Array = np.sign(margins) * midranks(np.abs(margins), weights)
    return ranks


def spearman(x: Array, y: Array, weights: Array) -> Array:
    """Of plain values: (M,) x (M,) -> (B,) under each weighting (B, M); NaN where one is constant."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)

    def centered(values: Array) -> Array:
        ranks = midranks(values, weights)
        around: Array = ranks - (weights * ranks).sum(axis=1, keepdims=True) / total
        return around

    return _correlation(centered(x), centered(y), weights, least=1e-9)


def spearman_of_margins(x: Array, y: Array, weights: Array) -> Array:
    """(M,) x (M,) -> (B,) under each weighting (B, M); NaN where all margins of one are 0."""
    return _correlation(signed_ranks(x, weights), signed_ranks(y, weights), weights)


def _correlation(rx: Array, ry: Array, weights: Array, least: float = 0.0) -> Array:
    """Of centered ranks; NaN where their scale is at most `least`, what rounding leaves of none."""
    scale = np.sqrt((weights * rx * rx).sum(axis=1) * (weights * ry * ry).sum(axis=1))
    some = scale > least
    found: Array = np.where(some, (weights * rx * ry).sum(axis=1) / np.where(some, scale, 1.0), math.nan)
    return found


def _partial(xl: Array, xg: Array, gl: Array) -> Array:
    """Correlation of x and l with g held, from the three plain ones; NaN where g decides one of them."""
    scale = np.sqrt(np.maximum((1 - xg**2) * (1 - gl**2), 0.0))
    found: Array = np.where(scale > 1e-9, (xl - xg * gl) / np.where(scale > 1e-9, scale, 1.0), math.nan)
    return np.clip(found, -1.0, 1.0)


def length_correlations(
    columns: Mapping[str, Array],
    prompts: Labels,
    rng: np.random.Generator,
    *,
    seeds: Labels | None = None,
    n_resamples: int = 200,
) -> dict[str, Estimate]:
    """Rank correlations of margins with the difference in length, all from the same resamples.

    Args:
        columns: "x" and "y" (M,) margins of the two rewards, "length" (M,) difference in tokens, and "gold" (M,)
            where there is one. Rows with a NaN are left out and counted.
        prompts, seeds: (M,).

    Returns:
        "x", "y", and with gold also "gold", "x given gold", "y given gold" (partial rank correlations).
    """
    keep = ~np.any(np.isnan(np.stack(list(columns.values()))), axis=0)
    names = ["x", "y", *(["gold", "x given gold", "y given gold"] if "gold" in columns else [])]

    def statistic(rows: Rows, weights: Array) -> Array:
        ranks = {name: signed_ranks(column, weights) for name, column in rows.items()}

        def r(a: str, b: str) -> Array:
            return _correlation(ranks[a], ranks[b], weights)

        found = [r("x", "length"), r("y", "length")]
        if "gold" in ranks:
            gl = r("gold", "length")
            found += [gl, *(_partial(r(name, "length"), r(name, "gold"), gl) for name in ("x", "y"))]
        return np.stack(found, axis=1)

    estimates = bootstrap_vector(
        statistic,
        {name: column[keep] for name, column in columns.items()},
        [p for p, k in zip(prompts, keep, strict=True) if k],
        rng,
        n_resamples,
        seeds=None if seeds is None else [s for s, k in zip(seeds, keep, strict=True) if k],
        n_unscored=int((~keep).sum()),
        bounds=(-1.0, 1.0),
    )
    missing = Estimate(value=None, low=None, high=None, n=0, n_unscored=int((~keep).sum()), method="no rows")
    return dict(zip(names, estimates or [missing] * len(names), strict=True))
