"""The graph of one trial: what its settings change, and no more of the rest than its score needs.

    ... -> sft, pairs, reference log-probabilities, reward model          shared by all trials, through the store
    settings -> arm -> select -> samples on validation -> scores -> the trial's score

A trial is a comparison of one arm in one run seed, so its stages have the keys that a comparison's would have: a
setting that was tried is not trained again, and the test split is not in the graph at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipelines.graph import Graph, best_of_n, train
from pipelines.graph_base import MODEL_PACKAGES, scoring
from pipelines.graph_data import data_and_sft
from pipelines.graph_evaluation import candidate_pool, follow, generations, scores, selector_column
from pipelines.graph_judges import judgments
from pipelines.graph_labels import teacher
from pipelines.sources import Origin
from workbench.config import Arm, BestOfN, Comparison
from workbench.config_base import BASELINE
from workbench.config_tuning import REWARD_MODEL, Tuning
from workbench.stages import External, Stage, dependencies
from workbench.tuning_spaces import Params, largest_n, with_params

SPLIT = "validation"


def trial_comparison(comparison: Comparison, label: str, params: Params, run: int) -> Comparison:
    """The comparison that a trial is: one arm with the trial's settings, what it learns from, one run seed.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    changed = with_params(comparison, label, params)
    samples = (comparison.tuning or Tuning()).objective.samples_per_prompt  # of best-of-n's winners too
    evaluation = changed.evaluation.model_copy(update={"samples_per_prompt": samples})
    arms = dict(changed.arms)
    if label != REWARD_MODEL:
        arms, source = {}, label
        while source not in arms:
            arms[source] = changed.arms[source]
            source = _behind(changed.arms[source], changed) or source
    arm = arms.get(label)
    if isinstance(arm, BestOfN):  # one pool serves all n
        shares = max(4, samples, sum(isinstance(one, BestOfN) for one in arms.values()))
        size = shares * largest_n(comparison, label)
        arms[label] = arm.model_copy(update={"report_n": [arm.n], "pool": size})
    wanted = {changed.proxy, *(str(getattr(one, "reward", "")) for one in arms.values())}
    wanted |= {str(getattr(one, "labels", "")) for one in arms.values()}
    models = {name: model for name, model in changed.reward_models.items() if name in wanted}
    seeds = changed.seeds.model_copy(update={"runs": [run]})
    return changed.model_copy(
        update={"arms": arms, "reward_models": models, "seeds": seeds, "evaluation": evaluation}
    )  # fmt: skip


def _behind(arm: Arm, comparison: Comparison) -> str | None:
    """Label of the arm that this one learns from or selects by."""
    named = arm.reward if isinstance(arm, BestOfN) else teacher(arm, comparison.arms)
    return named if named in comparison.arms else None


def trial_graph(comparison: Comparison, origin: Origin, label: str, tuning: Tuning) -> Graph:
    """Stages of one trial, and no others.

    Args:
        comparison: A `trial_comparison`.
        label: Its arm, or `reward_model`.
    """
    graph = Graph(comparison, origin)
    shared = data_and_sft(graph)
    (run,) = comparison.seeds.runs
    if label == REWARD_MODEL:
        graph.comparison = comparison.model_copy(update={"arms": {}})
        rewards = train(graph, shared, run)
        _held_out(graph, shared, rewards, run)
    else:
        rewards = train(graph, shared, run)
        _sampled(graph, shared, rewards, label, run, tuning)
    roles = [*graph.arms[label, run].values(), *graph.arms.get((BASELINE, run), {}).values()]
    needed = ancestors(graph.stages, roles)
    graph.stages = {instance: stage for instance, stage in graph.stages.items() if instance in needed}
    return graph


def _held_out(graph: Graph, shared: dict[str, str], rewards: dict[str, str], run: int) -> None:
    """A reward model's margins on the validation pairs."""
    proxy = graph.comparison.proxy
    inputs: dict[str, str | External] = {"pairs": shared["pairs"], "reference_logprobs": shared["reference_logprobs"]}
    margins = graph.add(
        "margins", (SPLIT, f"seed={run}"), "workbench.evaluation:score_pairs",
        scoring(graph.comparison) | {"splits": [SPLIT], "implicit": {}},
        inputs | {f"reward:{proxy}": rewards[proxy]}, packages=MODEL_PACKAGES,
    )  # fmt: skip
    graph.arms[REWARD_MODEL, run] = {"policy": rewards[proxy], "margins": margins}


def _sampled(
    graph: Graph, shared: dict[str, str], rewards: dict[str, str], label: str, run: int, tuning: Tuning
) -> None:
    """Samples of the arm, and of the SFT, on validation prompts, with their scores."""
    comparison, evaluation, objective = graph.comparison, graph.comparison.evaluation, tuning.objective
    arm = comparison.arms[label]
    size = (objective.prompts, objective.samples_per_prompt)
    straight = evaluation.temperature == 1.0 and evaluation.top_p == 1.0
    proxy = {comparison.proxy: rewards[comparison.proxy]}
    sft = {"generations": generations(graph, shared, SPLIT, None, run, size=size)}
    sft["scores"] = scores(graph, shared, sft["generations"], proxy, [], (BASELINE, SPLIT), run)
    if isinstance(arm, BestOfN):
        source = _behind(arm, comparison)
        if source is not None and "selected" not in graph.arms[source, run]:
            follow(graph, shared, rewards, source, run)
        pool = candidate_pool(graph, shared, rewards, run, split=SPLIT, prompts=objective.prompts)
        best_of_n(graph, label, arm, rewards, run, pool)
        roles = graph.arms[label, run]
        assert selector_column(arm.reward, rewards) in pool
        implicit = [source] if source is not None else []
    else:
        if "selected" not in graph.arms[label, run]:
            follow(graph, shared, rewards, label, run)
        roles = graph.arms[label, run]
        roles["generations"] = generations(graph, shared, SPLIT, label, run, size=size)
        if not straight:
            roles["kl"] = generations(graph, shared, SPLIT, label, run, for_kl=True, size=size)
        implicit = []
        if comparison.selection.rule == "last":  # the trajectory is for the reports of a comparison
            roles.pop("trajectory", None)
        roles.pop("trajectory_own", None)
    roles["scores"] = scores(graph, shared, roles["generations"], proxy, implicit, (label, SPLIT), run)
    graph.arms[BASELINE, run] = sft
    if objective.scorer in comparison.judges:
        judge = comparison.judges[objective.scorer].model_copy(update={"opponents": "sft"})
        narrow = comparison.model_copy(
            update={
                "arms": {label: arm},
                "judges": {objective.scorer: judge},
                "evaluation": evaluation.model_copy(update={"judges": [objective.scorer]}),
            }
        )
        judgments(replace(graph, comparison=narrow), shared, dict(rewards), run)


def ancestors(stages: dict[str, Stage], instances: Iterable[str]) -> set[str]:
    """The named instances and all that they stand on."""
    found: set[str] = set()
    waiting = list(instances)
    while waiting:
        instance = waiting.pop()
        if instance not in found:
            found.add(instance)
            waiting += dependencies(stages[instance])
    return found


def own_stages(graph: Graph, label: str, run: int) -> list[str]:
    """The stages that a trial is charged for: the arm's own; a pool or a score that trials share, to the first one."""
    return list(dict.fromkeys(graph.arms[label, run].values()))
