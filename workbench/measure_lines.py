"""Each arm's points as tables by run seed, prompt and point: checkpoints, selected policies, best-of-n at every n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Responses
from workbench.measure_scope import Scope
from workbench.metrics.best_of_n import best_of_n_value, best_of_n_weights, bound_kl, bound_slack
from workbench.metrics.estimates import Array
from workbench.metrics.lines import Line, Selector
from workbench.metrics.overoptimization import Start

Steps = tuple[int, ...]
"""One point's step in each run seed; they differ where checkpoints lie on a grid of KL."""


class Lines:
    """Lines of a comparison's arms, read once."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.trajectory = lru_cache(maxsize=None)(self._trajectory)
        self.pool = lru_cache(maxsize=None)(self._pool)

    def trajectories(self, label: str, *, own: bool = False) -> dict[int, dict[str, Any]]:
        """trajectory.json of each run seed that has one.

        Args:
            own: The one whose proxy is the reward model that the arm optimizes, where that is not the shared one. Its
                samples are the same.
        """
        found = {}
        for run in self.scope.seeds:
            roles = ["trajectory_own", "trajectory"] if own else ["trajectory"]
            role = next((one for one in roles if self.scope.artifacts.has(label, run, one)), None)
            if role is not None:
                found[run] = self.scope.artifacts.json(label, run, role, "trajectory.json")
        return found

    def _trajectory(self, label: str, *, own: bool = False) -> tuple[Line, tuple[Steps, ...]] | None:
        """A trained arm's checkpoints on validation prompts, the SFT first, and their steps; None without any.

        Only points that every run seed has (`aligned`): a mean over the seeds that got this far would be one of
        survivors.
        """
        found = self.trajectories(label, own=own)
        if not found:
            return None
        by_step = [{point["step"]: point for point in reversed(one["points"])} for one in found.values()]
        steps = aligned([sorted(one) for one in by_step])
        names = sorted(set(next(iter(found.values()))["prompt_id"]))  # no figure hangs on the order of rows

        def table(column: str) -> Array:
            return np.stack(
                [
                    np.stack([by_prompt(points[at[k]][column], one["prompt_id"], names) for at in steps], axis=1)
                    for k, (points, one) in enumerate(zip(by_step, found.values(), strict=True))
                ]
            )

        line = Line(
            arm=label,
            kl_kind="mc_k1",
            prompt_set="validation",
            labels=tuple(map(told, steps)),
            prompts=tuple(names),
            seeds=tuple(found),
            kl=table("seq_kl"),
            proxy=table("proxy"),
            gold=table("gold") if self.scope.has_gold else None,
        )
        return line, steps

    def final(self, label: str, runs: Sequence[ArmRun]) -> Line | None:
        """The selected policy (or the SFT) on test prompts, one point; None where no scored sample was drawn straight.

        Answers drawn at another temperature have scores; the samples that KL is measured on have none but the SFT's.
        """
        if label == BASELINE:
            runs = [replace(one, samples=one.kl or one.samples) for one in runs]
        elif any(one.kl is not one.samples for one in runs):
            return None
        names = list(runs[0].samples.rows)
        columns = ["seq_kl", f"proxy/{self.scope.proxy}", *(["gold"] if self.scope.has_gold else [])]
        tables = [
            np.stack([by_prompt(one.samples.columns[c], one.samples.prompts, names)[:, None] for one in runs])
            for c in columns
        ]
        return Line(
            arm=label,
            kl_kind="mc_k1",
            prompt_set="test",
            labels=("selected (test)" if label != BASELINE else "sft (test)",),
            prompts=tuple(names),
            seeds=tuple(one.seed for one in runs),
            kl=tables[0],
            proxy=tables[1],
            gold=tables[2] if self.scope.has_gold else None,
        )

    def _pool(self, label: str, sizes: tuple[int, ...], selector: Selector = "own", scorer: str | None = None) -> Line:
        """Best-of-n at every size, exact over the pool, on test prompts; its proxy is `scorer`, else the shared one."""
        runs = self.scope.arms[label]
        pools, own = pools_of(runs)
        names = list(own[0])
        shape = (len(runs), len(names), len(sizes))
        proxy, gold, slack = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for s, (pool, scores) in enumerate(zip(pools, own, strict=True)):
            proxies, logprobs = pool.by_prompt(f"proxy/{scorer or self.scope.proxy}"), pool.by_prompt("seq_logprob")
            golds = pool.by_prompt("gold") if self.scope.has_gold else None
            for p, prompt in enumerate(names):
                picks = scores[prompt] if selector == "own" or golds is None else golds[prompt]
                if np.isnan(picks).any():  # only gold may be unscored: what it would pick is not known there
                    proxy[s, p] = gold[s, p] = math.nan
                    continue
                values = [proxies[prompt], *([golds[prompt]] if golds is not None else [])]
                for table, row in zip((proxy, gold), _picked(picks, values, sizes), strict=False):
                    table[s, p] = row
                slack[s, p] = bound_slack(sizes, picks, logprobs[prompt])
        return Line(
            arm=label,
            selector=selector,
            kl_kind="bound",
            prompt_set="test",
            labels=tuple(f"n={n}" for n in sizes),
            prompts=tuple(names),
            seeds=tuple(one.seed for one in runs),
            kl=np.broadcast_to([bound_kl(n) for n in sizes], shape),
            proxy=proxy,
            gold=gold if self.scope.has_gold else None,
            kl_slack=slack,
        )

    def pool_start(self, label: str, scorer: str) -> Start:
        """The pool itself, as the reference of best-of-n: means and mean squares over all candidates of a prompt."""
        pools, own = pools_of(self.scope.arms[label])
        names = list(own[0])

        def table(column: str, power: int) -> Array:
            return np.stack([by_prompt(pool.columns[column] ** power, pool.prompts, names) for pool in pools])

        proxy = f"proxy/{scorer}"
        return Start(
            gold=table("gold", 1), proxy=table(proxy, 1), gold_square=table("gold", 2), proxy_square=table(proxy, 2)
        )

    def trajectory_start(self, label: str) -> Start:
        """The SFT's samples of an arm's trajectory."""
        found = self.trajectories(label, own=True)
        names = sorted(set(next(iter(found.values()))["prompt_id"]))  # no figure hangs on the order of rows

        def table(column: str, power: int) -> Array:
            return np.stack(
                [
                    by_prompt(np.array(one["points"][0][column], dtype=np.float64) ** power, one["prompt_id"], names)
                    for one in found.values()
                ]
            )

        return Start(
            gold=table("gold", 1), proxy=table("proxy", 1),
            gold_square=table("gold", 2), proxy_square=table("proxy", 2),
        )  # fmt: skip


def aligned(steps: Sequence[Sequence[int]]) -> tuple[Steps, ...]:
    """The checkpoints that run seeds have in common: those at a step of all, and between two of these, one by one in
    order, those at steps of their own (first beyond a KL), where every seed has as many of them.

    Args:
        steps: Rising steps of each run seed.
    """
    common = sorted(set.intersection(*map(set, steps)))
    found: list[Steps] = []
    for low, high in pairwise([-1, *common]):
        between = [[step for step in one if low < step < high] for one in steps]
        if len({len(one) for one in between}) == 1:
            found += zip(*between, strict=True)
        found.append((high,) * len(steps))
    return tuple(found)


def told(steps: Steps) -> str:
    """A point's name: step 14, or step 8 to 10 where run seeds got there at different ones."""
    return f"step {min(steps)}" if len(set(steps)) == 1 else f"step {min(steps)} to {max(steps)}"


def pools_of(runs: Sequence[ArmRun]) -> tuple[list[Responses], list[dict[str, Array]]]:
    """Best-of-n's pool at temperature 1 and its selecting scores by prompt, one a run seed."""
    pools = [one.kl_pool for one in runs if one.kl_pool is not None]
    return pools, [pool.by_prompt(str(runs[0].selector)) for pool in pools]


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """1 to 8, then steps of a quarter: near enough that straight lines between them do."""
    sizes = list(range(1, min(largest, 8) + 1))
    while sizes[-1] < largest:
        sizes.append(min(largest, math.ceil(sizes[-1] * 1.25)))
    return tuple(sizes)


def _picked(scores: Array, values: Sequence[Array], sizes: Sequence[int]) -> list[list[float]]:
    """Expected values of what is picked among n, for each size."""
    if any(np.isnan(one).any() for one in values):
        return [[best_of_n_value(scores, one, n) for n in sizes] for one in values]
    weights = np.stack([best_of_n_weights(scores, n) for n in sizes])
    return [(weights @ one).tolist() for one in values]


def by_prompt(values: Sequence[float] | Array, prompts: Sequence[str], names: Sequence[str]) -> Array:
    """(P,) mean of each prompt's values; NaN where one is unscored, or the prompt has none."""
    place = {name: i for i, name in enumerate(names)}
    row = np.array([place.get(prompt, -1) for prompt in prompts], dtype=np.int64)
    array = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    keep = row >= 0
    count = np.bincount(row[keep], minlength=len(names))
    sums = np.bincount(row[keep], weights=array[keep], minlength=len(names))
    found: Array = np.where(count > 0, sums / np.maximum(count, 1), math.nan)
    return found


def table_of(rows: Mapping[tuple[int, str], float], seeds: Sequence[int], names: Sequence[str]) -> Array:
    """(S, P) from values by (seed, prompt); NaN where there is none."""
    return np.array([[rows.get((seed, name), math.nan) for name in names] for seed in seeds], dtype=np.float64)
