"""The curves of the measure stage: reward against KL, also at matched KL, and where the proxy parts from the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from typing import Any, Literal

import numpy as np

from workbench.config_base import BASELINE
from workbench.config_labels import GIVEN
from workbench.evidence import ArmRun, mean_over
from workbench.measure_lines import Lines, Steps, pools_of, sizes_up_to, told
from workbench.measure_scope import Figure, Scope, plain
from workbench.measure_truth import Truths
from workbench.metrics import matched_kl
from workbench.metrics.estimates import mean_by_cluster
from workbench.metrics.fits import Form
from workbench.metrics.frontier import best_of_n_point, checkpoint_point
from workbench.metrics.lines import Line, Selector
from workbench.metrics.overoptimization import Start, overoptimization, refused
from workbench.metrics.pairs_effect import pairs_effect as effect_of_pairs
from workbench.metrics.pareto import pareto
from workbench.metrics.win_rate import Judged, win_rate
from workbench.results_base import KL, E
from workbench.results_curves import FrontierPoint, Overoptimization

# Gao et al. fitted RL and best-of-n; which of the two forms direct alignment follows is open, so it gets both.
FORMS: dict[str, tuple[Form, ...]] = {"best_of_n": ("bon",), "dpo": ("rl", "bon")}


class Curves:
    """Sections of results.json about checkpoints, sizes n and KL, as plain JSON."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.lines = Lines(scope)

    @property
    def reward(self) -> Literal["gold_reward", "proxy_reward"]:
        """What curves are about: gold where there is one."""
        return "gold_reward" if self.scope.has_gold else "proxy_reward"

    # -------------------------------------------------------------------------------------------- frontier

    def frontier(self) -> list[dict[str, Any]]:
        """`frontier`: checkpoints on validation prompts, selected policies on test prompts, best-of-n at every n."""
        lines: list[Line] = []
        points: list[FrontierPoint] = []
        for label, runs in self.scope.arms.items():
            if runs[0].kind == "best_of_n":
                for selector in self._selectors(label):
                    lines.append(self.lines.pool(label, self._sizes(label), selector, self.scope.proxy))
                    points += self._pool_points(label, runs, selector, lines[-1])
                continue
            if (found := self.lines.trajectory(label)) is not None:
                lines.append(found[0])
                points += self._trajectory_points(label, found[1])
            final = self.lines.final(label, runs)
            if final is not None:
                lines.append(final)
            points.append(self._final_point(label, runs, final))
        flags = iter([flag for line in pareto(lines, self.scope.rng(Figure.FRONTIER)) for flag in line])
        shown = []
        for point in points:
            drawn = point.label not in ("sft (test)", "selected (test)") or point.proxy_reward is not None
            flag = next(flags) if drawn else None
            shown.append(point.model_copy(update={"pareto": flag[0], "pareto_share": flag[1]}) if flag else point)
        return [plain(point) for point in shown]

    def _sizes(self, label: str) -> tuple[int, ...]:
        return tuple(self.scope.blocks[label]["report_n"])

    def _selectors(self, label: str) -> tuple[Selector, ...]:
        """Its own; and, once in a comparison, at the arm with the largest n, what gold would pick from the pool."""
        largest = max(self._sizes(one)[-1] for one, runs in self.scope.arms.items() if runs[0].kind == "best_of_n")
        first = next(
            one
            for one, runs in sorted(self.scope.arms.items())
            if runs[0].kind == "best_of_n" and self._sizes(one)[-1] == largest
        )
        return ("own", "gold") if self.scope.has_gold and label == first else ("own",)

    def _final_point(self, label: str, runs: Sequence[ArmRun], line: Line | None) -> FrontierPoint:
        if label == BASELINE:
            runs = [replace(one, samples=one.kl or one.samples) for one in runs]
        rate = None
        if label != BASELINE and line is not None and self.scope.judges[0] == "gold":
            against = self.scope.arms[BASELINE]
            rate = E.of(win_rate([one.judged("gold") for one in runs], [one.judged("gold") for one in against]))
        return FrontierPoint(
            arm=label,
            label="selected (test)" if label != BASELINE else "sft (test)",
            seq_kl=KL.of(mean_over(runs, "seq_kl"), kl_kind="mc_k1"),
            proxy_reward=E.of(mean_over(runs, f"proxy/{self.scope.proxy}")) if line is not None else None,
            gold_reward=E.of(mean_over(runs, "gold")) if line is not None and self.scope.has_gold else None,
            win_rate=rate,
            prompt_set="test",
        )

    def _trajectory_points(self, label: str, steps: Sequence[Steps]) -> list[FrontierPoint]:
        found = self.lines.trajectories(label)
        points = []
        for at in steps:
            rows = [
                (run, one["prompt_id"], _point(one, step)) for step, (run, one) in zip(at, found.items(), strict=True)
            ]

            def joined(name: str, rows: Sequence[Any] = rows) -> list[float]:
                return [value for _, _, point in rows for value in point[name]]

            rate = None
            if self.scope.has_gold and max(at) > 0:
                rate = win_rate(
                    [_judged(prompts, point["gold"]) for _, prompts, point in rows],
                    [_judged(one["prompt_id"], one["points"][0]["gold"]) for one in found.values()],
                )
            points.append(
                checkpoint_point(
                    label,
                    told(at),
                    prompts=[prompt for _, prompts, _ in rows for prompt in prompts],
                    seeds=[run for run, prompts, _ in rows for _ in prompts] if len(rows) > 1 else None,
                    seq_kl=joined("seq_kl"),
                    proxy_reward=joined("proxy"),
                    gold_reward=joined("gold") if self.scope.has_gold else None,
                    win_rate=rate,
                    step=at[0] if len(set(at)) == 1 else None,
                    prompt_set="validation",
                )
            )
        return points

    def _pool_points(self, label: str, runs: Sequence[ArmRun], selector: Selector, line: Line) -> list[FrontierPoint]:
        pools, own = pools_of(runs)
        straight = [replace(one, samples=one.kl or one.samples) for one in self.scope.arms[BASELINE]]
        golds = [pool.by_prompt("gold") for pool in pools] if self.scope.has_gold else None
        if selector == "gold":
            assert golds is not None
            own = [{p: v for p, v in gold.items() if not np.isnan(v).any()} for gold in golds]
        assert line.kl_slack is not None
        labels = [(seed, prompt) for seed in line.seeds for prompt in line.prompts]
        return [
            best_of_n_point(
                label,
                n,
                selector=own,
                proxy=[pool.by_prompt(f"proxy/{self.scope.proxy}") for pool in pools],
                gold=golds,
                baseline=[one.judged("gold") for one in straight] if self.scope.has_gold else None,
                kl_slack=E.of(
                    mean_by_cluster(
                        line.kl_slack[:, :, k].ravel(), [prompt for _, prompt in labels], None,
                        [seed for seed, _ in labels] if len(line.seeds) > 1 else None,
                    )
                ),
                picked_by=selector,
            )
            for k, n in enumerate(self._sizes(label))
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------ matched KL

    @cached_property
    def _matched(self) -> matched_kl.Curves:
        lines: list[Line] = []
        for label, runs in self.scope.arms.items():
            if runs[0].kind == "best_of_n":
                lines.append(self.lines.pool(label, sizes_up_to(self._sizes(label)[-1])))
            elif (found := self.lines.trajectory(label)) is not None:
                lines.append(found[0])
        return matched_kl.Curves(lines, self.scope.rng(Figure.MATCHED_KL))

    def matched(self) -> list[dict[str, Any]]:
        """`matched_kl`: every arm, and every two, at the same KLs; selected policies beside best-of-n at their own."""
        trained = {label: runs for label, runs in self.scope.arms.items() if runs[0].n is None and label != BASELINE}
        points = [line for label, runs in trained.items() if (line := self.lines.final(label, runs)) is not None]
        found = matched_kl.matched(self._matched, self.reward)
        return [plain(one) for one in (*found, *matched_kl.selected(self._matched, points, self.reward))]

    def areas(self) -> list[dict[str, Any]]:
        """`frontier_area`: mean reward over the KLs that arms have in common."""
        return [plain(one) for one in matched_kl.areas(self._matched, self.reward)]

    # ----------------------------------------------------------------------------------- over-optimization

    def overoptimization(self) -> list[dict[str, Any]]:
        """`overoptimization`: the turn and Gao's forms; without gold by a judge or by the other reward models."""
        found: list[Overoptimization] = []
        truths = None if self.scope.has_gold else Truths(self.scope)
        for label, runs in self.scope.arms.items():
            forms = FORMS.get(runs[0].kind, ("rl",))
            if label == BASELINE:
                continue
            if truths is not None:
                found += truths.turn(label, forms, self.scope.rng(Figure.OVEROPTIMIZATION))
            elif runs[0].kind == "best_of_n":
                for selector in self._selectors(label):
                    # Gold's choice stands at one of the arms, whichever: its proxy is the one that all arms share.
                    proxy = self.own_proxy(label) if selector == "own" else self.scope.proxy
                    start = self.lines.pool_start(label, proxy)
                    line = self.lines.pool(label, self._sizes(label), selector, proxy)
                    found += self._rows(line, start, forms, proxy)
            elif (lined := self.lines.trajectory(label, own=True)) is not None:
                line, steps = lined
                if len(steps) < 2:
                    why = "refused: a run diverged before its first checkpoint, so there is no line"
                    found += [refused(label, form, why) for form in forms]
                    continue
                start = self.lines.trajectory_start(label)
                found += self._rows(_without_sft(line), start, forms, self.own_proxy(label))
        return [plain(one.model_copy(update={"proxy_role": self._role(one)})) for one in found]

    def _role(self, row: Overoptimization) -> Literal["own", "shared", "both"] | None:
        """What a row's proxy is to its arm."""
        if row.proxy is None:
            return None
        own = row.selector == "own" and self.scope.blocks[row.arm].get("reward") == row.proxy
        return "shared" if not own else "both" if row.proxy == self.scope.proxy else "own"

    def own_proxy(self, label: str) -> str:
        """The explicit reward model that an arm optimizes; the shared one where it optimizes none."""
        reward = self.scope.blocks[label].get("reward")
        return str(reward) if reward in self.scope.rewards else self.scope.proxy

    def _rows(self, line: Line, start: Start, forms: tuple[Form, ...], proxy: str) -> list[Overoptimization]:
        rows = overoptimization(line, start, forms, self.scope.rng(Figure.OVEROPTIMIZATION))
        return [row.model_copy(update={"proxy": proxy}) for row in rows]

    def pairs_effect(self) -> list[dict[str, Any]]:
        """`pairs_effect`: every two arms of a kind that stand on different numbers of pairs; needs gold."""
        if not self.scope.has_gold or not self.scope.reward_pairs:
            return []
        found: list[dict[str, Any]] = []
        sizes = {label: size for label in self.scope.blocks if (size := self._pairs_behind(label)) is not None}
        for fewer, more in permutations(sizes, 2):
            if sizes[fewer] >= sizes[more] or not self._alike(fewer, more):
                continue
            one, other = self._points_of(fewer), self._points_of(more)
            if one is not None and other is not None:
                kind, pairs = self.scope.arms[fewer][0].kind, (sizes[fewer], sizes[more])
                found.append(plain(effect_of_pairs(one, other, pairs, kind, self.scope.rng(Figure.PAIRS_EFFECT))))
        return found

    def by_pairs(self) -> list[list[tuple[int, str]]]:
        """Arms that differ in their pairs alone: (pairs, label) by rising number, of two numbers or more."""
        groups: list[list[tuple[int, str]]] = []
        for label in self.scope.blocks:
            pairs = self._pairs_behind(label)
            if pairs is None:
                continue
            mine = next((one for one in groups if self._alike(one[0][1], label)), None)
            if mine is None:
                groups.append([(pairs, label)])
            elif pairs not in dict(mine):  # a second arm of that size says the same
                mine.append((pairs, label))
        return [sorted(one) for one in groups if len(one) > 1]

    def _pairs_behind(self, label: str) -> int | None:
        """Training pairs that an arm's explicit reward, or a dpo arm itself, saw; None where there is neither."""
        source = pairs_source(label, self.scope.blocks[label])
        if source != label and source not in self.scope.rewards:
            return None
        subset = self.scope.reward_pairs.get(source)
        return int(subset["pairs"]) if subset else self.scope.train_pairs

    def _alike(self, a: str, b: str) -> bool:
        """Whether two arms differ in the pairs behind them alone: all settings of arm and reward are equal."""
        blocks = [self.scope.blocks[one] for one in (a, b)]
        first, other = ({k: v for k, v in block.items() if k not in ("reward", "pairs")} for block in blocks)
        if first != other or first["kind"] == "dpo":
            return first == other
        rewards = [self.scope.reward_settings.get(block["reward"]) for block in blocks]
        return rewards[0] is not None and rewards[0] == rewards[1]

    def _points_of(self, label: str) -> Line | None:
        """An arm's points from the SFT on, which is best-of-n at n = 1."""
        if self.scope.arms[label][0].kind == "best_of_n":
            sizes = tuple(sorted({1, *self._sizes(label)}))
            return self.lines.pool(label, sizes, "own", self.own_proxy(label))
        lined = self.lines.trajectory(label)
        return lined[0] if lined is not None and len(lined[1]) > 1 else None


def pairs_source(label: str, block: Mapping[str, Any]) -> str | None:
    """Whose pairs an arm stands on: its reward's, or its own where it trains on the data's labels."""
    if block["kind"] == "dpo":
        return label if block.get("labels", GIVEN) == GIVEN else None
    return block.get("reward")


def _point(trajectory: dict[str, Any], step: int) -> dict[str, Any]:
    """The first of a step: an arm that diverged at once kept the SFT as its checkpoint, and it is there already."""
    found: dict[str, Any] = next(point for point in trajectory["points"] if point["step"] == step)
    return found


def _without_sft(line: Line) -> Line:
    return replace(
        line,
        labels=line.labels[1:],
        kl=line.kl[:, :, 1:],
        proxy=line.proxy[:, :, 1:],
        gold=None if line.gold is None else line.gold[:, :, 1:],
    )


def _judged(prompts: Sequence[str], values: Sequence[float]) -> Judged:
    scores: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        scores.setdefault(prompt, []).append(value)
    return Judged(scores=scores)
