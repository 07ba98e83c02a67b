"""What trains or selects: SFT, reward models and the kinds of arms (rloo and grpo: config_arms_online.py).

Defaults suit the embedded world's 0.1M-parameter model. Learning rates for pretrained models of 100M parameters and
more are a hundred to a thousand times smaller; `workbench init` writes a starter with such values beside the defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workbench.config_arms_online import GRPO, RLOO
from workbench.config_base import Count, Fraction, Label, Microbatch, Problem, Rate, Schedule, Section, refuse

_EXPLAIN_SCHEDULE = "Course of the learning rate after the warm-up."
_EXPLAIN_WARMUP = "Fraction of the steps in which the learning rate rises."
_EXPLAIN_NORM = "Gradients are scaled down to this norm."
_EXPLAIN_DECAY = "AdamW's weight decay."


class SFT(Section):
    """Supervised fine-tuning: what policy, reference and reward models start from."""

    corpus: Literal["world", "chosen"] = Field(
        default="world", description="The world's corpus, or the chosen responses (default with model.policy)."
    )
    examples: Count = Field(default=25600, description="Examples that the world's corpus holds; unused for chosen.")
    steps: Count = Field(default=400, description="Optimizer steps.")
    batch_size: Count = Field(default=64, description="Examples per step.")
    microbatch_size: Microbatch = None
    learning_rate: Rate = Field(default=5e-3, description="Peak learning rate.")
    schedule: Schedule = Field(default="cosine", description=_EXPLAIN_SCHEDULE)
    warmup_fraction: Fraction = Field(default=0.0, description=_EXPLAIN_WARMUP)
    weight_decay: float = Field(default=0.0, ge=0, description=_EXPLAIN_DECAY)
    max_grad_norm: float = Field(default=1.0, gt=0, description=_EXPLAIN_NORM)
    checkpoint_every_steps: Count = Field(default=100, description="Steps between checkpoints to resume from.")


class RewardModel(Section):
    """An explicit reward model, trained on the pairs with the Bradley-Terry loss, or one that there is already."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="Folder (safetensors) or hub id of an existing reward model: nothing is trained, and it may have a "
        "tokenizer of its own. The certificate declares it.",
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        description="Folder or hub id of another model than the SFT that training starts from; it may have a tokenizer "
        "of its own. The certificate declares it.",
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of the hub id in `path` or `base`.")
    template: Literal["text", "chat"] = Field(
        default="text",
        description="How the model in `path` or `base` reads: prompt and response as one text, or as messages in its "
        "own chat template.",
    )
    pairs: Count | None = Field(
        default=None,
        description="Training pairs that it sees, a smaller model's within a larger's; null: all. The certificate "
        "declares the difference.",
    )
    epochs: float = Field(default=3.0, ge=1, description="Passes over the training pairs; every pair is used.")
    batch_size: Count = Field(default=32, description="Pairs per step.")
    microbatch_size: Microbatch = None
    learning_rate: Rate = Field(default=2e-3, description="Peak learning rate.")
    schedule: Schedule = Field(default="cosine", description=_EXPLAIN_SCHEDULE)
    warmup_fraction: Fraction = Field(default=0.0, description=_EXPLAIN_WARMUP)
    weight_decay: float = Field(default=0.05, ge=0, description=_EXPLAIN_DECAY)
    max_grad_norm: float = Field(default=1.0, gt=0, description=_EXPLAIN_NORM)
    center_samples: Count = Field(default=256, description="SFT samples whose mean score becomes zero.")
    checkpoint_every_steps: Count = Field(default=25, description="Steps between checkpoints to resume from.")

    @model_validator(mode="after")
    def _check(self) -> RewardModel:
        found: list[Problem] = []
        own = ("path", "revision", "template", "center_samples")
        for name, field in type(self).model_fields.items():
            given = getattr(self, name) != field.default
            if self.path is not None and given and name not in own:
                found.append(((name,), "has no effect with path, whose model is not trained; remove it"))
            if self.path is None and self.base is None and given and name in ("revision", "template"):
                found.append(((name,), "has no effect without path or base; remove it"))
        refuse(found)
        return self


class AdaptiveKL(Section):
    """Moves kl_coef so that the KL per response approaches a target (Ziegler et al. 2019)."""

    target: float = Field(default=6.0, gt=0, description="Wanted KL per response, in nats.")
    horizon: Count = Field(default=10000, description="Responses over which kl_coef reacts.")
    clip: float = Field(default=0.2, gt=0, description="Largest relative error per update.")


class PPO(Section):
    """Policy gradient on the explicit reward minus a KL penalty."""

    kind: Literal["ppo"] = Field(default="ppo", description="Kind of arm.")
    reward: Label = Field(
        default="main", description="Name of a reward model, or label of a dpo arm (its implicit reward)."
    )
    kl_coef: float = Field(default=0.1, ge=0, description="Weight of the KL penalty per token, in reward per nat.")
    updates: Count = Field(default=55, description="Rollout batches, each followed by training on it.")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=128, description="Responses per update.")
    epochs: Count = Field(default=1, description="Passes over each rollout batch.")
    minibatches: Count = Field(default=2, description="Optimizer steps per pass; divides batch_size.")
    learning_rate: Rate = Field(default=2e-4, description="Peak learning rate of the policy.")
    schedule: Schedule = Field(default="linear", description=_EXPLAIN_SCHEDULE)
    critic_learning_rate: Rate = Field(
        default_factory=lambda data: float(data.get("learning_rate", 2e-4)),
        description="Peak learning rate of the critic; null: as the policy's.",
    )
    critic_warmup_updates: int = Field(default=6, ge=0, description="First updates that train the critic alone.")
    critic: Literal["separate", "head", "detached_head"] = Field(
        default="separate",
        description="A network of its own (with model.lora an adapter), a value head on the policy's trunk, or such a "
        "head whose loss does not reach the trunk; the heads save a pass in three and a network in memory.",
    )
    clip: float = Field(default=0.2, gt=0, description="The ratio is clipped to 1 ± clip.")
    value_clip: float = Field(default=0.2, gt=0, description="New values are clipped to old values ± value_clip.")
    value_coef: float = Field(default=0.1, ge=0, description="Weight of the value loss.")
    gamma: float = Field(default=1.0, gt=0, le=1, description="Discount per token.")
    lam: Fraction = Field(default=0.95, description="Lambda of generalized advantage estimation.")
    adam_eps: float = Field(default=1e-5, gt=0, description="Adam's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description=_EXPLAIN_NORM)
    temperature: float = Field(
        default=1.0, gt=0, description="Sampling temperature of rollouts; logits are divided by it."
    )
    whiten_advantages: bool = Field(
        default=True, description="Advantages get mean 0 and deviation 1 per batch (masked)."
    )
    eos_rule: Literal["none", "replace", "subtract"] = Field(
        default="none",
        description="A response without stop token: score kept, replaced by -eos_penalty, or lowered by it.",
    )
    eos_penalty: float = Field(
        default=1.0, ge=0, description="Size of that penalty, in units of the reward model's score."
    )
    normalize_reward: bool = Field(
        default=False, description="The score is divided by the standard deviation of all scores so far; logged."
    )
    reward_clip: float | None = Field(
        default=None, gt=0, description="The score is clipped to ± this, in its (normalized) units; logged; null: off."
    )
    sft_coef: float = Field(
        default=0.0, ge=0, description="Weight of the NLL per token of chosen responses beside PPO's loss (PPO-ptx)."
    )
    adaptive_kl: AdaptiveKL | None = Field(default=None, description="Moves kl_coef towards a target KL; null: fixed.")
    target_approx_kl: float | None = Field(
        default=None,
        gt=0,
        description="Ends an update's training early above this KL to the rollout policy, in nats a token.",
    )
    max_seq_kl: float | None = Field(
        default=200.0, gt=0, description="Diverged above this KL per response, in nats; null: off."
    )
    min_entropy: float | None = Field(
        default=None, ge=0, description="Diverged below this entropy of the policy, in nats a token; null: off."
    )
    checkpoint_every_updates: Count = Field(
        default=7, description="Updates between checkpoints, which the trajectory uses."
    )
    checkpoint_at_kl: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list,
        description="Also a checkpoint where the rollouts' KL first passes each of these, in nats a response: points "
        "for the frontier from one run.",
    )
    microbatch_tokens: Count | None = Field(
        default=None,
        description="Most tokens, padding included, of one forward and backward pass; less memory, the same result.",
    )
    compile: bool = Field(
        default=False, description="torch.compile the training passes; a minute at the start, then faster."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, raw: Any) -> Any:
        return _without_nulls(raw, ("critic_learning_rate",))

    @model_validator(mode="after")
    def _check(self) -> PPO:
        found: list[Problem] = []
        if self.batch_size % self.minibatches:
            got = f"got {self.batch_size} responses and {self.minibatches} minibatches"
            found.append((("batch_size",), f"{got}, expected a multiple of ppo's minibatches"))
        if self.critic_warmup_updates >= self.updates:
            message = f"got {self.critic_warmup_updates}, expected less than updates ({self.updates})"
            found.append((("critic_warmup_updates",), f"{message}: the policy would never be trained"))
        if self.checkpoint_at_kl != sorted(set(self.checkpoint_at_kl)):
            message = f"got {self.checkpoint_at_kl}, expected rising numbers without repeats"
            found.append((("checkpoint_at_kl",), message))
        refuse(found)
        return self


class DPO(Section):
    """Direct preference optimization: the reward is implicit in the policy."""

    kind: Literal["dpo"] = Field(default="dpo", description="Kind of arm.")
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull to the reference; larger stays closer.")
    epochs: float = Field(default=2.0, ge=1, description="Passes over the training pairs; every pair is used.")
    batch_size: Count = Field(default=32, description="Pairs per step.")
    microbatch_size: Microbatch = None
    learning_rate: Rate = Field(default=5e-4, description="Peak learning rate.")
    schedule: Schedule = Field(default="cosine", description=_EXPLAIN_SCHEDULE)
    warmup_fraction: Fraction = Field(default=0.1, description=_EXPLAIN_WARMUP)
    weight_decay: float = Field(default=0.0, ge=0, description=_EXPLAIN_DECAY)
    max_grad_norm: float = Field(default=1.0, gt=0, description=_EXPLAIN_NORM)
    loss: Literal["sigmoid"] = Field(default="sigmoid", description="Loss on the difference of implicit rewards.")
    nll_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the chosen responses' negative log-likelihood, per nat a token; 0: off.",
    )
    checkpoint_every_steps: Count = Field(
        default=25, description="Steps between checkpoints, which the trajectory uses."
    )
    checkpoint_at_steps: list[Count] = Field(
        default_factory=lambda: [6, 12, 18],
        description="Also a checkpoint after each of these steps: KL rises fastest early, and curves need its points.",
    )
    labels: Label = Field(
        default="given",
        description="Whose labels the training pairs carry: given (the data's), a reward model's, or those of another "
        "dpo arm's implicit reward.",
    )
    labels_rule: Literal["sample", "argmax", "soft"] = Field(
        default="sample",
        description="How a reward labels a pair: drawn from sigmoid(margin), which keeps its strength, by its sign, or "
        "by sigmoid(margin) itself as target probability.",
    )
    pairs: Count | None = Field(
        default=None,
        description="Training pairs that it sees, the same ones as a reward model of that size; null: all. The "
        "certificate declares the difference.",
    )


def _powers_of_two(data: dict[str, Any]) -> list[int]:
    """1, 2, 4 ... and n itself."""
    n = int(data.get("n", 1))
    return sorted({*(2**i for i in range(n.bit_length())), n})


def _default_pool(data: dict[str, Any]) -> int:
    return int(4 * max([data.get("n", 1), *data.get("report_n", [])]))


class BestOfN(Section):
    """Samples n responses from the SFT policy and keeps the one with the highest reward."""

    kind: Literal["best_of_n"] = Field(default="best_of_n", description="Kind of arm.")
    n: Annotated[int, Field(ge=1, le=4096)] = Field(default=16, description="Candidates per answer.")
    reward: Label = Field(
        default="main", description="Name of a reward model, or label of a dpo arm (its implicit reward)."
    )
    report_n: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        default_factory=_powers_of_two,
        min_length=1,
        description="Values of n on the frontier; default: powers of two up to n.",
    )
    pool: Count = Field(
        default_factory=_default_pool,
        description="Candidates sampled per prompt, from which all n are estimated; default: 4 times the largest n.",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, raw: Any) -> Any:
        return _without_nulls(raw, ("report_n", "pool"))

    @model_validator(mode="after")
    def _check(self) -> BestOfN:
        found: list[Problem] = []
        least = 4 * max(self.n, *self.report_n)
        if self.pool < least:
            message = f"got {self.pool}, expected at least 4 times the largest n ({least})"
            found.append((("pool",), f"{message}: with n near the pool the estimate has no spread"))
        if self.report_n != sorted(set(self.report_n)):
            found.append((("report_n",), f"got {self.report_n}, expected rising numbers without repeats"))
        refuse(found)
        return self


Arm = Annotated[PPO | RLOO | GRPO | DPO | BestOfN, Field(discriminator="kind")]
ARM_KINDS: dict[str, type[Section]] = {"ppo": PPO, "rloo": RLOO, "grpo": GRPO, "dpo": DPO, "best_of_n": BestOfN}


def _without_nulls(raw: Any, names: tuple[str, ...]) -> Any:
    """The block without those names that are null, so that null means "the default"."""
    if not isinstance(raw, dict):
        return raw
    return {key: value for key, value in raw.items() if value is not None or key not in names}
