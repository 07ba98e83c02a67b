"""Stages about the two rewards: margins of held-out pairs, checkpoints' implicit rewards, a neutral shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.graph_base import MODEL_PACKAGES, Graph, connection, decoding, sampler, sampling_seed, scoring
from pipelines.graph_evaluation import scorer_inputs, scores
from workbench.config import DPO
from workbench.stages import External


def held_out_margins(
    graph: Graph, shared: Mapping[str, str], rewards: Mapping[str, str], implicit: Sequence[str], run: int
) -> str:
    """Both rewards' margins on pairs that nothing was fitted to; validation pairs are for temperatures alone."""
    inputs, columns = scorer_inputs(graph, rewards, implicit, run)
    return graph.add(
        "margins", (f"seed={run}",), "workbench.evaluation:score_pairs",
        scoring(graph.comparison) | {"splits": ["validation", "test", "ood"], "implicit": columns},
        {"pairs": shared["pairs"], "reference_logprobs": shared["reference_logprobs"]} | inputs,
        packages=MODEL_PACKAGES,
    )  # fmt: skip


def checkpoint_rewards(graph: Graph, shared: Mapping[str, str], run: int) -> None:
    """Implicit rewards at every checkpoint of every DPO arm: role `checkpoints`."""
    for label, arm in graph.comparison.arms.items():
        if not isinstance(arm, DPO):
            continue
        inputs: dict[str, str | External] = {
            "policy": graph.arms[label, run]["policy"],
            "pairs": shared["pairs"],
            "reference_logprobs": shared["reference_logprobs"],
        }
        if "ood" in graph.arms["sft", run]:
            inputs |= {"ood": graph.arms["sft", run]["ood"], "prompts": shared["prompts"]}
        graph.arms[label, run]["checkpoints"] = graph.add(
            "checkpoint_rewards", (label, f"seed={run}"), "workbench.evaluation_rewards:score_checkpoints",
            scoring(graph.comparison) | {"splits": ["test", "ood"], "beta": arm.beta}, inputs, packages=MODEL_PACKAGES,
        )  # fmt: skip


def temperature_shift(
    graph: Graph, shared: dict[str, str], rewards: Mapping[str, str], implicit: Sequence[str], run: int
) -> dict[str, str]:
    """SFT samples at another temperature, a shift that favors neither: roles `shift`, `shift_scores`, or none."""
    evaluation = graph.comparison.evaluation
    if evaluation.shift_temperature is None:
        return {}
    config: dict[str, Any] = decoding(graph) | sampler(graph) | {
        "split": "test", "prompts": evaluation.prompts, "samples_per_prompt": evaluation.samples_per_prompt,
        "temperature": evaluation.shift_temperature, "top_p": 1.0,
    }  # fmt: skip
    drawn = graph.add(
        "generations", ("sft", "shift", f"seed={run}"), "workbench.generations:generate", config,
        {"prompts": shared["prompts"], "sft": shared["sft"]},
        seed=sampling_seed(graph.comparison, run, "generations/shift/sft"), packages=MODEL_PACKAGES,
        cosmetic=connection(graph),
    )  # fmt: skip
    return {"shift": drawn, "shift_scores": scores(graph, shared, drawn, rewards, implicit, ("sft", "shift"), run)}
