"""What a reward could give at each KL with a perfect optimizer: the exponential tilt, from one pool of SFT samples.

The policy that maximizes E[r] - beta KL(policy || reference) is pi_ref exp(r / beta) / Z. N samples of the reference,
weighted w_i = exp(r_i / beta) / sum_j exp(r_j / beta), are samples of it: sum w g estimates any value g under it, and
sum w log(w N) its KL. No optimizer is involved, so two rewards' curves differ in the rewards alone.

Both estimates are ratios, biased by O(1 / N): a candidate stands in its own normalizer. The delete-one jackknife
N t - (N - 1) mean_i t(without i) takes that order out; what is left grows as few candidates carry the weight, and shows
in two figures that decide whether a point is told (`refusal`, and `refusals` for what they make of a curve):

- the effective sample size 1 / sum w^2 of a prompt, its 10th percentile over prompts at least 5;
- KL estimated on halves of the pools differs from that on whole pools by at most 3%: heavy upper tails of a reward
  keep the effective size high exactly because the pool lacks the candidates that should carry the weight.

`benchmarks/tilt.py` measures bias and coverage under this rule; docs/statistics.md has the table. What bias is left
moves a point along its curve (KL and value come out low together) far more than off it.

Source: Korbak et al. 2022 (https://arxiv.org/abs/2205.11275) for the tilt as optimum; Owen 2013, "Monte Carlo theory,
methods and examples", section 9.2 (self-normalized weights) and 9.3 (effective size); Quenouille 1956 (jackknife).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.metrics.estimates import Array

MIN_ESS = 5.0
ESS_QUANTILE = 0.1
MAX_HALVING_SHIFT = 0.03
KL_TARGETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
AFTER = "refused: a point at less KL is"
EDGE = "refused: the next point is, and at the edge chance picks the points that pass"
_BISECTIONS = 50
_LEAST = -700.0  # exp of less is 0, and a pool without its best candidate would have no weight at all


@dataclass(frozen=True, kw_only=True)
class Tilted:
    """One reward at one beta, prompt by prompt.

    Args:
        seq_kl: (P,) jackknifed KL from the reference, nats; a single prompt's may be negative.
        values: One (P,) for each value asked for: its jackknifed mean under the tilt.
        gains: The same less the mean of the pool, which is the reference's: the difference is the jackknifed one.
        ess: (P,) effective sample size, between 1 and N.
        half_kl: (P,) KL by the same estimator on halves of the pool, their mean.
    """

    seq_kl: Array
    values: tuple[Array, ...]
    gains: tuple[Array, ...]
    ess: Array
    half_kl: Array


def tilt(reward: Array, values: Sequence[Array], beta: float) -> Tilted:
    """The tilt of P pools by one reward.

    Args:
        reward: (P, N) of each candidate, in the reward's unit; constants that differ by prompt do not matter.
        values: Each (P, N): what is asked about the tilted policy, of the same candidates. NaN = unscored.
        beta: > 0, in the reward's unit per nat.

    Raises:
        ValueError: Fewer than 4 candidates, shapes that differ, beta not above 0, or a reward that is not finite.
    """
    if reward.ndim != 2 or reward.shape[1] < 4 or any(one.shape != reward.shape for one in values):
        raise ValueError(f"expected pools (P, N >= 4) of one shape, got {[one.shape for one in (reward, *values)]}")
    if not beta > 0 or not np.isfinite(reward).all():
        raise ValueError(f"expected beta > 0 (got {beta}) and finite rewards")
    kl, found, ess = _jackknifed(reward / beta, values)
    halves = [_jackknifed(reward[:, start::2] / beta, ())[0] for start in (0, 1)]
    return Tilted(
        seq_kl=kl,
        values=tuple(found),
        gains=tuple(one - value.mean(axis=1) for one, value in zip(found, values, strict=True)),
        ess=ess,
        half_kl=np.mean(halves, axis=0),
    )


def _jackknifed(score: Array, values: Sequence[Array]) -> tuple[Array, list[Array], Array]:
    """KL (P,), value (P,) of each, and effective size (P,) of weights proportional to exp(score), score (P, N)."""
    size = score.shape[1]
    score = np.maximum(score - score.max(axis=1, keepdims=True), _LEAST)
    mass = np.exp(score)
    others = _sum_of_others(mass)
    total = mass.sum(axis=1)

    def corrected(whole: Array, without: Array) -> Array:
        made: Array = size * whole - (size - 1) * without.mean(axis=1)
        return made

    def ratio(values: Array) -> tuple[Array, Array]:
        return (mass * values).sum(axis=1) / total, _sum_of_others(mass * values) / others

    mean, means = ratio(score)
    kl = corrected(mean - np.log(total / size), means - np.log(others / (size - 1)))
    return kl, [corrected(*ratio(one)) for one in values], total**2 / (mass * mass).sum(axis=1)


def _sum_of_others(terms: Array) -> Array:
    """(P, N): the sum over a row without each of its terms; sums of what is there, so that nothing cancels."""
    zero = np.zeros((len(terms), 1))
    before = np.concatenate([zero, np.cumsum(terms[:, :-1], axis=1)], axis=1)
    after = np.concatenate([zero, np.cumsum(terms[:, :0:-1], axis=1)], axis=1)[:, ::-1]
    found: Array = before + after
    return found


def plug_in_kl(reward: Array, beta: float) -> float:
    """Mean over prompts of sum w log(w N), nats: falls with beta, and never passes log N."""
    score = reward / beta
    score = score - score.max(axis=1, keepdims=True)
    mass = np.exp(score)
    total = mass.sum(axis=1)
    return float(np.mean((mass * score).sum(axis=1) / total - np.log(total / reward.shape[1])))


def betas(reward: Array, targets: Sequence[float] = KL_TARGETS) -> list[float]:
    """Betas at which the pools' plug-in KL is each target below log N - 1, falling; empty for a constant reward.

    Args:
        reward: (P, N) of one run seed: one beta is one optimum, whatever the prompt.
        targets: Nats, rising.
    """
    spread = float(reward.std(axis=1).mean())
    if spread <= 1e-9 * max(1.0, float(np.abs(reward).max())):
        return []
    found = []
    for target in (one for one in targets if one <= math.log(reward.shape[1]) - 1):
        low, high = math.log(1e-4 * spread), math.log(1e4 * spread)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if plug_in_kl(reward, math.exp(middle)) > target else (low, middle)
        found.append(math.exp((low + high) / 2))
    return found


def joined(parts: Sequence[Tilted]) -> Tilted:
    """Several run seeds' prompts below each other."""
    return Tilted(
        seq_kl=np.concatenate([one.seq_kl for one in parts]),
        values=tuple(np.concatenate(rows) for rows in zip(*(one.values for one in parts), strict=True)),
        gains=tuple(np.concatenate(rows) for rows in zip(*(one.gains for one in parts), strict=True)),
        ess=np.concatenate([one.ess for one in parts]),
        half_kl=np.concatenate([one.half_kl for one in parts]),
    )


def reward_at(curve: Sequence[Tilted], kl: float, which: int = 0) -> Array | None:
    """One seed's gain at a KL, prompt by prompt: linear in sqrt(KL) between the points on either side.

    Each prompt's number is the mean's influence function plus the mean, so that their mean is the curve's value and
    their spread holds what the draw of prompts does to both gain and KL: differences of two curves are paired.

    Args:
        curve: The reward's points that were told, KL rising, on the same prompts.
        kl: Nats.
        which: Place of the gain in `gains`.

    Returns:
        (P,), or None outside of the curve: nothing is extrapolated.
    """
    u = np.sqrt(np.maximum([float(one.seq_kl.mean()) for one in curve], 1e-12))
    wanted = math.sqrt(kl)
    if len(u) < 2 or np.any(np.diff(u) <= 0) or not u[0] <= wanted <= u[-1]:
        return None
    right = min(max(int(np.searchsorted(u, wanted)), 1), len(u) - 1)
    pair, ends = curve[right - 1 : right + 1], u[right - 1 : right + 1]
    means = [float(one.gains[which].mean()) for one in pair]
    slope = (means[1] - means[0]) / (ends[1] - ends[0])
    share = (wanted - ends[0]) / (ends[1] - ends[0])
    found: Array = sum(
        weight * (one.gains[which] - slope * (one.seq_kl - end**2) / (2 * end))
        for weight, one, end in zip((1 - share, share), pair, ends, strict=True)
    )
    return found


def lower_ess(tilted: Tilted) -> float:
    """10th percentile over prompts of the effective sample size."""
    return float(np.quantile(tilted.ess, ESS_QUANTILE))


def refusal(tilted: Tilted) -> str | None:
    """Why a point is not told, or None."""
    size = lower_ess(tilted)
    if size < MIN_ESS:
        return f"refused: effective sample size {size:.1f} at the 10th percentile of prompts, expected {MIN_ESS:g}"
    whole, half = float(tilted.seq_kl.mean()), float(tilted.half_kl.mean())
    if not abs(whole - half) <= MAX_HALVING_SHIFT * whole:
        return f"refused: KL {whole:.3f} on whole pools but {half:.3f} on halves, expected a difference of at most 3%"
    return None


def refusals(points: Sequence[Tilted]) -> list[str | None]:
    """Why each point of a curve is not told, or None.

    A curve ends before its first refused point, and one more point is left out there: at the edge the pools decide
    which points pass, and those that do are the ones whose tails happened to look even.

    Args:
        points: KL rising.
    """
    found = [refusal(one) for one in points]
    end = next((place for place, why in enumerate(found) if why is not None), len(found))
    if end < len(found):
        found[end:] = [why or AFTER for why in found[end:]]
        found[max(end - 1, 0) : end] = [EDGE] * min(end, 1)
    return found
