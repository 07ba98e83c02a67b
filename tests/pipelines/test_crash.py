"""Killed anywhere, run again: the same results, bit for bit, from the checkpoint and not from the start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import bench
from tests.bench import UNTRACKED, command, compare, contents, copy_home, forget, metric_rows, rows, timeless
from workbench.tracking import default_uri

# The smoke config with stages long enough to be hit between two checkpoints.
LONGER = (
    "sft.steps=60", "sft.examples=960", "reward_models.main.epochs=16", "arms.dpo.epochs=16", "arms.ppo.updates=12",
    "arms.ppo.critic_warmup_updates=2", "evaluation.trajectory_prompts=0",
)  # fmt: skip
SETTINGS = tuple(word for setting in LONGER for word in ("--set", setting))
STAGES = ["sft", "reward_model[main,seed=0]", "dpo[dpo,seed=0]", "ppo[ppo,seed=0]"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a run of the longer config that nothing disturbed. Only to be read."""

    def build(home: Path) -> None:
        compare("smoke", home, *SETTINGS, *UNTRACKED)

    return bench.once(tmp_path_factory, "longer-home", build)


def results_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "results" / "smoke" / "results.json").read_text())
    return found


def statuses(home: Path) -> dict[str, str]:
    """kind -> status of MLflow's runs; nothing of a kind ended in another way."""
    from mlflow import MlflowClient

    store = MlflowClient(tracking_uri=default_uri(home))
    runs = store.search_runs([store.get_experiment_by_name("smoke").experiment_id])
    found = {(run.data.tags["kind"], run.info.status) for run in runs}
    assert len(found) == len(dict(found))
    return dict(found)


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("compare", "smoke", "--home", home, "--json", *SETTINGS, *words),
        env=bench.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def half_done(work: Path) -> bool:
    """A checkpoint is there, and steps after it are logged: what follows the checkpoint has to be done anew."""
    saved = [int(path.name.removeprefix("step-")) for path in (work / "checkpoints").glob("step-*")]
    return bool(saved) and lines(work / "metrics.jsonl") > 0


def interrupted(undisturbed: Path, home: Path, instance: str) -> tuple[Path, str]:
    """A home that lacks one stage and the measures, and the stage's key."""
    stages = rows(results_of(undisturbed))
    copy_home(undisturbed, home)
    forget(home, [stages[instance]["key"], stages["measure"]["key"]])
    (home / "results" / "smoke" / "results.json").unlink()
    return home, stages[instance]["key"]


def assert_same(home: Path, results: dict[str, Any], undisturbed: Path, instance: str) -> None:
    reference = results_of(undisturbed)
    assert timeless(results) == timeless(reference)
    assert contents(results, home) == contents(reference, undisturbed)
    key = rows(reference)[instance]["key"]
    metrics = [metric_rows(one / "store" / key / "metrics.jsonl") for one in (home, undisturbed)]
    assert metrics[0] == metrics[1]
    # Everything downstream of the stage was found by its content: the resumed stage gave the same bits.
    assert {one for one, row in rows(results).items() if not row["cached"]} == {instance, "measure"}
    assert not (home / "work" / key).exists()


@pytest.mark.parametrize("instance", STAGES, ids=["sft", "reward_model", "dpo", "ppo"])
def test_killed_driver_leaves_a_stage_that_resumes_to_the_same_bits(
    instance: str, undisturbed: Path, tmp_path: Path
) -> None:
    home, key = interrupted(undisturbed, tmp_path / "home", instance)
    work = home / "work" / key
    process = start(home, *UNTRACKED)
    try:
        wait_for(lambda: half_done(work), process, "a checkpoint")
    finally:
        process.kill()
        process.communicate()
    assert not (home / "store" / key).exists(), "the stage had ended before it was killed: make it longer"

    results = compare("smoke", home, *SETTINGS, *UNTRACKED)
    assert "goes on from an unfinished attempt" in rows(results)[instance]["why"]
    assert_same(home, results, undisturbed, instance)


def test_ctrl_c_checkpoints_says_how_to_go_on_and_resumes(undisturbed: Path, tmp_path: Path) -> None:
    instance = "ppo[ppo,seed=0]"
    home, key = interrupted(undisturbed, tmp_path / "home", instance)
    work = home / "work" / key
    process = start(home)  # with MLflow: its run must not keep the command from ending
    wait_for(lambda: lines(work / "metrics.jsonl") >= 3, process, "three updates")
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    error = json.loads(stdout)["error"]
    assert error["code"] == "interrupted"
    assert "again" in error["message"]
    assert "Traceback" not in stderr
    assert list((work / "checkpoints").glob("step-*"))
    logged = lines(work / "metrics.jsonl")
    assert 3 <= logged < 12
    assert statuses(home) == {"comparison": "KILLED", "stage": "KILLED"}

    results = compare("smoke", home, *SETTINGS)
    assert results["mlflow"]["run_id"]
    assert_same(home, results, undisturbed, instance)
