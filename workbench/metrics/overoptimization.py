"""Over-optimization: Gao's forms fitted to gold reward against d = sqrt(KL), and the drop after the best point.

Best-of-n: R(d) = d (alpha - beta d). RL: R(d) = d (alpha - beta log d). R is gold less the reference's gold on the
same prompts. Both forms are linear in (alpha, beta), so the least-squares fit is the mean of one fit a prompt, and the
intervals of alpha and beta are those of means (KL taken as known). beta > 0 alone is not over-optimization: best-of-n
by the gold reward itself has it too. What says so is the drop, whose interval holds for all points at once, because
the best of K noisy points looks better than it is.

Source: Gao, Schulman & Hilton 2022, "Scaling laws for reward model overoptimization", eqs. 1-2; Romano & Wolf 2005
(simultaneous intervals by the bootstrap of the largest deviation).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from workbench.metrics.estimates import Array, Labels, mean_by_cluster, t_quantile
from workbench.results_base import E
from workbench.results_curves import Overoptimization
from workbench.types import Estimate

Form = Literal["bon", "rl"]
MIN_POINTS = 4
MIN_PROMPTS = 8
MIN_SPREAD = 2.0  # largest d over smallest d: below it the two terms of the form cannot be told apart


def overoptimization(
    arm: str,
    form: Form,
    kl: npt.ArrayLike,
    gold: npt.ArrayLike,
    reference_gold: npt.ArrayLike,
    prompts: Labels,
    rng: np.random.Generator,
    *,
    seed: int | None = None,
    n_resamples: int = 1000,
) -> Overoptimization:
    """Fit, peak and drop of one arm's points in training order (best-of-n: rising n).

    Args:
        arm: Its label.
        form: Gao's form for this kind of arm.
        kl: (K,) nats at each point; a slightly negative estimate counts as 0.
        gold: (P, K) mean gold of each prompt at each point; NaN = unscored: such a prompt is left out and counted.
        reference_gold: (P,) mean gold of the reference's samples.
        prompts: (P,) distinct prompts.
        rng: Seeded generator.
        seed: Run seed that the points belong to.
        n_resamples: Bootstrap draws.

    Returns:
        results.Overoptimization; what is refused has value None and the reason in `method`.

    Raises:
        ValueError: Shapes do not match.
    """
    values, start, at = (np.asarray(v, dtype=np.float64) for v in (gold, reference_gold, kl))
    if (
        values.ndim != 2
        or start.shape != (len(values),)
        or at.shape != (values.shape[1],)
        or len(prompts) != len(values)
    ):
        raise ValueError(
            f"expected gold (P, K), reference_gold (P,), kl (K,), got {values.shape}, {start.shape}, {at.shape}"
        )
    keep = np.isfinite(values).all(axis=1) & np.isfinite(start)
    left_out = int((~keep).sum())
    names = [name for name, k in zip(prompts, keep, strict=True) if k]
    values, start, d = values[keep], start[keep], np.sqrt(np.maximum(at, 0.0))
    share = np.full(max(1, len(names)), 1 / max(1, len(names)))
    counts = rng.multinomial(len(names), share, size=n_resamples).astype(np.float64)
    drop = _drop(values, counts, left_out)
    if reason := _refusal(d, len(names)):
        none = _refused(reason, len(names), left_out)
        return Overoptimization(arm=arm, form=form, alpha=none, beta=none, peak_kl=none, drop_from_peak=drop, seed=seed)
    fits = (values - start[:, None]) @ np.linalg.pinv(_design(form, d)).T  # (P, 2)
    alpha, beta = (_counted(mean_by_cluster(fits[:, i], names), left_out) for i in (0, 1))
    peak = _peak(form, fits, counts, float(d.max()) ** 2, left_out)
    return Overoptimization(arm=arm, form=form, alpha=alpha, beta=beta, peak_kl=peak, drop_from_peak=drop, seed=seed)


def _design(form: Form, d: Array) -> Array:
    """(K, 2): R = alpha d - beta d^2, or alpha d - beta d log d (0 at d = 0)."""
    second = d * d if form == "bon" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -second], axis=1)


def _refusal(d: Array, prompts: int) -> str | None:
    moved = np.unique(np.round(d[d > 0], 6))
    if prompts < MIN_PROMPTS:
        return f"refused: {prompts} prompts scored at every point, at least {MIN_PROMPTS} needed"
    if len(moved) < MIN_POINTS:
        return f"refused: {len(moved)} points with KL above 0, at least {MIN_POINTS} needed"
    if moved[-1] < MIN_SPREAD * moved[0]:
        return f"refused: sqrt(KL) spans {moved[0]:.3g} to {moved[-1]:.3g}, a factor of {MIN_SPREAD:g} needed"
    return None


def _peak_kl(form: Form, fits: Array) -> Array:
    """(..., 2) coefficients -> KL at the maximum of the form; inf where it never turns, 0 where it only falls."""
    alpha, beta = fits[..., 0], fits[..., 1]
    turns = beta > 0
    ratio = alpha / np.where(turns, beta, 1.0)
    d = ratio / 2 if form == "bon" else np.exp(np.minimum(ratio - 1, 300.0))
    d = np.where(form == "bon", np.maximum(d, 0.0), d)
    peak: Array = np.where(turns, d * d, math.inf)
    return peak


def _peak(form: Form, fits: Array, counts: Array, largest: float, left_out: int) -> E:
    """KL at which the fitted gold peaks, where that lies within the KL that was reached."""
    prompts = len(fits)
    value = float(_peak_kl(form, fits.mean(axis=0)))
    if not 0 < value <= largest:
        where = "the fit does not turn" if math.isinf(value) else f"the fit peaks at {value:.3g}"
        return _refused(f"no peak within the KL reached ({largest:.3g}): {where}", prompts, left_out)
    drawn = np.sort(_peak_kl(form, counts @ fits / prompts))
    reach = math.sqrt(prompts / (prompts - 1)) * t_quantile(prompts - 1)
    low, high = (float(np.quantile(drawn, special.ndtr(z), method="inverted_cdf")) for z in (-reach, reach))
    open_above = high > 1e6 or math.isinf(high)
    return E(
        value=value,
        low=low,
        high=None if open_above else high,
        n=prompts,
        n_unscored=left_out,
        method=f"percentile bootstrap by prompt, {len(drawn)} resamples{', open above' if open_above else ''}",
    )


def _drop(values: Array, counts: Array, left_out: int) -> E:
    """Mean gold at the best point less that at the last, interval simultaneous over the points."""
    prompts, points = values.shape
    if prompts < MIN_PROMPTS or points < 2:
        return _refused(
            f"refused: {prompts} prompts, {points} points; 8 prompts and 2 points needed", prompts, left_out
        )
    falls = values[:, :-1] - values[:, -1:]  # (P, K - 1)
    mean, error = falls.mean(axis=0), falls.std(axis=0, ddof=1) / math.sqrt(prompts)
    if not (error > 0).any():
        return _refused("degenerate (no variance)", prompts, left_out)
    # The largest deviation over the points, re-found in every resample: the peak is picked anew each time.
    deviation = np.abs(counts @ falls / prompts - mean) / np.where(error > 0, error, 1.0)
    reach = float(np.quantile(deviation.max(axis=1), 0.95)) * math.sqrt(prompts / (prompts - 1))
    best = int(np.argmax(mean))
    return E(
        value=max(0.0, float(mean[best])),
        low=max(0.0, float((mean - reach * error).max())),
        high=max(0.0, float((mean + reach * error).max())),
        n=prompts,
        n_unscored=left_out,
        method=f"paired, best of {points} points; simultaneous over points, {len(counts)} resamples by prompt",
    )


def refused(arm: str, form: Form, reason: str) -> Overoptimization:
    """The row of an arm of which nothing can be said, with the reason."""
    none = _refused(reason, 0, 0)
    return Overoptimization(arm=arm, form=form, alpha=none, beta=none, peak_kl=none, drop_from_peak=none)


def _refused(reason: str, prompts: int, left_out: int) -> E:
    return E(value=None, low=None, high=None, n=prompts, n_unscored=left_out, method=reason)


def _counted(estimate: Estimate, left_out: int) -> E:
    return E.of(estimate).model_copy(update={"n_unscored": left_out})
