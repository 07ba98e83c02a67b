"""PPO, RLOO, GRPO, DPO and best-of-n in one comparison: one table, one certificate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import bench
from tests.bench import UNTRACKED, compare, copy_home, metric_rows, rows, workbench
from tests.workbench.test_match import OTHER, PAIRS, POLICY, SPLITS, matched
from workbench.match import certificate
from workbench.match_facts import Kind, RewardLineage, Side
from workbench.policy_set import read_policy_set

SMALL = "{updates: 3, batch_size: 16, checkpoint_every_updates: 2}"
SETTINGS = ("--set", f"arms.rloo={SMALL}", "--set", f"arms.grpo={SMALL}")
SISTERS = ("rloo", "grpo")


@pytest.fixture(scope="session")
def together(smoke_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the smoke config with both sisters, on the stages that smoke left. Only to be read."""

    def build(home: Path) -> None:
        copy_home(smoke_home, home)
        (home / "stdout.json").write_text(json.dumps(compare("smoke", home, *SETTINGS, *UNTRACKED)))

    return bench.once(tmp_path_factory, "sisters-home", build)


@pytest.fixture(scope="session")
def results(together: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((together / "stdout.json").read_text())
    return found


def test_the_certificate_holds_for_all_kinds_together(results: dict[str, Any]) -> None:
    assert {arm["kind"] for arm in results["arms"].values()} == {"sft", "ppo", "rloo", "grpo", "dpo", "best_of_n"}
    checks = {check["name"]: check for check in results["match"]["checks"]}
    assert results["match"]["ok"]
    assert checks["critic_lineage"]["ok"] is True
    assert "all 7 sides" in checks["one_sft"]["detail"]
    assert "all 6 sides" in checks["same_pairs"]["detail"]
    for name in ("same_reference", "evaluated_policy", "reward_lineage", "same_kl"):
        assert all(sister in checks[name]["detail"] for sister in SISTERS), checks[name]
    assert not any(sister in checks["critic_lineage"]["detail"] for sister in SISTERS), "they have no critic"


@pytest.mark.parametrize("label", SISTERS)
def test_a_sister_has_every_figure_that_ppo_has(results: dict[str, Any], label: str) -> None:
    ppo, arm = results["arms"]["ppo"], results["arms"][label]
    for name, figure in ppo.items():
        if isinstance(figure, dict) and "value" in figure:
            assert (arm[name]["value"] is None) == (figure["value"] is None), name
    assert arm["own_objective"]["value"] == arm["proxy_reward"]["value"], "what it optimized is the shared reward"
    assert arm["seq_kl"]["kl_kind"] == "mc_k1"
    assert arm["diverged"] is None
    assert arm["selected"] == ppo["selected"] == "step-000003"
    points = {name: [one["label"] for one in results["frontier"] if one["arm"] == name] for name in ("ppo", label)}
    assert points[label] == points["ppo"]
    assert len(points[label]) >= 2
    assert [one["form"] for one in results["overoptimization"] if one["arm"] == label] == ["rl"]
    met = {frozenset((one["a"], one["b"])) for one in results["head_to_head"]}
    assert {frozenset((label, other)) for other in ("ppo", "dpo", "best_of_n")} <= met
    assert label in {one["arm"] for one in results["ranking"]}
    assert f"on_policy/{label}" in results["agreement"]


@pytest.mark.parametrize("label", SISTERS)
def test_a_sister_costs_what_it_used(results: dict[str, Any], together: Path, label: str) -> None:
    own, upstream = (results["arms"][label]["cost"][part] for part in ("own", "with_upstream"))
    assert own["reward_queries"] == 3 * 16 == results["arms"]["ppo"]["cost"]["own"]["reward_queries"]
    key = rows(results)[f"{label}[{label},seed=0]"]["key"]
    lengths = [values["response_tokens"] for _, values in metric_rows(together / "store" / key / "metrics.jsonl")]
    assert own["tokens_generated"] == pytest.approx(16 * sum(lengths))
    assert upstream["flops"] > own["flops"] > 0, "the reward model's training is charged to it"
    assert read_policy_set(together / "store" / key / "out").facts["rollout_prompts"]


def test_adding_a_sister_runs_nothing_else_again(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    plan = workbench("plan", "smoke", "--home", home, "--json", *SETTINGS, *UNTRACKED).json
    missing = {row["instance"] for row in plan["stages"] if not row["cached"]}
    assert all("rloo" in one or "grpo" in one or one in ("samples", "measure") for one in missing), missing
    assert {"rloo[rloo,seed=0]", "grpo[grpo,seed=0]"} <= missing


# --- the certificate sees what they did wrong ------------------------------------------------------------------------


def sided(kind: Kind, **wrong: Any) -> dict[str, object]:
    """Verdicts by check, with a matched sister and its one wrong fact beside the other sides."""
    sides = matched()
    sister: Side = replace(sides["ppo"], label=kind, kind=kind, critic_sft_tensors=None)
    made = certificate(
        [*sides.values(), replace(sister, **wrong)], split_prompts=SPLITS, judges=("gold",), train_pairs=PAIRS
    )
    return {check.name: check.ok for check in made.checks}


@pytest.mark.parametrize("kind", SISTERS)
def test_a_matched_sister_passes_without_a_critic(kind: Kind) -> None:
    assert False not in sided(kind).values()


@pytest.mark.parametrize("kind", SISTERS)
@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ("one_sft", {"sft_tensors": OTHER}),
        ("same_reference", {"reference_tensors": OTHER}),
        ("same_reference", {"evaluated_reference_tensors": None}),
        ("evaluated_policy", {"evaluated_tensors": POLICY[::-1] + "0"}),
        ("reward_lineage", {"reward": RewardLineage(name="main", sft_tensors=OTHER)}),
        ("reward_lineage", {"reward": None}),
        ("same_pairs", {"pair_rows": OTHER}),
        ("disjoint_splits", {"rollout_prompts": OTHER}),
        ("disjoint_splits", {"rollout_prompts": None}),
        ("same_selection", {"selection": None}),
        ("same_kl", {"kl": None}),
    ],
    ids=lambda one: one if isinstance(one, str) else "+".join(one),
)
def test_one_wrong_fact_of_a_sister_fails_its_check_alone(kind: Kind, check: str, wrong: dict[str, Any]) -> None:
    assert [name for name, ok in sided(kind, **wrong).items() if ok is False] == [check]
