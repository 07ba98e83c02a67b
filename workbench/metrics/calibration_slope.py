"""Calibration slope: the logistic regression of label on margin, and the temperature that undoes it.

P(first preferred) = sigmoid(slope * margin). 1 is calibrated, below 1 overconfident (margins too large), above 1
underconfident. There is no intercept: pairs stand in random orientation, so it is 0 by symmetry, and the fit does not
depend on the orientation. The temperature is 1 / slope on validation pairs.

With several run seeds the slope is the mean over seeds of each one's own (two runs share no scale). Its interval is
that of a ratio mean: at its solution the fit is a weighted mean of working responses
slope + (label - p) / (margin p (1 - p)) with weights margin^2 p (1 - p), whose clustered variance is the sandwich.

Source: Cox 1958 (calibration slope); Liang & Zeger 1986 (sandwich); Bell & McCaffrey 2002 (its small-sample form, see
variance.py); Guo et al. 2017 (temperature).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special
from scipy.optimize import brentq

from workbench.metrics.estimates import Array, Labels, Values, as_values, cluster_mean, interval_of_mean
from workbench.types import Estimate

MIN_PROMPTS = 30
MIN_EACH_WAY = 10  # pairs with the label against the margin, and with it: a slope hangs on both


def fitted_slope(margins: Array, labels: Array) -> float | None:
    """Maximum likelihood slope of labels (M,) in [0, 1] on margins (M,); None where it is not finite."""
    scale = float(np.sqrt(np.mean(margins**2))) if len(margins) else 0.0
    if scale == 0:
        return None
    x = margins / scale

    def score(slope: float) -> float:
        return float(x @ (labels - special.expit(slope * x)))

    reach = 1.0
    while score(reach) > 0 or score(-reach) < 0:
        reach *= 2
        if reach > 1e4:  # the margins separate the labels
            return None
    return float(brentq(score, -reach, reach, xtol=1e-10)) / scale


def slopes_by_seed(margins: Values, labels: Values, seeds: Labels | None = None) -> dict[object, float] | str:
    """The slope of each run seed, or why there is none."""
    x, y = as_values(margins), as_values(labels)
    run = np.zeros(len(x)) if seeds is None else np.asarray(seeds)
    keep = ~np.isnan(x) & ~np.isnan(y)
    found: dict[object, float] = {}
    for seed in np.unique(run[keep]).tolist():
        rows = keep & (run == seed)
        for_it = np.sign(x[rows]) * (y[rows] - 0.5)
        least = int(min((for_it > 0).sum(), (for_it < 0).sum()))
        if least < MIN_EACH_WAY:
            return f"undefined: {least} pairs one way, a slope needs {MIN_EACH_WAY} with and against the margin"
        slope = fitted_slope(x[rows], y[rows])
        if slope is None:
            return "undefined: the margins separate the labels"
        found[seed] = slope
    return found or "no scored pair"


def calibration_slope(margins: Values, labels: Values, clusters: Labels, seeds: Labels | None = None) -> Estimate:
    """Slope of the label on the margin with a cluster-robust interval.

    Args:
        margins: (M,) first minus second, nats; None or NaN = unscored.
        labels: (M,) 1 first preferred, 0 second, 0.5 a tie.
        clusters: (M,) prompt of each pair.
        seeds: (M,) run seed of each pair, where several.

    Returns:
        Estimate; null with the reason where prompts or pairs against the margin are too few.
    """
    x, y = as_values(margins), as_values(labels)
    keep = ~np.isnan(x) & ~np.isnan(y)
    missing = int((~keep).sum())
    prompts = [c for c, k in zip(clusters, keep, strict=True) if k]
    distinct = len(set(prompts))
    found = slopes_by_seed(x, y, seeds)
    if isinstance(found, str) or distinct < MIN_PROMPTS:
        reason = found if isinstance(found, str) else f"undefined: {distinct} prompts, a slope needs {MIN_PROMPTS}"
        return Estimate(value=None, low=None, high=None, n=distinct, n_unscored=missing, method=reason)
    run = np.zeros(len(x)) if seeds is None else np.asarray(seeds)
    x, y, run = x[keep], y[keep], run[keep]
    slope = np.array([found[seed] for seed in run.tolist()])
    # Where sigmoid saturates the information is below any other pair's; it only must not be 0 / 0.
    spread = np.maximum(special.expit(slope * x) * special.expit(-slope * x), 1e-12)
    information = x * x * spread
    response = slope + (y - special.expit(slope * x)) / np.where(x == 0, 1.0, x * spread)
    weights = information.copy()
    for seed in np.unique(run):
        weights[run == seed] /= information[run == seed].sum()  # every run seed weighs the same
    mean = cluster_mean(response, prompts, weights, None if seeds is None else run.tolist())
    estimate = interval_of_mean(mean)
    return Estimate(
        value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, n_unscored=missing,
        method=f"logistic slope, sandwich {estimate.method}", prompt_se=estimate.prompt_se, seed_se=estimate.seed_se,
    )  # fmt: skip


def temperature_of(slope: Estimate) -> Estimate:
    """1 / slope with its interval turned over; null where the slope is not above 0."""
    if slope.value is None or slope.value <= 0:
        reason = slope.method if slope.value is None else f"undefined: the slope is {slope.value:.3g}, not above 0"
        return Estimate(value=None, low=None, high=None, n=slope.n, n_unscored=slope.n_unscored, method=reason)
    inside = slope.low is not None and slope.low > 0 and slope.high is not None
    return Estimate(
        value=1 / slope.value,
        low=1 / slope.high if inside and slope.high is not None else None,
        high=1 / slope.low if inside and slope.low is not None else None,
        n=slope.n,
        n_unscored=slope.n_unscored,
        method=f"1 / {slope.method}" + ("" if inside else "; open: the slope's interval reaches 0"),
    )


def cooled(margins: Array, slopes: dict[object, float], seeds: Labels | None = None) -> Array | None:
    """Margins (M,) divided by each run seed's temperature; None where a seed has none (its slope is not above 0)."""
    run = [0.0] * len(margins) if seeds is None else list(seeds)
    if any(not math.isfinite(slope) or slope <= 0 for slope in slopes.values()) or not set(run) <= set(slopes):
        return None
    cooler: Array = margins * np.array([slopes[seed] for seed in run])
    return cooler
