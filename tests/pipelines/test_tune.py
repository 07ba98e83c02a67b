"""`workbench tune` end to end: killed anywhere it goes on, nothing runs twice, the store shares the rest."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from pipelines.graph import build_graph
from pipelines.sources import resolve_origin
from pipelines.tune import study_name, with_tuning
from pipelines.tune_collect import joined
from pipelines.tune_graph import own_stages, trial_comparison, trial_graph
from pipelines.tuned import with_tuned
from tests import bench
from tests.bench import UNTRACKED, command, copy_home
from workbench.cli import main
from workbench.config import Comparison, load_config
from workbench.config_tuning import Budget
from workbench.errors import ConfigError
from workbench.results_base import CostRecord, E
from workbench.results_tuning import Best, Budgeted, TunedArm, TunedObjective, TuningResults
from workbench.store import Store
from workbench.tuning_spaces import default_params, upstream_digest
from workbench.types import Cost

TUNING = (
    "tuning={budget: {trials: 3}, objective: {metric: gold_reward, prompts: 16}, repeats: {top: 1, seeds: 1}}",
    "arms.dpo.epochs=16",  # long enough to be hit between two checkpoints
)
SETTINGS = (*UNTRACKED, *(word for setting in TUNING for word in ("--set", setting)))


def smoke() -> Comparison:
    return with_tuning(load_config(Path("smoke"), TUNING))


# --- what a trial is made of -----------------------------------------------------------------------------------------


def test_a_trial_has_the_keys_of_a_comparison_and_never_the_test_split(tmp_path: Path) -> None:
    comparison, store = smoke(), Store(tmp_path)
    origin = resolve_origin(comparison, store)
    tuning = comparison.tuning
    assert tuning is not None
    whole = build_graph(
        comparison.model_copy(update={"seeds": comparison.seeds.model_copy(update={"runs": [7]})}), origin
    )
    for label in ("ppo", "dpo", "best_of_n", "best_of_n-implicit"):
        graph = trial_graph(trial_comparison(comparison, label, {}, 7), origin, label, tuning)
        trained = {"ppo": "ppo[ppo,seed=7]", "dpo": "dpo[dpo,seed=7]"}.get(label)
        shared = [name for name in graph.stages if name in whole.stages and graph.stages[name].name != "scores"]
        assert {"sft", "packed_prompts"} <= set(shared)
        for name in shared:
            ours, theirs = graph.stages[name], whole.stages[name]
            if name == trained or name not in own_stages(graph, label, 7):
                assert (ours.config, ours.seed, ours.inputs) == (theirs.config, theirs.seed, theirs.inputs), name
        sampled = [
            one.config["split"] for one in graph.stages.values() if "split" in one.config and "pairs" not in one.config
        ]
        assert set(sampled) == {"validation"}
        assert "measure" not in graph.stages


def test_other_settings_change_the_arm_and_nothing_before_it(tmp_path: Path) -> None:
    comparison, store = smoke(), Store(tmp_path)
    origin, tuning = resolve_origin(comparison, store), comparison.tuning
    assert tuning is not None
    for label, settings in {"dpo": {"beta": 0.7}, "ppo": {"kl_coef": 0.3}, "best_of_n": {"n": 5}}.items():
        one, other = (
            trial_graph(trial_comparison(comparison, label, params, 7), origin, label, tuning)
            for params in ({}, settings)
        )
        assert one.stages.keys() == other.stages.keys()
        changed = {name for name in one.stages if one.stages[name] != other.stages[name]}
        policy = one.arms[label, 7]["policy"]
        assert policy in changed
        assert changed <= set(own_stages(one, label, 7))
        assert "candidates[validation,seed=7]" not in changed  # one pool serves every n


def test_best_of_n_gives_as_many_answers_as_the_others_from_one_pool_for_every_n(tmp_path: Path) -> None:
    tuning = "tuning={objective: {samples_per_prompt: 5}, spaces: {best_of_n: {n: {int: [2, 8]}}}}"
    comparison = with_tuning(load_config(Path("smoke"), (tuning, "evaluation.samples_per_prompt=2")))
    origin = resolve_origin(comparison, Store(tmp_path))
    assert comparison.tuning is not None
    pools = set()
    for label, params in (("dpo", {}), ("best_of_n", {"n": 2}), ("best_of_n", {"n": 8})):
        graph = trial_graph(trial_comparison(comparison, label, params, 7), origin, label, comparison.tuning)
        answers = graph.stages[graph.arms[label, 7]["generations"]].config
        assert answers["samples_per_prompt"] == 5
        pools |= {one.config["samples_per_prompt"] for one in graph.stages.values() if one.name == "candidates"}
    assert pools == {5 * 8}  # a block of its own for each winner


def test_the_reward_models_trial_trains_no_arm(tmp_path: Path) -> None:
    comparison, store = smoke(), Store(tmp_path)
    tuning = comparison.tuning
    assert tuning is not None
    trial = trial_comparison(comparison, "reward_model", {"epochs": 1.0}, 7)
    graph = trial_graph(trial, resolve_origin(comparison, store), "reward_model", tuning)
    assert {"ppo", "dpo", "generations"}.isdisjoint(stage.name for stage in graph.stages.values())
    assert graph.stages["margins[validation,seed=7]"].config["splits"] == ["validation"]


def test_the_study_is_the_same_whatever_the_budget() -> None:
    comparison = smoke()
    more = with_tuning(comparison, Budget(seconds=60.0))
    assert study_name(more) == study_name(comparison)
    other = load_config(Path("smoke"), (*TUNING, "arms.dpo.beta=0.31"))
    assert study_name(with_tuning(other)) != study_name(comparison)
    with pytest.raises(ConfigError, match=r"seeds\.runs"):
        with_tuning(load_config(Path("smoke"), ("seeds=[1000]",)))


# --- the whole, disturbed --------------------------------------------------------------------------------------------


def start(home: Path, *more: str) -> subprocess.Popen[str]:
    words = ("tune", "smoke", "--arm", "dpo", "--workers", "1", "--home", home, "--json", *SETTINGS, *more)
    return subprocess.Popen(
        command(*words), env=bench.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], what: str, timeout_s: float = 240) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
    return found


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "pipelines.tune_worker" in " ".join(child.cmdline())]


def states(home: Path) -> Counter[str]:
    """How Optuna's database has the trials."""
    with sqlite3.connect(home / "optuna.db", timeout=30) as database:
        return Counter(state for (state,) in database.execute("SELECT state FROM trials"))


def training(home: Path, trials: int) -> bool:
    """So many trials have ended, another one is between two of its checkpoints."""
    if not (home / "optuna.db").exists() or states(home)["COMPLETE"] < trials:
        return False
    works = [work for work in (home / "work").glob("*") if (work / "policies").exists()]  # a reward model has none
    return any(any(work.glob("checkpoints/step-*")) for work in works)


def committed(home: Path) -> Counter[str]:
    """instance -> how often the store took an artifact of it."""
    lines = (home / "store" / "index.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return Counter(row["record"]["instance"] for row in rows if "record" in row)


@pytest.fixture(scope="module")
def tuned(smoke_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Counter[str]]:
    """A tuning whose worker was killed in trial 0 and whose driver in trial 1: home, tuning.json, built before."""

    def build(folder: Path) -> None:
        home = copy_home(smoke_home, folder)
        (home / "before.json").write_text(json.dumps(committed(home)))
        process = start(home)
        try:
            wait_for(lambda: training(home, 0), process, "a checkpoint of trial 0")
            (worker,) = workers(process)
            worker.kill()
            wait_for(lambda: training(home, 1), process, "a checkpoint of trial 1")
            orphans = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
            process.communicate()
        _, alive = psutil.wait_procs(orphans, timeout=60)
        assert alive == [], "workers outlived their driver"
        assert states(home)["RUNNING"] == 1
        again = start(home)
        stdout, stderr = again.communicate(timeout=300)
        assert again.returncode == 0, stderr
        assert "left running by a run that died" in stderr
        (home / "stdout.json").write_text(stdout)

    home = bench.once(tmp_path_factory, "tuned-home", build)
    return home, json.loads((home / "stdout.json").read_text()), Counter(json.loads((home / "before.json").read_text()))


@pytest.mark.slow
def test_killed_worker_and_driver_lose_nothing_and_nothing_runs_twice(
    tuned: tuple[Path, dict[str, Any], Counter[str]],
) -> None:
    home, found, before = tuned
    arm = found["arms"]["dpo"]
    assert (arm["trials"], arm["complete"], arm["failed"], arm["met"]) == (3, 3, 0, True)
    assert [row["number"] for row in arm["rows"]] == [0, 1, 2]
    assert states(home) == {"COMPLETE": 3}
    made = committed(home) - before
    assert made["dpo[dpo,seed=1000]"] == 3
    assert made["generations[dpo,validation,seed=1000]"] == 3
    assert {
        name for name in made if name.startswith(("sft", "prompts", "pairs", "packed", "reference", "ppo"))
    } == set()
    assert made["reward_model[main,seed=1000]"] == 1
    assert not any("test" in name for name in made)


@pytest.mark.slow
def test_what_was_found_is_whole(tuned: tuple[Path, dict[str, Any], Counter[str]]) -> None:
    home, found, _ = tuned
    arm = found["arms"]["dpo"]
    assert arm["rows"][0]["params"] == {"beta": pytest.approx(0.3), "learning_rate": pytest.approx(5e-4)}
    assert arm["best"]["value"]["n"] == 16
    assert arm["best"]["value"] != arm["best"]["search_value"]  # on a fresh seed
    assert arm["winners_curse"]["value"] is not None
    assert arm["spent"]["cpu_s"] > arm["spent_trials"]["cpu_s"] > 0
    assert [one["trials"] for one in arm["best_so_far"]] == [1, 2, 3]
    assert all(Path(path).is_file() for path in found["figures"])
    comparison, ledger = with_tuned(load_config(Path("smoke"), TUNING), found["study"], home)
    assert comparison.name == "smoke-tuned"
    assert comparison.arms["dpo"].model_dump()["beta"] == arm["best"]["params"]["beta"]
    assert ledger.arms["dpo"].trials == 3
    with pytest.raises(ConfigError, match="another model"):
        with_tuned(load_config(Path("smoke"), ("data.pairs=64",)), found["study"], home)
    with pytest.raises(ConfigError, match=r"seeds\.runs"):
        with_tuned(load_config(Path("smoke"), ("seeds=[0, 1001]",)), found["study"], home)


@pytest.mark.slow
def test_a_finished_tuning_costs_only_reading_it(tuned: tuple[Path, dict[str, Any], Counter[str]]) -> None:
    home, found, _ = tuned
    before = committed(home)
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom workbench.cli import main\n"
        "done = CliRunner().invoke(main, sys.argv[1:])\nassert done.exit_code == 0, done.output\n"
        "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules\nprint(done.stdout)"
    )
    words = ["tune", "smoke", "--arm", "dpo", "--home", str(home), "--json", *SETTINGS]
    done = subprocess.run(
        [bench.PYTHON, "-c", code, *words], env=bench.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == found
    assert committed(home) == before


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_a_second_driver_is_told_who_works(
    tuned: tuple[Path, dict[str, Any], Counter[str]], tmp_path: Path
) -> None:
    home = copy_home(tuned[0], tmp_path / "home")
    process = start(home, "--trials", "99")  # a fresh database: what was tried is found in the store
    wait_for(lambda: (home / "optuna.db").exists() and states(home)["RUNNING"], process, "a trial")
    busy = CliRunner().invoke(main, ["tune", "smoke", "--arm", "dpo", "--home", str(home), "--json", *SETTINGS])
    assert busy.exit_code == 75
    assert f"pid {process.pid}" in json.loads(busy.stdout)["error"]["message"]
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert "Traceback" not in stderr


def as_tuned(comparison: Comparison, **changes: Any) -> TuningResults:
    """A tuning that found the config's own values best, in two trials an arm."""
    spent = CostRecord.of(Cost(wall_s=2.0, cpu_s=2.0))
    estimate = E(value=0.5, low=0.4, high=0.6, n=16, method="cluster-t")
    arms = {}
    for label in comparison.arms:
        params = default_params(comparison, label)
        best = Best(number=0, params=params, value=estimate, seq_kl=None, feasible=True, search_value=estimate)
        arms[label] = TunedArm(
            kind="x", study=f"s/{label}", metric="gold_reward", trials=2, complete=2, pruned=0, failed=0, met=True,
            best=best, spent=spent, spent_trials=spent, spent_repeats=spent, rows=[],
        )  # fmt: skip
    objective = TunedObjective(metric="gold_reward", judge=None, max_kl=None, prompts=16, oracle=True)
    fields = {
        "schema": 1, "study": "s", "comparison": comparison.name, "storage": "x", "objective": objective, "rule": "tpe",
        "budget": Budgeted(unit="trials", amount=2), "seeds": [1000], "upstream": upstream_digest(comparison),
        "arms": arms,
    }  # fmt: skip
    return TuningResults.model_validate(fields | changes)


def test_arms_that_were_tuned_before_stay_if_budget_and_rule_are_the_same() -> None:
    before = as_tuned(load_config(Path("smoke")))
    now = {"dpo": before.arms["dpo"].model_copy(update={"trials": 7})}
    both = joined(before, now, before.budget, before.rule)
    assert both.keys() == before.arms.keys()
    assert both["dpo"].trials == 7
    assert joined(before, now, Budgeted(unit="trials", amount=9), before.rule) == now
    assert joined(before, now, before.budget, "random") == now


@pytest.mark.slow
def test_a_comparison_with_tuned_values_carries_the_ledger(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    path = tmp_path / "tuning.json"
    found = as_tuned(load_config(Path("smoke")))
    path.write_text(found.to_json())
    words = ["compare", "smoke", "--tuned", str(path), "--home", str(home), "--json", "-q", *UNTRACKED]
    words += ["--set", "tuning={declared: [dpo]}"]  # best_of_n-implicit stands on it
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert results["comparison"] == "smoke-tuned"
    assert all(row["cached"] for row in results["stages"])  # the same values are the same stages
    check = next(one for one in results["match"]["checks"] if one["name"] == "same_tuning_budget")
    assert check["ok"] is True
    assert "2 trials for best_of_n, best_of_n-implicit, dpo, ppo" in check["detail"]
    assert "DECLARED" in check["detail"]
    assert results["tuning"]["arms"]["ppo"]["spent"]["cpu_s"] == 2.0
    assert any("oracle" in line for line in results["warnings"])
    assert (home / "results" / "smoke" / "results.json").read_text() == (
        smoke_home / "results" / "smoke" / "results.json"
    ).read_text()

    some = {label: arm for label, arm in found.arms.items() if label != "ppo"}
    path.write_text(found.model_copy(update={"arms": some}).to_json())
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 4
    check = next(one for one in json.loads(done.stdout)["match"]["checks"] if one["name"] == "same_tuning_budget")
    assert check["ok"] is False
    assert "not recorded for ppo" in check["detail"]
