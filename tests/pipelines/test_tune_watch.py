"""Checkpoints are scored once a part, in order, while the arm trains; what a trial costs is counted however it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.tune_trial import Watch
from workbench.config_tuning import Tuning
from workbench.fsio import append_json
from workbench.outcome import Event
from workbench.store import Store
from workbench.types import Cost

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
    runner: Any = SimpleNamespace(tuning=tuning, store=Store(home), probe=lambda *_: probe)
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
