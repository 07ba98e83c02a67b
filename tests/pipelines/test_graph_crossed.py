"""The crossed design as a graph: who learns from whom, what is shared, what no key of the other arms may know."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.costs import arm_cost
from pipelines.graph import Graph
from pipelines.graph_base import implicit_arm, tag
from pipelines.graph_labels import learning_order
from tests.pipelines.test_graph import build, shape, upstream
from workbench.stages import check_graph
from workbench.types import Cost, StageRecord

RELABELED = "arms.dpo-explicit={kind: dpo, labels: main, beta: 0.3, epochs: 2, batch_size: 16}"
IMPLICIT = "arms.ppo-implicit={kind: ppo, reward: dpo, updates: 3, batch_size: 16, critic_warmup_updates: 1}"


@pytest.fixture
def crossed(tmp_path: Path) -> Graph:
    return build(tmp_path, config="crossed")


def test_every_cell_is_there_and_nothing_is_computed_in_vain(crossed: Graph) -> None:
    ordered = check_graph(list(crossed.stages.values()))
    assert upstream(crossed, "measure") == set(crossed.stages) - {"measure", "samples"}
    assert ordered[-1].name == "measure"
    assert len(crossed.comparison.arms) == 7


def test_arms_stand_on_the_reward_that_they_name(crossed: Graph) -> None:
    def roots(label: str) -> set[str]:
        return upstream(crossed, crossed.arms[label, 0]["policy"])

    dpo, reward = crossed.arms["dpo", 0]["policy"], "reward_model[main,seed=0]"
    assert dpo in roots("ppo-implicit")
    assert crossed.arms["dpo", 0]["selected"] in roots("ppo-implicit")
    assert reward not in roots("ppo-implicit")
    assert reward in roots("dpo-explicit")
    assert dpo not in roots("dpo-explicit")
    assert dpo in roots("dpo-implicit")
    assert not roots("dpo") & {dpo, reward}
    stage = crossed.stages[crossed.arms["ppo-implicit", 0]["policy"]]
    assert set(stage.inputs) == {"sft", "prompts", "implicit", "selected_implicit"}
    assert stage.config["implicit_beta"] == 0.2
    # The scores of its samples have the column that it optimized.
    scored = crossed.stages[crossed.arms["ppo-implicit", 0]["scores"]]
    assert scored.config["implicit"] == {"implicit/dpo": 0.2}


def test_both_relabeled_sets_share_their_draws_and_dpo_reads_pairs_and_references_from_them(crossed: Graph) -> None:
    explicit, implicit = (crossed.arms[label, 0]["relabeled"] for label in ("dpo-explicit", "dpo-implicit"))
    assert crossed.stages[explicit].seed == crossed.stages[implicit].seed
    assert crossed.stages[explicit].seed != crossed.stages[crossed.arms["dpo-explicit", 1]["relabeled"]].seed
    stage = crossed.stages[crossed.arms["dpo-explicit", 0]["policy"]]
    assert stage.inputs["pairs"] == stage.inputs["reference_logprobs"] == explicit
    assert "relabeled" not in crossed.arms["dpo", 0]


def test_new_arms_change_no_key_of_the_others(tmp_path: Path) -> None:
    before, after = build(tmp_path), build(tmp_path, RELABELED, IMPLICIT)
    for instance, stage in before.stages.items():
        if instance not in ("measure", "samples"):
            assert shape(after.stages[instance]) == shape(stage), instance
    dpo = before.stages[before.arms["dpo", 0]["policy"]]
    assert not {"labels", "labels_rule"} & set(dpo.config)


def test_a_pupil_named_before_its_teacher_is_built_after_it(tmp_path: Path) -> None:
    first = "arms={ppo: {reward: z}, a: {kind: dpo, labels: z}, z: {kind: dpo}, best_of_n: {n: 2, pool: 8}}"
    graph = build(tmp_path, first)
    assert learning_order(graph.comparison.arms) == ["z", "ppo", "a", "best_of_n"]
    assert implicit_arm(graph.comparison) == "z"  # the first on the data's own labels
    check_graph(list(graph.stages.values()))


def test_tags_name_settings_and_not_labels(tmp_path: Path) -> None:
    arms = build(tmp_path, RELABELED, IMPLICIT).comparison.arms
    tags = {label: tag(arm, arms) for label, arm in arms.items()}
    assert len(set(tags.values())) == len(tags)
    renamed = {"teacher" if label == "dpo" else label: arm for label, arm in arms.items()}
    again = arms["ppo-implicit"].model_copy(update={"reward": "teacher"})
    assert tag(again, renamed) == tags["ppo-implicit"]


def test_the_pool_is_scored_by_both_rewards_for_the_tilt(tmp_path: Path) -> None:
    only = build(tmp_path, "arms={dpo: {}, best_of_n: {n: 2, pool: 8}}")
    roles = only.arms["sft", 0]
    assert {name for name in roles if name.startswith("tilt")} == {
        "tilt_pool", "tilt_scores/gold", "tilt_scores/proxy/main", "tilt_scores/implicit/dpo",
    }  # fmt: skip
    without = build(tmp_path, "arms={dpo: {}, ppo: {}}")
    assert not any(name.startswith("tilt") for name in without.arms["sft", 0])
    hot = build(tmp_path, "evaluation.temperature=0.7")
    pool = hot.stages[hot.arms["sft", 0]["tilt_pool"]]
    assert pool.config["temperature"] == 1.0


def test_an_arm_pays_for_its_labels_and_for_the_reward_behind_them(crossed: Graph) -> None:
    class One:
        cost = Cost(wall_s=1.0)

    records: dict[str, StageRecord] = {instance: One() for instance in crossed.stages}  # type: ignore[misc]
    own, total = arm_cost(crossed, records, "dpo-explicit", [0])
    assert own.wall_s == 2.0  # training, and the labels
    assert total.wall_s == 2 + len(
        upstream(crossed, crossed.arms["dpo-explicit", 0]["policy"])
        - {crossed.arms["dpo-explicit", 0]["relabeled"]}
    )  # fmt: skip
    assert "reward_model[main,seed=0]" in upstream(crossed, crossed.arms["dpo-explicit", 0]["policy"])
