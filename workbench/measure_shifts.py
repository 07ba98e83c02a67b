"""What becomes of the two rewards away from where they were fitted: over training, on-policy, out of distribution."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from workbench.config_base import BASELINE
from workbench.measure_rewards import HELD_OUT, OOD, SHIFTED, Rewards, on_policy
from workbench.measure_scope import Scope, plain
from workbench.metrics.agreement import accuracy_difference
from workbench.metrics.calibration import ordered_like
from workbench.metrics.contrast import Sample, difference_of_means
from workbench.metrics.estimates import Array, mean_by_cluster
from workbench.metrics.pair_margins import PairMargins, pairs_of_samples
from workbench.results_agreement import AgreementPoint, Generalization, Shift
from workbench.results_base import SEEDS_FOR_METHODS, E
from workbench.types import Estimate

STATEMENT = "DPO's implicit reward loses more accuracy out of distribution than the explicit reward model does"
SOURCE = "Lin et al. 2024, https://arxiv.org/abs/2409.03650"


class Shifts:
    """`agreement_trajectory` and `generalization`, as plain JSON."""

    def __init__(self, scope: Scope, rewards: Rewards) -> None:
        self.scope, self.rewards = scope, rewards

    def trajectory(self) -> list[dict[str, Any]]:
        """Every DPO checkpoint's implicit reward against the explicit one; steps that all run seeds reached."""
        found: list[dict[str, Any]] = []
        for label, block in self.scope.blocks.items():
            if block["kind"] != "dpo":
                continue
            files = {run: self._checkpoints(label, run) for run in self.scope.seeds}
            steps = set.intersection(*({p["step"] for p in one["points"]} for one in files.values()))
            for step in sorted(steps):
                points = {run: (one, next(p for p in one["points"] if p["step"] == step)) for run, one in files.items()}
                for name, pairs in ((HELD_OUT, self._labelled(points, "test")), (OOD, self._ood(points))):
                    if pairs is not None:
                        found.append(plain(_point(label, step, name, pairs)))
        return found

    def _checkpoints(self, label: str, run: int) -> Any:
        return self.scope.artifacts.json(label, run, "checkpoints", "checkpoints.json")

    def _labelled(self, points: dict[int, Any], split: str) -> PairMargins | None:
        columns = self.rewards.reader.margins(split)
        if not columns["seed"]:
            return None
        margins: dict[tuple[int, str], float] = {}
        for run, (file, point) in points.items():
            sides = zip(file["pair_id"], point["chosen"], point["rejected"], strict=True)
            margins |= {(run, name): chosen - rejected for name, chosen, rejected in sides}
        keys = list(zip(columns["seed"], columns["pair_id"], strict=True))
        return PairMargins(
            implicit=np.array([margins[key] for key in keys]),
            explicit=np.array(columns[f"proxy/{self.scope.proxy}"], dtype=np.float64),
            prompts=columns["prompt_id"],
            seeds=columns["seed"] if len(points) > 1 else None,
            truth=np.ones(len(keys)),
            truth_kind="label",
        )

    def _ood(self, points: dict[int, Any]) -> PairMargins | None:
        """Labelled pairs if there are, else the SFT's samples, with gold as the truth where there is one."""
        labelled = self._labelled(points, "ood")
        if labelled is not None or OOD not in self.rewards.samples:
            return labelled
        samples = self.rewards.samples[OOD]
        implicit = []
        for run, one in samples:
            file, point = points[run]
            by_id = dict(zip(file["generation_id"], point["samples"], strict=True))
            implicit += [by_id[name] for name in one.ids]

        def joined(name: str) -> Array:
            return np.concatenate([one.columns[name] for _, one in samples])

        return pairs_of_samples(
            implicit,
            joined(f"proxy/{self.scope.proxy}"),
            [prompt for _, one in samples for prompt in one.prompts],
            seeds=[run for run, one in samples for _ in one.prompts] if len(samples) > 1 else None,
            gold=joined("gold") if self.scope.has_gold else None,
        )

    def generalization(self) -> dict[str, Any] | None:
        """Whether the implicit reward falls off more out of distribution, and each set against the SFT's samples."""
        sets = self.rewards.sets
        inside = HELD_OUT if OOD in sets and sets[OOD].truth_kind == "label" else on_policy(BASELINE)
        if OOD not in sets or inside not in sets or sets[OOD].truth is None or sets[inside].truth is None:
            return None
        difference = _contrast(sets[OOD], sets[inside], _lead)
        holds, reason = verdict(difference, len(self.scope.seeds))
        base = on_policy(BASELINE)
        shifts = [] if base not in sets or sets[base].truth is None else [
            self._shift(name, pairs, sets[base])
            for name, pairs in sets.items()
            if name != base and pairs.truth_kind == sets[base].truth_kind
        ]  # fmt: skip
        found = Generalization(
            statement=STATEMENT,
            source=SOURCE,
            in_distribution=inside,
            out_of_distribution=OOD,
            difference=E.of(difference),
            holds=holds,
            reason=reason,
            reference=base,
            shifts=shifts,
        )
        return found.model_dump(mode="json")

    def _shift(self, name: str, pairs: PairMargins, base: PairMargins) -> Shift:
        kinds: dict[str, Literal["temperature", "prompts"]] = {SHIFTED: "temperature", OOD: "prompts"}
        assert pairs.truth is not None
        return Shift(
            set=name,
            kind=kinds.get(name, "on_policy"),
            optimized=self._optimized(name.removeprefix(on_policy(""))),
            implicit_change=E.of(_contrast(pairs, base, _right_implicit)),
            explicit_change=E.of(_contrast(pairs, base, _right_explicit)),
            difference=accuracy_difference(
                pairs.implicit, pairs.explicit, pairs.truth, list(pairs.prompts), pairs.seeds
            ),
            difference_change=E.of(_contrast(pairs, base, _lead)),
        )

    def _optimized(self, label: str) -> Literal["explicit", "implicit"] | None:
        """Which of the two compared rewards an arm was trained on, selects by or had its pairs labeled by."""
        block = self.scope.blocks.get(label) or {}
        reward = block.get("labels") or block.get("reward")
        if label == self.scope.implicit or reward == self.scope.implicit:
            return "implicit"
        return "explicit" if reward == self.scope.proxy else None


def verdict(difference: Estimate, run_seeds: int) -> tuple[bool | Literal["unresolved"], str]:
    """What the interval of (explicit - implicit accuracy), out of distribution less in it, says of the statement."""
    if difference.value is None or difference.low is None or difference.high is None:
        return "unresolved", f"no interval: {difference.method}"
    if run_seeds < SEEDS_FOR_METHODS:
        needed = f"a statement on methods needs {SEEDS_FOR_METHODS}"
        return "unresolved", f"{run_seeds} run seed(s) compare checkpoints; {needed}"
    if difference.low > 0:
        return True, "the interval lies above 0"
    if difference.high < 0:
        return False, "the interval lies below 0: the explicit reward loses more"
    return "unresolved", "the interval holds 0"


def _right_implicit(pairs: PairMargins) -> Array:
    assert pairs.truth is not None
    return ordered_like(pairs.implicit, pairs.truth)


def _right_explicit(pairs: PairMargins) -> Array:
    assert pairs.truth is not None
    return ordered_like(pairs.explicit, pairs.truth)


def _lead(pairs: PairMargins) -> Array:
    return _right_explicit(pairs) - _right_implicit(pairs)


def _contrast(one: PairMargins, other: PairMargins, figure: Any) -> Estimate:
    sides = [Sample(values=figure(side), prompts=side.prompts, seeds=side.seeds) for side in (one, other)]
    wide = 2.0 if figure is _lead else 1.0
    return difference_of_means(sides[0], sides[1], (-wide, wide))


def _point(label: str, step: int, name: str, pairs: PairMargins) -> AgreementPoint:
    prompts = list(pairs.prompts)

    def share(values: Array) -> E:
        return E.of(mean_by_cluster(values, prompts, None, pairs.seeds, proportion=True))

    truth = pairs.truth
    # Without a truth there is no better response: the mean size of the margin is what is left to follow.
    margin = np.abs(pairs.implicit) if truth is None else pairs.implicit * np.sign(truth)
    return AgreementPoint(
        arm=label,
        step=step,
        set=name,
        agreement=share(ordered_like(pairs.implicit, pairs.explicit)),
        implicit_accuracy=None if truth is None else share(_right_implicit(pairs)),
        explicit_accuracy=None if truth is None else share(_right_explicit(pairs)),
        accuracy_difference=None
        if truth is None
        else accuracy_difference(pairs.implicit, pairs.explicit, truth, prompts, pairs.seeds),
        seq_margin=E.of(mean_by_cluster(margin, prompts, None, pairs.seeds)),
    )
