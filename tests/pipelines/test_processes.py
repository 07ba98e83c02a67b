"""Several processes give what one gives, resume exactly, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.bench import gone
from tests.ml_helpers import Log, build_world
from tests.pipelines.exchange_stage import exchanging
from tests.pipelines.process_stages import CASES, training
from workbench import evaluation, executors
from workbench.errors import ResourceError
from workbench.executors import Outcome
from workbench.stage_log import read_metrics
from workbench.stages import External, Stage, StageFailedError, key_material
from workbench.store import Store

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = (*executors.TRAINING_PRELOAD, "trl.trainer.rloo_trainer", "trl.trainer.grpo_trainer")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("100% of a home"))


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All cases by one process and by two, and one of them interrupted."""
    world, reference = build_world(tmp_path_factory.mktemp("world")), tmp_path_factory.mktemp("reference")
    inputs = {"sft": world.sft, "pairs": world.pairs}
    log = Log(tmp_path_factory.mktemp("work"))
    evaluation.reference_logprobs({"batch_size": 7, "trust_remote_code": False}, inputs, reference, log)
    folders = inputs | {
        "prompts": world.prompts, "reward_model": world.reward_model, "reference_logprobs": reference,
        "model": world.model,
    }  # fmt: skip
    given = {role: External(path=str(path), digest=store.hash_path(path)) for role, path in folders.items()}
    stages = [training([*CASES, *(["ppo-interrupted"] if count == 2 else [])], given, count) for count in (1, 2)]
    outcome = executors.run(stages, store, workers=2, preload=PRELOAD)
    assert not outcome.failures, (outcome.failures, outcome.tracebacks)
    return outcome


def tensors(folder: Path) -> dict[str, Any]:
    return {
        f"{file.relative_to(folder)}:{name}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "index.json").read_text())["facts"]
    return {name: value for name, value in found.items() if "tensors" not in name and not isinstance(value, float)}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_and_the_metrics_of_one(case: str, trained: Outcome) -> None:
    one, two = (trained.artifacts[f"train[{count}]"].path / case for count in (1, 2))
    alone, together = tensors(one), tensors(two)
    assert alone.keys() == together.keys()
    assert len({name.partition(":")[0] for name in alone}) >= 1
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=2e-5, err_msg=name)
    rows = [[(row["step"], row["values"]) for row in read_metrics(folder / "metrics.jsonl")] for folder in (one, two)]
    assert [step for step, _ in rows[0]] == [step for step, _ in rows[1]] != []
    for (_, values), (_, others) in zip(*rows, strict=True):
        assert others == pytest.approx(values, rel=1e-3, abs=1e-4)
    assert facts(one) == facts(two), "rows, prompts and what was consumed are those of the whole batch in each process"


def test_ppo_with_two_processes_resumes_exactly(trained: Outcome) -> None:
    whole, resumed = (trained.artifacts["train[2]"].path / name for name in ("ppo", "ppo-interrupted"))
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (whole, resumed)]
    assert files[0] == files[1]
    for name in files[0]:
        if (whole / name).is_file() and name.name != "metrics.jsonl":
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    rows = [[(row["step"], row["values"]) for row in read_metrics(one / "metrics.jsonl")] for one in (whole, resumed)]
    assert rows[0] == rows[1]


def test_the_record_tells_the_processes_and_the_key_hangs_on_them(trained: Outcome) -> None:
    records = [trained.artifacts[f"train[{count}]"].record for count in (1, 2)]
    assert [record.processes for record in records] == [1, 2]
    assert records[1].cost.wall_s > 0
    materials = [key_material(training([], {}, count), {}) for count in (1, 2)]
    assert "processes" not in materials[0], "keys of one process are those from before there could be several"
    assert materials[1]["processes"] == 2


# ------------------------------------------------------------------------------------------- ends


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def ids(home: Path) -> list[int]:
    """Of the three processes that exchange numbers, once all do."""

    def written() -> list[int]:
        return [int(text) for file in sorted(home.glob("work/*/*.pid")) if (text := file.read_text())]

    wait_until(lambda: len(written()) == 3, "all processes run")
    return written()


def run_and(end: Callable[[list[int]], None], home: Path, one: Stage, **options: Any) -> Outcome:
    """Runs a stage that exchanges numbers, and does `end` to its processes."""
    helper = threading.Thread(target=lambda: end(ids(home)))
    helper.start()
    try:
        return executors.run([one], Store.open(home), preload=PRELOAD, **options)
    finally:
        helper.join()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_ends_the_stage_and_leaves_none_behind(rank: int, tmp_path: Path) -> None:
    pids: list[int] = []

    def kill(found: list[int]) -> None:
        pids.extend(found)
        os.kill(found[rank], signal.SIGKILL)

    failure = run_and(kill, tmp_path, exchanging()).failures["exchange"]
    assert isinstance(failure, ResourceError)
    assert "was killed (SIGKILL)" in failure.message
    assert rank == 0 or "process 3 of 3" in failure.message
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")


def test_a_process_that_fails_ends_the_stage_with_its_story(tmp_path: Path) -> None:
    pids: list[int] = []
    failure = run_and(pids.extend, tmp_path, exchanging(raises=True)).failures["exchange"]
    assert isinstance(failure, StageFailedError)
    assert "ValueError: nothing to add" in failure.message
    assert "process 2 of 3" in failure.message
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")


def test_ctrl_c_ends_processes_that_wait_for_one_that_hangs(tmp_path: Path) -> None:
    pids: list[int] = []

    def hang(found: list[int]) -> None:
        pids.extend(found)
        os.kill(found[2], signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_and(hang, tmp_path, exchanging(), grace_s=0.5)
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_command(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.workbench.toy_driver", str(tmp_path), "exchange"]
    told = {**os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}  # as under a launcher, which is not asked
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=told)
    pids = ids(tmp_path)
    driver.send_signal(number)
    output, errors = driver.communicate(timeout=120)
    assert driver.returncode == -number, errors
    assert ('"interrupted"' in output) == (number == signal.SIGINT)
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")


def test_lopsided_gradients_are_added_up_and_weights_compared(tmp_path: Path) -> None:
    outcome = executors.run([exchanging("lopsided")], Store.open(tmp_path), preload=PRELOAD)
    assert not outcome.failures, outcome.tracebacks
    told = json.loads((outcome.artifacts["lopsided"].path / "gradients.json").read_text())
    assert told == [[6.0, 6.0], [3.0, 3.0], None]
