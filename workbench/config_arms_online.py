"""PPO's sisters: RLOO and GRPO, which sample several responses a prompt and let them be each other's baseline.

Defaults are PPO's wherever the field is the same one (responses, updates, steps, rates, KL coefficient), so that the
same budget is spent and nothing is tuned; what is their own follows the sources. `docs/sisters.md` lists where they
differ from TRL's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.config_base import Count, Label, Microbatch, Problem, Rate, Schedule, Section, refuse


class Online(Section):
    """What both have: rollouts scored by the explicit reward model, no critic."""

    reward: Label = Field(default="main", description="Name of a reward model.")
    updates: Count = Field(default=55, description="Rollout batches, each followed by training on it.")
    batch_size: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Responses per update; a multiple of generations_per_prompt."
    )
    epochs: Count = Field(default=1, description="Passes over each rollout batch.")
    minibatches: Count = Field(default=2, description="Optimizer steps per pass; divides batch_size.")
    microbatch_size: Microbatch = None
    learning_rate: Rate = Field(default=2e-4, description="Peak learning rate.")
    schedule: Schedule = Field(default="linear", description="Course of the learning rate.")
    adam_eps: float = Field(default=1e-5, gt=0, description="Adam's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    temperature: float = Field(
        default=1.0, gt=0, description="Sampling temperature of rollouts; logits are divided by it."
    )
    eos_rule: Literal["none", "replace", "subtract"] = Field(
        default="none",
        description="A response without stop token: score kept, replaced by -eos_penalty, or lowered by it.",
    )
    eos_penalty: float = Field(
        default=1.0, ge=0, description="Size of that penalty, in units of the reward model's score."
    )
    max_seq_kl: float | None = Field(
        default=200.0, gt=0, description="Diverged above this KL per response, in nats; null: off."
    )
    checkpoint_every_updates: Count = Field(
        default=7, description="Updates between checkpoints, which the trajectory uses."
    )

    @model_validator(mode="after")
    def _check(self) -> Online:
        found: list[Problem] = []
        group: int = getattr(self, "generations_per_prompt", 1)
        for name, count, what in (
            ("generations_per_prompt", group, f"{group} generations per prompt"),
            ("minibatches", self.minibatches, f"{self.minibatches} minibatches"),
        ):
            if self.batch_size % count:
                message = f"got {self.batch_size} responses and {what}, expected a multiple of {name}"
                found.append((("batch_size",), message))
        refuse(found)
        return self


class RLOO(Online):
    """REINFORCE leave-one-out: a response's baseline is the mean reward of the other responses to its prompt.

    Source: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740), who take 2 and 4 responses a prompt.
    """

    kind: Literal["rloo"] = Field(default="rloo", description="Kind of arm.")
    kl_coef: float = Field(default=0.1, ge=0, description="Weight of the KL penalty, in reward per nat of a response.")
    generations_per_prompt: Annotated[int, Field(ge=2)] = Field(
        default=4, description="Responses to each prompt; the others are a response's baseline."
    )
    clip: float = Field(default=0.2, gt=0, description="The ratio of a whole response is clipped to 1 ± clip.")


class GRPO(Online):
    """Group relative policy optimization: a response's advantage is its reward's distance from the group's mean.

    Source: Shao et al. 2024 (https://arxiv.org/abs/2402.03300); losses over tokens: Yu et al. 2025 (DAPO,
    https://arxiv.org/abs/2503.14476), Liu et al. 2025 (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    """

    kind: Literal["grpo"] = Field(default="grpo", description="Kind of arm.")
    kl_coef: float = Field(
        default=0.1, ge=0, description="Weight of the KL term in the loss, in advantages per nat of a token."
    )
    generations_per_prompt: Annotated[int, Field(ge=2)] = Field(
        default=8, description="Responses to each prompt: the group that advantages are relative to."
    )
    clip: float = Field(default=0.2, gt=0, description="The ratio of a token is clipped to 1 ± clip.")
    advantage_scale: Literal["group", "batch", "none"] = Field(
        default="group", description="Advantages are divided by the deviation of the group, of the batch, or not."
    )
    loss: Literal["dapo", "grpo", "dr_grpo"] = Field(
        default="dapo",
        description="Mean over all tokens; over each response's tokens first; sum over tokens at the longest length.",
    )
