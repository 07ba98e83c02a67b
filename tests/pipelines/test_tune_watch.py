"""Checkpoints are scored once a part, in order, while the arm trains; what a trial costs is counted however it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.tune_trial import Watch, is_death
from workbench.config_tuning import Tuning
from workbench.errors import ResourceError
from workbench.fsio import append_json, disk_full
from workbench.outcome import Event
from workbench.store import Store
from workbench.types import Cost
from workbench.worker import as_error, out_of_memory_advice

POLICY = "dpo[dpo,seed=1]"
KEY = "ab" * 32


class Scored:
    """Stands for the probe: remembers the folders that it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def scores(self, folder: Path) -> tuple[dict[str, float], Cost]:
        self.seen.append(folder.name)
        return {"p": float(len(self.seen))}, Cost(cpu_s=0.5)


def watch(home: Path, reports: list[Any], **pruner: Any) -> tuple[Watch, Scored]:
    probe, tuning = Scored(), Tuning(pruner=pruner)
    origin = SimpleNamespace(device="cpu")
    runner: Any = SimpleNamespace(tuning=tuning, store=Store(home), probe=lambda *_: probe, origin=origin)
    graph: Any = SimpleNamespace(arms={("dpo", 1): {"policy": POLICY, "generations": "generations[dpo]"}})
    return Watch(runner, graph, "dpo", 1, lambda rung, scores: reports.append((rung, scores))), probe


def progress(done: int) -> Event:
    return Event(kind="progress", instance=POLICY, name="dpo", key=KEY, done=done, total=100)


def keep(home: Path, step: int) -> None:
    (home / "work" / KEY / "policies" / f"step-{step:06d}").mkdir(parents=True)


def test_each_part_takes_the_first_checkpoint_after_it(tmp_path: Path) -> None:
    reports: list[Any] = []
    one, probe = watch(tmp_path, reports, kind="median", at=[0.25, 0.5, 0.75])
    keep(tmp_path, 10)
    one(progress(12))
    assert reports == []
    keep(tmp_path, 30)
    for done in (30, 31, 40):
        one(progress(done))
    assert (probe.seen, reports) == (["step-000030"], [(1, {"p": 1.0})])
    keep(tmp_path, 80)
    one(progress(80))
    assert probe.seen == ["step-000030", "step-000080", "step-000080"]
    assert [rung for rung, _ in reports] == [1, 2, 3]


def test_wilcoxon_looks_once_and_nobody_looks_at_the_end(tmp_path: Path) -> None:
    reports: list[Any] = []
    one, probe = watch(tmp_path, reports, kind="wilcoxon", at=[0.25, 0.5, 0.75])
    keep(tmp_path, 30)
    one(progress(30))
    assert probe.seen == []
    keep(tmp_path, 100)
    one(progress(100))  # nothing is left to save
    assert (probe.seen, reports) == ([], [])


@pytest.mark.parametrize("finished", [True, False])
def test_stages_are_charged_once_whether_they_ended_or_not(tmp_path: Path, finished: bool) -> None:
    one, _ = watch(tmp_path, [], kind="median", at=[0.25])
    keep(tmp_path, 30)
    one(Event(kind="started", instance="sft", name="sft", key="cd" * 32))
    one(Event(kind="started", instance=POLICY, name="dpo", key=KEY))
    append_json(
        tmp_path / "work" / KEY / "cost.jsonl",
        {"attempt": "a", "wall_s": 2.0, "cpu_s": 2.0, "gpu_s": 0.0, "peak_memory_bytes": 5},
    )
    one(progress(30))
    if finished:
        artifact: Any = SimpleNamespace(path=tmp_path)
        cost = Cost(cpu_s=3.0)
        one(Event(kind="finished", instance=POLICY, name="dpo", key=KEY, artifact=artifact, cost=cost))
    costs = one.costs()
    assert costs[KEY].cpu_s == (3.0 if finished else 2.0)
    assert sum(cost.cpu_s for cost in costs.values()) == costs[KEY].cpu_s + 0.5
    assert one.policy_key == KEY


@pytest.mark.parametrize("broken", ["an error", "a nan"])
def test_a_checkpoint_that_cannot_be_scored_is_told_and_charged(tmp_path: Path, broken: str) -> None:
    reports: list[Any] = []
    one, probe = watch(tmp_path, reports, kind="median", at=[0.25, 0.5])

    def scores(folder: Path) -> tuple[dict[str, float], Cost]:
        probe.seen.append(folder.name)
        sum(range(200_000))  # it takes a while to find out
        if broken == "an error":
            raise RuntimeError("no such layer\nin detail")
        return {"p": float("nan")}, Cost(cpu_s=0.5)

    probe.scores = scores  # type: ignore[method-assign]
    keep(tmp_path, 60)
    one(progress(60))
    one(progress(70))
    assert (probe.seen, reports) == (["step-000060"], [])  # once is enough
    assert one.warning is not None
    assert ("no such layer" if broken == "an error" else "finite") in one.warning
    assert "not pruned" in one.warning
    assert sum(cost.cpu_s for cost in one.costs().values()) > 0


def test_what_kills_one_trial_is_told_from_what_stops_them_all(tmp_path: Path) -> None:
    deaths = [
        as_error(MemoryError(), "dpo[dpo,seed=1]", tmp_path),
        as_error(RuntimeError("DefaultCPUAllocator: can't allocate memory"), "dpo", tmp_path),
        ResourceError(out_of_memory_advice("dpo's process was killed (SIGKILL), most likely because memory ran out")),
        ResourceError("dpo's process ended with signal SIGSEGV; its output is in log.txt."),
        ResourceError("the model does not fit the device: CUDA out of memory", where="x"),
    ]
    assert all(map(is_death, deaths))
    others = [disk_full("Running dpo", tmp_path), ResourceError("cannot start a worker")]
    assert not is_death(as_error(ValueError("x"), "dpo", tmp_path))
    assert not any(map(is_death, others))
