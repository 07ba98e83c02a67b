"""The tail of the graph: checkpoints followed and chosen, samples, candidate pools, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.graph_base import (
    MODEL_PACKAGES,
    Graph,
    connection,
    decoding,
    gold,
    gold_inputs,
    implicit_arm,
    sampler,
    sampling_seed,
    scoring,
    tag,
)
from workbench.config import DPO, BestOfN
from workbench.stages import External

STRAIGHT = {"temperature": 1.0, "top_p": 1.0}  # how KL and the frontier are measured, however answers are drawn


def follow(graph: Graph, shared: dict[str, str], rewards: Mapping[str, str], label: str, run: int) -> None:
    """Trajectory over the checkpoints, where asked for, and the choice of one checkpoint."""
    comparison = graph.comparison
    roles = graph.arms[label, run]
    reward = rewards[comparison.proxy]  # the same for every arm, whatever it optimizes
    inputs: dict[str, str | External] = {"policy": roles["policy"]}
    if comparison.evaluation.trajectory_prompts:
        config = decoding(graph) | {
            "split": "validation", "prompts": comparison.evaluation.trajectory_prompts, "samples_per_prompt": 1,
            "temperature": 1.0, "top_p": 1.0, "gold": gold(graph),
        }  # fmt: skip
        # Over-optimization is about what an arm optimized: the same samples, scored by its own reward model as well.
        own = rewards.get(getattr(comparison.arms[label], "reward", comparison.proxy), reward)
        for role, scorer in {"trajectory": reward, "trajectory_own": own}.items():
            if role == "trajectory_own" and own == reward:
                continue
            roles[role] = graph.add(
                "trajectory", (label, *(["own"] if scorer != reward else []), f"seed={run}"),
                "workbench.generations:trajectory", config,
                {"policy": roles["policy"], "sft": shared["sft"], "prompts": shared["prompts"], "reward_model": scorer}
                | gold_inputs(graph),
                seed=sampling_seed(comparison, run, "trajectory"), packages=MODEL_PACKAGES,
            )  # fmt: skip
    if comparison.selection.rule == "best":
        inputs["trajectory"] = roles["trajectory"]
    rule = comparison.selection.model_dump(exclude={"split"})
    if rule["rule"] == "last":
        rule = {"rule": "last"}
    roles["selected"] = graph.add(
        "select", (label, f"seed={run}"), "workbench.evaluation:select", rule,
        inputs, inline=True,
    )  # fmt: skip


def generations(
    graph: Graph,
    shared: dict[str, str],
    split: str,
    label: str | None,
    run: int,
    *,
    for_kl: bool = False,
    size: tuple[int, int] | None = None,
) -> str:
    """Samples of an arm's chosen checkpoint, or of the SFT; `size`: prompts and samples of each, else evaluation's."""
    comparison, evaluation = graph.comparison, graph.comparison.evaluation
    prompts, samples = size or (evaluation.prompts, evaluation.samples_per_prompt)
    config = decoding(graph) | sampler(graph) | {
        "split": split, "prompts": prompts, "samples_per_prompt": samples
    } | (STRAIGHT if for_kl else {})  # fmt: skip
    inputs: dict[str, str | External] = {"prompts": shared["prompts"], "sft": shared["sft"]}
    if label is not None:
        roles = graph.arms[label, run]
        inputs |= {"policy": roles["policy"], "selected": roles["selected"]}
    who = tag(comparison.arms[label], comparison.arms) if label is not None else "sft"
    purpose = "kl" if for_kl else split
    return graph.add(
        "generations", (label or "sft", purpose, f"seed={run}"), "workbench.generations:generate", config, inputs,
        seed=sampling_seed(comparison, run, f"generations/{purpose}/{who}"), packages=MODEL_PACKAGES,
        cosmetic=connection(graph),
    )  # fmt: skip


def candidate_pool(
    graph: Graph,
    shared: dict[str, str],
    rewards: Mapping[str, str],
    run: int,
    *,
    for_kl: bool = False,
    split: str = "test",
    prompts: int | None = None,
) -> dict[str, str]:
    """One candidate pool for all best-of-n arms, as large as the largest asks for, and its scores.

    Each selector scores it in a stage of its own, so that an arm is charged for its own selector alone.

    Args:
        for_kl: Draw it at temperature 1 and top-p 1, for the frontier where answers are drawn otherwise.
        split: Of the prompts.
        prompts: How many of them; None: evaluation's.

    Returns:
        "candidates", "gold" where there is one, and each selector's column (the proxy's always) -> the stage that has
        it.
    """
    comparison = graph.comparison
    arms = [arm for arm in comparison.arms.values() if isinstance(arm, BestOfN)]
    # Every sample that stands for a best-of-n arm is the winner of a block of its own, and two best-of-n arms meet on
    # candidates of their own: the pool must have room for both.
    shares = max(comparison.evaluation.samples_per_prompt, len(arms))
    size = max(max(arm.pool, arm.n * shares) for arm in arms)
    config = decoding(graph) | sampler(graph) | {
        "split": split, "prompts": prompts or comparison.evaluation.prompts, "samples_per_prompt": size
    } | (STRAIGHT if for_kl else {})  # fmt: skip
    purpose = "kl" if for_kl else split
    candidates = graph.add(
        "candidates", (purpose, f"seed={run}"), "workbench.generations:generate", config,
        {"prompts": shared["prompts"], "sft": shared["sft"]},
        seed=sampling_seed(comparison, run, f"candidates/{purpose}"), packages=MODEL_PACKAGES,
        cosmetic=connection(graph),
    )  # fmt: skip
    tags = ("candidates", purpose)
    pool = {"candidates": candidates}
    if comparison.gold is not None:
        pool["gold"] = scores(graph, shared, candidates, {}, [], (*tags, "gold"), run)
    # The first DPO arm's implicit reward too: the optimal tilt by either reward is read off one pool.
    implicit = implicit_arm(comparison)
    names = [comparison.proxy, *(arm.reward for arm in arms), *([implicit] if implicit is not None else [])]
    for name in dict.fromkeys(names):
        explicit, own = ({name: rewards[name]}, []) if name in rewards else ({}, [name])
        column = selector_column(name, rewards)
        pool[column] = scores(graph, shared, candidates, explicit, own, (*tags, name), run, with_gold=False)
    return pool


def selector_column(reward: str, rewards: Mapping[str, str]) -> str:
    """Column of the scores in which a reward model, or a DPO arm's implicit reward, stands."""
    return f"proxy/{reward}" if reward in rewards else f"implicit/{reward}"


def scores(
    graph: Graph,
    shared: dict[str, str],
    generations: str,
    rewards: Mapping[str, str],
    implicit: Sequence[str],
    tags: tuple[str, ...],
    run: int,
    *,
    with_gold: bool = True,
) -> str:
    """Scores of generations by explicit reward models, DPO arms' implicit rewards and gold, as asked for."""
    inputs, columns = scorer_inputs(graph, rewards, implicit, run)
    inputs |= gold_inputs(graph) if with_gold else {}
    return graph.add(
        "scores", (*tags, f"seed={run}"), "workbench.evaluation:score",
        scoring(graph.comparison) | {"gold": gold(graph) if with_gold else None, "implicit": columns},
        {"generations": generations, "prompts": shared["prompts"]} | inputs,
        packages=MODEL_PACKAGES,
    )  # fmt: skip


def scorer_inputs(
    graph: Graph, rewards: Mapping[str, str], implicit: Sequence[str], run: int
) -> tuple[dict[str, str | External], dict[str, float]]:
    """Inputs and columns of the explicit reward models and of the named DPO arms' implicit rewards."""
    inputs: dict[str, str | External] = {f"reward:{name}": instance for name, instance in rewards.items()}
    columns = {}
    for label in implicit:
        arm, roles = graph.comparison.arms[label], graph.arms[label, run]
        assert isinstance(arm, DPO)
        columns[f"implicit/{label}"] = arm.beta
        inputs |= {f"policy:implicit/{label}": roles["policy"], f"selected:implicit/{label}": roles["selected"]}
    return inputs, columns
