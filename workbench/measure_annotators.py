"""What the measure stage says of the arms as each annotator sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.data.annotators import Annotator
from workbench.data.records_io import read_jsonl
from workbench.data.simulate import count_words
from workbench.evidence import ArmRun
from workbench.measure_scope import Scope, plain
from workbench.metrics.annotator_wins import (
    FEWEST,
    expected_wins,
    labels_against_majority,
    leave_one_out,
    minority_of,
    p_prefers,
)
from workbench.metrics.contrast import Sample, difference_of_means
from workbench.metrics.estimates import (
    Array,
    ClusterMean,
    as_values,
    cluster_mean,
    interval_of_mean,
    mean_by_cluster,
)
from workbench.report.wording import interval
from workbench.results_annotators import Annotators
from workbench.results_base import Compared, E

NO_LABELS = "no simulated annotators, and no held-out pair says who labeled it"
ORDERS = "expected, both orders; "
Cell = tuple[str, int]


class AnnotatorMeasure:
    """`annotators`, and each arm's `by_annotator`, `minority_win_rate` and `minority_gap`.

    Args:
        scope: The comparison.
        blocks: Config blocks of the simulated annotators; None where pairs come from a file.
    """

    def __init__(self, scope: Scope, blocks: Sequence[Mapping[str, Any]] | None) -> None:
        self.scope = scope
        self.people = [Annotator(**block) for block in blocks or ()] if scope.has_gold else []

    @cached_property
    def summary(self) -> Annotators:
        """Who the annotators are to each other."""
        found = list(self._expected_agreement() if self.people else self._labeled_agreement())
        agreement = {name: E.of(mean_by_cluster(*zip(*rows, strict=True), proportion=True)) for name, rows in found}
        minority, level = self._told_apart(
            minority_of({name: one.value for name, one in agreement.items()}), dict(found)
        )
        kind, reason = ("expected_win_rate" if self.people else "label_agreement"), None
        if not self.people and not self._labels:
            return Annotators(kind=None, reason=NO_LABELS)
        if level is not None:
            reason = level
        elif not minority:
            several = f"{len(agreement)} of the annotators can be compared with others on one pair"
            reason = f"{several}; a minority needs at least {FEWEST}"
        return Annotators.model_validate(
            {"kind": kind, "leave_one_out": agreement, "minority": minority, "reason": reason}
        )

    def _told_apart(
        self, minority: list[str], rows: Mapping[str, list[tuple[float, str]]]
    ) -> tuple[list[str], str | None]:
        """The minority, or none with the reason: its most agreeing member agrees no less than the next annotator."""
        if not minority:
            return [], None
        means = {name: float(np.nanmean([value for value, _ in own])) for name, own in rows.items()}
        last = max(minority, key=lambda name: means[name])
        following = min((name for name in means if name not in minority), key=lambda name: means[name])
        sides = [
            Sample(values=np.array([value for value, _ in rows[name]]), prompts=[prompt for _, prompt in rows[name]])
            for name in (following, last)
        ]
        gap = difference_of_means(sides[0], sides[1], (-1.0, 1.0))
        if gap.low is not None and gap.low > 0:
            return minority, None
        shown = f"{interval({'value': gap.value, 'low': gap.low, 'high': gap.high})}"
        return [], f"{last} agrees least, but not beyond noise: {following} agrees more by {shown}"

    def arms(self) -> dict[str, dict[str, Any]]:
        """The fields of every arm, as plain JSON."""
        return {label: self._of_arm(label, runs) for label, runs in self.scope.arms.items()}

    def _of_arm(self, label: str, runs: Sequence[ArmRun]) -> dict[str, Any]:
        if label == BASELINE or self.summary.kind is None:
            return {}
        if not self.people:
            return {"by_annotator": {n: plain(one) for n, one in self._label_agreement(label, runs).items()}}
        cells = self._cells(runs)
        table = np.array(list(cells.values()))
        minority = [place for place, one in enumerate(self.people) if one.name in self.summary.minority]
        rates = {one.name: plain(self._rate(cells, table[:, place])) for place, one in enumerate(self.people)}
        if not minority:
            return {"by_annotator": rates}
        others = [place for place in range(len(self.people)) if place not in minority]
        mine, theirs = table[:, minority].mean(axis=1), table[:, others].mean(axis=1)
        gap = self._mean(cells, theirs - mine)
        return {
            "by_annotator": rates,
            "minority_win_rate": plain(self._rate(cells, mine)),
            "minority_gap": plain(
                Compared.of(interval_of_mean(gap), minimum_detectable_effect=gap.detectable_effect())
            ),
        }

    # ------------------------------------------------------------------------------------------ simulated

    def _cells(self, runs: Sequence[ArmRun]) -> dict[Cell, Array]:
        """(prompt, seed) -> (J,) expected win over the SFT by each annotator."""
        found: dict[Cell, Array] = {}
        against = {one.seed: one for one in self.scope.arms[BASELINE]}
        for one in runs:
            ours, our_words = one.judged("gold"), one.judged("response_words")
            theirs, their_words = against[one.seed].judged("gold"), against[one.seed].judged("response_words")
            for prompt in sorted(set(ours.scores) & set(theirs.scores)):
                weights = None if ours.weights is None else as_values(ours.weights[prompt])
                found[prompt, one.seed] = expected_wins(
                    self.people,
                    (as_values(ours.scores[prompt]), as_values(our_words.scores[prompt])),
                    (as_values(theirs.scores[prompt]), as_values(their_words.scores[prompt])),
                    weights,
                )
        return found

    def _mean(self, cells: Mapping[Cell, Any], values: Array) -> ClusterMean:
        seeds = [seed for _, seed in cells]
        return cluster_mean(values, [p for p, _ in cells], None, seeds if len(set(seeds)) > 1 else None)

    def _rate(self, cells: Mapping[Cell, Any], values: Array) -> E:
        found = E.of(interval_of_mean(self._mean(cells, values), proportion=True))
        return found.model_copy(update={"method": ORDERS + found.method})

    def _expected_agreement(self) -> Iterator[tuple[str, list[tuple[float, str]]]]:
        """Each annotator with (agreement with the majority of the others, prompt) of every held-out pair."""
        gold = json.loads((self.scope.artifacts.inputs["raw_pairs"] / "scores.json").read_text(encoding="utf-8"))
        pairs = [(one, gold[one["pair_id"]]) for one in self._pairs]
        delta = np.array([scores["chosen"] - scores["rejected"] for _, scores in pairs])
        words = np.array([float(count_words(one["chosen"]) - count_words(one["rejected"])) for one, _ in pairs])
        agreed = leave_one_out(np.stack([p_prefers(one, delta, words) for one in self.people], axis=1))
        for place, one in enumerate(self.people):
            yield one.name, [(float(agreed[row, place]), pair["prompt_id"]) for row, (pair, _) in enumerate(pairs)]

    # -------------------------------------------------------------------------------------------- labeled

    @cached_property
    def _pairs(self) -> list[dict[str, Any]]:
        """Held-out pairs, in an order of their own."""
        rows = read_jsonl(self.scope.artifacts.inputs["raw_pairs"] / "pairs.jsonl")
        return sorted((one for one in rows if one["split"] == "test"), key=lambda one: str(one["pair_id"]))

    @cached_property
    def _labels(self) -> dict[str, dict[str, bool]]:
        """pair id -> annotator -> prefers the chosen response; only labels that say whose they are."""
        found = {
            one["pair_id"]: {str(a["annotator"]): bool(a["prefers_first"]) for a in one.get("annotations") or ()}
            for one in self._pairs
        }
        return {pair: labels for pair, labels in found.items() if labels}

    def _labeled_agreement(self) -> Iterator[tuple[str, list[tuple[float, str]]]]:
        rows: dict[str, list[tuple[float, str]]] = {}
        for one in self._pairs:
            for name, agreed in labels_against_majority(self._labels.get(one["pair_id"], {})).items():
                rows.setdefault(name, []).append((agreed, one["prompt_id"]))
        yield from sorted(rows.items())

    def _label_agreement(self, label: str, runs: Sequence[ArmRun]) -> dict[str, E]:
        """Share of each annotator's held-out labels that the arm's own reward orders the same way, ties half."""
        rows: dict[str, list[tuple[float, str, int]]] = {}
        for one in runs:
            margins = self.scope.artifacts.json(BASELINE, one.seed, "margins", "margins.json")
            column = f"implicit/{label}" if one.kind == "dpo" else str(one.own)
            values = margins.get(column)
            for row, pair in enumerate(margins["pair_id"]):
                for name, chosen in self._labels.get(pair, {}).items():
                    margin = math.nan if values is None else float(values[row])
                    agreed = 0.5 if margin == 0 else margin if math.isnan(margin) else float((margin > 0) == chosen)
                    rows.setdefault(name, []).append((agreed, margins["prompt_id"][row], one.seed))
        return {name: self._agreed(found, len(runs)) for name, found in sorted(rows.items())}

    def _agreed(self, rows: Sequence[tuple[float, str, int]], runs: int) -> E:
        values, prompts, seeds = zip(*rows, strict=True)
        found = E.of(mean_by_cluster(values, prompts, None, seeds if runs > 1 else None, proportion=True))
        if found.value is None:
            return found.model_copy(update={"method": "this arm's reward was not asked about held-out pairs"})
        return found
