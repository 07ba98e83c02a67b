"""How an annotated pair becomes a training label: one rule for every arm (`data.labels`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.config_base import Problem, Section, refuse

Weight = Annotated[float, Field(gt=0)]


class LabelUse(Section):
    """How an annotated pair becomes a training label, the same for reward models, DPO and what stands on them."""

    rule: Literal["majority", "soft", "weighted"] = Field(
        default="majority",
        description="majority: the choice as the data has it; soft: the share of a pair's annotators who agree, as "
        "target probability; weighted: the same share, each annotator counting as `weights` says.",
    )
    weights: dict[str, Weight] | None = Field(
        default=None, description="Annotator -> how much he or she counts, above 0; for rule weighted."
    )
    smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Label smoothing: the probability with which every label is taken to be wrong.",
    )
    margins: bool = Field(
        default=False, description="The data's margin of each pair is an offset in the loss, of every arm alike."
    )
    margin_scale: float = Field(
        default=1.0, gt=0, description="The offset is this times the data's margin, in log-odds."
    )

    @model_validator(mode="after")
    def _check(self) -> LabelUse:
        found: list[Problem] = []
        if self.rule == "weighted" and not self.weights:
            found.append((("weights",), "got none, expected a weight above 0 for each annotator: {anna: 2, ben: 1}"))
        if self.rule != "weighted" and self.weights:
            found.append((("weights",), f"has no effect with rule {self.rule}; remove it, or write rule: weighted"))
        if self.margin_scale != 1.0 and not self.margins:
            found.append((("margin_scale",), "has no effect without margins: true; remove it"))
        refuse(found)
        return self


def labeling_problems(use: LabelUse, *, annotators: Collection[str] | None, labels_per_pair: int) -> list[Problem]:
    """What is wrong with `data.labels`, seen from the data section.

    Args:
        annotators: Names of the simulated ones; None: the pairs come from a file, which is read later.
    """
    found: list[Problem] = []
    if annotators is None:
        return found
    if use.rule != "majority" and labels_per_pair == 1:
        message = f"got '{use.rule}', which needs data.labels_per_pair above 1: of one annotator there is no share"
        found.append((("labels", "rule"), message))
    if use.weights and (wrong := sorted(set(annotators) ^ set(use.weights))):
        message = f"got {', '.join(sorted(use.weights))}, expected each annotator once: {', '.join(annotators)}"
        found.append((("labels", "weights"), f"{message} (differs in {', '.join(wrong)})"))
    if use.margins:
        message = "got true, but simulated annotators give no margins; use pairs from a file with a margin column"
        found.append((("labels", "margins"), message))
    return found
