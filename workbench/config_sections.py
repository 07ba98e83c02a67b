"""The config's sections but the arms: model, data, gold, evaluation, selection, resources, tracking."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from workbench.config_base import Count, Fraction, Label, Problem, Section, Seed, World, refuse
from workbench.config_label_use import LabelUse, labeling_problems

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

    @model_validator(mode="after")
    def _check(self) -> Model:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        found: list[Problem] = []
        if (self.policy is None) == (self.world is None):
            found.append(((), _exactly_one(self, ("policy", "world"))))
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


class Annotator(Section):
    """Prefers a over b with probability sigmoid((gold difference + biases) / temperature)."""

    name: str = Field(default="", description="Name in reports; empty: annotator-1, annotator-2 and so on.")
    temperature: float = Field(
        default=1.0, gt=0, description="Noise, in units of gold reward; scale it by gold's spread."
    )
    length_bias: float = Field(
        default=0.0, description="Added per five words that a is longer, in units of gold reward."
    )
    position_bias: float = Field(
        default=0.0, description="Added to the response that is shown first, in units of gold reward."
    )
    careless: Fraction = Field(default=0.0, description="Probability of a coin flip instead of a judgment.")


def default_annotators() -> list[Annotator]:
    """The helpdesk world's five annotators."""
    return [
        Annotator(name="careful", temperature=0.8, careless=0.02),
        Annotator(name="average", temperature=1.0, length_bias=0.1, careless=0.05),
        Annotator(name="wordy", temperature=1.2, length_bias=0.3, position_bias=0.2, careless=0.05),
        Annotator(name="distracted", temperature=1.0, careless=0.15),
        Annotator(name="hasty", temperature=1.5, length_bias=0.1, position_bias=0.3, careless=0.05),
    ]


def _named(annotators: list[Annotator]) -> list[Annotator]:
    """Fills empty names and refuses equal ones: annotators are told apart by name."""
    named = [a if a.name else a.model_copy(update={"name": f"annotator-{i}"}) for i, a in enumerate(annotators, 1)]
    names = [a.name for a in named]
    refuse(
        ((i, "name"), f"got '{name}' a second time, expected different names")
        for i, name in enumerate(names)
        if name in names[:i]
    )
    return named


Annotators = Annotated[list[Annotator], Field(min_length=1), AfterValidator(_named)]


class Simulate(Section):
    """Pairs sampled from the SFT policy and labeled by annotators who know the gold reward."""

    prompts: str = Field(min_length=1, description="File of prompts (one `prompt` a row), split by data.splits.")
    pairs: Count = Field(default=2000, description="Training pairs to make.")
    validation_pairs: Count = Field(default=400, description="Validation pairs to make.")
    test_pairs: Count = Field(default=400, description="Test pairs to make.")
    annotators: Annotators = Field(default_factory=default_annotators, description="Who labels the pairs.")


class Splits(Section):
    """Shares of the prompts (not of the pairs) that are kept from training."""

    validation: float = Field(default=0.1, gt=0, lt=1, description="Fraction of prompts for validation.")
    test: float = Field(default=0.1, gt=0, lt=1, description="Fraction of prompts for the final evaluation.")

    @model_validator(mode="after")
    def _check(self) -> Splits:
        if self.validation + self.test >= 1:
            total = f"got {self.validation:g} + {self.test:g} for validation and test"
            refuse([((), f"{total}, expected a sum below 1: the rest is for training")])
        return self


class Data(Section):
    """The preference pairs, the same for every arm: a world's, a file's, or simulated ones."""

    world: World | None = Field(default=None, description="Pairs of an embedded world, whose gold reward is known.")
    pairs: Count = Field(default=2000, description="Training pairs that the world makes.")
    validation_pairs: Count = Field(default=400, description="Validation pairs that the world makes.")
    test_pairs: Count = Field(default=400, description="Test pairs that the world makes.")
    preferences: str | None = Field(
        default=None, description="Or: pairs from jsonl(.gz), parquet, csv, a datasets folder or a hub id."
    )
    simulate: Simulate | None = Field(
        default=None, description="Or: pairs sampled from the SFT policy, labeled by gold."
    )
    splits: Splits = Field(default_factory=Splits, description="Shares of prompts, for preferences and simulate.")
    ood: str | None = Field(default=None, description="File of out-of-distribution pairs for the agreement of rewards.")
    ood_prompts: Count = Field(default=128, description="Out-of-distribution prompts that the world makes.")
    annotators: Annotators = Field(default_factory=default_annotators, description="Who labels the world's pairs.")
    labels_per_pair: Count = Field(default=1, description="Annotators asked per pair; the majority decides.")
    labels: LabelUse = Field(
        default_factory=LabelUse, description="How an annotated pair becomes a training label, the same for every arm."
    )
    label_noise: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="Probability with which a training label is turned, from seeds.data; a larger one turns the same "
        "labels and more. Validation and test labels stay.",
    )
    drop_invalid: bool = Field(default=False, description="Drops and lists invalid rows instead of stopping.")
    deduplicate: bool = Field(default=False, description="Keeps the first of equal pairs.")
    max_identical_fraction: Fraction = Field(
        default=0.01, description="Largest fraction of rows whose chosen equals rejected before it is an error."
    )
    limit: Count | None = Field(default=None, description="Uses only the first rows of the file, in rows.")

    @model_validator(mode="after")
    def _check(self) -> Data:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        found: list[Problem] = []
        sources = [name for name in ("world", "preferences", "simulate") if getattr(self, name) is not None]
        if len(sources) != 1:
            return [((), _exactly_one(self, ("world", "preferences", "simulate")))]
        source = sources[0]
        if self.preferences is not None and not self.preferences.strip():
            found.append((("preferences",), "got an empty text, expected a file, a folder or a hub id"))
        used = {
            "world": {"pairs", "validation_pairs", "test_pairs", "ood_prompts", "annotators", "labels_per_pair"},
            "preferences": {"splits", "ood", "limit"},
            "simulate": {"splits", "ood", "limit", "labels_per_pair"},
        }
        hints = {"preferences": "; data.limit bounds the rows", "simulate": "; see data.simulate"}
        # Against the defaults rather than fields_set: a dumped config names every field and must load again.
        for name in sorted(set().union(*used.values()) - used[source]):
            if getattr(self, name) != Data.model_fields[name].get_default(call_default_factory=True):
                hint = hints.get(source, "") if name not in {"splits", "ood", "limit"} else ""
                found.append(((name,), f"has no effect with data.{source}; remove it{hint}"))
        annotators = self.simulate.annotators if self.simulate else self.annotators
        if source != "preferences" and self.labels_per_pair > len(annotators):
            message = f"got {self.labels_per_pair}, expected at most the number of annotators ({len(annotators)})"
            found.append((("labels_per_pair",), message))
        names = None if source == "preferences" else [one.name for one in annotators]
        return found + labeling_problems(self.labels, annotators=names, labels_per_pair=self.labels_per_pair)


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
            refuse([((), _exactly_one(self, ("python", "world", "reward_model")))])
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


def _exactly_one(section: Section, names: tuple[str, ...]) -> str:
    """The message of a choice between fields of which one was wanted."""
    values: dict[str, Any] = {name: getattr(section, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]
    got = " and ".join(given) or "none of them"
    hint = "; remove the others (or replace the whole block with --set)" if len(given) > 1 else ""
    return f"got {got}, expected exactly one of {', '.join(names)}{hint}"
