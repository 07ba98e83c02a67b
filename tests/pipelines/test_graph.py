"""The stage graph: what stands on what, what is shared, which seeds differ, and what no key may know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare import still_good
from pipelines.graph import Graph, build_graph
from pipelines.judges import without_judges
from pipelines.sources import resolve_origin
from tests import bench
from workbench.config import load_config
from workbench.errors import ConfigError
from workbench.stages import External, Stage, check_graph, dependencies, plan
from workbench.store import Store


def build(tmp_path: Path, *overrides: str, config: str | Path = "smoke") -> Graph:
    comparison = load_config(Path(config), overrides)
    return build_graph(comparison, resolve_origin(comparison, Store.open(tmp_path / "home")))


def upstream(graph: Graph, instance: str) -> set[str]:
    """All that a stage stands on."""
    found: set[str] = set()
    waiting = [instance]
    while waiting:
        for source in dependencies(graph.stages[waiting.pop()]):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def shape(stage: Stage) -> tuple[Any, ...]:
    """What a stage's key knows besides the content of its inputs."""
    return stage.name, stage.version, dict(stage.config), stage.seed, stage.packages, stage.resources


def named(graph: Graph, name: str) -> list[str]:
    return [instance for instance, stage in graph.stages.items() if stage.name == name]


@pytest.mark.parametrize("name", ["smoke", "quickstart", "study", "crossed", "overoptimization"])
def test_every_embedded_config_makes_a_graph_without_holes(tmp_path: Path, name: str) -> None:
    graph = build(tmp_path, config=name)
    ordered = check_graph(list(graph.stages.values()))
    assert ordered[-1].name == "measure"
    # Nothing is computed that no figure stands on; and the table of samples, which does not wait for figures.
    assert upstream(graph, "measure") == set(graph.stages) - {"measure", "samples"}
    assert upstream(graph, "samples") < upstream(graph, "measure")
    assert all(stage.key is None or stage.key for stage in plan(ordered, Store(tmp_path / "home")))


def test_figures_and_the_table_of_samples_are_made_side_by_side(tmp_path: Path) -> None:
    judge = "judges.gpt={kind: llm, url: 'http://127.0.0.1:9/v1', model: m, opponents: all, api_key_env: null}"
    graph = build(tmp_path, judge, "evaluation.judges=[gold, gpt]")
    samples = graph.stages["samples"]
    roles = {role.partition("/")[2].partition("/")[2] for role in samples.inputs if role != "prompts"}
    assert roles == {"generations", "scores", "judged/gpt/sft"}  # no duel of two arms
    assert samples.resources.gpus == 0  # two stages that use a GPU run one after the other
    assert samples.config["judge_kinds"] == graph.stages["measure"].config["judge_kinds"] == {"gpt": "llm"}


def test_what_a_judge_had_a_part_in_is_not_carried_over_to_a_graph_without_it(tmp_path: Path) -> None:
    judge = "judges.gpt={kind: llm, url: 'http://127.0.0.1:9/v1', model: m, api_key_env: null}"
    before = build(tmp_path, judge, "evaluation.judges=[gold, gpt]")
    after = without_judges(before, ["gpt"])
    made: dict[str, Any] = dict.fromkeys(before.stages)
    gone = set(before.stages) - set(still_good(made, before, after))
    assert {before.stages[instance].name for instance in gone} == {"judgments", "samples", "measure"}


def test_all_arms_stand_on_one_sft_and_one_set_of_pairs(tmp_path: Path) -> None:
    graph = build(tmp_path)
    for label in ("ppo", "dpo", "best_of_n", "best_of_n-implicit"):
        roots = upstream(graph, graph.arms[label, 0]["policy"])
        assert {"sft", "packed_pairs", "packed_prompts"} <= roots, label
    assert len(named(graph, "sft")) == len(named(graph, "packed_pairs")) == len(named(graph, "reference_logprobs")) == 1


def test_arms_do_not_stand_on_each_other(tmp_path: Path) -> None:
    graph = build(tmp_path)
    policies = {label: graph.arms[label, 0]["policy"] for label in ("ppo", "dpo", "best_of_n")}
    for label, policy in policies.items():
        assert not upstream(graph, policy) & (set(policies.values()) - {policy}), label
    implicit = graph.arms["best_of_n-implicit", 0]["policy"]
    assert policies["dpo"] in upstream(graph, implicit)  # it selects by DPO's implicit reward


def test_candidates_are_not_the_baseline_samples(tmp_path: Path) -> None:
    graph = build(tmp_path)
    baseline = graph.stages[graph.arms["sft", 0]["generations"]]
    candidates = graph.stages[graph.arms["best_of_n", 0]["pool"]]
    assert baseline.seed != candidates.seed
    assert graph.arms["best_of_n", 0]["pool"] == graph.arms["best_of_n-implicit", 0]["pool"]
    wanted = graph.comparison.arms["best_of_n"]
    blocks = wanted.n * graph.comparison.evaluation.samples_per_prompt  # type: ignore[union-attr]
    assert candidates.config["samples_per_prompt"] >= blocks


def test_run_seeds_share_the_head_and_redraw_the_rest(tmp_path: Path) -> None:
    graph = build(tmp_path, "seeds.runs=[0,1]")
    alone = build(tmp_path)
    for instance, stage in alone.stages.items():
        if instance in ("measure", "samples"):
            continue
        assert shape(graph.stages[instance]) == shape(stage)  # a second seed changes nothing of the first
        if "seed=0" in instance and stage.seed:
            assert graph.stages[instance.replace("seed=0", "seed=1")].seed != stage.seed
    assert {name for name in graph.stages if "seed=" not in name} == {n for n in alone.stages if "seed=" not in n}


def test_stages_draw_from_seeds_of_their_own(tmp_path: Path) -> None:
    graph = build(tmp_path, "seeds.runs=[0,1]")
    # Trajectories alone share theirs within a run: the arms' curves start at the same samples of the SFT.
    seeds = [stage.seed for stage in graph.stages.values() if stage.seed and stage.name != "trajectory"]
    assert len(set(seeds)) == len(seeds)
    assert len({graph.stages[instance].seed for instance in named(graph, "trajectory")}) == 2
    assert all(0 <= seed < 2**62 for seed in seeds)


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("seeds.eval=1", {"generations", "candidates", "trajectory", "best_of_n", "measure"}),
        ("resources.workers=1", set()),
        ("tracking.enabled=false", set()),
        ("name=other", set()),
        ("description=other", set()),
        (
            "arms.dpo.beta=0.5",
            {"dpo", "scores", "margins", "checkpoint_rewards", "generations", "trajectory", "measure"},
        ),
        ("evaluation.judges=[gold,proxy]", {"measure", "samples"}),
        ("reward_models.main.epochs=3", {"reward_model"}),
    ],
)
def test_a_setting_reaches_only_the_stages_that_use_it(tmp_path: Path, override: str, touched: set[str]) -> None:
    before, after = build(tmp_path), build(tmp_path, override)
    assert set(before.stages) == set(after.stages)
    changed = {name for name in before.stages if shape(before.stages[name]) != shape(after.stages[name])}
    assert {before.stages[name].name for name in changed} <= touched
    assert bool(changed) == bool(touched)


def test_threads_of_the_sft_are_its_own(tmp_path: Path) -> None:
    graph = build(tmp_path, "resources.sft_threads=2")
    assert {name for name, stage in graph.stages.items() if stage.resources.threads == 2} == {"sft"}


def test_labels_are_in_no_key_of_what_trains_or_samples(tmp_path: Path) -> None:
    text = (bench.ROOT / "configs" / "smoke.yaml").read_text()
    renamed = tmp_path / "renamed.yaml"
    text = text.replace("  ppo: {", "  rlhf: {kind: ppo, ").replace("  best_of_n: {", "  bon: {kind: best_of_n, ")
    renamed.write_text(text)
    before, after = build(tmp_path), build(tmp_path, config=renamed)
    for old, new in (("ppo", "rlhf"), ("best_of_n", "bon")):
        for role, instance in before.arms[old, 0].items():
            assert shape(before.stages[instance]) == shape(after.stages[after.arms[new, 0][role]]), role


def test_no_key_knows_a_path(model_folder: Path, tmp_path: Path) -> None:
    data = bench.write_rows(tmp_path / "pairs.jsonl", bench.pair_rows(12))
    graph = build(tmp_path, config=bench.file_config(tmp_path, model_folder, data))
    for stage in graph.stages.values():
        assert str(tmp_path) not in str(dict(stage.config)), stage.instance
        assert str(model_folder) not in str(dict(stage.config)), stage.instance
    outside = {
        source for stage in graph.stages.values() for source in stage.inputs.values() if isinstance(source, External)
    }
    assert {Path(one.path).name for one in outside} == {"pairs.jsonl", model_folder.name}
    assert all(len(one.digest) == 64 for one in outside)


def test_kl_has_samples_of_its_own_only_where_it_must(tmp_path: Path) -> None:
    def kl_stages(overrides: Sequence[str]) -> list[Stage]:
        graph = build(tmp_path, *overrides)
        roles = [graph.arms[label, 0] for label in ("ppo", "dpo")]
        return [graph.stages[one["kl"]] for one in roles if "kl" in one]

    assert kl_stages([]) == []
    for override in ("evaluation.temperature=0.7", "evaluation.top_p=0.9"):
        found = kl_stages([override])
        assert len(found) == 2
        assert all((one.config["temperature"], one.config["top_p"]) == (1.0, 1.0) for one in found)


def test_responses_that_fill_the_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no room"):
        build(tmp_path, "evaluation.max_response_tokens=128")
