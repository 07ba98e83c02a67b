"""Over-optimization: where gold parts from the proxy, and Gao's forms fitted to gold against d = sqrt(KL).

Best-of-n: R(d) = d (alpha - beta d). RL: R(d) = d (alpha - beta log d). R is gold less the reference's on the same
prompts. beta > 0 alone is not over-optimization: best-of-n by the gold reward itself has it too. What says so is the
drop from the best point, whose interval holds for all points at once, because the best of K noisy points looks better
than it is; the Goodhart flag asks for the proxy's rise over the same stretch, within the same family. The reference is
one of these points: an arm may turn before its first checkpoint. It is none of the fit's, whose forms start there.

All intervals carry the draw of prompts and, where there are several, of run seeds (`lines`).

Source: Gao, Schulman & Hilton 2022, "Scaling laws for reward model overoptimization", eqs. 1-2; Rafailov et al. 2024,
https://arxiv.org/abs/2406.02900 (the RL form for direct alignment); Romano & Wolf 2005 (simultaneous intervals by the
bootstrap of the largest deviation); Hsu 1984 (which points may be the best).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from workbench.metrics.estimates import Array
from workbench.metrics.fits import Form, fit, peak_kl, refusal
from workbench.metrics.lines import (
    MIN_PROMPTS,
    RESAMPLES,
    Line,
    contenders,
    estimate,
    joint,
    means,
    prompt_draws,
    simultaneous,
)
from workbench.metrics.variance import Part, half_width_of
from workbench.results_base import E
from workbench.results_curves import Overoptimization

Truth = Literal["gold", "judge", "ensemble"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The reference's samples, in the line's seeds and prompts.

    Args:
        gold, proxy: (S, P) means of a prompt's samples.
        gold_square, proxy_square: (S, P) means of their squares, for the standard deviation over samples; None where
            a gain in standard deviations means nothing.
    """

    gold: Array
    proxy: Array
    gold_square: Array | None = None
    proxy_square: Array | None = None


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Means on all prompts and on each draw: (S, B + 1, K), the start's (S, B + 1).

    `deviation`: (gold's, proxy's); `started`: the first point is the start itself.
    """

    kl: Array
    gold: Array
    proxy: Array
    start_gold: Array
    start_proxy: Array
    deviation: tuple[Array, Array] | None
    prompts: int
    left_out: int
    started: bool

    def path(self) -> tuple[Array, Array, Array]:
        """KL, gold and proxy from the reference on, which is best-of-n's point at n = 1 where the line has it."""
        if self.started:
            return self.kl, self.gold, self.proxy
        start = (np.zeros_like(self.start_gold), self.start_gold, self.start_proxy)
        kl, gold, proxy = (
            np.concatenate([first[:, :, None], rest], axis=2)
            for first, rest in zip(start, (self.kl, self.gold, self.proxy), strict=True)
        )
        return kl, gold, proxy


def overoptimization(
    line: Line,
    start: Start,
    forms: tuple[Form, ...],
    rng: np.random.Generator,
    *,
    truth: Truth = "gold",
    resamples: int = RESAMPLES,
) -> list[Overoptimization]:
    """Fit, peak, drop, onset and gap of one arm's points: a row a form, equal but for the fit.

    Args:
        line: Its points, the reference not among them; `gold` is whatever stands for the truth.
        start: The reference.
        forms: Gao's forms to fit.
        rng: Seeded generator.
        truth: What `gold` is.
        resamples: Draws of the prompts.

    Returns:
        Rows of results.json; what is refused has value None and the reason in `method`.

    Raises:
        ValueError: Shapes do not match, or the line has no gold.
    """
    if line.gold is None:
        raise ValueError(f"{line.arm}: nothing stands for the truth")
    shape = line.kl.shape[:2]
    if start.gold.shape != shape or start.proxy.shape != shape:
        raise ValueError(f"{line.arm}: expected the start in shape {shape}, got {start.gold.shape}")
    keep = np.isfinite(np.concatenate([line.kl, line.gold, line.proxy], axis=2)).all(axis=(0, 2))
    keep &= np.isfinite(start.gold).all(axis=0) & np.isfinite(start.proxy).all(axis=0)
    drawn = _draw(line, start, keep, prompt_draws(max(1, int(keep.sum())), rng, resamples))
    shared: dict[str, Any] = _turn(drawn, rng) | {
        "arm": line.arm,
        "selector": line.selector,
        "truth": truth,
        "gap": _gap(drawn),
        "points": len(line.labels),
    }
    return [Overoptimization(form=form, **shared, **_fitted(form, drawn, rng)) for form in forms]


def _draw(line: Line, start: Start, keep: npt.NDArray[np.bool_], draws: Array) -> _Drawn:
    assert line.gold is not None

    def squares(mean: Array, square: Array | None) -> Array | None:
        if square is None:
            return None
        first, second = (means(table[:, keep, None], draws)[:, :, 0] for table in (mean, square))
        return np.sqrt(np.maximum(second - first**2, 0.0))

    if not keep.any():
        draws, keep = draws[:, :0], keep
    spreads = (squares(start.gold, start.gold_square), squares(start.proxy, start.proxy_square))
    return _Drawn(
        kl=np.maximum(means(line.kl[:, keep], draws), 0.0),
        gold=means(line.gold[:, keep], draws),
        proxy=means(line.proxy[:, keep], draws),
        start_gold=means(start.gold[:, keep, None], draws)[:, :, 0],
        start_proxy=means(start.proxy[:, keep, None], draws)[:, :, 0],
        deviation=None if spreads[0] is None or spreads[1] is None else (spreads[0], spreads[1]),
        prompts=int(keep.sum()),
        left_out=int((~keep).sum()),
        started=not line.kl[:, :, 0].any(),
    )


# ------------------------------------------------------------------------------------------------ the turn


def _turn(drawn: _Drawn, rng: np.random.Generator) -> dict[str, Any]:
    """Drop, proxy since the best point, Goodhart flag and onset, all from one family of simultaneous intervals."""
    _, gold, proxy = drawn.path()
    seeds, _, points = gold.shape
    if drawn.prompts < MIN_PROMPTS or points < 2:
        needed = f"{MIN_PROMPTS} prompts and 2 points needed"
        none = _none(drawn, f"refused: {drawn.prompts} prompts, {points} points; {needed}")
        return {"drop_from_peak": none, "proxy_since_peak": none, "onset_kl": none, "goodhart": None}
    falls = gold[:, :, :-1] - gold[:, :, -1:]
    rises = proxy[:, :, -1:] - proxy[:, :, :-1]
    mean, draws, parts = joint(np.concatenate([falls, rises], axis=2), drawn.prompts, rng)
    ends = points - 1
    if not draws[:, :ends].std(axis=0).any():
        none = _none(drawn, "degenerate (no variance)")
        return {"drop_from_peak": none, "proxy_since_peak": none, "onset_kl": none, "goodhart": None}
    # The drop alone is a family of K - 1; the flag claims two things at once, so its family has both.
    reach = simultaneous(draws[:, :ends], mean[:ends], parts[:ends])
    best = int(np.argmax(np.append(mean[:ends], 0.0)))  # the last point falls by 0
    by = f"by prompt{f' x {seeds} seeds' if seeds > 1 else ''}"
    best_of = f"best of {points} points (the start too)"
    drop = E(
        value=max(0.0, float(mean[:ends].max())),
        low=max(0.0, float((mean[:ends] - reach).max())),
        high=max(0.0, float((mean[:ends] + reach).max())),
        n=drawn.prompts,
        n_unscored=drawn.left_out,
        method=f"paired, {best_of}; simultaneous over points, {len(draws)} resamples {by}",
    )
    both = simultaneous(draws, mean, parts)
    low = mean - both
    since = _none(drawn, "the last point is the best")
    flag = False
    if best < ends:
        since = E(
            value=float(mean[ends + best]),
            low=float(low[ends + best]),
            high=float((mean + both)[ends + best]),
            n=drawn.prompts,
            n_unscored=drawn.left_out,
            method=f"paired; simultaneous with gold's falls over points, {len(draws)} resamples {by}",
        )
        flag = bool(low[best] > 0 and low[ends + best] > 0)
    onset = _onset(drawn, rng, best, rising=best < ends and bool(low[ends + best] > 0))
    return {"drop_from_peak": drop, "proxy_since_peak": since, "onset_kl": onset, "goodhart": flag}


def _onset(drawn: _Drawn, rng: np.random.Generator, best: int, *, rising: bool) -> E:
    """Which points may be gold's best: those that no other point beats, simultaneous over all pairs of points."""
    kl, gold, _ = drawn.path()
    points = gold.shape[2]
    may, level_with_later = contenders(gold, drawn.prompts, rng)
    if best == points - 1 or may[-1] == points - 1:
        return _none(drawn, "no turn shown: the last point may be the best")
    if not rising:
        return _none(drawn, "the proxy does not rise from gold's best point on beyond noise")
    at = kl[:, 0].mean(axis=0)
    low, high = sorted((float(at[level_with_later[0]]), float(at[may].max())))
    return E(
        value=float(at[best]),
        low=min(low, float(at[best])),
        high=max(high, float(at[best])),
        n=drawn.prompts,
        n_unscored=drawn.left_out,
        method=f"KL of the points that may be the best; {points * (points - 1) // 2} pairs of points",
    )


def _gap(drawn: _Drawn) -> E | None:
    if drawn.deviation is None:
        return None
    if drawn.prompts < MIN_PROMPTS:
        return _none(drawn, f"refused: {drawn.prompts} prompts, {MIN_PROMPTS} needed")
    gold_sd, proxy_sd = drawn.deviation
    if not ((gold_sd > 0).all() and (proxy_sd > 0).all()):
        return _none(drawn, "refused: SFT samples do not vary")
    gains = (drawn.proxy[:, :, -1] - drawn.start_proxy) / proxy_sd - (drawn.gold[:, :, -1] - drawn.start_gold) / gold_sd
    return estimate(gains, drawn.prompts, "in standard deviations of SFT samples", n_unscored=drawn.left_out)


# ------------------------------------------------------------------------------------------------ the fit


def _fitted(form: Form, drawn: _Drawn, rng: np.random.Generator) -> dict[str, Any]:
    """Coefficients, peak and residuals of one form, or the reason why it is not fitted."""
    if reason := refusal(form, np.sqrt(drawn.kl[:, 0]), drawn.prompts, MIN_PROMPTS):
        none = _none(drawn, reason)
        return {"alpha": none, "beta": none, "peak_kl": none}
    gain = drawn.gold - drawn.start_gold[:, :, None]
    coefficients, residuals = fit(form, np.sqrt(drawn.kl), gain)  # (S, B + 1, 2), (S, B + 1, K)
    how = f"least squares over {gain.shape[2]} points, KL redrawn with gold"
    alpha, beta = (estimate(coefficients[:, :, i], drawn.prompts, how, n_unscored=drawn.left_out) for i in (0, 1))
    mean, draws, parts = joint(residuals, drawn.prompts, rng)
    spread = draws.std(axis=0)
    varies = spread > 1e-9
    p = None
    if varies.any():
        observed = float(np.abs(mean[varies] / spread[varies]).max())
        largest = np.abs((draws - mean)[:, varies] / spread[varies]).max(axis=1)
        # Few prompts or seeds make the spread itself uncertain: the statistic is brought to a normal's scale first.
        worst = int(np.flatnonzero(varies)[np.argmax(np.abs(mean[varies] / spread[varies]))])
        observed *= _normal_scale(parts[worst])
        p = float((1 + (largest >= observed).sum()) / (1 + len(largest)))
    return {
        "alpha": alpha,
        "beta": beta,
        "peak_kl": _peak(form, coefficients, drawn, rng),
        "residual_rms": float(np.sqrt(np.mean(mean**2))),
        "lack_of_fit_p": p,
    }


def _normal_scale(parts: tuple[Part, Part]) -> float:
    """A normal's 97.5% quantile over that of a sum of these parts."""
    error = math.sqrt(parts[0][0] + parts[1][0])
    return float(special.ndtri(0.975)) / (half_width_of(parts) / error) if error > 0 else 1.0


def _peak(form: Form, coefficients: Array, drawn: _Drawn, rng: np.random.Generator) -> E:
    """KL at which the fitted gold peaks, where that lies within the KL that every run seed reached."""
    largest = float(drawn.kl[:, 0].max(axis=1).min())
    mean, draws, parts = joint(coefficients, drawn.prompts, rng)
    value = float(peak_kl(form, mean))
    if not 0 < value <= largest:
        where = "the fit does not turn" if math.isinf(value) else f"the fit peaks at {value:.3g}"
        return _none(drawn, f"no peak within the KL reached ({largest:.3g}): {where}")
    drawn_peaks = np.sort(peak_kl(form, draws))
    # Percentiles with the t quantile of the coefficients' parts in place of the normal one.
    reach = float(special.ndtri(0.975)) / min(_normal_scale(part) for part in parts)
    low, high = (float(np.quantile(drawn_peaks, special.ndtr(z), method="inverted_cdf")) for z in (-reach, reach))
    open_above = high > largest  # no fit is read beyond the KL reached, its interval neither
    seeds = len(coefficients)
    by = f"by prompt{f' x {seeds} seeds' if seeds > 1 else ''}"
    told = ", open above: beyond the KL reached" if open_above else ""
    return E(
        value=value,
        low=min(low, value),
        high=None if open_above else max(high, value),
        n=drawn.prompts,
        n_unscored=drawn.left_out,
        method=f"percentile bootstrap {by}, {len(draws)} resamples{told}",
    )


def refused(arm: str, form: Form, reason: str) -> Overoptimization:
    """The row of an arm of which nothing can be said, with the reason."""
    none = E(value=None, low=None, high=None, n=0, method=reason)
    return Overoptimization(arm=arm, form=form, alpha=none, beta=none, peak_kl=none, drop_from_peak=none)


def _none(drawn: _Drawn, reason: str) -> E:
    return E(value=None, low=None, high=None, n=drawn.prompts, n_unscored=drawn.left_out, method=reason)
