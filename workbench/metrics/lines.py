"""An arm's points as tables by run seed and prompt, and what resampling says of figures made from them.

Every figure about a line (gold at a KL, area, coefficients of a fit) is the mean over run seeds of a function of that
seed's means over prompts. Prompts are drawn with replacement; what the seeds share in the draws (their covariance) is
the prompt part of the variance, the variance between the seeds' own values the seed part
(`resampling.bootstrap_parts`), and the interval is the t interval of variance.py. Lines on one set of prompts get the
same draws, so that their differences are paired; lines on different prompts get independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from workbench.metrics.estimates import Array, Index
from workbench.metrics.resampling import bootstrap_parts
from workbench.metrics.variance import Part, half_width_of
from workbench.results_base import E
from workbench.types import KLKind

PromptSet = Literal["validation", "test"]
Selector = Literal["own", "gold"]
RESAMPLES = 1000
MIN_PROMPTS = 8  # below it a curve has no interval worth the name


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of one arm in training order (best-of-n: rising n), on one set of prompts.

    Args:
        arm, selector: Whose; `gold`: best-of-n's pool as the gold reward itself would pick from it.
        kl_kind, prompt_set: How its KL came about, and on which prompts.
        labels: (K,) names of the points.
        prompts: (P,) distinct prompts.
        seeds: (S,) run seeds.
        kl: (S, P, K) nats, mean over a prompt's samples; equal for all prompts where it is a bound.
        proxy, gold: (S, P, K) reward, mean over a prompt's samples; gold None where there is none.
        kl_slack: (S, P, K) estimate of how far a bound lies above the KL, by prompt; None where it is no bound.
    """

    arm: str
    kl_kind: KLKind
    prompt_set: PromptSet
    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    kl: Array
    proxy: Array
    gold: Array | None
    selector: Selector = "own"
    kl_slack: Array | None = None

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.prompts), len(self.labels))
        tables = {"kl": self.kl, "proxy": self.proxy, "gold": self.gold, "kl_slack": self.kl_slack}
        if wrong := {name: table.shape for name, table in tables.items() if table is not None and table.shape != shape}:
            raise ValueError(f"{self.arm}: expected tables of shape {shape} (seeds, prompts, points), got {wrong}")

    @property
    def reward(self) -> Array:
        """Gold where there is one, else the proxy."""
        return self.proxy if self.gold is None else self.gold

    def scored(self) -> Line:
        """The line on the prompts that are scored at every point in every seed."""
        tables = np.concatenate([self.kl, self.reward, self.proxy], axis=2)
        keep: npt.NDArray[np.bool_] = np.asarray(np.isfinite(tables).all(axis=(0, 2)))
        if keep.all():
            return self
        return replace(
            self,
            prompts=tuple(prompt for prompt, kept in zip(self.prompts, keep, strict=True) if kept),
            kl=self.kl[:, keep],
            proxy=self.proxy[:, keep],
            gold=None if self.gold is None else self.gold[:, keep],
            kl_slack=None if self.kl_slack is None else self.kl_slack[:, keep],
        )


def prompt_draws(prompts: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """(B + 1, P) weights that sum to 1: all prompts as they are, then B draws with replacement."""
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)
    return np.concatenate([np.ones((1, prompts)), counts]) / prompts


def means(table: Array, draws: Array) -> Array:
    """(S, P, K) values and (B + 1, P) draws -> (S, B + 1, K) means over prompts."""
    found: Array = np.matmul(draws, table)
    return found


def parts_of(found: Array, prompts: int) -> tuple[Part, Part]:
    """Prompt and seed part of the variance of a figure (S, B + 1), the first column being the one on all prompts."""
    return bootstrap_parts(found[:, 0], found[:, 1:], prompts)


def estimate(found: Array, prompts: int, how: str, *, n_unscored: int = 0, also: Part = (0.0, 1.0)) -> E:
    """The mean over run seeds of a figure with its 95% interval.

    Args:
        found: (S, B + 1) the figure in each seed: on all prompts, then on each draw.
        prompts: Independent units behind it.
        how: For `method`.
        n_unscored: Prompts left out.
        also: Another independent part of the variance.
    """
    seeds = len(found)
    value = float(found[:, 0].mean())
    by = f"by prompt{f' x {seeds} seeds' if seeds > 1 else ''}, {found.shape[1] - 1} resamples"
    empty = E(value=value, low=None, high=None, n=prompts, n_unscored=n_unscored, method=how)
    if prompts < 2:
        return empty.model_copy(update={"method": f"{how}; one prompt, no interval"})
    prompt, seed = parts_of(found, prompts)
    half = half_width_of((prompt, seed, also) if also[0] > 0 else (prompt, seed))
    if not half > 1e-12 * max(1.0, abs(value)):
        return empty.model_copy(update={"method": f"{how}; degenerate (no variance)"})
    return E(
        value=value,
        low=value - half,
        high=value + half,
        n=prompts,
        n_unscored=n_unscored,
        method=f"{how}; bootstrap-t {by}",
        prompt_se=math.sqrt(prompt[0]),
        seed_se=math.sqrt(seed[0]) if seeds > 1 else None,
    )


def joint(found: Array, prompts: int, rng: np.random.Generator) -> tuple[Array, Array, list[tuple[Part, Part]]]:
    """Several figures together: their values, draws that carry prompt and seed variance, and the parts of each.

    Args:
        found: (S, B + 1, M).
        prompts: Prompts behind them.
        rng: For the seeds' multipliers.

    Returns:
        (M,) means over seeds; (B, M) draws of them, scaled so that each has the standard error of its two parts;
        (prompt part, seed part) of each.
    """
    by_seed, drawn = found[:, 0], found[:, 1:]
    seeds, mean = len(by_seed), by_seed.mean(axis=0)
    moved = drawn.mean(axis=0) - mean
    if seeds > 1:
        # What seeds redraw has the covariance of their values over S: a sum of them with normal weights has it too.
        weights = rng.standard_normal((drawn.shape[1], seeds))
        moved = moved + weights @ (by_seed - mean) / math.sqrt(seeds * (seeds - 1))
    parts = [parts_of(found[:, :, m], prompts) for m in range(found.shape[2])]
    wanted = np.array([math.sqrt(prompt[0] + seed[0]) for prompt, seed in parts])
    moved = moved - moved.mean(axis=0)
    spread = moved.std(axis=0)
    return mean, mean + moved * np.where(spread > 0, wanted / np.where(spread > 0, spread, 1.0), 0.0), parts


def simultaneous(draws: Array, mean: Array, parts: Sequence[tuple[Part, Part]], level: float = 0.95) -> Array:
    """(M,) half-widths that hold for all M figures at once.

    The largest standardized deviation of the draws says at which single level that is; the quantile at that level is
    the t quantile of each figure's own parts, so that few prompts or seeds widen it.

    Args:
        draws, mean, parts: Of `joint`.
        level: Of all together.
    """
    spread = draws.std(axis=0)
    varies = spread > 1e-12 * np.maximum(1.0, np.abs(mean))
    if not varies.any():
        return np.zeros(len(mean))
    largest = np.abs((draws - mean)[:, varies] / spread[varies]).max(axis=1)
    tail = float(special.ndtr(np.quantile(largest, level)))
    return np.array([half_width_of(part, tail) if v else 0.0 for part, v in zip(parts, varies, strict=True)])


def contenders(gold: Array, prompts: int, rng: np.random.Generator, level: float = 0.95) -> tuple[Index, Index]:
    """Which points may be the best, simultaneous over all pairs of points (Hsu 1984).

    Args:
        gold: (S, B + 1, K) means, on all prompts and on each draw.
        prompts: Behind them.
        rng: For the seeds' multipliers.
        level: Of all pairs together.

    Returns:
        Indices of the points that no other point beats, and of those that no later one does.
    """
    points = gold.shape[2]
    before, after = np.triu_indices(points, 1)
    mean, draws, parts = joint(gold[:, :, after] - gold[:, :, before], prompts, rng)
    reach = simultaneous(draws, mean, parts, level)
    overtaken, beaten = np.zeros(points, dtype=bool), np.zeros(points, dtype=bool)
    np.logical_or.at(overtaken, before, mean - reach > 0)
    np.logical_or.at(beaten, after, mean + reach < 0)
    beaten |= overtaken
    return np.flatnonzero(~beaten).astype(np.int64), np.flatnonzero(~overtaken).astype(np.int64)
