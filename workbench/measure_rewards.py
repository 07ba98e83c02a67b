"""What the measure stage says of the rewards: how good the explicit models are, and how far the implicit one agrees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import Responses
from workbench.measure_scope import Scope, plain
from workbench.metrics.agreement import agreement_on_pairs, agreement_on_samples
from workbench.metrics.calibration import reward_model_quality
from workbench.metrics.estimates import Array
from workbench.results import RewardModelQuality
from workbench.results_agreement import Agreement


class Rewards:
    """Sections of results.json about the two kinds of reward, as plain JSON."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def reward_models(self) -> dict[str, Any]:
        """`reward_models` on held-out pairs of the test split."""
        margins = self._margins("test")
        gold = self._gold_margins(margins["pair_id"])
        seeds = margins["seed"] if len(self.scope.seeds) > 1 else None
        found: dict[str, RewardModelQuality] = {}
        for name in self.scope.rewards:
            found[name] = reward_model_quality(
                margins[f"proxy/{name}"],
                margins["prompt_id"],
                self.scope.rng(4),
                gold_margins=gold,
                seeds=seeds,
            )
        return {name: plain(one) for name, one in found.items()}

    def _margins(self, split: str) -> dict[str, list[Any]]:
        """Columns of held-out pairs, all run seeds below each other, with their "seed"."""
        columns: dict[str, list[Any]] = {"seed": []}
        for run in self.scope.seeds:
            found = self.scope.artifacts.json(BASELINE, run, "margins", "margins.json")
            kept = [row for row, name in enumerate(found["split"]) if name == split]
            kept.sort(key=lambda row: found["pair_id"][row])  # resampling must not hang on the order of rows
            for name, values in found.items():
                columns.setdefault(name, []).extend(values[row] for row in kept)
            columns["seed"] += [run] * len(kept)
        return columns

    def _gold_margins(self, pair_ids: Sequence[str]) -> list[float] | None:
        path = self.scope.artifacts.inputs["raw_pairs"] / "scores.json"
        if not path.exists():
            return None
        gold = json.loads(path.read_text(encoding="utf-8"))
        return [gold[pair]["chosen"] - gold[pair]["rejected"] for pair in pair_ids]

    def agreement(self) -> dict[str, Any]:
        """`agreement` of the explicit proxy with the first DPO arm's implicit reward."""
        if self.scope.implicit is None:
            return {}
        named = {"implicit": self.scope.implicit, "explicit": self.scope.proxy}
        found: dict[str, Agreement | None] = {"heldout": self._on_pairs("test", self.scope.rng(5, 0))}
        for label, runs in self.scope.arms.items():
            samples = [(one.seed, one.samples) for one in runs]
            found[f"on_policy/{label}"] = self._on_samples(samples, self.scope.rng(6))
        found["ood"] = None
        if self.scope.artifacts.has(BASELINE, self.scope.seeds[0], "ood"):
            found["ood"] = self._on_pairs("ood", self.scope.rng(5, 1)) or self._on_samples(
                [(run, self.scope.artifacts.responses(BASELINE, run, "ood", "ood_scores")) for run in self.scope.seeds],
                self.scope.rng(5, 2),
            )
        return {name: None if one is None else plain(one) | named for name, one in found.items()}

    def _on_pairs(self, split: str, rng: np.random.Generator) -> Agreement | None:
        margins = self._margins(split)
        if not margins["seed"]:
            return None
        return agreement_on_pairs(
            margins[f"implicit/{self.scope.implicit}"],
            margins[f"proxy/{self.scope.proxy}"],
            margins["prompt_id"],
            rng,
            labels=np.ones(len(margins["seed"])),
            seeds=margins["seed"] if len(self.scope.seeds) > 1 else None,
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
