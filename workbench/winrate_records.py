"""The JSON of `workbench winrate`, schema 1."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results import SCHEMA
from workbench.results_base import Count, E, Model, Probability, StandardError


class LengthDetails(Model):
    """How the length-controlled rate came about; `docs/statistics.md` says when not to trust it."""

    coefficient: E | None = Field(description="Nats that a far longer response gains; null where nothing was fitted")
    strength: float | None = Field(description="Of the ridge on the coefficient, by cross-validation")
    difficulty_strength: float | None = Field(description="Of the instruction difficulty; null without one")
    longer: Probability | None = Field(description="Share of comparisons where the system's response is the longer")
    rate: Probability | None = Field(description="The rate also where it is refused: for the record, not for quoting")
    rate_unregularized: Probability | None
    rate_range: tuple[float, float] | None = Field(description="Over the strengths that fit about as well")
    flags: list[str] = Field(description="Why to distrust the rate; empty where nothing is known against it")
    refused: str | None = Field(description="Why there is no rate; null where there is one")


class SystemRow(Model):
    """One system against one baseline by one judge. Rates are the system's."""

    name: str
    baseline: str
    judge: str
    win_rate: E
    standard_error: StandardError | None = Field(
        description="Plain standard error of the mean over prompts (sample standard deviation / sqrt(n)), as "
        "AlpacaEval prints it; null below two prompts"
    )
    win_rate_length_controlled: E
    n_wins: Count = Field(description="Prompts (and seeds) won; a preference above 0.5")
    n_losses: Count
    n_ties: Count
    n_unscored: Count = Field(description="Pairs of responses without a verdict")
    mean_length: float | None = Field(description="Characters; null where the files do not say")
    mean_length_baseline: float | None
    p_value: Probability | None = Field(description="Of equality, 0.5")
    p_holm: Probability | None = Field(description="p_value corrected over all rows of this output (Holm)")
    p_method: str
    minimum_detectable_effect: float | None = Field(description="Distance from 0.5 found with 80% power")
    flip_rate: E | None = Field(description="Pairs whose verdict reverses on the swap; null where none was swapped")
    first_shown_preferred: E | None = Field(description="Share of verdicts for the response shown first")
    length_control: LengthDetails


class RatingRow(Model):
    """Bradley-Terry rating within the systems that one judge's comparisons connect."""

    name: str
    judge: str
    component: Count = Field(description="Ratings of different components or judges share no scale")
    rating: E = Field(description="Log-odds of beating the component's system with rating 0, nats")


class WinRates(Model):
    """The whole output."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    systems: list[SystemRow]
    ranking: list[RatingRow]
    intransitive_triples: Count = Field(description="Triples of systems of one judge that beat each other in a circle")
    intransitive_beyond_noise: Count = Field(description="Of these, with three 95% intervals that leave 0.5 out")
    triples_judged: Count = Field(description="Triples that all met each other; 0 where systems met only a baseline")
    warnings: list[str] = Field(description="What a reader must know before quoting a number")
