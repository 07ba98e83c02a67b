"""A whole comparison, as a user runs it: what it leaves, what it reuses, what a changed setting runs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import bench
from tests.bench import UNTRACKED, compare, copy_home, rows, timeless, workbench
from workbench.results import load_results

TRAINING = {"sft", "reward_model", "dpo", "ppo", "base_model"}


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((smoke_home / "stdout.json").read_text())
    return found


def misses(plan: dict[str, Any]) -> list[str]:
    return [row["instance"] for row in plan["stages"] if not row["cached"]]


def ran(results: dict[str, Any]) -> set[str]:
    return {instance for instance, row in rows(results).items() if not row["cached"]}


# --- what one comparison leaves --------------------------------------------------------------------------------------


def test_results_json_is_what_was_printed_and_fits_the_schema(smoke_home: Path, smoke: dict[str, Any]) -> None:
    path = smoke_home / "results" / "smoke" / "results.json"
    assert json.loads(path.read_text()) == smoke
    results = load_results(path)
    assert results.comparison == "smoke"
    assert results.match.ok
    assert {check.ok for check in results.match.checks} <= {True, "not_applicable"}
    assert {check.name for check in results.match.checks if check.ok == "not_applicable"} == {"same_tuning_budget"}
    assert (smoke_home / "results" / "smoke" / "report.md").is_file()
    assert list((smoke_home / "results" / "smoke" / "figures").glob("*.png"))


def test_a_first_run_reuses_nothing_and_says_so(smoke_home: Path, smoke: dict[str, Any]) -> None:
    reused = {row["instance"]: row["why"] for row in smoke["stages"] if row["cached"]}
    assert all(why.startswith("cached: the same as") for why in reused.values()), reused
    told = (smoke_home / "stderr.txt").read_text()
    assert told.count("prompts: finished") == 1 + told.count("packed_prompts: finished")
    assert "prompts: reused" not in told


def test_results_have_every_field_that_the_schema_promises(smoke: dict[str, Any]) -> None:
    estimate = {"value", "low", "high", "n", "n_unscored", "method"}
    assert smoke.keys() >= {
        "schema", "comparison", "seeds", "mlflow", "report", "match", "reward_models", "arms", "head_to_head",
        "ranking", "frontier", "overoptimization", "agreement", "stages",
    }  # fmt: skip
    assert smoke["schema"] == 1
    assert smoke["seeds"] == {"data": 0, "sft": 0, "eval": 0, "runs": [0]}
    assert smoke["mlflow"].keys() == {"tracking_uri", "experiment", "run_id"}
    assert smoke["mlflow"]["run_id"]
    assert smoke["reward_models"]["main"].keys() >= {"accuracy", "accuracy_gold", "ece", "brier", "tie_rate"}
    assert list(smoke["arms"]) == ["sft", "ppo", "dpo", "best_of_n", "best_of_n-implicit"]  # as the config has them
    for label, arm in smoke["arms"].items():
        assert arm.keys() >= {
            "kind", "selected", "gold_reward", "proxy_reward", "own_objective", "seq_kl", "win_rate", "win_rates",
            "win_rate_length_controlled", "response_tokens", "eos_rate", "diverged", "by_seed", "cost",
        }  # fmt: skip
        for name in ("gold_reward", "proxy_reward", "response_tokens", "eos_rate"):
            assert arm[name].keys() >= estimate, name
            assert arm[name]["value"] is not None, name
        assert arm["seq_kl"]["kl_kind"] == ("bound" if arm["kind"] == "best_of_n" else "mc_k1")
        for part in ("own", "with_upstream"):
            assert arm["cost"][part].keys() >= {
                "wall_s", "cpu_s", "gpu_s", "flops", "tokens_trained", "tokens_generated", "reward_queries",
                "peak_memory_bytes",
            }  # fmt: skip
        if label != "sft":
            assert arm["win_rate"].keys() >= estimate | {"baseline", "judge"}
            assert (arm["win_rate"]["baseline"], arm["win_rate"]["judge"]) == ("sft", "gold")
            assert arm["cost"]["with_upstream"]["wall_s"] > arm["cost"]["own"]["wall_s"] > 0
    assert smoke["arms"]["sft"]["win_rate"] is None
    assert len(smoke["head_to_head"]) == 6  # four arms, one judge
    assert all(duel.keys() >= {"a", "b", "judge", "win_rate", "p_value", "p_holm"} for duel in smoke["head_to_head"])
    assert {one["arm"] for one in smoke["ranking"]} == set(smoke["arms"])
    assert {one["arm"] for one in smoke["overoptimization"]} == set(smoke["arms"]) - {"sft"}
    assert all(row.keys() >= {"name", "instance", "key", "cached", "why", "wall_s"} for row in smoke["stages"])


def test_frontier_follows_the_checkpoints(smoke: dict[str, Any]) -> None:
    steps = {arm: [p["step"] for p in smoke["frontier"] if p["arm"] == arm and p["step"] is not None] for arm in
             ("ppo", "dpo")}  # fmt: skip
    assert steps["ppo"] == [0, 2, 3]  # every second update, and the last one
    assert steps["dpo"][0] == 0
    assert len(steps["dpo"]) >= 3
    sizes = {
        selector: [p["label"] for p in smoke["frontier"] if p["arm"] == "best_of_n" and p["selector"] == selector]
        for selector in ("own", "gold")
    }
    assert sizes == {"own": ["n=1", "n=2"], "gold": ["n=1", "n=2"]}
    shares = {p["label"]: p["pareto_share"] for p in smoke["frontier"] if p["selector"] == "own"}
    assert all(0 <= share <= 1 for share in shares.values())


def test_curves_say_why_where_they_cannot_be_read(smoke: dict[str, Any]) -> None:
    assert {row["arm"] for row in smoke["matched_kl"]} == set(smoke["arms"]) - {"sft"}
    for row in (*smoke["matched_kl"], *smoke["frontier_area"]):
        assert row["reward"] == "gold_reward"
        assert row["estimate"]["value"] is not None or "refused" in row["estimate"]["method"]
    start = next(point for point in smoke["frontier"] if point["arm"] == "ppo" and point["step"] == 0)
    assert start["seq_kl"]["value"] == pytest.approx(0.0, abs=1e-4)


def test_agreement_is_measured_in_and_out_of_distribution(smoke: dict[str, Any]) -> None:
    policies = {f"on_policy/{label}" for label in smoke["arms"]}
    assert smoke["agreement"].keys() == {"heldout", "ood"} | policies
    for name, found in smoke["agreement"].items():
        assert found is not None, name
        assert found.keys() >= {
            "implicit_accuracy", "explicit_accuracy", "agreement", "kappa", "spearman_margins",
            "spearman_within_prompt", "kendall_tau", "calibration",
        }  # fmt: skip
        assert (found["implicit"], found["explicit"]) == ("dpo", "main")


# --- reuse -----------------------------------------------------------------------------------------------------------


def test_second_run_computes_nothing_and_says_the_same(smoke_home: Path, smoke: dict[str, Any], tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    done = workbench("compare", "smoke", "--home", home, "--json")
    assert done.code == 0, done.stderr
    assert all(row["cached"] for row in done.json["stages"])
    assert ": started" not in done.stderr  # the live view names every stage that starts
    assert done.stderr.count(": reused") >= len(done.json["stages"])
    again = done.json
    assert timeless(again) == timeless(smoke)
    costs = [{label: arm["cost"] for label, arm in one["arms"].items()} for one in (again, smoke)]
    assert costs[0] == costs[1]  # of the records: what it took when it was computed


def test_a_changed_arm_reruns_only_itself_and_what_is_measured(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    own = ["ppo[ppo,seed=0]", "trajectory[ppo,seed=0]", "select[ppo,seed=0]", "generations[ppo,test,seed=0]",
           "scores[ppo,test,seed=0]", "samples", "measure"]  # fmt: skip
    planned = workbench("plan", "smoke", "--home", home, "--json", "--set", "arms.ppo.kl_coef=0.2").json
    assert sorted(misses(planned)) == sorted(own)
    assert "kl_coef" in rows(planned)["ppo[ppo,seed=0]"]["why"]
    results = compare("smoke", home, "--set", "arms.ppo.kl_coef=0.2", *UNTRACKED)
    assert ran(results) == set(own)
    assert results["match"]["ok"]
    assert results["mlflow"]["run_id"] is None
    assert not (home / "mlflow.db").exists()


def test_renaming_an_arm_trains_and_samples_nothing(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    config = (bench.ROOT / "configs" / "smoke.yaml").read_text()
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(config.replace("  ppo: {", "  rlhf: {kind: ppo, "))
    planned = workbench("plan", renamed, "--home", home, "--json").json
    assert set(misses(planned)) == {"samples", "measure"}  # what is in them is named by label


def test_place_of_a_config_and_its_name_are_in_no_key(smoke_home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.yaml"
    moved.write_text((bench.ROOT / "configs" / "smoke.yaml").read_text().replace("name: smoke", "name: other"))
    home = copy_home(smoke_home, tmp_path / "home")
    planned = workbench("plan", moved, "--home", home, "--json", "--set", "resources.workers=1").json
    assert misses(planned) == []


# --- other settings --------------------------------------------------------------------------------------------------


def test_two_run_seeds(smoke_home: Path, smoke: dict[str, Any], tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    results = compare("smoke", home, "--set", "seeds.runs=[0,1]", *UNTRACKED)
    assert results["match"]["ok"]
    shared = {row["name"] for row in results["stages"] if row["cached"] and "seed=" not in row["instance"]}
    assert shared >= {"sft", "pairs", "packed_pairs", "reference_logprobs"}  # one SFT, one set of pairs
    assert {i for i, row in rows(results).items() if not row["cached"]} == {
        instance.replace("seed=0", "seed=1") for instance in rows(smoke) if "seed=0" in instance
    } | {"samples", "measure"}
    for label, arm in results["arms"].items():
        assert [one["seed"] for one in arm["by_seed"]] == [0, 1]
        assert "seed" in arm["gold_reward"]["method"], label
    for duel in results["head_to_head"]:
        assert "seed" in duel["win_rate"]["method"]
    assert "seed" in results["agreement"]["heldout"]["agreement"]["method"]
    first = smoke["arms"]["ppo"]["gold_reward"]["value"]
    assert results["arms"]["ppo"]["by_seed"][0]["gold_reward"]["value"] == first
    assert any("2 run seeds" in line for line in results["warnings"])


def test_best_checkpoint_and_other_temperature(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    rule = "selection={rule: best, metric: gold_reward}"
    results = compare("smoke", home, "--set", rule, "--set", "evaluation.temperature=0.7", *UNTRACKED)
    assert results["match"]["ok"], results["match"]
    assert not {row["name"] for row in results["stages"] if not row["cached"]} & TRAINING
    instances = set(rows(results))
    for label in ("ppo", "dpo"):
        assert f"generations[{label},kl,seed=0]" in instances  # KL has samples of its own, at temperature 1
        selection = results["arms"][label]["selection"]
        assert (selection["rule"], selection["metric"], selection["split"]) == ("best", "gold_reward", "validation")
        assert selection["oracle"]
        assert results["arms"][label]["selected"] == selection["checkpoint"]
    detail = {check["name"]: check["detail"] for check in results["match"]["checks"]}
    assert "temperature=0.7" in detail["same_decoding"]
    assert "temperature 1" in detail["same_kl"]
    assert "oracle" in detail["same_selection"]
    assert any("oracle" in line for line in results["warnings"])


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_arm_that_diverges_at_once_stays_in_the_table(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    found = compare("smoke", home, "--set", "arms.ppo.learning_rate=1000.0", *UNTRACKED, code=5)
    ppo = found["arms"]["ppo"]
    assert "update" in ppo["diverged"]
    assert ppo["selected"] == "step-000000"  # the SFT: the last good checkpoint there is
    assert ppo["seq_kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["match"]["ok"]
    (turn,) = (one for one in found["overoptimization"] if one["arm"] == "ppo")
    assert turn["drop_from_peak"]["value"] is None
    assert "diverged" in turn["drop_from_peak"]["method"]


def test_each_best_of_n_arm_is_charged_for_its_own_selector(smoke: dict[str, Any]) -> None:
    stages = rows(smoke)
    assert {"scores[candidates,test,gold,seed=0]", "scores[candidates,test,main,seed=0]"} <= stages.keys()
    pool = stages["candidates[test,seed=0]"]["wall_s"]
    for label, selector in (("best_of_n", "main"), ("best_of_n-implicit", "dpo")):
        own = smoke["arms"][label]["cost"]["own"]["wall_s"]
        parts = (
            stages[f"best_of_n[{label},seed=0]"]["wall_s"]
            + stages[f"scores[candidates,test,{selector},seed=0]"]["wall_s"]
        )
        assert own == pytest.approx(pool + parts, rel=1e-6)


def test_gains_are_paired_differences_to_sft(smoke: dict[str, Any]) -> None:
    arms = smoke["arms"]
    assert arms["sft"]["gold_gain"] is None
    for label in ("ppo", "dpo", "best_of_n"):
        gain, gold = arms[label]["gold_gain"], arms[label]["gold_reward"]["value"]
        assert gain["value"] == pytest.approx(gold - arms["sft"]["gold_reward"]["value"], abs=1e-9)


def test_files_without_gold_from_a_given_sft(model_folder: Path, tmp_path: Path) -> None:
    long = {"prompt": " ".join(["hello"] * 200), "chosen": "thank you", "rejected": "hello"}
    data = bench.write_rows(tmp_path / "pairs.jsonl", [*bench.pair_rows(60), long])
    config = bench.file_config(tmp_path, model_folder, data)
    home = tmp_path / "home"
    results = compare(config, home)
    assert results["match"]["ok"], results["match"]
    assert all(arm["gold_reward"] is None for arm in results["arms"].values())
    assert results["overoptimization"] == []
    assert {row["judge"] for arm in results["arms"].values() for row in arm["win_rates"]} == {"proxy"}
    assert any("proxy" in line for line in results["warnings"])
    assert results["agreement"]["ood"] is None
    assert results["agreement"]["heldout"]["implicit_accuracy"] is not None  # against the label
    # The prompt over the context left once, upstream of every arm, and is counted.
    dropped = json.loads((home / "store" / rows(results)["packed_pairs"]["key"] / "out" / "filter.json").read_text())
    assert (dropped["rows"], dropped["kept"]) == (61, 60)
    assert sum(dropped["dropped"].values()) == 1
    # The same data and another SFT: what does not stand on it is reused.
    trained = bench.file_config(tmp_path, model_folder, data, sft="{corpus: chosen, steps: 3, batch_size: 8}")
    again = compare(trained, home)
    assert again["match"]["ok"], again["match"]
    assert {"pairs", "packed_pairs", "packed_prompts"} <= set(rows(again)) - ran(again)
    assert {"sft", "dpo[dpo,seed=0]", "ppo[ppo,seed=0]", "reward_model[main,seed=0]"} <= ran(again)


def test_moving_the_files_reruns_nothing(model_folder: Path, tmp_path: Path) -> None:
    data = bench.write_rows(tmp_path / "pairs.jsonl", bench.pair_rows(60))
    config = bench.file_config(tmp_path, model_folder, data, more="")
    home = tmp_path / "home"
    first = workbench("plan", config, "--home", home, "--json").json
    keys = {row["instance"]: row["key"] for row in first["stages"] if row["key"]}
    assert keys
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = bench.file_config(elsewhere, model_folder, data.rename(elsewhere / "renamed.jsonl"))
    second = workbench("plan", moved, "--home", home, "--json").json
    assert {row["instance"]: row["key"] for row in second["stages"] if row["key"]} == keys


def test_simulated_pairs_with_a_gold_function(model_folder: Path, tmp_path: Path) -> None:
    prompts = bench.write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in bench.pair_rows(60)])
    (tmp_path / "my_gold.py").write_text(
        "def score(prompts, responses):\n    return [float(len(text.split())) for text in responses]\n"
    )
    data = "simulate: {prompts: prompts.jsonl, pairs: 24, validation_pairs: 6, test_pairs: 6}"
    text = bench.file_config(tmp_path, model_folder, prompts).read_text()
    config = tmp_path / "simulated.yaml"
    old = f"preferences: {json.dumps(str(prompts))}"
    assert old in text
    config.write_text(
        text.replace(old, data).replace("judges: [proxy]", "judges: [gold]")
        + 'gold: {python: "my_gold:score"}\nselection: {rule: best}\n'
    )
    results = compare(config, tmp_path / "home", cwd=tmp_path)
    assert results["match"]["ok"], results["match"]
    assert {row["judge"] for arm in results["arms"].values() for row in arm["win_rates"]} == {"gold"}
    selection = results["arms"]["ppo"]["selection"]
    assert (selection["rule"], selection["metric"], selection["oracle"]) == ("best", "proxy_reward", False)
    gold, tokens = (results["arms"]["sft"][name]["value"] for name in ("gold_reward", "response_tokens"))
    assert 0 < gold <= tokens  # words, of which a response has no more than tokens
    assert results["reward_models"]["main"]["accuracy_gold"] is not None
    # Another gold is another comparison: what is labeled and judged by it runs again, the SFT does not.
    (tmp_path / "my_gold.py").write_text(
        "def score(prompts, responses):\n    return [-float(len(text.split())) for text in responses]\n"
    )
    planned = workbench("plan", config, "--home", tmp_path / "home", "--json", cwd=tmp_path).json
    assert {"pairs"} <= set(misses(planned))
    assert {"sft", "rollouts", "packed_prompts"} <= set(rows(planned)) - set(misses(planned))
