"""Stages of arms that learn from another arm's reward: relabeled pairs for DPO, an implicit reward for PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.graph_base import MODEL_PACKAGES, Graph, derive, scoring
from pipelines.graph_evaluation import scorer_inputs, selector_column
from workbench.config import DPO, PPO, Arm
from workbench.config_label_use import LabelUse
from workbench.config_labels import GIVEN


def used_labels(graph: Graph, shared: Mapping[str, str]) -> dict[str, str]:
    """`pairs` and `reference_logprobs` with the labels that every arm trains on; nothing where they stay as given."""
    data = graph.comparison.data
    if data.labels == LabelUse() and data.label_noise == 0.0:
        return {}
    labeled = graph.add(
        "labels", (), "workbench.data.label_use:run",
        {"labels": data.labels.model_dump(mode="json"), "noise": data.label_noise},
        {"pairs": shared["pairs"], "reference_logprobs": shared["reference_logprobs"]},
        seed=derive(graph.comparison.seeds.data, "labels"), packages=("numpy",), accelerated=False,
    )  # fmt: skip
    return {"pairs": labeled, "reference_logprobs": labeled}


def asked_labels(use: LabelUse) -> dict[str, Any]:
    """Config field of the stage that reads the pairs: what their labels must have, so that it fails, and not a stage
    behind the SFT. Nothing where any pairs do."""
    if use.rule == "majority" and not use.margins:
        return {}
    return {"labels": use.model_dump(mode="json", include={"rule", "weights", "margins"})}


def teacher(arm: Arm, arms: Mapping[str, Arm]) -> str | None:
    """Label of the arm whose implicit reward this one is trained on, or None."""
    source = arm.labels if isinstance(arm, DPO) else arm.reward if isinstance(arm, PPO) else None
    return source if source in arms else None


def learning_order(arms: Mapping[str, Arm]) -> list[str]:
    """Labels as the config has them, but each after the arm that it learns from."""
    order: list[str] = []

    def add(label: str) -> None:
        source = teacher(arms[label], arms)
        if source is not None and source not in order:
            add(source)  # the config refuses circles
        if label not in order:
            order.append(label)

    for label in arms:
        add(label)
    return order


def labeled_pairs(
    graph: Graph, shared: Mapping[str, str], rewards: Mapping[str, str], arm: DPO, run: int
) -> dict[str, str]:
    """Inputs `pairs` and `reference_logprobs` of a DPO arm: the shared ones, or these pairs relabeled by a reward."""
    if arm.labels == GIVEN:
        return {"pairs": shared["pairs"], "reference_logprobs": shared["reference_logprobs"]}
    explicit = {arm.labels: rewards[arm.labels]} if arm.labels in rewards else {}
    inputs, columns = scorer_inputs(graph, explicit, [] if explicit else [arm.labels], run)
    margins = graph.add(
        "margins", ("train", arm.labels, f"seed={run}"), "workbench.evaluation:score_pairs",
        scoring(graph.comparison) | {"splits": ["train"], "implicit": columns},
        {"pairs": shared["pairs"], "reference_logprobs": shared["reference_logprobs"]} | inputs,
        packages=MODEL_PACKAGES,
    )  # fmt: skip
    relabeled = graph.add(
        "relabeled", (arm.labels, arm.labels_rule, f"seed={run}"), "workbench.data.relabel:run",
        {"column": selector_column(arm.labels, rewards), "rule": arm.labels_rule},
        {"pairs": shared["pairs"], "margins": margins, "reference_logprobs": shared["reference_logprobs"]},
        # One seed for every reward: two that nearly agree turn nearly the same pairs, and their difference is sharper.
        seed=derive(run, "relabeled"), packages=("numpy",), accelerated=False,
    )  # fmt: skip
    return {"pairs": relabeled, "reference_logprobs": relabeled}


def ppo_reward(graph: Graph, rewards: Mapping[str, str], arm: PPO, run: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Inputs and config of what a PPO arm optimizes: a reward model, or a DPO arm's beta log(policy / reference)."""
    if arm.reward in rewards:
        return {"reward_model": rewards[arm.reward]}, {}
    source, roles = graph.comparison.arms[arm.reward], graph.arms[arm.reward, run]
    assert isinstance(source, DPO)
    return {"implicit": roles["policy"], "selected_implicit": roles["selected"]}, {"implicit_beta": source.beta}
