"""Learning curves of the measure stage: reward by number of preference pairs, for arms of a kind on nested subsets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, gain_over, mean_over
from workbench.measure_curves import Curves, pairs_source
from workbench.measure_scope import Scope, plain
from workbench.results_base import KL, E, WinRate
from workbench.results_learning import LearningCurve, LearningGap, LearningPoint


class Learning:
    """`learning_curves` and `learning_gaps`; empty where no arm sees fewer pairs than another of its kind."""

    def __init__(self, scope: Scope, curves: Curves, arms: Mapping[str, Any], rewards: Mapping[str, Any]) -> None:
        """Args: `arms` and `rewards` are those sections of results.json, as plain JSON."""
        self.scope, self.told, self.rewards = scope, arms, rewards
        self.reward: Literal["gold_reward", "proxy_reward"] = curves.reward
        self.column = "gold" if scope.has_gold else f"proxy/{scope.proxy}"
        self.groups = curves.by_pairs() if scope.reward_pairs else []

    def curves(self) -> list[dict[str, Any]]:
        """One curve for each set of arms that differ in their pairs alone."""
        return [
            plain(
                LearningCurve(
                    kind=self.scope.arms[group[0][1]][0].kind,
                    reward=self.reward,
                    points=[self._point(pairs, label, group[-1][1]) for pairs, label in group],
                )
            )
            for group in self.groups
        ]

    def gaps(self) -> list[dict[str, Any]]:
        """Every two arms of different curves on equally many pairs."""
        found = []
        for first, second in combinations(self.groups, 2):
            other = dict(second)
            for pairs, label in first:
                if pairs not in other:
                    continue
                against = other[pairs]
                difference = gain_over(self._runs(label), self._runs(against), self.column)
                found.append(
                    plain(LearningGap(pairs=pairs, a=label, b=against, reward=self.reward, difference=difference))
                )
        return found

    def _runs(self, label: str) -> list[ArmRun]:
        return self.scope.arms[label]

    def _point(self, pairs: int, label: str, most: str) -> LearningPoint:
        runs, told = self._runs(label), self.told[label]
        source = pairs_source(label, self.scope.blocks[label])
        accuracy = self.rewards.get(str(source), {}).get("accuracy")
        return LearningPoint(
            arm=label,
            pairs=pairs,
            reward=E.of(mean_over(runs, self.column)),
            gain=gain_over(runs, self._runs(BASELINE), self.column),
            shortfall=gain_over(self._runs(most), runs, self.column) if label != most else None,
            win_rate=WinRate(**told["win_rate"]) if told["win_rate"] is not None else None,
            seq_kl=KL(**told["seq_kl"]),
            reward_model_accuracy=E(**accuracy) if accuracy is not None else None,
        )
