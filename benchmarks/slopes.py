"""Figures of repeated measurements: means with t intervals, exponents of power laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

FEWEST = 3


def of_repeats(values: Sequence[float], *, geometric: bool = False) -> dict[str, Any]:
    """Mean of repeats with a 95% t interval; below three repeats there is none, and the method says so.

    Args:
        values: One figure per repeat.
        geometric: Means and intervals of logarithms, for ratios.
    """
    x = np.log(values) if geometric else np.asarray(values, float)
    back = math.exp if geometric else float
    kind = "geometric mean" if geometric else "mean"
    found: dict[str, Any] = {"value": back(x.mean()), "low": None, "high": None, "n": len(x), "n_unscored": 0}
    if len(x) < FEWEST:
        return found | {"method": f"{kind} of {len(x)} run(s): too few for an interval"}
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    ends = {"low": back(x.mean() - half), "high": back(x.mean() + half)}
    return found | ends | {"method": f"{kind} of {len(x)} runs, t interval"}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost on log size: 1 is linear, less is better."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
