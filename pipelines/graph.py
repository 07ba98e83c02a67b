"""The stage graph of a comparison: the page to read first.

    prompts -> tokenizer -> base model -> sft -> [rollouts ->] pairs -> packed pairs [-> labels] -> reward model
    reward model -> ppo, rloo, grpo;   packed pairs -> reference log-probabilities [-> labels] -> dpo
    sft -> candidates -> pool scores -> best-of-n
    each policy -> select -> generations -> scores, judgments -> measure;   each trained policy -> trajectory -> measure
    generations, scores, judgments against the SFT -> samples

Each stage is named by import string and gets JSON, so that any executor can run it. Nothing here computes: this module
imports no torch, and a plan on a cached store costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.graph_base import (
    MEASURE_PACKAGES,
    MODEL_PACKAGES,
    TRAINING_PACKAGES,
    Graph,
    derive,
    implicit_arm,
    limits,
    tag,
    trainer_packages,
    training,
)
from pipelines.graph_data import data_and_sft
from pipelines.graph_evaluation import candidate_pool, follow, generations, scores, selector_column
from pipelines.graph_judges import judgments
from pipelines.graph_labels import labeled_pairs, learning_order, ppo_reward, teacher
from pipelines.graph_rewards import checkpoint_rewards, held_out_margins, temperature_shift
from pipelines.sources import Origin
from workbench.config import DPO, GRPO, PPO, RLOO, BestOfN, Comparison, RewardModel
from workbench.config_base import BASELINE
from workbench.config_labels import GIVEN
from workbench.stages import External

__all__ = ["Graph", "build_graph"]
SAMPLED = ("generations", "scores")  # of an arm's roles, what the table of samples reads
PARAMETRIZATION = ("trust_remote_code", "lora", "gradient_checkpointing")  # what a dpo stage needs of `training`


def build_graph(comparison: Comparison, origin: Origin) -> Graph:
    """All stages of a comparison.

    Args:
        comparison: The validated config.
        origin: What came from outside, resolved: model folder, files, context, stop ids, device (`pipelines.sources`).
    """
    graph = Graph(comparison, origin)
    base = data_and_sft(graph)
    for run in comparison.seeds.runs:
        shared = dict(base)
        _evaluate(graph, shared, train(graph, shared, run), run)
    _samples(graph, base)
    _measure(graph, base)
    return graph


def train(graph: Graph, shared: dict[str, str], run: int) -> dict[str, str]:
    """The stages that train in one run seed; returns the reward models by name."""
    arms = graph.comparison.arms
    rewards = {name: _reward_model(graph, shared, name, run) for name in graph.comparison.reward_models}
    for label in learning_order(arms):
        arm = arms[label]
        source = teacher(arm, arms)
        if source is not None and "selected" not in graph.arms[source, run]:
            follow(graph, shared, rewards, source, run)
        if isinstance(arm, DPO):
            _dpo(graph, shared, rewards, label, arm, run)
        elif isinstance(arm, PPO):
            _ppo(graph, shared, rewards, label, arm, run)
        elif isinstance(arm, RLOO | GRPO):
            _sister(graph, shared, label, arm, rewards[arm.reward], run)
    return rewards


def _evaluate(graph: Graph, shared: dict[str, str], rewards: Mapping[str, str], run: int) -> None:
    comparison, evaluation = graph.comparison, graph.comparison.evaluation
    straight = evaluation.temperature == 1.0 and evaluation.top_p == 1.0
    for label, arm in comparison.arms.items():
        if not isinstance(arm, BestOfN) and "selected" not in graph.arms[label, run]:
            follow(graph, shared, rewards, label, run)
    implicit = implicit_arm(comparison)
    wanted = [implicit] if implicit is not None else []

    # The SFT's own samples are the baseline; best-of-n draws its candidates apart from them.
    sft = {"generations": generations(graph, shared, "test", None, run)}
    sft["scores"] = scores(graph, shared, sft["generations"], rewards, wanted, ("sft", "test"), run)
    if not straight:
        sft["kl"] = generations(graph, shared, "test", None, run, for_kl=True)
        sft["kl_scores"] = scores(graph, shared, sft["kl"], rewards, [], ("sft", "kl"), run)
    graph.arms["sft", run] = sft
    if graph.origin.has_ood:
        ood = generations(graph, shared, "ood", None, run)
        sft |= {"ood": ood, "ood_scores": scores(graph, shared, ood, rewards, wanted, ("sft", "ood"), run)}
    if any(isinstance(arm, BestOfN) for arm in comparison.arms.values()):
        pool = candidate_pool(graph, shared, rewards, run)
        kl_pool = pool if straight else candidate_pool(graph, shared, rewards, run, for_kl=True)
        # The optimal tilt reads every scorer's column of the pool at temperature 1.
        sft["tilt_pool"] = kl_pool["candidates"]
        sft |= {f"tilt_scores/{name}": instance for name, instance in kl_pool.items() if name != "candidates"}
        for label, arm in comparison.arms.items():
            if isinstance(arm, BestOfN):
                best_of_n(graph, label, arm, rewards, run, pool)
                if not straight:
                    graph.arms[label, run] |= _pool_roles(graph, arm, rewards, kl_pool, "kl_")
    for label, arm in comparison.arms.items():
        roles = graph.arms[label, run]
        if not isinstance(arm, BestOfN):
            roles["generations"] = generations(graph, shared, "test", label, run)
        if not straight and not isinstance(arm, BestOfN):
            roles["kl"] = generations(graph, shared, "test", label, run, for_kl=True)
        own = teacher(arm, comparison.arms) if isinstance(arm, PPO) else None
        columns = list(dict.fromkeys([*wanted, *([own] if own is not None else [])]))
        roles["scores"] = scores(graph, shared, roles["generations"], rewards, columns, (label, "test"), run)
    judgments(graph, shared, dict(rewards), run)
    roles = graph.arms["sft", run]
    roles["margins"] = held_out_margins(graph, shared, rewards, wanted, run)
    roles |= temperature_shift(graph, shared, rewards, wanted, run)
    checkpoint_rewards(graph, shared, run)


def _reward_model(graph: Graph, shared: dict[str, str], name: str, run: int) -> str:
    block = graph.comparison.reward_models[name]
    if block.path is not None:
        told = {"template": block.template, "center_samples": block.center_samples}
        return graph.add(
            "reward_model", (name, f"seed={run}"), "pipelines.reward_model:adopt",
            told | limits(graph) | {"max_length": graph.origin.max_length},
            {"reward_model": graph.origin.rewards[name]}
            | {role: shared[role] for role in ("sft", "pairs", "prompts")},
            seed=derive(run, f"reward_model/{name}"), packages=MODEL_PACKAGES,
        )  # fmt: skip
    apart = {"pairs", "path", "base", "revision", "template"}
    config = block.model_dump(mode="json", exclude=apart) | training(graph) | subset(block.pairs, run)
    inputs: dict[str, str | External] = {role: shared[role] for role in ("sft", "pairs", "prompts")}
    if block.base is not None:
        inputs["base"] = graph.origin.rewards[name]
        config |= {"template": block.template, "max_length": graph.origin.max_length}
    return graph.add(
        "reward_model", (name, f"seed={run}"), "pipelines.reward_model:run", config, inputs,
        seed=derive(run, f"reward_model/{name}"), packages=trainer_packages(graph, TRAINING_PACKAGES), trains=True,
    )  # fmt: skip


def _dpo(graph: Graph, shared: dict[str, str], rewards: Mapping[str, str], label: str, arm: DPO, run: int) -> None:
    told = {name: value for name, value in training(graph).items() if name in PARAMETRIZATION}
    config = arm.model_dump(mode="json", exclude={"kind", "labels", "labels_rule", "pairs"}) | told
    config |= subset(arm.pairs, run)
    pairs = labeled_pairs(graph, shared, rewards, arm, run)
    policy = graph.add(
        "dpo", (label, f"seed={run}"), "pipelines.dpo:run", config, {"sft": shared["sft"]} | pairs,
        seed=derive(run, "dpo"), packages=trainer_packages(graph, TRAINING_PACKAGES), trains=True,
    )  # fmt: skip
    graph.arms[label, run] = {"policy": policy} | ({"relabeled": pairs["pairs"]} if arm.labels != GIVEN else {})


def _ppo(graph: Graph, shared: dict[str, str], rewards: Mapping[str, str], label: str, arm: PPO, run: int) -> None:
    reward, told = ppo_reward(graph, rewards, arm, run)
    if arm.sft_coef:
        reward = reward | {"pairs": shared["pairs"]}  # their chosen responses are the demonstrations
    config = arm.model_dump(mode="json", exclude={"kind", "reward"}) | training(graph) | told
    policy = graph.add(
        "ppo", (label, f"seed={run}"), "pipelines.ppo:run", config,
        {"sft": shared["sft"], "prompts": shared["prompts"]} | reward,
        seed=derive(run, "ppo"), packages=trainer_packages(graph, MODEL_PACKAGES), trains=True,
    )  # fmt: skip
    graph.arms[label, run] = {"policy": policy}


def _sister(graph: Graph, shared: dict[str, str], label: str, arm: RLOO | GRPO, reward: str, run: int) -> None:
    config = arm.model_dump(mode="json", exclude={"kind", "reward"}) | training(graph)
    policy = graph.add(
        arm.kind, (label, f"seed={run}"), f"pipelines.{arm.kind}:run", config,
        {"sft": shared["sft"], "reward_model": reward, "prompts": shared["prompts"]},
        seed=derive(run, arm.kind), packages=trainer_packages(graph, TRAINING_PACKAGES), trains=True,
    )  # fmt: skip
    graph.arms[label, run] = {"policy": policy}


def best_of_n(
    graph: Graph,
    label: str,
    arm: BestOfN,
    rewards: Mapping[str, str],
    run: int,
    pool: dict[str, str],
) -> None:
    """The choice of a best-of-n arm from a candidate pool."""
    selector = selector_column(arm.reward, rewards)
    config = {
        "n": arm.n, "report_n": arm.report_n, "selector": selector,
        "samples_per_prompt": graph.comparison.evaluation.samples_per_prompt,
    }  # fmt: skip
    policy = graph.add(
        "best_of_n", (label, f"seed={run}"), "pipelines.best_of_n:run", config,
        {"candidates": pool["candidates"], "scores": pool[selector]},
        seed=derive(run, f"best_of_n/{tag(arm, graph.comparison.arms)}"), packages=("numpy",),
    )  # fmt: skip
    graph.arms[label, run] = {
        "policy": policy,
        "generations": policy,
    } | _pool_roles(graph, arm, rewards, pool, "")


def _pool_roles(
    graph: Graph, arm: BestOfN, rewards: Mapping[str, str], pool: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """The pool's artifacts as roles of one arm: candidates, the shared proxy's scores, gold, its own selector's."""
    roles = {
        "pool": pool["candidates"],
        "pool_scores": pool[selector_column(graph.comparison.proxy, rewards)],
        "selector_scores": pool[selector_column(arm.reward, rewards)],
    }
    if "gold" in pool:
        roles["pool_gold"] = pool["gold"]
    return {prefix + name: instance for name, instance in roles.items()}


def pairs_seed(run: int) -> int:
    """Of the order in which reward models and dpo arms with fewer pairs take them: one for all of a run seed."""
    return derive(run, "reward_pairs")


def subset(pairs: int | None, run: int) -> dict[str, int]:
    """Config fields of a stage that trains on fewer pairs; none where it takes all."""
    return {} if pairs is None else {"pairs": pairs, "pairs_seed": pairs_seed(run)}


def _samples(graph: Graph, base: Mapping[str, str]) -> None:
    """Every evaluation sample as a table: beside `measure`, because neither needs the other."""
    comparison = graph.comparison
    inputs: dict[str, str | External] = {"prompts": base["prompts"]}
    for (label, run), roles in graph.arms.items():
        inputs |= {
            f"{label}/{run}/{role}": instance
            for role, instance in roles.items()
            if role in SAMPLED or (role.startswith("judged/") and role.endswith(f"/{BASELINE}"))
        }
    config = {
        "arms": {label: arm.kind for label, arm in comparison.arms.items()}, "runs": comparison.seeds.runs,
        "proxy": comparison.proxy, "implicit": implicit_arm(comparison), "judges": comparison.evaluation.judges,
        "judge_kinds": _judge_kinds(comparison),
    }  # fmt: skip
    graph.add(
        "samples", (), "workbench.measure_samples:run", config, inputs, packages=MEASURE_PACKAGES, accelerated=False
    )


def _judge_kinds(comparison: Comparison) -> dict[str, str]:
    """Kinds of the judges that are no scorers."""
    names = comparison.evaluation.judges
    return {name: comparison.judges[name].kind for name in names if name in comparison.judges}


def _measure(graph: Graph, base: Mapping[str, str]) -> None:
    """Everything in, numbers and certificate out."""
    inputs: dict[str, str | External] = {name: base[name] for name in ("prompts", "pairs", "raw_pairs", "sft")}
    for (label, run), roles in graph.arms.items():
        inputs |= {f"{label}/{run}/{role}": instance for role, instance in roles.items()}
    for run in graph.comparison.seeds.runs:
        for name in graph.comparison.reward_models:
            inputs[f"reward/{name}/{run}"] = f"reward_model[{name},seed={run}]"
    comparison = graph.comparison
    semantic = comparison.semantic()
    source = comparison.data.simulate or (comparison.data if comparison.data.world else None)
    dpo_arms = {label: arm for label, arm in comparison.arms.items() if isinstance(arm, DPO)}
    learners: dict[str, RewardModel | DPO] = {**comparison.reward_models, **dpo_arms}
    config = {
        "arms": semantic["arms"], "runs": comparison.seeds.runs, "reward_models": sorted(comparison.reward_models),
        "proxy": comparison.proxy, "implicit": implicit_arm(comparison), "judges": comparison.evaluation.judges,
        "gold": comparison.gold is not None,
        "judge_kinds": _judge_kinds(comparison),
        "annotators": [one.model_dump() for one in source.annotators] if source else None,
        "labels_per_pair": comparison.data.labels_per_pair,
        "reward_pairs": {
            name: {"pairs": one.pairs, "seeds": {str(run): pairs_seed(run) for run in comparison.seeds.runs}}
            for name, one in learners.items()
            if one.pairs is not None
        },
        # Arms are compared by the pairs behind their rewards only where nothing else differs.
        "reward_settings": {
            name: model.model_dump(mode="json", exclude={"pairs", "checkpoint_every_steps", "microbatch_size"})
            for name, model in comparison.reward_models.items()
            if any(one.pairs is not None for one in learners.values())
        },
    }  # fmt: skip
    graph.add(
        "measure", (), "workbench.measure:run", config, inputs,
        seed=derive(comparison.seeds.eval, "measure"), packages=MEASURE_PACKAGES, accelerated=False,
    )  # fmt: skip
