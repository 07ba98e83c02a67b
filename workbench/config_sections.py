"""The config's sections but arms and data: model, gold, evaluation, selection, resources, tracking."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from workbench.config_base import Count, Label, Problem, Section, Seed, World, exactly_one, refuse

_MODULE_FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


class Seeds(Section):
    """Where randomness starts; each stage derives its own seed from these and its name."""

    data: Seed = Field(default=0, description="Seed of splits, prompts and annotators.")
    sft: Seed = Field(default=0, description="Seed of the SFT stage, shared by all runs.")
    eval: Seed = Field(default=0, description="Seed of the choice of evaluation prompts.")
    runs: list[Seed] = Field(
        default_factory=lambda: [0],
        min_length=1,
        description="One repetition of every arm per seed. A verdict on methods needs at least five.",
    )

    @model_validator(mode="after")
    def _check(self) -> Seeds:
        if len(set(self.runs)) < len(self.runs):
            refuse([(("runs",), f"got {self.runs}, expected different seeds: the same run twice is no repetition")])
        return self


class WorldSize(Section):
    """Size of the model that is trained from scratch for an embedded world."""

    hidden_size: Count = Field(default=64, description="Width of the model, in units.")
    num_layers: Count = Field(default=2, description="Number of transformer layers.")
    num_heads: Count = Field(default=4, description="Number of attention heads; divides hidden_size.")
    intermediate_size: Count = Field(default=168, description="Width of the feed-forward layer, in units.")
    initializer_range: float = Field(default=0.08, gt=0, description="Standard deviation of the initial weights.")

    @model_validator(mode="after")
    def _check(self) -> WorldSize:
        if self.hidden_size % (2 * self.num_heads):
            got = f"got hidden_size {self.hidden_size} and num_heads {self.num_heads}"
            refuse([(("hidden_size",), f"{got}, expected an even number of units per head (rotary embedding)")])
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LoraAdapter(Section):
    """Low-rank adapters instead of all weights; without dropout, so that policy and reference are plain functions."""

    rank: Count = Field(default=16, description="Width of the bottleneck of each adapter.")
    alpha: float = Field(default=32.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    target_modules: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default=["all-linear"],
        min_length=1,
        description="Layers that get one: all-linear (all of the trunk), or ends of their names: [q_proj, v_proj].",
    )
    quantize: Literal["nf4"] | None = Field(
        default=None,
        description="nf4: the SFT's linear layers are rounded to 4 bits, for everybody, and packed where adapters are "
        "trained on them (QLoRA); needs bitsandbytes. null: they stay as they are.",
    )

    @model_validator(mode="after")
    def _check(self) -> LoraAdapter:
        found: list[Problem] = []
        for place, name in enumerate(self.target_modules):
            if name == "all-linear" and len(self.target_modules) > 1:
                found.append((("target_modules", place), "got all-linear beside other names, expected it alone"))
            elif name != "all-linear" and not re.fullmatch(r"\w+(\.\w+)*", name):
                message = f"got '{name}', expected all-linear or the end of a layer's name, such as q_proj"
                found.append((("target_modules", place), message))
        refuse(found)
        return self


class Model(Section):
    """The policy that every arm starts from."""

    policy: str | None = Field(
        default=None, description="Model folder (safetensors) or hub id that every arm starts from."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of the hub id.")
    world: World | None = Field(
        default=None, description="Or: a small Llama-style model trained from scratch for this world."
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Token ids that end a response; null: the tokenizer's EOS."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Number format of the weights; auto: float32 on CPU, bfloat16 on a GPU."
    )
    trust_remote_code: bool = Field(
        default=False, description="Runs Python code that comes with the model. Needs a pinned revision for a hub id."
    )
    max_prompt_tokens: Count | None = Field(
        default=None, description="Longer prompts are dropped from all arms, in tokens; null: what the context leaves."
    )
    max_length: Count | None = Field(
        default=None, description="Prompt and response together, in tokens; null: the model's context."
    )
    size: WorldSize = Field(default_factory=WorldSize, description="Size of the world's model; unused with policy.")
    lora: LoraAdapter | None = Field(
        default=None,
        description="Adapters for reward models and every trained arm alike; null: all weights. The SFT trains all.",
    )

    gradient_checkpointing: bool = Field(
        default=False,
        description="Computes activations again in the backward pass: less memory, about a third more time, the same "
        "weights.",
    )

    @model_validator(mode="after")
    def _check(self) -> Model:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.policy is None) == (self.world is None):
            found.append(((), exactly_one(self, ("policy", "world"))))
        if self.policy is not None and not self.policy.strip():
            found.append((("policy",), "got an empty text, expected a model folder or a hub id"))
        if self.policy is not None and self.size != WorldSize():
            found.append((("size",), "has no effect with model.policy; remove it"))
        if self.world is not None and self.revision is not None:
            found.append((("revision",), "has no effect with model.world; remove it"))
        pinned = self.revision is not None and re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None
        if self.trust_remote_code and self.policy and not _looks_local(self.policy) and not pinned:
            got = "no revision" if self.revision is None else "a revision that can move"
            message = f"got {got}, expected a full commit (40 hex digits) in model.revision: code that runs is pinned"
            found.append((("trust_remote_code",), message))
        if self.max_prompt_tokens and self.max_length and self.max_prompt_tokens >= self.max_length:
            message = f"got {self.max_prompt_tokens}, expected less than model.max_length ({self.max_length})"
            found.append((("max_prompt_tokens",), message))
        return found


class Gold(Section):
    """The truth that no arm sees: a function, the world's own, or a reward model of different lineage."""

    python: str | None = Field(
        default=None,
        pattern=_MODULE_FUNCTION,
        description="'module:function' with (prompts: list[str], responses: list[str]) -> list[float].",
    )
    world: bool = Field(default=False, description="The embedded world's own reward.")
    reward_model: str | None = Field(
        default=None, min_length=1, description="Folder of a sequence classifier (safetensors)."
    )

    @model_validator(mode="after")
    def _check(self) -> Gold:
        if (self.python is not None) + self.world + (self.reward_model is not None) != 1:
            refuse([((), exactly_one(self, ("python", "world", "reward_model")))])
        return self


def _gold_alone() -> list[str]:
    return ["gold"]


class Evaluation(Section):
    """How every policy is sampled and judged: one setting for all arms."""

    prompts: Count = Field(default=256, description="Test prompts, the same for every arm, in prompts.")
    samples_per_prompt: Count = Field(default=4, description="Responses sampled per prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of the judged responses.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus mass of the judged responses; 1 samples from all."
    )
    max_response_tokens: Count = Field(
        default=48, description="Longest response, in tokens, in training and evaluation."
    )
    shift_temperature: float | None = Field(
        default=None,
        gt=0,
        description="Also compares the rewards on SFT samples at this temperature, a shift that favors neither; null: "
        "not.",
    )
    judges: list[Label] = Field(
        default_factory=_gold_alone,
        min_length=1,
        description="Who decides win rates: gold, proxy, or names of `judges`; the first one is the headline.",
    )
    trajectory_prompts: int = Field(
        default=128, ge=0, description="Validation prompts sampled at every checkpoint, in prompts; 0: no trajectory."
    )
    batch_size: Count = Field(default=256, description="Sequences sampled or scored at once.")

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if len(set(self.judges)) < len(self.judges):
            refuse([(("judges",), f"got {self.judges}, expected each judge once")])
        return self


class Selection(Section):
    """Which checkpoint of an arm is compared: one rule for all arms."""

    rule: Literal["last", "best"] = Field(default="last", description="The last checkpoint, or the best by `metric`.")
    metric: Literal["gold_reward", "proxy_reward"] = Field(
        default="proxy_reward", description="What `best` looks at; gold_reward is labeled an oracle in the report."
    )
    split: Literal["validation"] = Field(default="validation", description="Where `best` looks.")


class ResourcesConfig(Section):
    """What the run may use."""

    threads: Count = Field(
        default=1, description="CPU threads of each stage. Part of the results: last bits depend on it."
    )
    processes: Count = Field(
        default=1,
        description="Processes that train together in each training stage, on this machine, with `threads` each and on "
        "GPUs one GPU each. Part of the results: last bits depend on it.",
    )
    sft_threads: Count | None = Field(
        default=None,
        description="CPU threads of the SFT, for which all else waits: workers x threads leaves no core idle. Null: "
        "`threads`. Part of the results, too.",
    )
    workers: Count = Field(default=2, description="Stages that run side by side. No influence on results.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Kind of device; auto: cuda where there is one."
    )


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(default=True, description="Logs runs to MLflow.")
    uri: str | None = Field(
        default=None, description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, else a database in the run's home."
    )
    traces: int = Field(
        default=25,
        ge=0,
        le=1000,
        description="Prompts whose responses become traces, side by side by arm, those that tell the most first; "
        "0: none. About 10 ms a response.",
    )

    @model_validator(mode="after")
    def _check(self) -> Tracking:
        # Configs are copied into reports and MLflow; the value is not shown here for the same reason.
        if self.uri is not None and _has_password(self.uri):
            message = "holds a password, which would be copied into reports; set MLFLOW_TRACKING_URI instead"
            refuse([(("uri",), message)])
        return self


def _has_password(uri: str) -> bool:
    try:
        return urlsplit(uri).password is not None
    except ValueError:
        return True


def _looks_local(text: str) -> bool:
    return os.path.isabs(text) or text.startswith((".", "~"))
