"""The part of results.json about who labels: how far each annotator agrees with the others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import E, Model


class Annotators(Model):
    """Whose labels `arms.LABEL.by_annotator` is about, and who is the minority among them."""

    kind: Literal["expected_win_rate", "label_agreement"] | None = Field(
        description="What by_annotator holds. expected_win_rate: chance that a simulated annotator prefers the arm to "
        "sft, both orders. label_agreement: share of the annotator's held-out labels that the arm's reward orders the "
        "same way. null: neither can be known"
    )
    leave_one_out: dict[str, E] = Field(
        default_factory=dict, description="Agreement of each with the majority of the others on held-out pairs"
    )
    minority: list[str] = Field(
        default_factory=list,
        description="The least agreeing fifth, at least one; empty where it cannot be told from the next one",
    )
    reason: str | None = Field(default=None, description="Why there is no kind or no minority")
