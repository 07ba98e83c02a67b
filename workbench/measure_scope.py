"""What every part of the measure stage shares: the arms as read from the artifacts, and seeded generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Artifacts
from workbench.packed import PackedPairs


class Scope:
    """A comparison's artifacts, read once.

    Args:
        config: Of the measure stage (`workbench.measure.run`).
        artifacts: What the stages left.
        seed: Of the resampling.
    """

    def __init__(self, config: Mapping[str, Any], artifacts: Artifacts, seed: int) -> None:
        self.artifacts, self.seed = artifacts, seed
        self.blocks: dict[str, Any] = config["arms"]
        self.seeds: list[int] = config["runs"]
        self.rewards: list[str] = config["reward_models"]
        self.proxy: str = config["proxy"]
        self.judges: list[str] = config["judges"]
        self.judge_kinds: dict[str, Any] = config["judge_kinds"]
        self.has_gold: bool = config["gold"]
        self.implicit: str | None = config["implicit"]
        self.reward_pairs: dict[str, Any] = config.get("reward_pairs") or {}
        self.train_pairs: int = len(PackedPairs(artifacts.inputs["pairs"]).split_rows("train"))
        self.annotators: list[dict[str, Any]] = config.get("annotators") or []
        self.labels_per_pair: int = config.get("labels_per_pair") or 1
        self.arms: dict[str, list[ArmRun]] = {
            label: [artifacts.arm(label, run, self.blocks.get(label), self.proxy) for run in self.seeds]
            for label in [BASELINE, *self.blocks]
        }

    def rng(self, *name: int) -> np.random.Generator:
        """A generator for one figure, independent of which others are computed; the same for every arm, so that no
        figure hangs on names or order."""
        return np.random.default_rng([self.seed, *name])


def plain(model: Any) -> Any:
    """A part of results.json as plain JSON."""
    return None if model is None else model.model_dump(mode="json")
