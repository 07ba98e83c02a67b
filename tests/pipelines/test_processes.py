"""Several processes give what one gives, resume exactly, and end together."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.ml_helpers import Log, build_world
from tests.pipelines.process_stages import CASES, stage
from workbench import evaluation, executors
from workbench.errors import ResourceError
from workbench.executors import Event, Outcome
from workbench.ranks import FOLDER
from workbench.stage_log import read_metrics
from workbench.stages import External, StageFailedError, key_material
from workbench.store import Store

PRELOAD = (*executors.TRAINING_PRELOAD, "trl.trainer.rloo_trainer", "trl.trainer.grpo_trainer")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("home"))


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
    stages = [
        stage("train", "train", {"cases": [*CASES, *(["ppo-interrupted"] if count == 2 else [])]}, given, count)
        for count in (1, 2)
    ]
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
    materials = [key_material(stage("train", "train", {}, {}, count), {}) for count in (1, 2)]
    assert "processes" not in materials[0], "keys of one process are those from before there could be several"
    assert materials[1]["processes"] == 2


# ------------------------------------------------------------------------------------------- ends


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def exchanging(store: Store, name: str, end: Callable[[list[int]], None] | None) -> tuple[Any, list[int]]:
    """Runs the loop with three processes, does `end` to their ids; returns the failure and the ids."""
    one = stage(name, "exchange", {"raises": end is None}, {}, 3)
    pids: list[int] = []
    works: list[Path] = []

    def hear(event: Event) -> None:
        if event.kind == "started" and event.path is not None:
            works.append(event.path.parent)

    def act() -> None:
        wait_until(lambda: works, "it started")
        files = [works[0] / "0.pid", *(works[0] / FOLDER / str(rank) / f"{rank}.pid" for rank in (1, 2))]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files), "all processes run")
        pids.extend(int(file.read_text()) for file in files)
        if end is not None:
            end(pids)

    helper = threading.Thread(target=act)
    helper.start()
    outcome = executors.run([one], store, preload=PRELOAD, on_event=hear)
    helper.join()
    assert len(pids) == 3
    return outcome.failures[one.instance], pids


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_ends_the_stage_and_leaves_none_behind(rank: int, store: Store) -> None:
    failure, pids = exchanging(store, f"killed-{rank}", lambda pids: os.kill(pids[rank], signal.SIGKILL))
    assert isinstance(failure, ResourceError)
    assert "was killed (SIGKILL)" in failure.message
    assert rank == 0 or "process 3 of 3" in failure.message
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")


def test_a_process_that_fails_ends_the_stage_with_its_story(store: Store) -> None:
    failure, pids = exchanging(store, "raises", None)
    assert isinstance(failure, StageFailedError)
    assert "ValueError: nothing to add" in failure.message
    assert "process 2 of 3" in failure.message
    wait_until(lambda: all(map(gone, pids)), "all processes are gone")
