"""The part of results.json that a comparison ends with: what to take, on which evidence."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import Count, E, Model, Probability


class DecisionPair(Model):
    """Two candidates compared by the deciding judge: what the decision stands on."""

    a: str
    b: str
    win_rate: E = Field(description="Of a over b; sft is among the candidates")
    p_holm: Probability | None = Field(description="p of equality, corrected over the pairs of candidates (Holm)")
    p_equivalence: Probability | None = Field(
        description="p of a difference of the margin or more (the larger of two one-sided tests); null: no variance"
    )
    outcome: Literal["better", "worse", "equivalent", "open"] = Field(
        description="Of a: better or worse beyond chance; equivalent: the 90% interval lies inside the margin"
    )
    small: bool = Field(default=False, description="Better or worse, but equivalent as well: within the margin")


class More(Model):
    """About what would settle an undecided comparison, if the differences are as estimated: with 80% power."""

    seeds: Count | None = Field(description="More run seeds at the same prompts; null: not known, or never enough")
    prompts: Count | None = Field(description="More prompts at the same run seeds; null: not known, or never enough")
    reason: str = Field(description="What they are about, and why a number is missing")


class Decision(Model):
    """Winner: it beats every other candidate. Equivalent: these are within the margin of each other and beat the rest.
    Undecided: more than one is left and they are not shown to be equivalent. None: nothing may be decided."""

    verdict: Literal["winner", "equivalent", "undecided", "none"]
    arms: list[str] = Field(description="The winner, the equivalent ones, or those between which it is open")
    scope: Literal["checkpoints", "methods"] = Field(description="methods: from five run seeds on")
    judge: str | None = Field(description="Whose verdicts decide: the first judge of the config")
    margin: float = Field(description="Distance of a win rate from 0.5 that counts as no difference")
    eligible: list[str] = Field(description="Candidates: arms that ran through and keep to the serving budget, and sft")
    excluded: dict[str, str] = Field(default_factory=dict, description="Arm -> why it is no candidate")
    evidence: list[DecisionPair] = Field(default_factory=list)
    more: More | None = Field(default=None, description="Where it is undecided: what would settle it")
    matched_kl: str | None = Field(default=None, description="What is known of the candidates at equal KL, in words")
    sentence: str = Field(description="All of it in plain English")
