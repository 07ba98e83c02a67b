"""The part of results.json about the diversity of an arm's samples."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from workbench.results_base import Compared, E, Model

DIVERSITY = ("distinct_1", "distinct_2", "self_bleu", "similarity_within", "similarity_between", "entropy_per_token")


class Diversity(Model):
    """How different an arm's samples are from each other. Fewer distinct n-grams, a higher similarity and a lower
    entropy all mean less diversity."""

    distinct_1: E = Field(description="Share of different tokens among a prompt's samples, at equal size in every arm")
    distinct_2: E = Field(description="Share of different bigrams, at equal size in every arm")
    self_bleu: E = Field(description="BLEU-4 of each sample against the prompt's others; null below two samples")
    similarity_within: E = Field(description="Jaccard index of the bigrams of two samples of one prompt")
    similarity_between: E = Field(description="Jaccard index of the bigrams of samples of two prompts")
    entropy_per_token: E = Field(
        description="Entropy rate, nats a token, on own samples at temperature 1; null for best-of-n, whose own "
        "probabilities are not known"
    )
    tokens_compared: float = Field(
        description="Tokens a prompt at which distinct_1 is taken: the fewest that any arm has, mean over prompts"
    )
    against_sft: dict[str, Compared] = Field(
        default_factory=dict, description="Each measure less sft's, paired by prompt; empty for sft"
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, raw: Any) -> Any:
        unknown = set((raw.get("against_sft") or {}) if isinstance(raw, dict) else ()) - set(DIVERSITY)
        if unknown:
            raise ValueError(f"against_sft names {sorted(unknown)}, expected some of {', '.join(DIVERSITY)}")
        return raw

    @classmethod
    def of(cls, measures: dict[str, E], against: dict[str, Compared], tokens: float) -> Self:
        """From the estimates by name."""
        return cls(**measures, against_sft=against, tokens_compared=tokens)
