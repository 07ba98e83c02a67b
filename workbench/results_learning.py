"""The part of results.json about preference pairs: what each kind of arm reaches from how many."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import KL, Compared, Count, E, Model, WinRate


class LearningPoint(Model):
    """One arm of a learning curve."""

    arm: str
    pairs: Count = Field(description="Training pairs behind it: its reward model's, or a dpo arm's own")
    reward: E = Field(description="Mean of its answers by the curve's `reward`")
    gain: Compared = Field(description="That less the SFT's, paired by prompt")
    shortfall: Compared | None = Field(
        description="Reward of the curve's arm with most pairs less this one's, paired by prompt and run seed; the "
        "pairs suffice where `high` is below what matters to you; null at the last point"
    )
    win_rate: WinRate | None = Field(description="Against the SFT by the headline judge")
    seq_kl: KL
    reward_model_accuracy: E | None = Field(
        description="Of the reward model behind it, on held-out pairs; null for dpo"
    )


class LearningCurve(Model):
    """Arms of one kind that differ in the number of their training pairs alone, the smaller set within the larger."""

    kind: str
    reward: Literal["gold_reward", "proxy_reward"]
    points: list[LearningPoint] = Field(description="By rising number of pairs")


class LearningGap(Model):
    """Two kinds of arms on the same pairs: which of them gets more out of so many."""

    pairs: Count
    a: str
    b: str
    reward: Literal["gold_reward", "proxy_reward"]
    difference: Compared = Field(description="Reward of a less b's, paired by prompt and run seed")
