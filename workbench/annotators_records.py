"""The JSON of `workbench data annotators`, schema 1."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results import SCHEMA
from workbench.results_base import Count, E, Model, Probability


class Triples(Model):
    """Three responses to one prompt, all three pairs of them judged by one annotator without a tie."""

    judged: Count
    circular: Count = Field(description="a before b, b before c, c before a")
    rate: E = Field(description="circular / judged; a quarter where every pair is a coin flip")


class AnnotatorRow(Model):
    """One annotator (or judge)."""

    name: str
    labels: Count
    pairs: Count = Field(description="Pairs they labeled")
    shared: Count = Field(description="Of these, pairs that somebody else labeled too")
    ties: Count
    leave_one_out: E = Field(description="Agreement with the majority of the others; where these tie, half")
    gap: E = Field(description="leave_one_out less the rate of all other annotators' labels together")
    p_holm: Probability | None = Field(description="That the gap is 0, corrected over the annotators")
    reliability: E = Field(description="Dawid and Skene: estimated chance of the right label")
    first_shown_preferred: E = Field(description="Share of labels for the response shown first; ties half")
    longer_preferred: E = Field(description="Share of labels for the longer response; ties half")
    longer_gap: E = Field(
        description="Longer responses preferred more than by the others on the same pairs; 0: the median annotator"
    )
    triples: Triples


class BetweenRow(Model):
    """Two annotators on the pairs that both labeled."""

    a: str
    b: str
    agreement: E
    kappa: E = Field(description="Cohen's")
    spearman: E | None = Field(description="Of their grades; null where labels have no grades")


class Relabel(Model):
    """A pair whose label is in doubt."""

    pair: str
    row: int | None = Field(description="1-based row of the source")
    posterior: Probability = Field(description="Chance that the recorded label is right (chosen, or the majority's)")
    votes: dict[str, float] = Field(description="Annotator -> preference for the first response")
    why: str


class Overall(Model):
    """All annotators together."""

    agreement: E = Field(description="Two annotators of one pair agree; over all such meetings")
    fleiss_kappa: E
    alpha_nominal: E = Field(description="Krippendorff's")
    alpha_ordinal: E | None = Field(description="Of the grades; null where labels have none")
    alpha_interval: E | None
    spearman: E | None = Field(description="Mean over every two annotators with grades")
    triples: Triples


class Annotators(Model):
    """Inter-annotator agreement of one or several sources."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    sources: list[str]
    kind: Literal["pairs", "judgments"] = Field(
        description="pairs: responses have no order of their own, chance agreement is even. judgments: they are two "
        "systems', and chance agreement follows each judge's rate"
    )
    pairs: Count = Field(description="Pairs with at least one label")
    shared: Count = Field(description="Pairs with labels of at least two annotators")
    prompts: Count
    labels: Count
    sampled_prompts: Count | None = Field(description="Figures are of a seeded sample of prompts; null: of all")
    overall: Overall
    annotators: list[AnnotatorRow]
    between: list[BetweenRow]
    between_left_out: Count = Field(description="Pairs of annotators beyond those that are listed")
    retrain: dict[str, list[str]] = Field(description="Annotator -> what speaks for talking to them")
    relabel: list[Relabel] = Field(description="The most doubtful pairs first")
    relabel_total: Count = Field(description="Pairs whose recorded label is right with a chance below `relabel_below`")
    relabel_below: Probability
    threshold: float = Field(description="alpha_nominal under which `compare` warns before training")
    below_threshold: bool | None = Field(description="null: alpha is unknown")
    warnings: list[str]
