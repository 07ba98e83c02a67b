"""Resampling by prompt: BCa bootstrap intervals and the sign-flip test. Every draw comes from a generator passed in.

The bootstrap draws prompts with replacement and hands the statistic *weights* (how often each row was drawn), so that
a few hundred resamples are a few matrix operations. Percentiles are BCa's, computed with the t quantile of
clusters - 1 degrees of freedom times sqrt(clusters / (clusters - 1)) in place of the normal one, because a plain
bootstrap of few clusters is too narrow. With several run seeds the resamples give the prompt part of the variance, and
the interval is the t interval of variance.py.

Source: Efron 1987 (BCa); Hesterberg 2015, "What teachers should know about the bootstrap" (expanded percentiles).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy import special

from workbench.metrics.estimates import Labels, Values, as_values, group_index
from workbench.metrics.variance import Array, Index, Part, half_width_of, t_quantile
from workbench.types import Estimate

Rows = Mapping[str, Array]
"""Named columns (N, ...), one row a pair or a sample."""

Statistic = Callable[[Rows, Array], Array]
"""(rows, weights (B, N)) -> (B,) or (B, M): the statistic under each of B weightings; NaN where undefined."""

_CELLS = 4_000_000  # weights held at once
_JACKKNIFE_GROUPS = 500
_FLIPS = 10_000
_EXACT_FLIPS_UP_TO = 13  # 2**13 = 8192 sign patterns: fewer than the Monte Carlo draws
_LATTICE = 4096  # largest denominator of the differences for an exact sign-flip test
_LATTICE_CELLS = 1_000_000


def bootstrap_bca_by_cluster(
    statistic: Statistic,
    data: Rows,
    clusters: Labels,
    rng: np.random.Generator,
    n_resamples: int = 500,
    *,
    seeds: Labels | None = None,
    n_unscored: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """95% interval of a statistic by resampling prompts.

    Args:
        statistic: See `Statistic`; must return (B,).
        data: Columns (N, ...) without missing values.
        clusters: (N,) prompt of each row.
        rng: Seeded generator.
        n_resamples: Bootstrap draws.
        seeds: (N,) run seed of each row. With several, the statistic is the mean over seeds of the statistic within
            each (rewards of two runs share no scale), and the interval adds the variance between seeds.
        n_unscored: Rows that were asked for and left out by the caller; passed through.
        bounds: Range of the statistic; the interval is cut to it.

    Returns:
        Estimate with n = prompts; no interval (and the reason in `method`) for one prompt, for a statistic that does
        not vary, or one that is undefined in more than 5% of the resamples.
    """
    found = bootstrap_vector(
        statistic, data, clusters, rng, n_resamples, seeds=seeds, n_unscored=n_unscored, bounds=bounds
    )
    return (
        found[0] if found else Estimate(value=None, low=None, high=None, n=0, n_unscored=n_unscored, method="no rows")
    )


def bootstrap_vector(
    statistic: Statistic,
    data: Rows,
    clusters: Labels,
    rng: np.random.Generator,
    n_resamples: int = 500,
    *,
    seeds: Labels | None = None,
    n_unscored: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[Estimate]:
    """`bootstrap_bca_by_cluster` for a statistic of M numbers (B, M): one Estimate each, from the same resamples."""
    index, names = group_index(clusters)
    if not names:
        return []
    run, runs = group_index([0] * len(index) if seeds is None else seeds)
    n = len(names)

    def evaluate(counts: Array) -> Array:  # (B, n) -> (S, B, M)
        return np.stack([_by_chunk(statistic, data, index, run == s, counts) for s in range(len(runs))])

    by_seed = evaluate(np.ones((1, n)))[:, 0]  # (S, M)
    point = by_seed.mean(axis=0)
    drawn = evaluate(rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64))  # (S, B, M)
    # The jackknife leaves out one prompt, or one of 500 groups of prompts: the acceleration needs no more.
    groups = min(n, _JACKKNIFE_GROUPS)
    left_out = drawn[0, :0]
    if n > 1 and len(runs) == 1:
        left_out = evaluate((np.arange(n) % groups != np.arange(groups)[:, None]).astype(np.float64)).mean(axis=0)
    estimates = []
    for m, value in enumerate(point):
        found = _interval(float(value), by_seed[:, m], drawn[:, :, m], left_out[:, m], n)
        low, high = found.low, found.high
        estimates.append(
            replace(
                found,
                low=None if low is None else max(bounds[0], low),
                high=None if high is None else min(bounds[1], high),
                n_unscored=n_unscored,
            )
        )
    return estimates


def _by_chunk(statistic: Statistic, data: Rows, index: Index, rows: np.ndarray, counts: Array) -> Array:
    """The statistic on the chosen rows under each weighting of the prompts: (B, n) -> (B, M)."""
    part = {name: column[rows] for name, column in data.items()}
    step = max(1, _CELLS // max(1, int(rows.sum())))
    found = [statistic(part, counts[i : i + step][:, index[rows]]) for i in range(0, len(counts), step)]
    return np.concatenate([f[:, None] if f.ndim == 1 else f for f in found])


def _interval(value: float, by_seed: Array, drawn: Array, left_out: Array, n: int) -> Estimate:
    """One statistic with its interval, from its values by seed (S,) and on each resample (S, B)."""
    drawn_ok = drawn[:, np.isfinite(drawn).all(axis=0)]
    asked, several = drawn.shape[1], len(by_seed) > 1
    defined = not math.isnan(value) and n > 1 and drawn_ok.shape[1] >= 0.95 * asked
    prompt, seed = bootstrap_parts(by_seed, drawn_ok, n) if defined else ((0.0, 0.0), (0.0, 0.0))
    estimate = Estimate(
        value=None if math.isnan(value) else value,
        low=None,
        high=None,
        n=n,
        method="",
        prompt_se=math.sqrt(prompt[0]) if defined else None,
        seed_se=math.sqrt(seed[0]) if defined and several else None,
    )
    if math.isnan(value):
        return replace(estimate, method="undefined on these rows")
    if n < 2:
        return replace(estimate, method="one cluster, no interval")
    if not defined:
        missing = asked - drawn_ok.shape[1]
        return replace(estimate, method=f"no interval: undefined in {missing} of {asked} resamples")
    half = half_width_of((prompt, seed)) if several else float(np.ptp(drawn_ok))
    if half <= 1e-12 * max(1.0, abs(value)):
        return replace(estimate, method="degenerate (no variance)")
    if several:
        method = f"bootstrap-t by prompt x {len(by_seed)} seeds, {asked} resamples"
        return replace(estimate, low=value - half, high=value + half, method=method)
    low, high = bca_ends(value, drawn_ok[0], left_out, n)
    return replace(estimate, low=low, high=high, method=f"bca bootstrap by prompt, {asked} resamples")


def bootstrap_parts(by_seed: Array, drawn: Array, n: int) -> tuple[Part, Part]:
    """Variance of the mean over seeds from the draw of prompts and from run seeds, from (S,) and (S, B).

    The same prompts are drawn in every seed, so what the seeds share is their covariance over the resamples; the noise
    of a single seed on top of it is in the variance of the seeds' values, as in variance.py.
    """
    seeds, correction = len(by_seed), n / (n - 1)
    spread = np.atleast_2d(np.cov(drawn))
    if seeds == 1:
        return (float(spread[0, 0]) * correction, n - 1.0), (0.0, 0.0)
    shared = max(float(spread.sum() - np.trace(spread)) / (seeds * (seeds - 1)), 0.0)
    noise = max(float(np.trace(spread)) / seeds - shared, 0.0) / seeds
    between = float(by_seed.var(ddof=1)) / seeds
    between = between if between > 1e-9 * noise else noise * correction
    return (shared * correction, n - 1.0), (between, seeds - 1.0)


def bca_ends(value: float, drawn: Array, left_out: Array, n: int) -> tuple[float, float]:
    """Ends of the 95% BCa interval with expanded percentiles.

    Args:
        value: The statistic on all rows.
        drawn: (B,) finite, the statistic on each resample.
        left_out: (n,) the statistic without each prompt (jackknife), for the acceleration.
        n: Prompts.
    """
    below = float(np.mean(drawn < value) + np.mean(drawn == value) / 2)
    edge = 0.5 / len(drawn)
    bias = float(special.ndtri(min(1 - edge, max(edge, below))))
    left = left_out[np.isfinite(left_out)]
    pull = left.mean() - left if len(left) else np.zeros(1)
    spread = float(np.sum(pull**2)) ** 1.5
    acceleration = float(np.sum(pull**3)) / (6 * spread) if spread > 0 else 0.0
    reach = math.sqrt(n / (n - 1)) * t_quantile(n - 1)
    levels = []
    for z in (bias - reach, bias + reach):
        # Past 1 / acceleration the correction folds back on itself; the plain bias-corrected level is used there.
        bent = 1 - acceleration * z
        levels.append(float(special.ndtr(bias + (z / bent if bent > 0.1 else z))))
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)


def sign_flip_p(differences: Values, rng: np.random.Generator, n_flips: int = _FLIPS) -> float | None:
    """Two-sided mid-p of "the differences are symmetric about 0", by flipping their signs.

    Exact where the differences lie on a lattice (shares of a few samples do: McNemar's binomial test where all have one
    size) and where there are few; Monte Carlo elsewhere, the observed pattern counted in. Mid-p counts half of the
    patterns that tie with the observed sum, so that its level is near the nominal one in spite of ties; differences
    that are all 0 give 1. It depends on neither the order of the prompts nor which arm comes first.

    Args:
        differences: (P,) one number a prompt; None or NaN prompts are left out.
        rng: Seeded generator; unused where the p is exact.
        n_flips: Monte Carlo draws.

    Returns:
        p in (0, 1], or None without a difference.

    Source: Fisher 1935, section 21 (sign flips); Lancaster 1961 (mid-p); Phipson & Smyth 2010 (never 0).
    """
    d = as_values(differences)
    d = d[~np.isnan(d)]
    if not len(d):
        return None
    sizes = np.sort(np.abs(d[d != 0]))
    observed = abs(math.fsum(d))
    tails = _exact_tails(sizes, observed)
    above, equal = tails if tails is not None else _drawn_tails(sizes, observed, rng, n_flips)
    return float(min(1.0, max(2 * (above + equal / 2), math.ldexp(1.0, -min(len(sizes), 1000)))))


def _exact_tails(sizes: Array, observed: float) -> tuple[float, float] | None:
    """Chance that the flipped sum is above, and at, the observed one; None where the sizes are on no small lattice."""
    distinct, counts = np.unique(sizes, return_counts=True)
    steps = [Fraction(float(size)).limit_denominator(_LATTICE) for size in distinct]
    rounded = np.array([float(step) for step in steps])
    if np.any(np.abs(rounded - distinct) > 1e-12 * np.maximum(1.0, distinct)):
        return None
    scale = math.lcm(*(step.denominator for step in steps))
    coins: Counter[int] = Counter()  # sizes that differ by rounding fall together here
    for step, count in zip(steps, counts, strict=True):
        coins[int(step * scale)] += int(count)
    width = sum(size * count for size, count in coins.items())
    if width > _LATTICE_CELLS:
        return None
    # The sum of the flipped-down sizes is a sum of independent coins: the product of their transforms, in one FFT.
    angle = -2j * math.pi * np.arange(width // 2 + 1) / (width + 1)
    transform = np.ones(len(angle), dtype=np.complex128)
    for size, count in sorted(coins.items()):
        transform *= ((1 + np.exp(angle * size)) / 2) ** count
    chance = np.maximum(np.fft.irfft(transform, width + 1), 0.0)
    down = (width - round(observed * scale)) // 2
    return float(chance[:down].sum()), float(chance[down])


def _drawn_tails(sizes: Array, observed: float, rng: np.random.Generator, n_flips: int) -> tuple[float, float]:
    """The same from all patterns where there are few, else by Monte Carlo, the observed pattern being one draw."""
    slack = 1e-9 * float(sizes.sum())
    if len(sizes) <= _EXACT_FLIPS_UP_TO:
        every = (2.0 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1) - 1) @ sizes
        return float(np.mean(every > observed + slack)), float(np.mean(np.abs(every - observed) <= slack))
    above, equal = 0, 1
    rows = max(1, min(n_flips, 2_000_000 // len(sizes)))
    for start in range(0, n_flips, rows):
        signs = 2.0 * rng.integers(0, 2, size=(min(rows, n_flips - start), len(sizes))) - 1
        sums = signs @ sizes
        above += int((sums > observed + slack).sum())
        equal += int((np.abs(sums - observed) <= slack).sum())
    return above / (n_flips + 1), equal / (n_flips + 1)
