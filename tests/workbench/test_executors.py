"""The executor: order, failures, kills, resumes, and two drivers on one store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # toy stages are named "tests.workbench.toy_stages:..." wherever pytest is started

from tests.bench import gone  # noqa: E402
from tests.workbench.toy_stages import number, stage, walk  # noqa: E402
from workbench import executors, worker_pool  # noqa: E402
from workbench.errors import BusyError, ConfigError, DataError, ResourceError  # noqa: E402
from workbench.executors import Event, Outcome  # noqa: E402
from workbench.locks import key_lock  # noqa: E402
from workbench.stage_log import read_metrics  # noqa: E402
from workbench.stages import External, Resources, Stage, StageFailedError, plan  # noqa: E402
from workbench.store import Store  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


def run(stages: list[Stage], store: Store, **options: Any) -> Outcome:
    return executors.run(stages, store, preload=(), **{"workers": 2, **options})


def driver(store: Store, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.workbench.toy_driver", str(store.home), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def read_until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        row: dict[str, Any] = json.loads(line)
        if wanted(row):
            return row
    raise AssertionError(f"the driver ended early: {process.stderr.read() if process.stderr else ''}")


def steps_done(store: Store) -> int:
    key = plan([walk(60)], store)[0].key
    assert key is not None
    return sum(1 for _ in read_metrics(store.work(key) / "metrics.jsonl"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """Content and metrics of the walk that nothing disturbed."""
    store = Store.open(tmp_path_factory.mktemp("reference"))
    artifact = run([walk(60)], store).artifacts["walk[60]"]
    return artifact.content, [(row["step"], row["values"]) for row in read_metrics(artifact.metrics_path)]


def assert_undisturbed(store: Store, reference: tuple[str, list[Any]]) -> None:
    artifact = run([walk(60)], store).artifacts["walk[60]"]
    rows = [(row["step"], row["values"]) for row in read_metrics(artifact.metrics_path)]
    assert (artifact.content, rows) == reference
    assert not store.work(artifact.key).exists()


# --- in order, side by side ------------------------------------------------------------------------------------------


def test_graph_runs_once_and_second_run_does_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = [
        number("ppo", 5, rm="rm", sft="sft"),
        number("rm", 4, sft="sft"),
        number("sft", 2, data="data"),
        number("data", 1, inline=True),
    ]
    events: list[Event] = []
    outcome = run(graph, store, on_event=events.append)
    assert outcome.ok
    assert outcome.exit_code == 0
    assert (outcome.artifacts["ppo"].path / "number").read_text() == "15.0"
    assert not any(outcome.cached.values())
    record = outcome.records["rm"]
    assert record.inputs == {"sft": outcome.artifacts["sft"].content}
    assert record.cost.tokens_trained == 10
    assert 0 < record.cost.wall_s < 10
    assert record.cost.peak_memory_bytes > 1_000_000
    assert [e.kind for e in events][:4] == ["planned"] * 4
    of_rm = [e.kind for e in events if e.instance == "rm"]
    assert of_rm[0] == "planned"
    assert of_rm[-1] == "finished"
    assert "metrics" in of_rm
    assert sorted(store.keys()) == sorted(outcome.keys.values())
    assert list((store.home / "work").iterdir()) == []

    monkeypatch.setattr(worker_pool, "start", lambda job: pytest.fail("a worker was started"))
    monkeypatch.setattr(worker_pool, "start_forkserver", lambda *_: pytest.fail("the forkserver was started"))
    executors.warm_up(graph, store)
    again = run(graph, store)
    assert again.ok
    assert all(again.cached.values())
    assert {i: a.content for i, a in again.artifacts.items()} == {i: a.content for i, a in outcome.artifacts.items()}
    assert again.records["rm"].cost == record.cost


def test_work_that_nobody_waits_for_is_done_in_pieces_while_workers_compute(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | float] = []
    listen = worker_pool.listen

    def between() -> bool:
        seen.append("piece")
        return seen.count("piece") < 3

    def listened(workers: Any, timeout_s: float) -> None:
        seen.append(timeout_s)
        listen(workers, timeout_s)

    monkeypatch.setattr(worker_pool, "listen", listened)
    outcome = run([number("sft", 1)], store, on_event=lambda event: seen.append(event.kind), between=between)
    assert outcome.ok
    # All that may start has been started, and news are looked for after each piece.
    assert seen[:8] == ["planned", "started", "piece", 0.0, "piece", 0.0, "piece", executors.TICK_S]


def test_what_fails_between_two_looks_at_the_workers_fails_no_run(store: Store) -> None:
    def between() -> bool:
        raise RuntimeError("no server")

    assert run([number("sft", 1)], store, between=between).ok


def test_warming_up_starts_the_forkserver_for_what_a_worker_will_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, tuple[str, ...]]] = []
    monkeypatch.setattr(worker_pool, "start_forkserver", lambda threads, preload: started.append((threads, preload)))
    executors.warm_up([number("data", 1, inline=True)], store)
    assert started == []
    executors.warm_up([number("data", 1, inline=True), number("sft", 2, data="data")], store)
    assert started == [(1, worker_pool.TRAINING_PRELOAD)]


def test_workers_have_a_session_threads_and_seeds_of_their_own(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    one = stage("report_environment", "env")
    other = replace(one, instance="env[2]", resources=Resources(threads=2))
    outcome = run([one, other], store, threads=4)
    found = [json.loads((a.path / "found.json").read_text()) for a in outcome.artifacts.values()]
    assert all(row["session"] == row["pid"] != os.getpid() for row in found)
    assert {row["threads"] for row in found} == {"1", "2"}
    assert found[0]["random"] == found[1]["random"]
    assert found[0]["hash"] == found[1]["hash"]  # the order of sets is the same in every worker
    assert not any(row["torch"] for row in found)
    assert "must not reach" not in capfd.readouterr().out


def test_threads_workers_and_gpus_limit_what_runs_side_by_side(store: Store) -> None:
    def spans(tag: str, resources: Resources, **options: Any) -> bool:
        stages = [
            replace(stage("note_time", f"{tag}{n}", sleep_s=0.2), seed=n, cosmetic={"tag": tag}, resources=resources)
            for n in range(2)
        ]
        stages = [replace(one, config={**one.config, "tag": tag}) for one in stages]
        outcome = run(stages, store, **options)
        a, b = (json.loads((x.path / "span.json").read_text()) for x in outcome.artifacts.values())
        return bool(a[0] < b[1] and b[0] < a[1])

    assert spans("free", Resources(threads=2), workers=2)
    assert not spans("one worker", Resources(), workers=1)
    assert not spans("threads", Resources(threads=2), workers=2, threads=3)
    assert not spans("gpu", Resources(gpus=1), workers=2)
    assert not spans("memory", Resources(memory_bytes=10**15), workers=2)


def test_two_instances_of_one_key_are_built_once(store: Store) -> None:
    a, b = stage("note_time", "a", sleep_s=0.1), stage("note_time", "b", sleep_s=0.1)
    outcome = run([a, b], store)
    assert list(outcome.cached.values()) == [False, True]
    assert outcome.why["b"] == "cached: the same as a"
    assert outcome.artifacts["a"] == outcome.artifacts["b"]


def test_listener_that_fails_kills_nothing(store: Store) -> None:
    def bad(event: Event) -> None:
        raise RuntimeError("the tracking server is down")

    assert run([number("a", 1), number("b", 1, inline=True, a="a")], store, on_event=bad).ok


def test_more_record_fields(store: Store) -> None:
    one = number("a", 1, inline=True)
    outcome = run([one], store, record_fields=lambda stage: {"mlflow_run_id": f"run of {stage.instance}"})
    assert outcome.records["a"].mlflow_run_id == "run of a"
    assert store.fetch(outcome.keys["a"]).record.mlflow_run_id == "run of a"


# --- failures --------------------------------------------------------------------------------------------------------


ENDINGS: list[tuple[str, type, int, str]] = [
    ("value", StageFailedError, 1, "ValueError: seven is not a prime"),
    ("data", DataError, 2, "pairs.jsonl:3: row 3 is empty"),
    ("memory", ResourceError, 3, "same effective batch"),
    ("disk", ResourceError, 3, "no space left"),
    ("nothing", StageFailedError, 1, "without writing a file"),
    ("sigkill", ResourceError, 3, "memory ran out"),
    ("abort", ResourceError, 3, "SIGABRT"),
]


@pytest.mark.parametrize(
    ("how", "kind", "exit_code", "message", "inline"),
    [
        (*case, inline)
        for inline in (False, True)
        for case in ENDINGS
        if not (inline and case[0] in ("sigkill", "abort"))  # those would end the test's own process
    ],
)
def test_failures(store: Store, how: str, kind: type, exit_code: int, message: str, inline: bool) -> None:
    bad = stage("misbehave", "bad", how=how, inline=inline)
    graph = [bad, number("child", 1, bad="bad"), number("grandchild", 1, child="child"), number("free", 1)]
    outcome = run(graph, store)
    error = outcome.failures["bad"]
    assert type(error) is kind
    assert message in str(error)
    assert error.exit_code == outcome.exit_code == exit_code
    assert outcome.skipped == {
        "child": "needs bad, which failed",
        "grandchild": "needs child, which was skipped",
    }
    assert list(outcome.artifacts) == ["free"]
    assert not outcome.ok
    with pytest.raises(kind):
        outcome.raise_if_failed()
    if how == "value":
        assert "in misbehave" in outcome.tracebacks["bad"]
        assert isinstance(error, StageFailedError)
        assert error.remote_traceback == outcome.tracebacks["bad"]
    # Nothing partial is in the store; what the stage keeps for a resume is.
    key = plan([bad], store)[0].key
    assert key is not None
    assert not store.has(key)
    assert not (store.work(key) / "out").exists()
    assert (store.work(key) / "checkpoint-of-my-own").exists()
    assert key_lock(store.home, key, "").try_acquire()


def test_not_keeping_going(store: Store) -> None:
    graph = [stage("misbehave", "bad", how="value", inline=True), number("later", 1, inline=True)]
    outcome = run(graph, store, keep_going=False)
    assert outcome.skipped == {"later": "not started after bad failed"}


def test_input_that_changes_while_a_stage_runs_is_not_committed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("one\n")
    one = stage("misbehave", "edit", how="edit")
    one = replace(one, inputs={"file": External(path=str(path), digest=store.hash_path(path))})
    outcome = run([one], store)
    assert isinstance(outcome.failures["edit"], DataError)
    assert "changed while it ran" in str(outcome.failures["edit"])
    assert store.keys() == []
    outcome = run([one], store)
    assert "changed since the run was planned" in str(outcome.failures["edit"])


def test_code_that_changes_after_planning_is_not_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = executors.plan

    def plan_on_older_code(*args: Any) -> Any:
        planned = real(*args)
        for one in planned:
            one.material["modules"]["tests.workbench.toy_stages"] = "older"
        return planned

    monkeypatch.setattr(executors, "plan", plan_on_older_code)
    outcome = run([number("a", 1)], store)
    assert isinstance(outcome.failures["a"], ConfigError)
    assert "changed since this run was planned" in str(outcome.failures["a"])


def test_full_disk_at_commit_keeps_the_work_folder_and_resumes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("workbench.store.write_manifest", full)
        outcome = run([walk(20), number("free", 1, walk="walk[20]")], store)
    assert outcome.exit_code == 3
    assert "no space left" in str(outcome.failures["walk[20]"])
    assert list(outcome.skipped) == ["free"]
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".tmp")] == []
    said: list[str] = []
    outcome = run([walk(20)], store, on_event=lambda event: said.append(event.message))
    assert outcome.ok
    assert "resumed at 20" in said


def test_too_little_space_is_found_before_the_stage_starts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(number("a", 1), resources=Resources(disk_bytes=10**18))
    outcome = run([one], store)
    assert isinstance(outcome.failures["a"], ResourceError)
    assert "needs about" in str(outcome.failures["a"])


def test_corrupt_input_is_rebuilt_in_the_same_run(store: Store) -> None:
    graph = [number("a", 1), number("b", 1, a="a")]
    first = run(graph, store)
    (first.artifacts["a"].path / "number").write_text("2.0")
    outcome = run(graph, store)
    assert outcome.cached == {"a": False, "b": True}
    assert outcome.why["a"].startswith("artifact was corrupt and quarantined")
    assert len(list((store.root / "quarantine").iterdir())) == 1


# --- kills and resumes -----------------------------------------------------------------------------------------------


def test_killed_worker_is_named_and_resumes_to_the_same_bits(store: Store, reference: tuple[str, list[Any]]) -> None:
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.kind == "progress" and event.done >= 12 and not killed:
            child = multiprocessing.active_children()[0]
            assert child.pid is not None
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)

    outcome = run([walk(60, sleep_s=0.1)], store, on_event=kill)  # slow enough to be hit before step 15, a checkpoint
    assert isinstance(outcome.failures["walk[60]"], ResourceError)
    assert gone(killed[0])
    assert_undisturbed(store, reference)
    # The steps of the killed attempt cost what they cost.
    assert run([walk(60)], store).records["walk[60]"].cost.tokens_trained > 60


def test_killed_driver_takes_its_worker_along_and_frees_its_lock(
    store: Store, reference: tuple[str, list[Any]]
) -> None:
    process = driver(store, "walk")
    read_until(process, lambda row: row["kind"] == "progress" and row["done"] >= 12)
    process.kill()
    process.communicate()
    key = plan([walk(60)], store)[0].key
    assert key is not None
    lock = key_lock(store.home, key, "")
    assert lock.try_acquire()
    lock.release()
    time.sleep(0.1)
    before = steps_done(store)
    time.sleep(0.2)
    assert 12 <= steps_done(store) == before < 60  # no orphan writes on
    assert_undisturbed(store, reference)


def test_killed_driver_takes_its_workers_children_along(store: Store) -> None:
    process = driver(store, "child")
    read_until(process, lambda row: row["kind"] == "started")
    wait_until(lambda: list((store.home / "work").glob("*/pids.json")), "the worker started its child")
    pids = json.loads(next((store.home / "work").glob("*/pids.json")).read_text())
    process.kill()
    process.communicate()
    wait_until(lambda: all(gone(pid) for pid in pids), "worker and child are gone")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_signal_checkpoints_and_ends(
    store: Store, reference: tuple[str, list[Any]], number: signal.Signals, code: int
) -> None:
    process = driver(store, "walk")
    read_until(process, lambda row: row["kind"] == "progress" and row["done"] >= 12)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    assert '"interrupted"' in output
    newest = max(int(path.name[5:]) for path in (store.home / "work").glob("*/checkpoints/step-*"))
    assert newest == steps_done(store)  # nothing was lost, whatever the checkpoint interval
    assert newest < 60
    assert_undisturbed(store, reference)


def test_ctrl_c_ends_an_inline_stage_at_once(store: Store) -> None:
    process = driver(store, "inline")
    read_until(process, lambda row: row["kind"] == "started")
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - begin < 5


def test_second_ctrl_c_does_not_wait(store: Store) -> None:
    process = driver(store, "child")  # never looks at stop_requested
    read_until(process, lambda row: row["kind"] == "started")
    wait_until(lambda: list((store.home / "work").glob("*/pids.json")), "the worker started its child")
    pids = json.loads(next((store.home / "work").glob("*/pids.json")).read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    wait_until(lambda: all(gone(pid) for pid in pids), "worker and child are gone")


def test_grace_ends(store: Store) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "started":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.getsignal(signal.SIGINT)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([stage("note_time", "deaf", sleep_s=60)], store, grace_s=0.5, on_event=interrupt)
    assert time.monotonic() - begin < 10
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is before


# --- two drivers on one store ----------------------------------------------------------------------------------------


def test_second_driver_waits_and_gets_the_hit_or_is_busy(store: Store, reference: tuple[str, list[Any]]) -> None:
    first = driver(store, "walk")
    read_until(first, lambda row: row["kind"] == "progress")
    second = driver(store, "fast-walk", "60")

    begin = time.monotonic()
    outcome = run([walk(60), number("free", 1)], store)
    busy = outcome.failures["walk[60]"]
    assert isinstance(busy, BusyError)
    assert outcome.exit_code == 75
    assert f"pid {first.pid}" in str(busy)
    assert "walk[60]" in str(busy)
    assert list(outcome.artifacts) == ["free"]
    assert time.monotonic() - begin < 5
    with pytest.raises(BusyError, match=f"pid {first.pid}"):
        store.gc(set())

    waited = read_until(second, lambda row: "content" in row)
    second.communicate(timeout=20)
    first.communicate(timeout=20)
    assert (first.returncode, second.returncode) == (0, 0)
    assert waited["content"] == {"walk[60]": reference[0]}
    assert waited["cached"] == {"walk[60]": True}
    assert waited["why"] == {"walk[60]": "cached: built meanwhile by another process"}


def test_waiting_ends(store: Store) -> None:
    one = number("a", 1)
    key = plan([one], store)[0].key
    assert key is not None
    lock = key_lock(store.home, key, "a")
    lock.acquire()
    kinds: list[str] = []
    begin = time.monotonic()
    outcome = run([one], store, wait_s=0.5, on_event=lambda event: kinds.append(event.kind))
    assert 0.5 <= time.monotonic() - begin < 5
    assert isinstance(outcome.failures["a"], BusyError)
    assert kinds == ["planned", "waiting", "failed"]


def test_live_worker_of_a_dead_driver_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's lock is free, but somebody still writes in the scratch folder."""
    from workbench import worker
    from workbench.locks import FileLock

    one = number("a", 1, inline=True)
    key = plan([one], store)[0].key
    assert key is not None
    orphan = FileLock(store.work(key) / "worker.lock", label="a")
    orphan.acquire()
    monkeypatch.setattr(worker, "ORPHAN_WAIT_S", 0.2)
    outcome = run([one], store)
    assert isinstance(outcome.failures["a"], BusyError)
    orphan.release()
    assert run([one], store).ok
