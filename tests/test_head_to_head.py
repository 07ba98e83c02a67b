"""The benchmark of the whole comparison in small: equal work on both sides, honest clocks, a page that is filled."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import config as datasets_config

from benchmarks import head_to_head as benchmark
from benchmarks.fill_performance import PAGE, fill
from benchmarks.head_to_head_plan import (
    critical_path,
    make_plan,
    read_records,
    scaled,
    scripts,
    step_of,
    work_of_ours,
    work_of_theirs,
)
from benchmarks.metered import Spent, metered
from benchmarks.slopes import exponent, of_repeats
from tests import bench
from workbench.config import Comparison, load_config

SCRIPTS = bench.ROOT / "benchmarks" / "scripts_today"


def raw(name: str = "quickstart") -> dict[str, Any]:
    return load_config(Path(name)).model_dump(mode="json")


def test_the_full_scale_is_the_config_itself_but_for_checkpoints_that_scripts_cannot_keep() -> None:
    whole, given = scaled(raw(), 1.0, with_ppo=True), raw()
    assert given["arms"]["dpo"]["checkpoint_at_steps"]
    for arm in given["arms"].values():  # which TRL's trainers do not know
        arm.update({name: [] for name in ("checkpoint_at_steps", "checkpoint_at_kl") if name in arm})
    assert whole == given


def test_a_small_scale_shrinks_steps_and_leaves_what_costs_per_step() -> None:
    small = Comparison.model_validate(scaled(raw(), 0.1, with_ppo=True)).model_dump(mode="json")
    assert small["sft"]["steps"] == 40
    assert small["arms"]["ppo"]["updates"] == 6
    assert small["data"]["pairs"] == 200
    assert small["evaluation"]["prompts"] == 26
    for path in (("arms", "ppo", "batch_size"), ("arms", "best_of_n", "n"), ("sft", "batch_size")):
        kept, given = small, raw()
        for name in path:
            kept, given = kept[name], given[name]
        assert kept == given


def test_without_trl_1_12_neither_side_has_ppo(tmp_path: Path) -> None:
    comparison = Comparison.model_validate(scaled(raw(), 0.1, with_ppo=False))
    assert "ppo" not in comparison.arms
    graph = benchmark.prepare(comparison, benchmark.Store.open(tmp_path))
    plan = make_plan(comparison, graph, {})
    assert "ppo" not in dict(scripts(plan))
    assert plan["policies"] == ["sft", "dpo", "dpo-0.1"]


@pytest.mark.slow
def test_the_scripts_do_as_many_steps_and_samples_as_the_workbench(
    smoke_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every script but PPO's runs, on the smoke config; ours is the smoke comparison that other tests look at."""
    comparison = Comparison.model_validate(scaled(raw("smoke"), 1.0, with_ppo=False))
    plan = benchmark.prepared(comparison, tmp_path, None)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    reports = {}
    for name, script in scripts(plan):
        monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "plan.json"), name])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        reports[name] = json.loads((tmp_path / f"{name}.json").read_text())
    sys.modules.pop("today")
    records = {name: one for name, one in read_records(smoke_home).items() if "[ppo," not in name}
    ours, theirs = work_of_ours(records, plan), work_of_theirs(reports, plan)
    assert ours == theirs
    assert theirs["best_of_n: samples"] == 16 * 8
    assert set(reports["evaluate"]["win_rates"]) == {"dpo", "best_of_n", "best_of_n-implicit"}
    assert all(0.0 <= low <= value <= high <= 1.0 for value, low, high in reports["evaluate"]["win_rates"].values())
    assert all(one["work_s"] > 0 for one in reports.values())


def test_every_stage_of_a_comparison_belongs_to_a_step(smoke_home: Path) -> None:
    steps = {step_of(record) for record in read_records(smoke_home).values()}
    assert {"sft", "pairs", "reference", "reward", "ppo", "dpo", "best_of_n", "evaluate", "measure"} <= steps


def test_unequal_work_is_seen() -> None:
    rows = benchmark.compared_work({"steps": 3, "samples": 8}, {"steps": 3, "samples": 7, "more": 1})
    assert [row["equal"] for row in rows] == [True, False, False]


def test_the_longest_chain_waits_for_its_slowest_input() -> None:
    def record(output: str, wall_s: float, *inputs: str) -> dict[str, Any]:
        return {"output": output, "inputs": {one: one for one in inputs}, "cost": {"wall_s": wall_s}}

    records = {"a": record("A", 1.0), "b": record("B", 5.0), "c": record("C", 2.5, "A", "B", "outside")}
    records["d"] = record("D", 6.0, "A")
    assert critical_path(records) == (7.5, ["b", "c"])
    records["d"] = record("D", 7.0, "A")
    assert critical_path(records) == (8.0, ["a", "d"])


def test_cpu_time_of_processes_that_outlive_their_parent_is_counted(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}], start_new_session=True)"
    out, errors = tmp_path / "out", tmp_path / "err"
    done = metered([sys.executable, "-c", parent], env=bench.environment(), stdout=out, stderr=errors)
    assert done.code == 0
    assert done.cpu_s >= 0.6


def test_a_side_that_fails_ends_the_benchmark_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "err").write_text("no such model")
    with pytest.raises(SystemExit, match="no such model"):
        benchmark.check(Spent(wall_s=1.0, cpu_s=1.0, code=2), "sft.py", tmp_path / "err")


def test_a_ratio_has_an_interval_from_three_runs_on() -> None:
    assert of_repeats([0.5, 0.6], geometric=True)["low"] is None
    found = of_repeats([0.4, 0.5, 0.625], geometric=True)
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] < 0.5 < found["high"]
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)


def figures() -> dict[str, Any]:
    step = {"stages": 1, "stage_wall_s": 1.0, "cpu_s": 1.0}
    ours = {
        "wall_s": 50.0, "cpu_s": 80.0, "workers": 2, "steps": {"sft": step}, "outside_stages_cpu_s": 20.0,
        "critical_path": ["sft", "measure"], "critical_path_s": 30.0, "stages_over_workers_s": 35.0,
        "win_rates": {"dpo": [0.8, 0.7, 0.9]},
    }  # fmt: skip
    script = {"wall_s": 100.0, "cpu_s": 90.0, "imports_s": 5.0, "threads": 2}
    theirs = {"wall_s": 100.0, "cpu_s": 90.0, "steps": {"sft": script}, "win_rates": {"dpo": [0.75, 0.7, 0.8]}}
    run = {
        "order": "ours-first", "load_before": 0.1, "ours": ours, "theirs": theirs, "ratio_wall": 0.5, "ratio_cpu": 0.9,
        "work": [{"what": "sft: optimizer steps", "ours": 400, "theirs": 400, "equal": True}],
    }  # fmt: skip
    return {
        "benchmark": "head_to_head", "config": "quickstart", "scale": 0.5, "with_ppo": True, "cores": 2,
        "versions": {"torch": "1"}, "probe": {"work_s": {"sft": {"1": 3.0, "2": 2.0}}}, "runs": [run],
        "ratio_wall": of_repeats([0.5], geometric=True), "ratio_cpu": of_repeats([0.9], geometric=True), "goal": 0.6,
    }  # fmt: skip


def test_the_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    assert fill(page, figures()) == 7
    text = page.read_text()
    assert "| CPU | 1 min 20 s | 1 min 30 s | 0.90 |" in text
    assert "a try, not the result" in text
    assert fill(page, figures()) == 7
    assert page.read_text() == text


def test_what_people_read_names_both_sides() -> None:
    told = benchmark.told(figures() | {"equal_work": True})
    assert "ours: 50.0 s wall" in told
    assert "0.50 (goal 0.6)" in told


@pytest.mark.parametrize("words", [["--scale", "0"], ["--scale", "2"], ["--against-trl", "/nowhere"]])
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.parse(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_clock_is_the_wall(tmp_path: Path) -> None:
    start = time.monotonic()
    code = [sys.executable, "-c", "import time; time.sleep(0.3)"]
    done = metered(code, env=bench.environment(), stdout=tmp_path / "out", stderr=tmp_path / "err")
    assert 0.3 <= done.wall_s <= time.monotonic() - start
