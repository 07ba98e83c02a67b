"""What the parts of the graph share: the collection of stages, seeds, and config fragments. See `pipelines.graph`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.sources import Origin
from workbench.config import DPO, Arm, Comparison
from workbench.config_labels import GIVEN
from workbench.config_sampling import CONNECTION
from workbench.stages import External, Resources, Stage

TRAINING_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")
MODEL_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")
TEXT_PACKAGES = ("numpy", "pyarrow", "tokenizers", "transformers")
MEASURE_PACKAGES = ("numpy", "scipy")


@dataclass
class Graph:
    """Stages by instance name in the order they were added, and the roles that the results need.

    Args:
        stages: instance -> stage.
        arms: (label, run seed) -> {"policy", "selected", "generations", "scores", "trajectory", "pool", "pool_scores",
            "judged/JUDGE/OTHER": judgments of this arm against another}.
    """

    comparison: Comparison
    origin: Origin
    stages: dict[str, Stage] = field(default_factory=dict)
    arms: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        tags: Sequence[object],
        function: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str | External],
        *,
        seed: int = 0,
        packages: tuple[str, ...] = (),
        inline: bool = False,
        cosmetic: Mapping[str, Any] | None = None,
        accelerated: bool = True,
        trains: bool = False,
        threads: int | None = None,
    ) -> str:
        """Adds a stage and returns its instance name, `name[tag,tag]`.

        Args:
            accelerated: It takes a GPU if there is one.
            trains: Its work is shared by `resources.processes`.
            threads: If not `resources.threads`.
        """
        instance = f"{name}[{','.join(map(str, tags))}]" if tags else name
        shared = self.comparison.resources
        processes = shared.processes if trains else 1
        resources = Resources(
            threads=threads or shared.threads,
            processes=processes,
            gpus=processes if self.origin.device == "cuda" and accelerated and not inline else 0,
            device=self.origin.device,
            dtype=self.origin.dtype,
        )
        self.stages[instance] = Stage(
            name=name, instance=instance, function=function, config=config, inputs=inputs, seed=seed,
            packages=packages, resources=resources, inline=inline, cosmetic=cosmetic or {},
        )  # fmt: skip
        return instance


def derive(seed: int, name: str) -> int:
    """A stage's own 62-bit seed from the config's seed and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) >> 2


def tag(arm: Arm, arms: Mapping[str, Arm]) -> str:
    """Names an arm by its settings, so that renaming redraws nothing: itself, or the DPO arm it selects by."""
    settings = arm.model_dump(mode="json")
    if settings.get("labels") == GIVEN:  # the data's own labels redraw nothing
        del settings["labels"], settings["labels_rule"]
    if settings.get("pairs", 0) is None:
        del settings["pairs"]
    settings.pop("microbatch_size", None)
    for name in ("reward", "labels"):
        if settings.get(name) in arms:
            settings[name] = "implicit"
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def implicit_arm(comparison: Comparison) -> str | None:
    """The DPO arm whose implicit reward is held against the explicit one: the first on the data's labels, if any, and
    of those the first on all pairs."""
    arms = [(label, arm) for label, arm in comparison.arms.items() if isinstance(arm, DPO)]
    given = [one for one in arms if one[1].labels == GIVEN]
    return next((label for label, _ in [*(one for one in given if one[1].pairs is None), *given, *arms]), None)


def sampling_seed(comparison: Comparison, run: int, name: str) -> int:
    return derive(derive(comparison.seeds.eval, "sampling"), f"{run}/{name}")


def limits(graph: Graph) -> dict[str, Any]:
    comparison = graph.comparison
    return {
        "max_response_tokens": comparison.evaluation.max_response_tokens,
        "stop_ids": list(graph.origin.stop_ids),
        "trust_remote_code": comparison.model.trust_remote_code,
    }


def training(graph: Graph) -> dict[str, Any]:
    """What every stage that trains from the SFT is told beside its block; `lora` only where adapters are wanted."""
    lora = graph.comparison.model.lora
    return (
        limits(graph)
        | ({"lora": lora.model_dump(mode="json", exclude_none=True)} if lora is not None else {})
        | checkpointing(graph)
    )


def checkpointing(graph: Graph) -> dict[str, bool]:
    """Config field of a training stage that computes activations twice; none of the others'."""
    return {"gradient_checkpointing": True} if graph.comparison.model.gradient_checkpointing else {}


def trainer_packages(graph: Graph, packages: tuple[str, ...]) -> tuple[str, ...]:
    """What a training stage computes with: `packages`, and peft where adapters are trained."""
    return quantized_packages(graph, (*packages, "peft") if graph.comparison.model.lora is not None else packages)


def rounding(graph: Graph) -> dict[str, str]:
    """Config field of an SFT that adapters will be trained on in 4 bits; none of the others'."""
    lora = graph.comparison.model.lora
    return {"quantize": lora.quantize} if lora is not None and lora.quantize is not None else {}


def quantized_packages(graph: Graph, packages: tuple[str, ...]) -> tuple[str, ...]:
    """`packages`, and bitsandbytes where the base is packed in 4 bits."""
    return (*packages, "bitsandbytes") if rounding(graph) else packages


def decoding(graph: Graph) -> dict[str, Any]:
    evaluation, cache = graph.comparison.evaluation, graph.comparison.sampling.cache
    return limits(graph) | {
        "temperature": evaluation.temperature, "top_p": evaluation.top_p, "batch_size": evaluation.batch_size
    } | ({"cache": cache} if cache != "dynamic" else {})  # fmt: skip


def sampler(graph: Graph) -> dict[str, Any]:
    """Config fields of the stages that a server may sample: what it is; how it is reached is in no key."""
    server = graph.comparison.sampling.semantic().get("server")
    return {} if server is None else {"server": server}


def connection(graph: Graph) -> dict[str, Any]:
    """Beside `sampler`: where and how the server is asked."""
    server = graph.comparison.sampling.server
    return {} if server is None else {"connection": server.model_dump(mode="json", include=set(CONNECTION))}


def scoring(comparison: Comparison) -> dict[str, Any]:
    return {"batch_size": comparison.evaluation.batch_size, "trust_remote_code": comparison.model.trust_remote_code}


def gold(graph: Graph) -> dict[str, Any] | None:
    gold = graph.comparison.gold
    if gold is None:
        return None
    if gold.world:
        return {"world": graph.comparison.data.world}
    # A reward model's weights enter the key as the input `gold`; where they lie is nobody's business.
    return {"python": gold.python} if gold.python is not None else {"reward_model": "input"}


def gold_inputs(graph: Graph) -> dict[str, str | External]:
    return {"gold": graph.origin.gold} if graph.origin.gold is not None else {}
