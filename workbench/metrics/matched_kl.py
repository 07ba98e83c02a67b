"""Gold at matched KL: each arm's points joined to one curve of reward by KL, read off at the same KLs, and its area.

The curve of one run seed. Checkpoints whose estimated KL falls back are pooled with those before them (isotonic
regression of KL on training order), so that a plateau counts as one point and not as a choice among noisy ones; between
points the reward is linear in sqrt(KL), as every known form starts (Gao et al. 2022). Nothing is read beyond the last
point: an arm ends where the lower end of its largest KL lies in every run seed. An arm that came back by more than half
of its way has no one reward per KL and is refused.

A form that bends as Gao's does, d (alpha - beta d) with d = sqrt(KL), lies above the straight line between points d0
and d1 by beta (d - d0)(d1 - d), which no resampling of prompts sees. So nothing is read where that product is above
what it is half-way between points .5 apart, and no mean over KLs where its mean is.

Best-of-n's KL is the bound log n - (n - 1)/n. It is exact where no two candidates tie and no text has a probability
worth counting against 1/n; each atom of mass m at rank F lowers it by what Jensen's inequality says, which the pool
estimates (`best_of_n.bound_slack`). So best-of-n stands at most that far right of where it belongs.

Source: Gao, Schulman & Hilton 2022; Barlow et al. 1972 (pool adjacent violators); Beirami et al. 2024,
https://arxiv.org/abs/2401.01879, theorem 3.1 (the bound, and when it is exact); Mroueh 2024,
https://arxiv.org/abs/2406.05883 (the same for continuous rewards).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from workbench.metrics.estimates import Array
from workbench.metrics.lines import MIN_PROMPTS, RESAMPLES, Line, PromptSet, estimate, means, prompt_draws
from workbench.results_base import E
from workbench.results_curves import FrontierArea, MatchedKL

MIN_REACH = 0.05  # nats: below it every arm is the SFT
MAX_RETURN = 0.5  # of the largest KL
MAX_GAP = 0.5  # in sqrt(KL), between points of which a straight line may be read half-way
AREA_NODES = 65
NICE_KLS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0, 200.0, 300.0)


def pooled(kl: Array, *rewards: Array) -> tuple[Array, ...]:
    """KL made non-decreasing in training order, and rewards averaged over the points that this puts together.

    Args:
        kl: (B, K) nats; negative estimates count as 0.
        rewards: (B, K) each.

    Returns:
        The same shapes.
    """
    at = np.maximum(kl, 0.0)
    rows, points = at.shape
    total = np.concatenate([np.zeros((rows, 1)), np.cumsum(at, axis=1)], axis=1)
    # Isotonic regression by its min-max formula: max over i <= k of min over j >= k of the mean of points i to j.
    fit = np.full((rows, points), -math.inf)
    for k in range(points):
        for i in range(k + 1):
            from_i = (total[:, k + 1 :] - total[:, i : i + 1]) / np.arange(k + 1 - i, points + 1 - i)
            fit[:, k] = np.maximum(fit[:, k], from_i.min(axis=1))
    starts = np.ones((rows, points), dtype=bool)
    starts[:, 1:] = np.diff(fit, axis=1) > 1e-12
    block = np.cumsum(starts, axis=1) - 1 + np.arange(rows)[:, None] * points
    count = np.bincount(block.ravel(), minlength=rows * points)
    found = [fit]
    for reward in rewards:
        sums = np.bincount(block.ravel(), weights=reward.ravel(), minlength=rows * points)
        found.append((sums / np.maximum(count, 1))[block])
    return tuple(found)


def read_at(kl: Array, reward: Array, at: Array) -> Array:
    """Reward at given KLs, linear in sqrt(KL) between points; beyond the ends the end's own.

    Args:
        kl: (B, K) non-decreasing in each row.
        reward: (B, K).
        at: (M,) nats, or (B, M): others in each row.

    Returns:
        (B, M).
    """
    u, wanted = np.sqrt(kl), np.sqrt(np.atleast_2d(at))
    last = u.shape[1] - 1
    right = np.clip((u[:, :, None] <= wanted[:, None, :]).sum(axis=1), min(1, last), last)
    left = np.maximum(right - 1, 0)
    u0, u1 = np.take_along_axis(u, left, 1), np.take_along_axis(u, right, 1)
    r0, r1 = np.take_along_axis(reward, left, 1), np.take_along_axis(reward, right, 1)
    width = u1 - u0
    share = np.clip(np.where(width > 0, (wanted - u0) / np.where(width > 0, width, 1.0), 1.0), 0.0, 1.0)
    found: Array = r0 + share * (r1 - r0)
    return found


def area_weights(reach: float) -> tuple[Array, Array]:
    """(M,) KLs from 0 to `reach` and weights whose sum with a curve's rewards is its mean over KL.

    The nodes are even in u = sqrt(KL); between them the reward is linear in u, so that d KL = 2 u du is integrated
    exactly.
    """
    u = np.linspace(0.0, math.sqrt(reach), AREA_NODES)
    a, b = u[:-1], u[1:]
    # Integral of 2 u times the hat functions of each interval.
    whole, rising = b**2 - a**2, (2 * (b**3 - a**3) / 3 - a * (b**2 - a**2)) / (b - a)
    weights = np.zeros(AREA_NODES)
    weights[:-1] += whole - rising
    weights[1:] += rising
    return u**2, weights / reach


class Curves:
    """Curves of several lines with their draws: what gold is at a KL, over a range, and by how much two arms differ.

    Args:
        lines: One an arm (best-of-n: as many n as one likes); points in training order, from the SFT on.
        rng: Seeded generator.
        resamples: Draws of the prompts.
    """

    def __init__(self, lines: Sequence[Line], rng: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.lines: dict[str, Line] = {}
        self.refused: dict[str, str] = {}
        self.reach: dict[str, float] = {}
        self._curves: dict[str, list[tuple[Array, Array]]] = {}  # a run seed each: KL and reward (B + 1, K)
        self._draws: dict[tuple[PromptSet, tuple[str, ...]], Array] = {}
        seeded = {name: np.random.default_rng(rng.integers(2**63)) for name in ("validation", "test")}
        for line in (one.scored() for one in lines):
            self.lines[line.arm] = line
            if reason := _unfit(line):
                self.refused[line.arm] = reason
                continue
            where = (line.prompt_set, line.prompts)
            if where not in self._draws:
                self._draws[where] = prompt_draws(len(line.prompts), seeded[line.prompt_set], resamples)
            kl, reward = means(line.kl, self._draws[where]), means(line.reward, self._draws[where])
            curves = [pooled(a, b) for a, b in zip(kl, reward, strict=True)]
            self._curves[line.arm] = [(fit, gain) for fit, gain in curves]
            # The end of the line where a few prompts less would not have moved it in.
            self.reach[line.arm] = min(float(np.quantile(fit[:, -1], 0.025)) for fit, _ in curves)
            if self.reach[line.arm] < MIN_REACH:
                self.refused[line.arm] = f"refused: its KL reaches {self.reach[line.arm]:.3g}, {MIN_REACH} nats needed"

    def usable(self) -> list[str]:
        """Arms with a curve, in the order given."""
        return [arm for arm in self.lines if arm not in self.refused]

    def read(self, arm: str, at: Array) -> Array:
        """(S, B + 1, M) reward of an arm at given KLs."""
        return np.stack([read_at(kl, reward, at) for kl, reward in self._curves[arm]])

    def at(self, arm: str, kl: float) -> E:
        """Reward of one arm at a KL; null beyond its end."""
        line = self.lines[arm]
        reason = self.refused.get(arm)
        if reason is None and kl > self.reach[arm]:
            reason = f"refused: its KL reaches {self.reach[arm]:.3g}, nothing is extrapolated"
        reason = reason or self.too_sparse([arm], np.array([kl]), np.ones(1))
        if reason is not None:
            return _null(reason, len(line.prompts))
        return estimate(
            self.read(arm, np.array([kl]))[:, :, 0], len(line.prompts), f"{self._between(arm, kl)}; {_told(line)}"
        )

    def _between(self, arm: str, kl: float) -> str:
        """The arm's points on either side, over all run seeds: how far what is read off lies from what was measured."""
        at = np.stack([fit[0] for fit, _ in self._curves[arm]]).mean(axis=0)
        below, above = at[at <= kl], at[at > kl]
        ends = f"{below.max() if len(below) else 0.0:.3g} and {above.min():.3g}" if len(above) else f"{at.max():.3g}"
        return f"between points at KL {ends}" if len(above) else f"at the last point, KL {ends}"

    def too_sparse(self, arms: Sequence[str], at: Array, weights: Array) -> str | None:
        """Why the weighted reward of arms at some KLs is not told: their points lie too far apart there."""
        wanted = np.sqrt(at)
        for arm in arms:
            d = np.sqrt(np.stack([fit[0] for fit, _ in self._curves[arm]]).mean(axis=0))
            right = np.clip(np.searchsorted(d, wanted, side="right"), 1, len(d) - 1)
            below, above = d[right - 1], d[right]
            bend = np.maximum((wanted - below) * (above - wanted), 0.0) @ weights
            if bend > (MAX_GAP / 2) ** 2:
                widest = int(np.argmax(above - below))
                ends = f"KL {below[widest] ** 2:.3g} and {above[widest] ** 2:.3g}"
                return f"refused: {arm} has no point between {ends}, too far apart for a straight line; save more"
        return None

    def area(self, arm: str, reach: float) -> E:
        """Mean reward of one arm over the KLs from 0 to `reach`; null where its points lie too far apart."""
        at, weights = area_weights(reach)
        line = self.lines[arm]
        if (reason := self.too_sparse([arm], at, weights)) is not None:
            return _null(reason, len(line.prompts))
        return estimate(self.read(arm, at) @ weights, len(line.prompts), f"mean over KL; {_told(line)}")

    def difference(self, a: str, b: str, at: Array, weights: Array, how: str) -> E:
        """Weighted reward of arm `a` at some KLs less that of arm `b`, paired by run seed, and by prompt if they share
        them; null where points of one lie too far apart."""
        if (reason := self.too_sparse([a, b], at, weights)) is not None:
            return _null(reason, min(len(self.lines[a].prompts), len(self.lines[b].prompts)))
        left, right = self.read(a, at) @ weights, self.read(b, at) @ weights
        one, other = self.lines[a], self.lines[b]
        paired = one.prompts == other.prompts and one.prompt_set == other.prompt_set
        sets = " and ".join(sorted((one.prompt_set, other.prompt_set)))
        told = [how, "paired by prompt" if paired else f"unpaired: {sets} prompts"]
        told += [_BOUND] if one.kl_kind != other.kl_kind else []
        return estimate(left - right, min(len(one.prompts), len(other.prompts)), "; ".join(told))

    def beside(self, point: Line, arm: str) -> E | None:
        """A single point's reward less that of another arm's curve at the point's KL, on the same prompts.

        Its KL is redrawn with the rewards. None where the prompts differ: there is nothing to pair.
        """
        line, point = self.lines[arm], point.scored()
        draws = self._draws.get((point.prompt_set, point.prompts))
        if arm in self.refused or draws is None or line.prompts != point.prompts or line.seeds != point.seeds:
            return None
        kl, reward = (means(table, draws)[:, :, 0] for table in (point.kl, point.reward))
        kl = np.maximum(kl, 0.0)
        if (reached := float(kl[:, 0].max())) > self.reach[arm]:
            why = f"refused: the point lies at KL {reached:.3g}, the curve reaches {self.reach[arm]:.3g}"
            return _null(f"{why}; nothing is extrapolated", len(line.prompts))
        if (sparse := self.too_sparse([arm], np.array([kl[:, 0].mean()]), np.ones(1))) is not None:
            return _null(sparse, len(line.prompts))
        by_seed = zip(self._curves[arm], kl, strict=True)
        curve = np.stack([read_at(fit, gain, at[:, None])[:, 0] for (fit, gain), at in by_seed])
        told = ["selected policy less the curve at its KL, which is redrawn", "paired by prompt"]
        told += [_BOUND] if point.kl_kind != line.kl_kind else []
        return estimate(reward - curve, len(line.prompts), "; ".join(told))


_BOUND = "best-of-n's KL is a bound: it stands at most too far right"


def _told(line: Line) -> str:
    return "linear in sqrt(KL) between points" + (f"; {_BOUND}" if line.kl_kind == "bound" else "")


def _null(reason: str, prompts: int) -> E:
    return E(value=None, low=None, high=None, n=prompts, method=reason)


def _unfit(line: Line) -> str | None:
    """Why a line gives no curve, or None."""
    if len(line.prompts) < MIN_PROMPTS:
        return f"refused: {len(line.prompts)} prompts scored at every point, at least {MIN_PROMPTS} needed"
    if len(line.labels) < 2:
        return "refused: 1 point makes no curve"
    for seed, kl in zip(line.seeds, np.maximum(line.kl.mean(axis=1), 0.0), strict=True):
        back = float((np.maximum.accumulate(kl) - kl).max())
        if back > MAX_RETURN * float(kl.max()) and kl.max() > MIN_REACH:  # below it all is noise
            where = f" in run seed {seed}" if len(line.seeds) > 1 else ""
            return f"refused: KL fell back by {back:.3g} from {kl.max():.3g}{where}: there is no one reward per KL"
    return None


def round_down(kl: float) -> float:
    """The largest number of two digits that is not above `kl`."""
    scale = 10.0 ** (math.floor(math.log10(kl)) - 1)
    return float(f"{math.floor(kl / scale + 1e-9) * scale:.2g}")


def grid(curves: Curves) -> list[float]:
    """KLs at which arms are compared: round ones, and where the shortest curve ends."""
    reach = [curves.reach[arm] for arm in curves.usable()]
    if not reach:
        return []
    return sorted({kl for kl in NICE_KLS if kl <= max(reach)} | {round_down(min(reach))})


def matched(curves: Curves, reward: Literal["gold_reward", "proxy_reward"]) -> list[MatchedKL]:
    """Every arm at every KL of the grid, and every two arms at those that both reach."""
    found: list[MatchedKL] = []
    kls = grid(curves)
    for arm in curves.lines:
        found += [
            MatchedKL(arm=arm, kl=kl, reward=reward, estimate=curves.at(arm, kl), **_where(curves.lines[arm]))
            for kl in (kls or [MIN_REACH])
        ]
    for a, b in combinations(curves.usable(), 2):
        for kl in (kl for kl in kls if kl <= min(curves.reach[a], curves.reach[b])):
            gap = curves.difference(a, b, np.array([kl]), np.ones(1), "difference at one KL")
            where = _where(curves.lines[a], curves.lines[b])
            found.append(MatchedKL(arm=a, against=b, kl=kl, reward=reward, estimate=gap, **where))
    return found


def selected(curves: Curves, points: Sequence[Line], reward: Literal["gold_reward", "proxy_reward"]) -> list[MatchedKL]:
    """Every selected policy beside every curve on the same prompts, at the policy's own KL.

    Checkpoints are on validation prompts and best-of-n is on test prompts, so their curves are compared unpaired; here
    both sides are on test prompts.
    """
    found = []
    for point, arm in ((point, arm) for point in points for arm in curves.usable()):
        gap = curves.beside(point, arm) if point.arm != arm else None
        if gap is not None:
            kl = max(0.0, float(point.kl.mean()))
            where = _where(point, curves.lines[arm])
            found.append(MatchedKL(arm=point.arm, against=arm, kl=kl, reward=reward, estimate=gap, **where))
    return found


def areas(curves: Curves, reward: Literal["gold_reward", "proxy_reward"]) -> list[FrontierArea]:
    """Every arm over the KLs that all arms reach, and every two arms over those that both reach."""
    usable = curves.usable()
    found = [
        FrontierArea(arm=arm, reward=reward, kl_to=None, estimate=_null(why, 0), **_where(curves.lines[arm]))
        for arm, why in curves.refused.items()
    ]
    common = min((curves.reach[arm] for arm in usable), default=0.0)
    for arm in usable:
        where = _where(curves.lines[arm])
        found.append(FrontierArea(arm=arm, reward=reward, kl_to=common, estimate=curves.area(arm, common), **where))
    for a, b in combinations(usable, 2):
        reach = min(curves.reach[a], curves.reach[b])
        gap = curves.difference(a, b, *area_weights(reach), "difference of the means over KL")
        where = _where(curves.lines[a], curves.lines[b])
        found.append(FrontierArea(arm=a, against=b, reward=reward, kl_to=reach, estimate=gap, **where))
    return found


def _where(one: Line, other: Line | None = None) -> dict[str, Any]:
    same_kind = other is None or one.kl_kind == other.kl_kind
    same_prompts = other is None or one.prompt_set == other.prompt_set
    return {
        "kl_kind": one.kl_kind if same_kind else "mixed",
        "prompt_set": one.prompt_set if same_prompts else "mixed",
    }
