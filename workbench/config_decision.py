"""The config's `decision` section: how large a difference must be to matter, and what may be served."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from workbench.config_base import Section, refuse

Positive = Annotated[float, Field(gt=0)]


class AnswerCost(Section):
    """Most that one answer may cost at inference; best-of-n pays for all n candidates and for scoring them."""

    tokens: Positive | None = Field(default=None, description="Tokens generated for one answer.")
    cpu_s: Positive | None = Field(default=None, description="CPU seconds of one answer, as measured in this run.")
    gpu_s: Positive | None = Field(default=None, description="GPU seconds of one answer, as measured in this run.")
    flops: Positive | None = Field(default=None, description="Floating-point operations of one answer.")


class Decision(Section):
    """What the comparison's decision needs: what difference matters, and which arms could be served."""

    margin: float = Field(
        default=0.03,
        gt=0,
        lt=0.5,
        description="Win rates within 0.5 plus or minus this are as good as equal (0.03: 53 to 47). To be shown "
        "equal that closely, arms need some 2,000 prompts, or fewer with several samples and seeds.",
    )
    max_kl: Positive | None = Field(
        default=None, description="Most KL from the SFT policy, in nats a response; null: no limit."
    )
    max_cost_per_answer: AnswerCost | None = Field(
        default=None, description="Most that one answer may cost; a plain number is tokens generated. null: no limit."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: Any) -> Any:
        most = raw.get("max_cost_per_answer") if isinstance(raw, dict) else None
        if isinstance(most, int | float) and not isinstance(most, bool):
            return raw | {"max_cost_per_answer": {"tokens": float(most)}}
        return raw

    @model_validator(mode="after")
    def _some(self) -> Decision:
        if self.max_cost_per_answer is not None and not self.max_cost_per_answer.model_dump(exclude_none=True):
            message = "got no limit, expected one of tokens, cpu_s, gpu_s, flops; null means no limit at all"
            refuse([(("max_cost_per_answer",), message)])
        return self
