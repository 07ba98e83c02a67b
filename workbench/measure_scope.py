"""What every part of the measure stage shares: the arms as read from the artifacts, and seeded generators."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.evidence import ArmRun, Artifacts
from workbench.packed import PackedPairs


class Figure(IntEnum):
    """Numbers of the figures that draw at random: a seed for each, none used twice."""

    DUELS = 1
    RANKING = 2
    OVEROPTIMIZATION = 3
    REWARD_MODEL = 4
    AGREEMENT = 5
    AGREEMENT_ELSEWHERE = 6
    WIN_RATE = 7
    NULL_WIN_RATE = 8
    LENGTH_CONTROL = 9
    FRESH_LABELS = 10
    PAIR_DETAILS = 11
    PAIR_CALIBRATION = 12
    PAIR_RANKS = 13
    FRONTIER = 14
    MATCHED_KL = 15
    PAIRS_EFFECT = 16
    DECOMPOSITION = 17


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
        self.reward_settings: dict[str, Any] = config.get("reward_settings") or {}
        self.train_pairs: int = len(PackedPairs(artifacts.inputs["pairs"]).split_rows("train"))
        self.annotators: list[dict[str, Any]] = config.get("annotators") or []
        self.labels_per_pair: int = config.get("labels_per_pair") or 1
        self.arms: dict[str, list[ArmRun]] = {
            label: [artifacts.arm(label, run, self.blocks.get(label), self.proxy) for run in self.seeds]
            for label in [BASELINE, *self.blocks]
        }

    def rng(self, figure: Figure, *more: int) -> np.random.Generator:
        """A generator for one figure, independent of which others are computed; the same for every arm, so that no
        figure hangs on names or order.

        The count of numbers is in the seed: numpy takes a trailing 0 for nothing.
        """
        return np.random.default_rng([self.seed, len(more), int(figure), *more])


def plain(model: Any) -> Any:
    """A part of results.json as plain JSON."""
    return None if model is None else model.model_dump(mode="json")
