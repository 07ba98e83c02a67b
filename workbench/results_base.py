"""What every part of results.json is made of: the strict base model, estimates with intervals, win rates."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.types import Cost, Estimate, KLKind

SEEDS_FOR_METHODS = 5  # fewer compare checkpoints, not methods
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
StandardError = Annotated[float, Field(ge=0)]


class Model(BaseModel):
    """Base of every part: unknown fields and non-finite numbers are refused, parts are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class E(Model):
    """A number with its 95% interval."""

    value: float | None = Field(description="Point estimate; null where it is undefined")
    low: float | None = Field(description="Lower end; null where there is none (one prompt, no variance)")
    high: float | None = Field(description="Upper end; null where there is none, or where the interval is open above")
    n: Count = Field(description="Independent units behind it: prompts, unless `method` says otherwise")
    n_unscored: Count = Field(
        default=0, description="Single values (responses, pairs) that were asked for and have no score"
    )
    method: str = Field(description="How the interval was made, or why there is none")
    prompt_se: StandardError | None = Field(
        default=None, description="Standard error from the draw of prompts; all of it where there is one run seed"
    )
    seed_se: StandardError | None = Field(
        default=None, description="Standard error from what a run seed redraws, in quadrature to prompt_se"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.value is None and (self.low is not None or self.high is not None):
            raise ValueError("an estimate without a value cannot have an interval")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    @classmethod
    def of(cls, estimate: Estimate, **extra: Any) -> Self:
        """From a metric's Estimate; `extra` are the fields that a subclass adds (kl_kind; baseline, judge)."""
        return cls(
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            n_unscored=estimate.n_unscored,
            method=estimate.method,
            prompt_se=estimate.prompt_se,
            seed_se=estimate.seed_se,
            **extra,
        )


class KL(E):
    """KL from the reference in nats a response. `bound` is best-of-n's formula, `mc_k1` a mean over own samples."""

    kl_kind: KLKind


class Compared(E):
    """A figure of an arm against a baseline, paired by prompt."""

    minimum_detectable_effect: float | None = Field(
        default=None,
        description="Smallest true difference that this many prompts and seeds find with 80% power at the 5% level; "
        "null where nothing varies",
    )


class WinRate(Compared):
    """Share of prompts' comparisons won against a named baseline by a named judge, ties half."""

    baseline: str
    judge: str
    p_value: Probability | None = Field(default=None, description="Of equality, 0.5; null without a comparison")
    p_holm: Probability | None = Field(
        default=None,
        description="p_value corrected (Holm) over every arm against the baseline by every judge; null by seed",
    )
    p_method: str = ""


class CostRecord(Model):
    """Seconds, counts and bytes; summed over resumes, taken from the record where a stage was cached."""

    wall_s: float
    cpu_s: float
    gpu_s: float
    flops: float
    tokens_trained: Count
    tokens_generated: Count
    reward_queries: Count
    peak_memory_bytes: Count

    @classmethod
    def of(cls, cost: Cost) -> Self:
        """From a Cost, whose counts may be sums of means."""
        counts = ("tokens_trained", "tokens_generated", "reward_queries", "peak_memory_bytes")
        return cls(**{**vars(cost), **{name: round(getattr(cost, name)) for name in counts}})

    def cost(self) -> Cost:
        """Back as a Cost."""
        return Cost(**self.model_dump())
