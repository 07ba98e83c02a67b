"""The curves of the measure stage: reward against KL, and where the proxy parts from gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Responses, mean_over
from workbench.measure_scope import Scope, plain
from workbench.metrics.best_of_n import best_of_n_value, bound_kl
from workbench.metrics.estimates import Array
from workbench.metrics.frontier import best_of_n_point, checkpoint_point, with_pareto
from workbench.metrics.overoptimization import overoptimization, refused
from workbench.metrics.win_rate import win_rate
from workbench.results_base import KL, E
from workbench.results_curves import FrontierPoint, Overoptimization


class Curves:
    """Sections of results.json about checkpoints, sizes n and KL, as plain JSON."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def frontier(self) -> list[dict[str, Any]]:
        """`frontier`: checkpoints on validation prompts, selected policies on test prompts, best-of-n at every n."""
        points: list[FrontierPoint] = []
        for label, runs in self.scope.arms.items():
            if runs[0].kind == "best_of_n":
                points += self._pool_points(label, runs)
                continue
            points += self._trajectory_points(label)
            points.append(self._final_point(label, runs))
        return [plain(point) for point in with_pareto(points, "gold_reward" if self.scope.has_gold else "proxy_reward")]

    def _final_point(self, label: str, runs: Sequence[ArmRun]) -> FrontierPoint:
        # Answers drawn at another temperature have scores; the samples that KL is measured on have none but the SFT's.
        straight = label == BASELINE or all(one.kl is one.samples for one in runs)
        if label == BASELINE:
            runs = [replace(one, samples=one.kl or one.samples) for one in runs]
        rate = None
        if label != BASELINE and straight and self.scope.judges[0] == "gold":
            against = self.scope.arms[BASELINE]
            rate = E.of(win_rate([one.judged("gold") for one in runs], [one.judged("gold") for one in against]))
        return FrontierPoint(
            arm=label,
            label="selected (test)" if label != BASELINE else "sft (test)",
            seq_kl=KL.of(mean_over(runs, "seq_kl"), kl_kind="mc_k1"),
            proxy_reward=E.of(mean_over(runs, f"proxy/{self.scope.proxy}")) if straight else None,
            gold_reward=E.of(mean_over(runs, "gold")) if straight and self.scope.has_gold else None,
            win_rate=rate,
        )

    def _trajectories(self, label: str) -> dict[int, dict[str, Any]]:
        return {
            run: self.scope.artifacts.json(label, run, "trajectory", "trajectory.json")
            for run in self.scope.seeds
            if self.scope.artifacts.has(label, run, "trajectory")
        }

    def _trajectory_points(self, label: str) -> list[FrontierPoint]:
        found: dict[int, list[tuple[int, list[str], dict[str, Any]]]] = {}
        trajectories = self._trajectories(label)
        for run, trajectory in trajectories.items():
            for point in trajectory["points"]:
                if point["step"] == 0 and point["name"] != "sft":
                    continue  # an arm that diverged at once kept the SFT as its checkpoint: it is there already
                found.setdefault(point["step"], []).append((run, trajectory["prompt_id"], point))
        points = []
        for step, rows in sorted(found.items()):
            if len(rows) < len(trajectories):
                continue  # a mean over the seeds that got this far would be one of survivors

            def joined(name: str, rows: Sequence[tuple[int, list[str], dict[str, Any]]] = rows) -> list[float]:
                return [value for _, _, point in rows for value in point[name]]

            points.append(
                checkpoint_point(
                    label,
                    f"step {step}",
                    prompts=[prompt for _, prompts, _ in rows for prompt in prompts],
                    seeds=[run for run, prompts, _ in rows for _ in prompts] if len(rows) > 1 else None,
                    seq_kl=joined("seq_kl"),
                    proxy_reward=joined("proxy"),
                    gold_reward=joined("gold") if self.scope.has_gold else None,
                    step=step,
                )
            )
        return points

    def _pool_points(self, label: str, runs: Sequence[ArmRun]) -> list[FrontierPoint]:
        pools, selectors = _pools(runs)
        straight = [replace(one, samples=one.kl or one.samples) for one in self.scope.arms[BASELINE]]
        baseline = [one.judged("gold") for one in straight] if self.scope.has_gold else None
        return [
            best_of_n_point(
                label,
                n,
                selector=selectors,
                proxy=[pool.by_prompt(f"proxy/{self.scope.proxy}") for pool in pools],
                gold=[pool.by_prompt("gold") for pool in pools] if self.scope.has_gold else None,
                baseline=baseline,
            )
            for n in self.scope.blocks[label]["report_n"]
        ]

    def overoptimization(self) -> list[dict[str, Any]]:
        """`overoptimization`: Gao's forms and the drop from the best point; needs gold."""
        if not self.scope.has_gold:
            return []
        found: list[Overoptimization] = []
        for label, runs in self.scope.arms.items():
            if runs[0].kind == "best_of_n":
                found.append(self._pool_turn(label, runs, self.scope.rng(3)))
            elif trajectories := self._trajectories(label):
                found.append(_trajectory_turn(label, trajectories, self.scope.rng(3)))
        return [plain(one) for one in found]

    def _pool_turn(self, label: str, runs: Sequence[ArmRun], rng: np.random.Generator) -> Overoptimization:
        pools, selectors = _pools(runs)
        sizes = self.scope.blocks[label]["report_n"]
        names = list(selectors[0])
        table = np.zeros((len(runs), len(names), len(sizes)))
        start = np.zeros((len(runs), len(names)))
        for at, (pool, selector) in enumerate(zip(pools, selectors, strict=True)):
            gold = pool.by_prompt("gold")
            for row, prompt in enumerate(names):
                start[at, row] = gold[prompt].mean()
                table[at, row] = [best_of_n_value(selector[prompt], gold[prompt], n) for n in sizes]
        kl = [bound_kl(n) for n in sizes]
        return of_these_seeds(overoptimization(label, "bon", kl, table.mean(0), start.mean(0), names, rng), len(runs))


def _pools(runs: Sequence[ArmRun]) -> tuple[list[Responses], list[dict[str, Array]]]:
    """Best-of-n's pool at temperature 1 and its selecting scores by prompt, one a run seed."""
    pools = [one.kl_pool for one in runs if one.kl_pool is not None]
    return pools, [pool.by_prompt(str(runs[0].selector)) for pool in pools]


def _trajectory_turn(
    label: str, trajectories: Mapping[int, dict[str, Any]], rng: np.random.Generator
) -> Overoptimization:
    """Over-optimization along the checkpoints, means over run seeds; points that every seed reached."""
    steps = [{point["step"] for point in one["points"]} for one in trajectories.values()]
    shared = sorted(set.intersection(*steps) - {0})
    if not shared:
        return refused(label, "rl", "refused: a run diverged before its first checkpoint, so there is no line")
    prompts = next(iter(trajectories.values()))["prompt_id"]
    names = list(dict.fromkeys(prompts))
    row = np.array([names.index(prompt) for prompt in prompts])
    count = np.bincount(row)

    def table(column: str, step: int) -> Array:
        per_seed = []
        for one in trajectories.values():
            values = next(point[column] for point in one["points"] if point["step"] == step)
            per_seed.append(np.bincount(row, weights=np.array(values, dtype=np.float64)) / count)
        mean: Array = np.mean(per_seed, axis=0)
        return mean

    kl = [float(table("seq_kl", step).mean()) for step in shared]
    gold = np.stack([table("gold", step) for step in shared], axis=1)
    return of_these_seeds(overoptimization(label, "rl", kl, gold, table("gold", 0), names, rng), len(trajectories))


def of_these_seeds(found: Overoptimization, seeds: int) -> Overoptimization:
    """Says in each method that a mean over run seeds was resampled by prompt alone."""
    if seeds == 1:
        return found
    note = f"; mean of these {seeds} run seeds, no seed variance"
    parts = {name: getattr(found, name) for name in ("alpha", "beta", "peak_kl", "drop_from_peak")}
    told = {name: part.model_copy(update={"method": part.method + note}) for name, part in parts.items() if part}
    return found.model_copy(update=told)
