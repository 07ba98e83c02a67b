"""The head of the graph: prompts, base model, SFT, pairs, packed data, reference log-probabilities."""

from __future__ import annotations

from typing import Any

from pipelines.graph_base import (
    MODEL_PACKAGES,
    TEXT_PACKAGES,
    TRAINING_PACKAGES,
    Graph,
    checkpointing,
    decoding,
    derive,
    gold,
    gold_inputs,
    quantized_packages,
    rounding,
    scoring,
)
from pipelines.graph_labels import asked_labels, used_labels
from pipelines.sources import Origin
from workbench.config import Comparison
from workbench.stages import External


def data_and_sft(graph: Graph) -> dict[str, str]:
    """Everything before the arms; the same for all of them and for every run seed."""
    comparison, origin = graph.comparison, graph.origin
    data, seeds = comparison.data, comparison.seeds
    if data.world is not None:
        prompts = _world_prompts(graph)
        tokenizer = graph.add(
            "tokenizer",
            (),
            "workbench.data.stages:world_model_files",
            {"world": data.world},
            {},
            packages=("tokenizers",),
        )
    if comparison.model.world is not None:
        model: str | External = graph.add(
            "base_model", (), "pipelines.sft:new_model",
            {"size": comparison.model.size.model_dump(), "context": origin.context}, {"tokenizer": tokenizer},
            seed=derive(seeds.sft, "base_model"), packages=MODEL_PACKAGES,
        )  # fmt: skip
    else:
        assert origin.model is not None
        model = origin.model
    if data.preferences is not None:
        pairs = prompts = graph.add(
            "pairs", (), "workbench.data.stages:file_pairs", _file_config(comparison), _file_inputs(origin, model),
            seed=derive(seeds.data, "pairs"), packages=("pyarrow",), inline=not origin.needs_template,
        )  # fmt: skip
    if data.simulate is not None:
        assert origin.prompts is not None
        inputs: dict[str, str | External] = {"source": origin.prompts}
        if origin.ood is not None:
            inputs["ood"] = origin.ood
        prompts = graph.add(
            "prompts", (), "workbench.data.stages:file_prompts",
            {
                "splits": data.splits.model_dump(), "limit": data.limit, "drop_invalid": data.drop_invalid,
                "layout": {"columns": data.columns},
            },
            inputs,
            seed=derive(seeds.data, "prompts"), inline=True,
        )  # fmt: skip
    lengths = {
        "max_prompt_tokens": comparison.model.max_prompt_tokens,
        "max_length": origin.max_length,
        "max_response_tokens": comparison.evaluation.max_response_tokens,
        "stop_ids": list(origin.stop_ids),
        "trust_remote_code": comparison.model.trust_remote_code,
    }
    packed_prompts = graph.add(
        "packed_prompts", (), "workbench.data.stages:pack_prompts", lengths,
        {"prompts": prompts, "tokenizer": model}, packages=TEXT_PACKAGES,
    )  # fmt: skip
    shared = {"prompts": packed_prompts}
    if data.preferences is None:
        shared["sft"] = _sft(graph, model, prompts, packed_prompts, None)
        pairs = _simulated_pairs(graph, shared["sft"], prompts, packed_prompts)
    packed_pairs = graph.add(
        "packed_pairs", (), "workbench.data.stages:pack_pairs", lengths,
        {"pairs": pairs, "tokenizer": model}, packages=TEXT_PACKAGES,
    )  # fmt: skip
    if data.preferences is not None:
        shared["sft"] = _sft(graph, model, prompts, packed_prompts, packed_pairs)
    shared |= {"pairs": packed_pairs, "raw_pairs": pairs}
    shared["reference_logprobs"] = graph.add(
        "reference_logprobs", (), "workbench.evaluation:reference_logprobs", scoring(comparison),
        {"sft": shared["sft"], "pairs": packed_pairs}, packages=MODEL_PACKAGES,
    )  # fmt: skip
    return shared | used_labels(graph, shared)


def _world_prompts(graph: Graph) -> str:
    data, evaluation = graph.comparison.data, graph.comparison.evaluation
    counts = {
        "train": data.pairs,
        "validation": max(data.validation_pairs, evaluation.trajectory_prompts),
        "test": max(data.test_pairs, evaluation.prompts),
        "ood": data.ood_prompts,
    }
    return graph.add(
        "prompts", (), "workbench.data.stages:world_prompts", {"world": data.world, "counts": counts}, {},
        seed=derive(graph.comparison.seeds.data, "prompts"), packages=("numpy",), inline=True,
    )  # fmt: skip


def _file_config(comparison: Comparison) -> dict[str, Any]:
    data = comparison.data
    names = ("drop_invalid", "deduplicate", "max_identical_fraction", "limit")
    return {name: getattr(data, name) for name in names} | {
        "layout": data.layout(),
        "splits": data.splits.model_dump(),
        "trust_remote_code": comparison.model.trust_remote_code,
        **asked_labels(data.labels),
    }


def _file_inputs(origin: Origin, model: str | External) -> dict[str, str | External]:
    assert origin.preferences is not None
    inputs: dict[str, str | External] = {"source": origin.preferences}
    if origin.ood is not None:
        inputs["ood"] = origin.ood
    if origin.needs_template:
        inputs["tokenizer"] = model
    return inputs


def _sft(graph: Graph, model: str | External, prompts: str, packed_prompts: str, pairs: str | None) -> str:
    comparison = graph.comparison
    trust = {"trust_remote_code": comparison.model.trust_remote_code} | rounding(graph)
    if comparison.sft is None:
        packages = quantized_packages(graph, MODEL_PACKAGES)
        return graph.add("sft", (), "pipelines.sft:adopt", trust, {"model": model}, packages=packages)
    config = comparison.sft.model_dump(mode="json")
    inputs: dict[str, str | External] = {"model": model}
    if config.pop("corpus") == "world":
        inputs["corpus"] = graph.add(
            "sft_corpus", (), "workbench.data.stages:world_sft_corpus", {"examples": config["examples"]},
            {"prompts": prompts}, seed=derive(comparison.seeds.data, "sft_corpus"), packages=("numpy",), inline=True,
        )  # fmt: skip
    else:
        assert pairs is not None
        inputs["pairs"] = pairs
    config |= {"stop_ids": list(graph.origin.stop_ids), "max_length": graph.origin.max_length} | trust
    config |= checkpointing(graph)
    return graph.add(
        "sft",
        (),
        "pipelines.sft:run",
        config,
        inputs,
        seed=derive(comparison.seeds.sft, "sft"),
        packages=quantized_packages(graph, TRAINING_PACKAGES),
        trains=True,
        threads=comparison.resources.sft_threads,
    )


def _simulated_pairs(graph: Graph, sft: str, prompts: str, packed_prompts: str) -> str:
    """Rollouts of the SFT policy on all three splits, labeled by annotators who know gold."""
    comparison, data = graph.comparison, graph.comparison.data
    source = data.simulate or data
    wanted = {"train": source.pairs, "validation": source.validation_pairs, "test": source.test_pairs}
    config = decoding(graph) | {
        "split": ["train", "validation", "test"], "prompts": None, "pairs": wanted, "temperature": 1.0, "top_p": 1.0,
    }  # fmt: skip
    rollouts = graph.add(
        "rollouts", (), "workbench.generations:generate", config, {"prompts": packed_prompts, "sft": sft},
        seed=derive(comparison.seeds.data, "rollouts"), packages=MODEL_PACKAGES,
    )  # fmt: skip
    return graph.add(
        "pairs", (), "workbench.data.stages:simulate_pairs",
        {
            "pairs": source.pairs, "validation_pairs": source.validation_pairs, "test_pairs": source.test_pairs,
            "annotators": [one.model_dump() for one in source.annotators],
            "labels_per_pair": data.labels_per_pair, "gold": gold(graph),
        },
        {"generations": rollouts, "prompts": prompts} | gold_inputs(graph),
        seed=derive(comparison.seeds.data, "pairs"), packages=("numpy",),
    )  # fmt: skip
