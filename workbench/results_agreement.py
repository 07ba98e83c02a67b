"""The parts of results.json about the two kinds of reward: how far implicit and explicit agree, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool

from workbench.results_base import Count, E, Model


class ReliabilityPoint(Model):
    """One bin of a reliability diagram: equal-mass bins of the predicted probability, in rising order."""

    predicted: float = Field(description="Mean of sigmoid(margin)")
    preferred: E = Field(description="Share of pairs in which the first was preferred")
    pairs: Count


class Tempered(Model):
    """Calibration after each margin was divided by the temperature that was fitted on validation pairs."""

    implicit_ece: E
    explicit_ece: E
    implicit_brier: E
    explicit_brier: E
    implicit_slope: E
    explicit_slope: E


class Calibration(Model):
    """Of sigmoid(margin) as the probability that the first response is preferred; pairs in random orientation."""

    implicit_ece: E
    explicit_ece: E
    implicit_brier: E
    explicit_brier: E
    labels: Literal["given", "fresh"] = Field(
        default="given",
        description="given: the labels of the pairs; fresh: the configured annotators were asked anew",
    )
    implicit_slope: E | None = Field(
        default=None, description="Logistic slope of label on margin: 1 calibrated, below 1 overconfident"
    )
    explicit_slope: E | None = None
    implicit_temperature: E | None = Field(
        default=None, description="1 / slope on validation pairs; each run seed's own is applied"
    )
    explicit_temperature: E | None = None
    tempered: Tempered | None = Field(default=None, description="The same after temperature; null where none was found")
    implicit_reliability: list[ReliabilityPoint] = Field(default_factory=list)
    explicit_reliability: list[ReliabilityPoint] = Field(default_factory=list)


class AgainstGold(Model):
    """The same pairs with the sign of the gold margin as the truth, where the accuracies above are against labels."""

    implicit_accuracy: E
    explicit_accuracy: E
    accuracy_difference: E
    chance: E | None
    kappa: E | None


class Bucket(Model):
    """The pairs whose value (log-ratio, length, or size of the gold margin) lies in [low, high)."""

    low: float | None = Field(description="null: open below")
    high: float | None = Field(description="null: open above")
    pairs: Count
    agreement: E
    implicit_accuracy: E | None
    explicit_accuracy: E | None


class Standardized(Model):
    """The set's figures if its gold margins were as large as the reference set's: its buckets weighted as there."""

    reference: str
    agreement: E
    implicit_accuracy: E
    explicit_accuracy: E


class LengthCorrelation(Model):
    """Rank correlation, over pairs, of a reward's margin with the difference in length (tokens)."""

    implicit: E
    explicit: E
    gold: E | None
    implicit_given_gold: E | None = Field(description="Partial: what length explains beyond the gold margin")
    explicit_given_gold: E | None


class PerToken(Model):
    """The implicit reward divided by the response's length in tokens, in place of the sum."""

    agreement: E
    implicit_accuracy: E | None
    length: E = Field(description="Rank correlation of its margin with the difference in length")


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
    truth: Literal["label", "gold"] | None = Field(default=None, description="What the accuracies are against")
    accuracy_difference: E | None = Field(
        default=None, description="Explicit less implicit accuracy, paired by pair, clustered by prompt"
    )
    chance: E | None = Field(
        default=None, description="Agreement of two scorers with these accuracies and independent errors"
    )
    against_gold: AgainstGold | None = None
    by_kl: list[Bucket] = Field(default_factory=list, description="By the pair's mean log-ratio to the SFT, nats")
    by_length: list[Bucket] = Field(default_factory=list, description="By the pair's mean length, tokens")
    by_gold_gap: list[Bucket] = Field(default_factory=list, description="By the size of the gold margin")
    standardized: Standardized | None = None
    length: LengthCorrelation | None = None
    per_token: PerToken | None = None


class AgreementPoint(Model):
    """A DPO checkpoint's implicit reward against the final explicit one, over all run seeds."""

    arm: str
    step: Count
    set: str
    agreement: E
    implicit_accuracy: E | None
    explicit_accuracy: E | None
    accuracy_difference: E | None
    seq_margin: E = Field(
        description="Mean implicit margin of the better response, nats (by label, else gold; without either: mean size)"
    )


class Shift(Model):
    """Accuracies on one set less those on the reference set, for each reward; intervals as for `Agreement`."""

    set: str
    kind: Literal["on_policy", "temperature", "prompts"]
    optimized: Literal["explicit", "implicit"] | None = Field(
        description="Which of the two rewards this arm was trained on or selects by; null: neither"
    )
    implicit_change: E
    explicit_change: E
    difference: E = Field(description="Explicit less implicit accuracy on this set")
    difference_change: E = Field(description="That difference less the reference set's")


class Generalization(Model):
    """Whether the implicit reward is the worse one out of distribution, more than it is in distribution."""

    statement: str
    source: str
    in_distribution: str = Field(description="Name of the set")
    out_of_distribution: str
    difference: E = Field(description="(explicit - implicit accuracy) out of distribution less the same in it")
    holds: StrictBool | Literal["unresolved"]
    reason: str
    reference: str = Field(description="The set that `shifts` are measured from")
    shifts: list[Shift]


class Disagreement(Model):
    """A pair that the two rewards order in opposite ways, both with large margins."""

    set: str
    seed: int
    prompt_id: str
    prompt: str
    explicit_prefers: str
    implicit_prefers: str
    explicit_margin: float = Field(description="By how much explicit prefers its response, nats")
    implicit_margin: float = Field(description="By how much implicit prefers the other one, nats")
    gold_margin: float | None = Field(description="Gold of explicit's less gold of implicit's: > 0 explicit is right")
    size: float = Field(description="Product of the two margins, each in units of its root mean square in the set")
