"""Variance of a ratio mean of values that are crossed by prompt and run seed, and the quantile that goes with it.

Prompts alone: CR2 residuals (each prompt's summed residual divided by sqrt(1 - its weight share)) with the degrees of
freedom of Bell and McCaffrey, which are clusters - 1 when the prompts weigh the same.

Prompts and seeds: a run seed redraws the training and the samples, so its part is the variance of the seed means /
seeds, noise of single (prompt, seed) cells included; the prompt part is the clustered variance less that noise, which
is the mean square of what remains when prompt and seed means are taken out. Balanced, these are the mean squares of a
two-way layout without replication.

Two parts with different degrees of freedom have no exact quantile (Behrens and Fisher's problem). Cochran and Cox's is
the mean of Student's quantiles, weighted by the parts' variances; it covers .945 to .98, too much where both parts
matter. From 4 degrees of freedom of the seed part on (five run seeds) it is calibrated: the level is chosen at which
the interval would cover 95% if the variances were the estimated ones, which leaves .945 to .953 in theory. Below, the
estimates are too uncertain for that (.91 with two seeds), and the wide interval stays. Satterthwaite's degrees of
freedom would give .941 with five seeds and .87 with two. `benchmarks/coverage.py` has the figures.

Source: Bell & McCaffrey 2002, Imbens & Kolesar 2016 (CR2 and its df); Searle, Casella & McCulloch 1992, section 4.5
(two-way mean squares); Cochran & Cox 1957, section 4.14; Beran 1987 (calibration at the estimate); Satterthwaite 1946.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.optimize import brentq

from workbench.results_base import SEEDS_FOR_METHODS

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Part = tuple[float, float]
"""(variance, degrees of freedom)"""

CONFIDENCE = 0.95
TAIL = 1 - (1 - CONFIDENCE) / 2
_ENOUGH_DF = SEEDS_FOR_METHODS - 1


def t_quantile(df: float, tail: float = TAIL) -> float:
    """Quantile of Student's t (two-sided 95% unless told); `df` may be fractional or infinite."""
    return float(special.stdtrit(df, tail)) if math.isfinite(df) else float(special.ndtri(tail))


def effective_df(parts: tuple[Part, ...]) -> float:
    """Satterthwaite's degrees of freedom of a sum of independent parts; infinite without variance."""
    spread = sum(v * v / df for v, df in parts if v > 0)
    return float(sum(v for v, _ in parts) ** 2 / spread) if spread > 0 else math.inf


def half_width_of(parts: tuple[Part, ...], tail: float = TAIL) -> float:
    """Standard error of the sum of independent parts times its quantile (see the top of this file).

    Args:
        parts: (variance, degrees of freedom) of each.
        tail: Probability below the upper end.
    """
    used = _with_variance(parts)
    if _calibrates(used):
        # In logits of the tail, where the function is next to linear.
        asked, top = 2 * (1 - tail), float(special.logit(tail)) + 2.0
        tail = float(special.expit(brentq(lambda x: _missed(used, special.expit(x)) - asked, -1e-9, top, xtol=1e-6)))
    return _cochran(used, tail)


def two_sided_p(parts: tuple[Part, ...], distance: float) -> float:
    """1 minus the confidence at which the half-width is `distance`.

    Args:
        parts: (variance, degrees of freedom) of each; one of them with variance.
        distance: Of the estimate from the null, >= 0.
    """
    used = _with_variance(parts)
    low, high = 0.0, 0.5  # one tail
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cochran(used, 1 - middle) > distance else (low, middle)
    return _missed(used, 1 - high) if _calibrates(used) else 2 * high


def _with_variance(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts that matter: a variance of a millionth of the largest moves no digit that is shown."""
    largest = max((v for v, _ in parts), default=0.0)
    return tuple((v, df) for v, df in parts if v > 1e-6 * largest)


def _calibrates(parts: tuple[Part, ...]) -> bool:
    return len(parts) > 1 and round(min(df for _, df in parts)) >= _ENOUGH_DF


def _cochran(parts: tuple[Part, ...], tail: float) -> float:
    """Cochran and Cox's half-width."""
    total = sum(v for v, _ in parts)
    return sum(v * t_quantile(df, tail) for v, df in parts) / math.sqrt(total) if parts else 0.0


def _missed(parts: tuple[Part, ...], tail: float) -> float:
    """Chance that Cochran and Cox's interval misses the truth if the variances are those of two `parts`."""
    (v1, df1), (v2, df2) = parts
    (x1, w1), (x2, w2) = _chi_squared(df1), _chi_squared(df2)
    first, second = v1 * x1[:, None], v2 * x2
    total = first + second
    half = (first * t_quantile(df1, tail) + second * t_quantile(df2, tail)) / np.sqrt(total)
    return float(w1 @ special.ndtr(-half / math.sqrt(v1 + v2)) @ w2) * 2


@lru_cache(maxsize=1024)
def _chi_squared(df: float) -> tuple[Array, Array]:
    """Nodes and weights of chi squared / df: Gauss-Legendre in its logarithm."""
    few = df < 30  # else close to normal: fewer nodes on a shorter range do
    edge = 1e-11 if few else 1e-8
    low, high = (math.log(f(df / 2, edge) * 2 / df) for f in (special.gammaincinv, special.gammainccinv))
    nodes, weights = _legendre(32 if few else 16)
    s = low + (nodes + 1) / 2 * (high - low)
    exponent = df / 2 * (s - np.exp(s))
    mass = weights * np.exp(exponent - exponent.max())
    return np.exp(s), mass / mass.sum()


@cache
def _legendre(nodes: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(nodes)


def minimum_detectable_effect(
    se: float, *, df: float = math.inf, quantile: float | None = None, power: float = 0.8
) -> float:
    """Smallest true difference that a two-sided 5% test finds with the given power.

    The t statistic of a true difference has a noncentral t distribution; its noncentrality is solved for.

    Args:
        se: Standard error of the difference; the result has its unit.
        df: Degrees of freedom of that standard error.
        quantile: Critical value of the test; None = Student's of `df`.
        power: Chance to find it.
    """
    critical = t_quantile(df) if quantile is None else quantile
    if not math.isfinite(df) or df > 1e6:
        return (critical + float(special.ndtri(power))) * se
    return float(special.nctdtrinc(df, 1 - power, critical)) * se


def cr2(residuals: Array, shares: Array, group: Index) -> Part:
    """CR2 variance of a ratio mean and its Bell-McCaffrey degrees of freedom; NaN and 0 for a single cluster.

    Args:
        residuals: (N,) w (y - mean) / sum(w).
        shares: (N,) w / sum(w).
        group: (N,) cluster of each value.
    """
    h: Array = np.bincount(group, weights=shares).astype(np.float64)
    r: Array = np.bincount(group, weights=residuals).astype(np.float64)
    r, h = r[h > 0], h[h > 0]
    room = 1 - h
    if len(h) < 2 or room.min() <= 1e-12:  # one cluster carries all the weight
        return math.nan, 0.0
    # Two working models: independent values (a prompt's total varies as its share), and prompts that are one value
    # repeated (as its share squared). The truth lies between; the smaller df is kept.
    return float(np.sum(r * r / room)), min(_satterthwaite(h, h), _satterthwaite(h, h * h))


def moment_df(residuals: Array, shares: Array, group: Index) -> float:
    """Degrees of freedom of the CR2 variance from the fourth moments of the clusters themselves.

    Near the edge of a share few prompts hold all that varies, and the variance is no better known than from those few.

    Source: Pan & Wall 2002.
    """
    h: Array = np.bincount(group, weights=shares).astype(np.float64)
    square = np.bincount(group, weights=residuals)[h > 0] ** 2 / np.maximum(1 - h[h > 0], 1e-12)
    spread = float(square @ square - square.sum() ** 2 / len(square))
    return max(1.0, 2 * float(square.sum()) ** 2 / spread) if spread > 0 else math.inf


def _satterthwaite(h: Array, v: Array) -> float:
    """tr(W)^2 / tr(W^2) of the CR2 quadratic form when cluster totals have variances `v` and shares `h`, in O(G)."""
    a, total = 1 / (1 - h), v.sum()
    cross = 2 * h * v - h * h * total
    trace = np.sum(a * (v - cross))
    hh, hv, vv = np.sum(a * h * h), np.sum(a * h * v), np.sum(a * v * v)
    off = 2 * hh * vv + (total * hh) ** 2 + 2 * hv * hv - 4 * total * hh * hv
    return float(trace**2 / (np.sum(a * a * (v * v - 2 * v * cross)) + off))


def cell_noise(residuals: Array, shares: Array, prompt: Index, seed: Index) -> float:
    """Variance of the mean that single (prompt, seed) cells add: what prompt and seed means do not explain.

    Args:
        residuals, shares: (N,) as in `cr2`.
        prompt, seed: (N,) labels from 0.

    Returns:
        0 where every cell is needed for the two means (each prompt seen in one seed alone).
    """
    cell = prompt * (int(seed.max()) + 1) + seed
    found, first, place = np.unique(cell, return_index=True, return_inverse=True)
    h = np.bincount(place, weights=shares)
    rest = np.bincount(place, weights=residuals) / h  # mean of the cell less the mean of all
    sides = [(side, np.bincount(side, weights=h)) for side in (prompt[first], seed[first])]
    left = len(found) - sum(int((mass > 0).sum()) for _, mass in sides) + 1
    if left <= 0:
        return 0.0
    scale = float(np.abs(rest).max())
    for _ in range(50):  # balanced layouts are done after the first round
        before = rest
        for side, mass in sides:
            rest = rest - (np.bincount(side, weights=h * rest) / np.where(mass > 0, mass, 1.0))[side]
        if float(np.abs(rest - before).max()) <= 1e-9 * scale:
            break
    if float(np.abs(rest).max()) <= 1e-12 * scale:
        return 0.0
    return float(np.sum((h * rest) ** 2)) * len(found) / left


def variance_parts(
    residuals: Array, shares: Array, prompt: Index, seed: Index | None
) -> tuple[Part | None, Part | None]:
    """Variance of a ratio mean from the draw of prompts (None below two) and of run seeds (None below two)."""
    by_prompt, prompt_df = cr2(residuals, shares, prompt)
    if math.isnan(by_prompt):
        return None, None
    by_seed, seed_df = (math.nan, 0.0) if seed is None else cr2(residuals, shares, seed)
    if seed is None or math.isnan(by_seed):
        return (by_prompt, prompt_df), None
    noise = cell_noise(residuals, shares, prompt, seed)
    # Seed means that agree but for rounding do so by chance: the noise of the cells is there all the same.
    by_seed = by_seed if by_seed > max(1e-9 * noise, 1e-20 * by_prompt) else noise
    return (max(by_prompt - noise, 0.0), prompt_df), (by_seed, seed_df)
