"""The part of results.json that tells the reward from the optimizer: a two-way table and the gap of RM+PPO to DPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import Compared, E, Model

Reward = Literal["explicit", "implicit"]
Optimizer = Literal["ppo", "best_of_n", "direct"]


class Cell(Model):
    """One arm as a cell of the table."""

    reward: Reward
    optimizer: Optimizer = Field(description="direct: DPO on pairs that this reward relabeled")
    arm: str
    value: E


class Effect(Model):
    """A contrast of cells: `weights` says which, by arm; positive favors the first named."""

    effect: Literal["reward", "optimizer", "interaction"]
    name: str
    weights: dict[str, float] = Field(description="Arm -> its coefficient; they add up to 0")
    difference: Compared


class Split(Model):
    """The gap in two parts, along one order of changing reward and optimizer, or as the mean of both orders."""

    order: Literal["reward first", "optimizer first", "mean of both"]
    reward: Compared
    optimizer: Compared


class Gap(Model):
    """Arm `a` (PPO on the reward model) less arm `b` (DPO on the data's labels): reward + optimizer + relabeling."""

    a: str
    b: str
    total: Compared
    splits: list[Split]
    relabeling: Compared | None = Field(
        default=None,
        description="DPO on pairs relabeled by b's implicit reward less b itself: what relabeling alone does; null "
        "without that arm, and then part of the splits",
    )


class Decomposition(Model):
    """One measure taken apart; parts for which a cell is missing are left out."""

    measure: Literal["gold_reward", "proxy_reward", "win_rate"]
    judge: str | None = Field(default=None, description="Of the win rate against sft")
    at: Literal["selected", "matched_kl"] = Field(description="Selected checkpoints, or every arm's curve at one KL")
    kl: float | None = Field(default=None, description="Nats, where KL is matched")
    explicit: str = Field(description="Name of the reward model")
    implicit: str = Field(description="Label of the DPO arm whose implicit reward it is")
    cells: list[Cell]
    effects: list[Effect]
    gap: Gap | None
    caveats: list[str] = Field(default_factory=list)
