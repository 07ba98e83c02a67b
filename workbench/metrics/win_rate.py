"""Win rates of arms whose responses carry judged values, ties half, paired by prompt.

Within a prompt every response of one arm meets every response of the other: win = sum_ij w_i v_j ([a_i > b_j] +
[a_i = b_j] / 2), with weights for arms that are a weighted pool (best-of-n). Prompts weigh the same. Responses without
a score are counted in `n_unscored`, and the prompt's win is taken over the scored ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from workbench.metrics.estimates import (
    Array,
    ClusterMean,
    Values,
    as_values,
    cluster_mean,
    holm,
    interval_of_mean,
    means_within,
    t_test_p,
)
from workbench.metrics.resampling import sign_flip_p
from workbench.results import HeadToHead
from workbench.results_base import E, WinRate
from workbench.types import Estimate

Tested = TypeVar("Tested", HeadToHead, WinRate)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One arm's judged values in one run seed.

    Args:
        scores: prompt_id -> (k,) value of each response by the judge; None or NaN = unscored.
        weights: prompt_id -> (k,) probability of each response; None = equal (plain samples).
    """

    scores: Mapping[str, Values]
    weights: Mapping[str, Values] | None = None


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Prompt-level win probabilities: one row a (prompt, seed).

    Args:
        prompts, seeds: (N,) labels.
        wins: (N,) in [0, 1]; NaN where either arm has no scored response.
        n_unscored: Responses of either arm without a score, and prompts that one arm lacks.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    wins: Array
    n_unscored: int


def win_probability(a: Values, b: Values, a_weights: Values | None = None, b_weights: Values | None = None) -> float:
    """Chance that a response of `a` beats one of `b`, ties half, over all pairs of scored responses.

    Args:
        a, b: (k,), (m,) values of the responses to one prompt.
        a_weights, b_weights: (k,), (m,) >= 0, normalised here over the scored responses.

    Returns:
        A number in [0, 1], or NaN when either side has no scored response.
    """
    x, w = _scored(a, a_weights)
    y, v = _scored(b, b_weights)
    if w.sum() <= 0 or v.sum() <= 0:
        return math.nan
    order = np.argsort(y, kind="stable")
    mass = np.concatenate([[0.0], np.cumsum(v[order])])
    below = mass[np.searchsorted(y[order], x, side="left")]
    up_to = mass[np.searchsorted(y[order], x, side="right")]
    return min(1.0, max(0.0, float(w @ (below + up_to)) / 2 / float(w.sum() * mass[-1])))


def _scored(values: Values, weights: Values | None) -> tuple[Array, Array]:
    x = as_values(values)
    w = np.ones_like(x) if weights is None else as_values(weights)
    if len(w) != len(x):
        raise ValueError(f"{len(x)} values but {len(w)} weights")
    if np.isnan(w).any() or (w < 0).any():
        raise ValueError("weights must be numbers >= 0")
    keep = ~np.isnan(x)
    return x[keep], w[keep]


def prompt_wins(a: Judged | Sequence[Judged], b: Judged | Sequence[Judged]) -> Wins:
    """Win probability of `a` over `b` at every prompt of either, in every run seed.

    Args:
        a, b: One Judged, or one a run seed (the i-th of one arm meets the i-th of the other).

    Raises:
        ValueError: The arms have different numbers of seeds.
    """
    a_runs, b_runs = _runs(a), _runs(b)
    if len(a_runs) != len(b_runs):
        raise ValueError(f"one arm has {len(a_runs)} run seeds, the other {len(b_runs)}: pair them first")
    prompts: list[str] = []
    seeds: list[int] = []
    wins: list[float] = []
    unscored = 0
    for seed, (x, y) in enumerate(zip(a_runs, b_runs, strict=True)):
        for prompt in dict.fromkeys([*x.scores, *y.scores]):
            prompts.append(prompt)
            seeds.append(seed)
            unscored += _unscored(x, prompt) + _unscored(y, prompt)
            wins.append(
                win_probability(
                    x.scores.get(prompt, ()),
                    y.scores.get(prompt, ()),
                    x.weights[prompt] if x.weights is not None and prompt in x.scores else None,
                    y.weights[prompt] if y.weights is not None and prompt in y.scores else None,
                )
            )
    return Wins(prompts=tuple(prompts), seeds=tuple(seeds), wins=np.array(wins, dtype=np.float64), n_unscored=unscored)


def _runs(arm: Judged | Sequence[Judged]) -> Sequence[Judged]:
    return [arm] if isinstance(arm, Judged) else arm


def _unscored(run: Judged, prompt: str) -> int:
    if prompt not in run.scores or not len(run.scores[prompt]):
        return 1
    return int(np.isnan(as_values(run.scores[prompt])).sum())


def win_rate(a: Judged | Sequence[Judged], b: Judged | Sequence[Judged]) -> Estimate:
    """Win rate of `a` over `b`, ties half, clustered by prompt and crossed with run seeds.

    Args:
        a, b: One Judged, or one a run seed.

    Returns:
        Estimate with n = prompts compared and n_unscored = responses without a score.
    """
    wins = prompt_wins(a, b)
    return _counted(interval_of_mean(_mean(wins), proportion=True), wins)


def _mean(wins: Wins) -> ClusterMean:
    return cluster_mean(wins.wins, wins.prompts, None, wins.seeds)


def _counted(estimate: Estimate, wins: Wins) -> Estimate:
    """The Estimate with unscored *responses* counted, of which a prompt can have some and still be compared."""
    return replace(estimate, n_unscored=wins.n_unscored)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms compared: win rate, p of equality (None without a comparison), and what would have been found."""

    win_rate: Estimate
    p_value: float | None
    p_method: str
    minimum_detectable_effect: float | None


def compare(wins: Wins, rng: np.random.Generator, n_flips: int = 10_000) -> Comparison:
    """Win rate with its test against 0.5 and its minimum detectable effect.

    With one run seed p is the sign-flip mid-p of the prompt-level win - 0.5. With several it is the p of the crossed
    prompt and seed variance, the one behind the interval: flipping prompts alone would test these checkpoints, not
    the methods.

    Args:
        wins: Of the first of two arms over the second.
        rng: Seeded generator.
        n_flips: Monte Carlo draws of the sign-flip test.
    """
    mean = _mean(wins)
    p, p_method = t_test_p(mean, 0.5), "crossed prompt and seed variance"
    if mean.n_seeds <= 1 or p is None:  # one seed, or every comparison came out the same
        p = sign_flip_p(means_within(wins.wins, wins.prompts)[0] - 0.5, rng, n_flips)
        p_method = "sign-flip by prompt, mid-p"
    return Comparison(
        win_rate=_counted(interval_of_mean(mean, proportion=True), wins),
        p_value=p,
        p_method=p_method,
        minimum_detectable_effect=mean.detectable_effect(),
    )


def head_to_head(
    arms: Mapping[str, Sequence[Judged]], judge: str, rng: np.random.Generator, *, n_flips: int = 10_000
) -> list[HeadToHead]:
    """Every two arms against each other, with p of equality and Holm's correction over all of them.

    Args:
        arms: label -> one Judged a run seed.
        judge: Name of the scorer behind the values.
        rng: Seeded generator.
        n_flips: Monte Carlo draws of the sign-flip test.

    Returns:
        One row for each pair of arms, in the order given.
    """
    pairs = itertools.combinations(arms, 2)
    return duels({(a, b): prompt_wins(arms[a], arms[b]) for a, b in pairs}, judge, rng, n_flips=n_flips)


def duels(
    wins: Mapping[tuple[str, str], Wins], judge: str, rng: np.random.Generator, *, n_flips: int = 10_000
) -> list[HeadToHead]:
    """`head_to_head` from the wins of the first arm over the second of each pair, whatever the judge is."""
    state = int(rng.integers(2**63))
    rows: list[HeadToHead] = []
    for (a, b), won in wins.items():
        found = compare(won, np.random.default_rng(state), n_flips)
        rows.append(
            HeadToHead(
                a=a,
                b=b,
                judge=judge,
                win_rate=E.of(found.win_rate),
                p_value=found.p_value,
                p_holm=None,
                p_method=found.p_method,
                minimum_detectable_effect=found.minimum_detectable_effect,
            )
        )
    return with_holm(rows)


def against_baseline(wins: Wins, rng: np.random.Generator, *, name: str, judge: str, n_flips: int = 10_000) -> WinRate:
    """Win rate of an arm over the baseline, with p of equality; p_holm waits for the family (`with_holm`).

    Args:
        wins: Of the arm over the baseline.
        rng: Seeded generator.
        name, judge: Names of the baseline and of the judge.
        n_flips: Monte Carlo draws of the sign-flip test.
    """
    found = compare(wins, rng, n_flips)
    return WinRate.of(
        found.win_rate,
        baseline=name,
        judge=judge,
        p_value=found.p_value,
        p_method=found.p_method,
        minimum_detectable_effect=found.minimum_detectable_effect,
    )


def with_holm(rows: Sequence[Tested]) -> list[Tested]:
    """The rows with p_holm over all of them; call it once on a whole family (every arm and judge together).

    A family is what a reader picks from: all arms against the baseline by all judges are one, every two arms against
    each other by all judges another. Rows without a p-value do not count.

    Source: Holm 1979.
    """
    adjusted = holm([row.p_value for row in rows])
    return [row.model_copy(update={"p_holm": p}) for row, p in zip(rows, adjusted, strict=True)]
