"""What the measure stage says of the rewards: how good the explicit models are, and how far the implicit one agrees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import Responses
from workbench.measure_pairs import PairReader
from workbench.measure_scope import Figure, Scope, plain
from workbench.metrics.agreement import accuracy_difference, agreement_on_pairs, agreement_on_samples, error_consistency
from workbench.metrics.agreement_parts import GAP_BUCKETS, bucketed, quantile_edges, standardized
from workbench.metrics.agreement_sets import details
from workbench.metrics.calibration import ordered_like, reward_model_quality
from workbench.metrics.calibration_of_pairs import Temperature, calibration_of_pairs, fitted_temperatures
from workbench.metrics.estimates import Array, mean_by_cluster
from workbench.metrics.pair_margins import PairMargins
from workbench.results import RewardModelQuality
from workbench.results_agreement import AgainstGold, Agreement, Calibration
from workbench.results_base import E

HELD_OUT, SHIFTED, OOD = "heldout", "temperature_shift", "ood"


def on_policy(label: str) -> str:
    """Name of the set of an arm's own samples."""
    return f"on_policy/{label}"


class Rewards:
    """Sections of results.json about the two kinds of reward, as plain JSON."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.reader = PairReader(scope)

    def reward_models(self) -> dict[str, Any]:
        """`reward_models` on held-out pairs of the test split."""
        margins = self.reader.margins("test")
        gold = self.reader.gold_margins(margins["pair_id"])
        seeds = margins["seed"] if len(self.scope.seeds) > 1 else None
        found: dict[str, RewardModelQuality] = {}
        for name in self.scope.rewards:
            found[name] = reward_model_quality(
                margins[f"proxy/{name}"],
                margins["prompt_id"],
                self.scope.rng(Figure.REWARD_MODEL),
                gold_margins=gold,
                seeds=seeds,
            )
        return {name: plain(one) for name, one in found.items()}

    @cached_property
    def samples(self) -> dict[str, list[tuple[int, Responses]]]:
        """Samples by set: each arm's own, the SFT's at another temperature, the SFT's out of distribution."""
        scope = self.scope
        found = {on_policy(label): [(one.seed, one.samples) for one in runs] for label, runs in scope.arms.items()}
        for name, role in ((SHIFTED, "shift"), (OOD, "ood")):
            if scope.artifacts.has(BASELINE, scope.seeds[0], role):
                found[name] = [
                    (run, scope.artifacts.responses(BASELINE, run, role, f"{role}_scores")) for run in scope.seeds
                ]
        return found

    @cached_property
    def sets(self) -> dict[str, PairMargins]:
        """Pairs by set; labelled out-of-distribution pairs stand before samples."""
        if self.scope.implicit is None:
            return {}
        labelled = {HELD_OUT: self.reader.held_out("test"), OOD: self.reader.held_out("ood")}
        found = {HELD_OUT: labelled[HELD_OUT]} if labelled[HELD_OUT] is not None else {}
        found |= {name: self.reader.of_samples(one) for name, one in self.samples.items()}
        found |= {OOD: labelled[OOD]} if labelled[OOD] is not None else {}
        return {name: pairs for name, pairs in found.items() if pairs is not None}

    @cached_property
    def gap_reference(self) -> str | None:
        """The set whose gold margins the others are weighted to: held-out pairs, else the SFT's samples."""
        names = (HELD_OUT, on_policy(BASELINE))
        return next((name for name in names if name in self.sets and self.sets[name].gold is not None), None)

    @cached_property
    def temperatures(self) -> dict[str, Temperature] | None:
        """Fitted on validation pairs, which nothing else here looks at."""
        pairs = self.reader.held_out("validation")
        return None if pairs is None else fitted_temperatures(pairs, _labels(pairs))

    def agreement(self) -> dict[str, Any]:
        """`agreement` of the explicit proxy with the first DPO arm's implicit reward."""
        if self.scope.implicit is None:
            return {}
        named = {"implicit": self.scope.implicit, "explicit": self.scope.proxy}
        found: dict[str, Agreement | None] = {name: self._of_set(name, pairs) for name, pairs in self.sets.items()}
        found.setdefault(OOD, None)
        return {name: None if one is None else plain(one) | named for name, one in found.items()}

    def _of_set(self, name: str, pairs: PairMargins) -> Agreement:
        numbers = {HELD_OUT: 0, SHIFTED: 3, OOD: 1 if pairs.truth_kind == "label" else 2}
        here = name in numbers
        rng = self.scope.rng(Figure.AGREEMENT, numbers[name]) if here else self.scope.rng(Figure.AGREEMENT_ELSEWHERE)
        if pairs.truth_kind == "label":
            found = agreement_on_pairs(
                pairs.implicit, pairs.explicit, list(pairs.prompts), rng, labels=pairs.truth, seeds=pairs.seeds
            )
        else:
            found = self._on_samples(self.samples[name], rng)
        edges = np.zeros(0)
        reference = None if self.gap_reference is None else self.sets[self.gap_reference]
        if reference is not None and reference.gold is not None and pairs.gold is not None:
            edges = quantile_edges(np.abs(reference.gold), GAP_BUCKETS)
        return found.model_copy(
            update=details(pairs, self.scope.rng(Figure.PAIR_DETAILS))
            | {
                "calibration": self._calibration(pairs),
                "against_gold": self._against_gold(pairs) if pairs.truth_kind == "label" else None,
                "by_gold_gap": bucketed(_by_gold(pairs), None if pairs.gold is None else np.abs(pairs.gold), edges),
                "standardized": None
                if reference is None or name == self.gap_reference
                else standardized(_by_gold(pairs), reference, str(self.gap_reference)),
            }
        )

    def _on_samples(self, samples: Sequence[tuple[int, Responses]], rng: np.random.Generator) -> Agreement:
        def joined(name: str) -> Array:
            return np.concatenate([one.columns[name] for _, one in samples])

        return agreement_on_samples(
            joined(f"implicit/{self.scope.implicit}"),
            joined(f"proxy/{self.scope.proxy}"),
            [prompt for _, one in samples for prompt in one.prompts],
            rng,
            gold=joined("gold") if self.scope.has_gold else None,
            seeds=[run for run, one in samples for _ in one.prompts] if len(samples) > 1 else None,
        )

    def _calibration(self, pairs: PairMargins) -> Calibration | None:
        """Against fresh labels where annotators can be asked, else the pairs' own; never against gold's order."""
        if pairs.fresh is None and pairs.truth_kind != "label":
            return None
        kind: Literal["given", "fresh"] = "given" if pairs.fresh is None else "fresh"
        return calibration_of_pairs(
            pairs, _labels(pairs), kind, self.scope.rng(Figure.PAIR_CALIBRATION), self.temperatures
        )

    def _against_gold(self, pairs: PairMargins) -> AgainstGold | None:
        if pairs.gold is None:
            return None
        prompts = list(pairs.prompts)
        kappa, chance = error_consistency(
            pairs.implicit, pairs.explicit, pairs.gold, prompts, self.scope.rng(Figure.PAIR_RANKS), seeds=pairs.seeds
        )

        def share(margins: Array) -> E:
            assert pairs.gold is not None
            right = ordered_like(margins, pairs.gold)
            return E.of(mean_by_cluster(right, prompts, None, pairs.seeds, proportion=True))

        return AgainstGold(
            implicit_accuracy=share(pairs.implicit),
            explicit_accuracy=share(pairs.explicit),
            accuracy_difference=accuracy_difference(pairs.implicit, pairs.explicit, pairs.gold, prompts, pairs.seeds),
            chance=chance,
            kappa=kappa,
        )


def _labels(pairs: PairMargins) -> Array:
    """(M,) 1 where the first is preferred: by annotators asked anew, else by the given label."""
    if pairs.fresh is not None:
        return pairs.fresh
    assert pairs.truth is not None
    return (1 + np.sign(pairs.truth)) / 2


def _by_gold(pairs: PairMargins) -> PairMargins:
    """The pairs with gold as the truth, as the reference set's buckets are of gold."""
    return pairs if pairs.truth_kind == "gold" or pairs.gold is None else pairs.against_gold()
