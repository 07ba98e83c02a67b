"""The difference of two means, as of one reward's accuracy on two sets of prompts, with its interval.

Each mean is a ratio mean; their difference is one sum of residuals with opposite signs. Grouped by prompt it is paired
where the sets share prompts and independent where they do not; grouped by run seed it is paired, because both sets are
scored by the models of the same run.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.metrics.estimates import Array, group_index
from workbench.metrics.variance import half_width_of, variance_parts
from workbench.types import Estimate


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Values (N,) with their prompts and run seeds (None with one run seed); NaN = unscored."""

    values: Array
    prompts: Sequence[Hashable]
    seeds: Sequence[Hashable] | None = None


def difference_of_means(one: Sample, other: Sample, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean of `one` less mean of `other`; n = distinct prompts of both.

    Args:
        one, other: The two sets; both with run seeds, or neither.
        bounds: Range of the difference; the interval is cut to it.
    """
    keep = [~np.isnan(side.values) for side in (one, other)]
    missing = sum(int((~k).sum()) for k in keep)
    if not all(k.any() for k in keep):
        return Estimate(value=None, low=None, high=None, n=0, n_unscored=missing, method="no scored value")
    residuals, shares, prompts, seeds = [], [], [], []
    value = 0.0
    for side, kept, sign in ((one, keep[0], 1.0), (other, keep[1], -1.0)):
        y = side.values[kept]
        value += sign * float(y.mean())
        residuals.append(sign * (y - y.mean()) / len(y))
        shares.append(np.full(len(y), 0.5 / len(y)))
        prompts += [p for p, k in zip(side.prompts, kept, strict=True) if k]
        seeds += [s for s, k in zip(side.seeds or [0] * len(kept), kept, strict=True) if k]
    prompt, names = group_index(prompts)
    run, runs = group_index(seeds)
    stacked = np.concatenate(residuals)
    parts = variance_parts(stacked, np.concatenate(shares), prompt, run if len(runs) > 1 else None)
    by = "prompt" if len(runs) < 2 else f"prompt x {len(runs)} seeds"
    used = tuple(part for part in parts if part is not None)
    variance = sum(v for v, _ in used)
    if not used or variance <= 0:
        reason = "one cluster, no interval" if not used else "degenerate (no variance)"
        return Estimate(value=value, low=None, high=None, n=len(names), n_unscored=missing, method=reason)
    half = half_width_of(used)
    return Estimate(
        value=value,
        low=max(bounds[0], value - half),
        high=min(bounds[1], value + half),
        n=len(names),
        n_unscored=missing,
        method=f"cluster-t of a difference by {by}",
        prompt_se=None if parts[0] is None else math.sqrt(parts[0][0]),
        seed_se=None if parts[1] is None else math.sqrt(parts[1][0]),
    )
