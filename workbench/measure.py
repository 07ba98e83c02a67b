"""The measure stage: every figure of results.json that does not depend on how long anything took.

numpy and scipy only. Each figure is an estimate clustered by prompt, crossed with run seeds where there are several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Artifacts, gain_over, mean_over
from workbench.judging.records import JUDGMENTS_FILE
from workbench.judgment_files import write_judgments
from workbench.measure_annotators import AnnotatorMeasure
from workbench.measure_crossed import decomposition
from workbench.measure_curves import Curves
from workbench.measure_disagreements import DISAGREEMENTS_FILE, Disagreements, shown
from workbench.measure_diversity import DiversityMeasure
from workbench.measure_learning import Learning
from workbench.measure_rewards import Rewards
from workbench.measure_scope import Figure, Scope, plain
from workbench.measure_shifts import Shifts
from workbench.measure_tilt import Tilts
from workbench.metrics.frontier import (
    bound_estimate,
    kl_fault,
)
from workbench.metrics.length_control import control_together
from workbench.metrics.ranking import ranking
from workbench.metrics.win_rate import against_baseline, duels, with_holm
from workbench.packed import PackedPairs
from workbench.results import HeadToHead, Selected
from workbench.results_base import KL, E, WinRate
from workbench.sides import read_side, split_prompts, to_json
from workbench.stage_log import StageLog
from workbench.verdicts import Verdicts


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Measures a comparison.

    Args:
        config: {"arms": blocks by label, "runs": run seeds, "reward_models": names, "proxy": the one that scores every
            arm, "implicit": the DPO arm whose reward is compared, or None, "judges": in use, the headline's first,
            "judge_kinds": name -> kind of those that are no scorers, "gold": whether there is one, "annotators": blocks
            of the simulated ones, or None, "reward_pairs": name -> {"pairs", "seeds": run -> seed} of the reward models
            and dpo arms that see a subset, "reward_settings": all reward models' settings but their pairs, where there
            is such a subset}.
        inputs: All artifacts, by role (`workbench.evidence.Artifacts`).
        out: Receives measured.json (parts of results.json), judgments.jsonl (each judge's verdicts on every arm and
            the SFT, for `workbench winrate`), disagreements.json (pairs that the two rewards order in opposite ways,
            with text) and sides.json (facts for the certificate).
        log: Seed of the resampling.
    """
    scope = Scope(config, Artifacts(inputs), log.seed)
    measure, curves, rewards = Measure(scope), Curves(scope), Rewards(scope)
    shifts, listed = Shifts(scope, rewards), Disagreements(scope, rewards).listed()
    people, diversity = AnnotatorMeasure(scope, config.get("annotators")), DiversityMeasure(scope)
    tilts = Tilts(scope)
    parts: dict[str, Any] = {}

    def learning() -> Learning:
        return Learning(scope, curves, parts["arms"], parts["reward_models"])

    steps = (
        ("judges", measure.judge_quality),
        ("reward_models", rewards.reward_models),
        ("arms", lambda: beside(measure.arm_figures(), people.arms(), diversity.arms())),
        ("annotators", lambda: plain(people.summary)),
        ("head_to_head", measure.duels),
        ("ranking", measure.rating),
        ("frontier", curves.frontier),
        ("matched_kl", curves.matched),
        ("frontier_area", curves.areas),
        ("overoptimization", curves.overoptimization),
        ("pairs_effect", curves.pairs_effect),
        ("learning_curves", lambda: learning().curves()),
        ("learning_gaps", lambda: learning().gaps()),
        ("tilt", tilts.points),
        ("tilt_differences", tilts.differences),
        ("decomposition", lambda: decomposition(scope, measure.verdicts, curves.lines, withheld=measure.withheld())),
        ("agreement", rewards.agreement),
        ("agreement_trajectory", shifts.trajectory),
        ("generalization", shifts.generalization),
        ("disagreements", lambda: shown(listed)),
    )
    for number, (name, step) in enumerate(steps):
        parts[name] = step()
        log.progress(number + 1, len(steps), name)
    _write(out / "measured.json", parts)
    _write(out / DISAGREEMENTS_FILE, listed)
    write_judgments(out / JUDGMENTS_FILE, (one for judge in scope.judges for one in measure.verdicts.told(judge)))
    pairs = PackedPairs(inputs["pairs"])
    facts = {
        "sides": measure.sides(),
        "split_prompts": split_prompts(scope.artifacts),
        "train_pairs": pairs.ids_digest(pairs.split_rows("train")),
    }
    _write(out / "sides.json", facts)


def beside(*parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of every arm from several measures, put together by label."""
    return {label: {name: one for part in parts for name, one in part[label].items()} for label in parts[0]}


class Measure:
    """Sections of results.json about the arms and their judges, as plain JSON."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.verdicts = Verdicts(scope.artifacts, scope.arms, scope.judge_kinds, scope.proxy)
        self.quality = {name: self.verdicts.quality(name) for name in scope.judges if name in scope.judge_kinds}

    def arm_figures(self) -> dict[str, Any]:
        """`arms`, but for cost."""
        rates = {label: self._rates(label, runs) for label, runs in self.scope.arms.items()}
        family = iter(with_holm([rate for found in rates.values() for rate in found]))
        corrected = {label: [next(family) for _ in found] for label, found in rates.items()}
        controlled = self._length_controlled()
        return {
            label: self._arm(label, runs, corrected[label])
            | {
                "win_rate_length_controlled": plain(controlled.get(label)),
                "null_win_rates": [plain(rate) for rate in self._null_rates(label, runs)],
                "by_seed": self._by_seed(label, runs),
            }
            for label, runs in self.scope.arms.items()
        }

    def _baseline(self, runs: Sequence[ArmRun]) -> list[ArmRun]:
        """The baseline's runs of the same seeds."""
        against = self.scope.arms[BASELINE]
        return against if len(runs) == len(against) else [one for one in against if one.seed == runs[0].seed]

    def _rates(self, label: str, runs: Sequence[ArmRun]) -> list[WinRate]:
        """Win rates against the baseline by every judge, not yet corrected for their number."""
        found = []
        for number, judge in enumerate(self.scope.judges if label != BASELINE else ()):
            wins = self.verdicts.over_baseline(judge, label, runs)
            rate = against_baseline(wins, self.scope.rng(Figure.WIN_RATE, number), name=BASELINE, judge=judge)
            found.append(self._shown(rate, judge))
        return found

    def _shown(self, rate: WinRate, judge: str) -> WinRate:
        """The rate, or none where what the judge left unscored could have made it."""
        reason = self.quality[judge].uneven if judge in self.quality else None
        if reason is None:
            return rate
        empty = {"value": None, "low": None, "high": None, "p_value": None, "minimum_detectable_effect": None}
        return rate.model_copy(update=empty | {"prompt_se": None, "seed_se": None, "method": f"withheld: {reason}"})

    def _length_controlled(self) -> dict[str, E]:
        """The headline's win rates with the difference in length held at 0, all arms together: prompts that are hard
        for one arm are hard for the others."""
        judge = self.scope.judges[0]
        if judge == "proxy" or (judge in self.quality and self.quality[judge].uneven is not None):
            return {}
        arms = {label: runs for label, runs in self.scope.arms.items() if label != BASELINE}
        wins = {label: self.verdicts.over_baseline(judge, label, runs) for label, runs in arms.items()}
        longer = [self.verdicts.longer_by(judge, label, runs, wins[label]) for label, runs in arms.items()]
        found = control_together(list(wins.values()), longer, self.scope.rng(Figure.LENGTH_CONTROL))
        return {label: E.of(one.told) for label, one in zip(arms, found, strict=True)}

    def _null_rates(self, label: str, runs: Sequence[ArmRun]) -> list[WinRate]:
        if label == BASELINE:
            return []
        return [
            against_baseline(wins, self.scope.rng(Figure.NULL_WIN_RATE, number), name=BASELINE, judge=judge)
            for number, (judge, wins) in enumerate(self.verdicts.nulls(label, runs).items())
        ]

    def _arm(self, label: str, runs: Sequence[ArmRun], rates: Sequence[WinRate]) -> dict[str, Any]:
        against = self._baseline(runs)

        def gain(column: str) -> Any:
            return None if label == BASELINE else plain(gain_over(runs, against, column))

        reasons = [
            f"seed {one.seed}: {one.diverged}" if len(runs) > 1 else one.diverged for one in runs if one.diverged
        ]
        return {
            "kind": runs[0].kind,
            "selected": runs[0].selected["checkpoint"] if runs[0].selected is not None else None,
            "selection": plain(self._selected(runs[0])),
            "gold_reward": plain(E.of(mean_over(runs, "gold"))) if self.scope.has_gold else None,
            "gold_gain": gain("gold") if self.scope.has_gold else None,
            "proxy_reward": plain(E.of(mean_over(runs, f"proxy/{self.scope.proxy}"))),
            "proxy_gain": gain(f"proxy/{self.scope.proxy}"),
            "own_objective": None if label == BASELINE else plain(E.of(mean_over(runs, "own"))),
            "seq_kl": plain(self._kl(runs)),
            "win_rate": plain(rates[0]) if rates and self.scope.judges[0] != "proxy" else None,
            "win_rates": [plain(rate) for rate in rates],
            "response_tokens": plain(E.of(mean_over(runs, "response_tokens"))),
            "eos_rate": plain(E.of(mean_over(runs, "finished", proportion=True))),
            "diverged": "; ".join(str(reason) for reason in reasons) or None,
        }

    def _by_seed(self, label: str, runs: Sequence[ArmRun]) -> list[dict[str, Any]]:
        names = (
            "selected", "selection", "gold_reward", "proxy_reward", "own_objective", "seq_kl", "win_rate",
            "response_tokens", "eos_rate", "diverged",
        )  # fmt: skip
        if len(runs) == 1:
            return []
        found = []
        for one in runs:
            figures = self._arm(label, [one], self._rates(label, [one]))
            found.append({"seed": one.seed} | {name: figures[name] for name in names})
        return found

    def _kl(self, runs: Sequence[ArmRun]) -> KL:
        if runs[0].kind == "best_of_n":
            one = runs[0]
            assert one.n is not None
            return bound_estimate(one.n, len(one.samples.rows))
        return KL.of(mean_over(runs, "seq_kl"), kl_kind="mc_k1")

    def _selected(self, one: ArmRun) -> Selected | None:
        if one.selected is None:
            return None
        best = one.selected["rule"] == "best"
        return Selected(
            checkpoint=one.selected["checkpoint"],
            step=one.selected["step"],
            rule=one.selected["rule"],
            metric=one.selected["metric"],
            split="validation" if best else None,
            oracle=best and one.selected["metric"] == "gold_reward",
        )

    def withheld(self) -> bool:
        """Whether what the first judge left unscored could have made its figures."""
        judge = self.scope.judges[0]
        return judge in self.quality and self.quality[judge].uneven is not None

    def judge_quality(self) -> dict[str, Any]:
        """`judges`: how the judges beside gold and proxy did."""
        return {name: plain(found) for name, found in self.quality.items()}

    def duels(self) -> list[dict[str, Any]]:
        """`head_to_head`: every two arms, by every judge that compared them, Holm over all."""
        rows: list[HeadToHead] = []
        for number, judge in enumerate(self.scope.judges):
            if judge not in self.quality or self.quality[judge].uneven is None:
                rows += duels(self.verdicts.duels(judge), judge, self.scope.rng(Figure.DUELS, number))
        return [plain(row) for row in with_holm(rows)]

    def rating(self) -> list[dict[str, Any]]:
        """`ranking` by the first judge."""
        judge = self.scope.judges[0]
        if judge in self.quality and self.quality[judge].uneven is not None:
            return []
        return [
            plain(row)
            for row in ranking(self.verdicts.everyone(judge), self.scope.rng(Figure.RANKING), baseline=BASELINE)
        ]

    def sides(self) -> list[dict[str, Any]]:
        """Facts of every arm in every run seed, for the certificate."""
        seeded = len(self.scope.seeds) > 1
        found = []
        for label, runs in self.scope.arms.items():
            for one in runs:
                fault = kl_fault(self._kl([one])) if one.kind != "best_of_n" else None
                block = self.scope.blocks.get(label)
                side = read_side(
                    self.scope.artifacts, label, one.seed, block, seeded=seeded, kl_fault=fault,
                    subsets=self.scope.reward_pairs,
                )  # fmt: skip
                found.append(to_json(side))
        return found


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
