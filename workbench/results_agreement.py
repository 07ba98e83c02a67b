"""The part of results.json about the two kinds of reward: how far implicit and explicit agree."""

from __future__ import annotations

from pydantic import Field

from workbench.results_base import Count, E, Model


class Calibration(Model):
    implicit_ece: E
    explicit_ece: E
    implicit_brier: E
    explicit_brier: E


class Agreement(Model):
    """Implicit against explicit reward on one set of pairs (held-out labelled ones, or all pairs of samples)."""

    implicit_accuracy: E | None = Field(description="Against the label or gold; null without either")
    explicit_accuracy: E | None
    agreement: E = Field(description="Share of pairs ordered the same way, ties half")
    kappa: E | None = Field(description="Error consistency; null without labels or where it is 0 / 0")
    spearman_margins: E = Field(description="Over pairs, each taken in both orders")
    spearman_within_prompt: E | None = Field(description="Mean over prompts with at least 4 samples, else null")
    kendall_tau: E = Field(description="tau-b within a prompt, mean over prompts; value null below 4 samples")
    calibration: Calibration | None
    n_pairs: Count = 0
    implicit_ties: Count = 0
    explicit_ties: Count = 0
    implicit: str | None = Field(default=None, description="Label of the arm whose implicit reward it is")
    explicit: str | None = Field(default=None, description="Name of the reward model")
