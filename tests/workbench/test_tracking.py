"""Tracking: what is logged, and that a dead, hanging or refusing server costs neither the comparison nor the data."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from results_example import estimate, results

from workbench import tracking_crossed as crossed
from workbench import tracking_names as names
from workbench.redact import redact, redact_text
from workbench.tracking import Tracker, default_uri
from workbench.tracking_delivery import Limits
from workbench.tracking_moved import adopt_home
from workbench.tracking_spool import Spool, probe
from workbench.tracking_stage import OpenStage
from workbench.types import Cost, StageRecord

CONFIG = {"name": "t", "arms": {"ppo": {"kl_coef": 0.1}}, "model": {"policy": "hub/model"}}


def record(instance: str = "ppo[ppo,seed=0]", key: str = "k" * 64, **changes: Any) -> StageRecord:
    fields: dict[str, Any] = {
        "key": key,
        "name": "ppo",
        "instance": instance,
        "version": 1,
        "config": {"kl_coef": 0.1, "nested": {"updates": 5}},
        "inputs": {"sft": "a" * 64, "reward_model": "b" * 64},
        "output": "c" * 64,
        "seed": 7,
        "commit": None,
        "dirty": None,
        "packages": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 1,
        "dtype": "float32",
        "cost": Cost(wall_s=2.5, tokens_trained=100),
        "finished_unix_s": 1_700_000_100.0,
    }
    return StageRecord(**(fields | changes))


def write_metrics(path: Path, steps: range, mode: str = "a") -> None:
    with open(path, mode) as file:
        for step in steps:
            values = {"score": step * 0.5, "loss[main]": 1.0 / (step + 1)}
            file.write(json.dumps({"step": step, "unix_s": 1_700_000_000.0 + step, "values": values}) + "\n")


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def drive(tracker: Tracker, folder: Path, in_the_middle: Callable[[], object] = lambda: None) -> None:
    """A small comparison: one reused stage, one that runs, figures and results."""
    metrics, figure = folder / "metrics.jsonl", folder / "frontier.png"
    figure.write_bytes(b"png")
    tracker.stage_reused(record(instance="sft", key="s" * 64))
    tracker.stage_started("ppo[ppo,seed=0]", "ppo", {"kl_coef": 0.1})
    write_metrics(metrics, range(3), "w")
    tracker.stage_metrics("ppo[ppo,seed=0]", metrics, every_s=0.0)
    in_the_middle()
    write_metrics(metrics, range(3, 5))
    tracker.stage_finished(record(), metrics)
    tracker.finish(results(), [figure], note="**verdict**")


def check(uri: str, experiment: str = "t") -> None:
    """What `drive` must leave in a store, exactly once."""
    store = client(uri)
    found = store.get_experiment_by_name(experiment)
    runs = store.search_runs([found.experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 2
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert parent.data.metrics["win_rate/ppo"] == pytest.approx(0.71)
    assert parent.data.metrics["win_rate_low/ppo"] < 0.71 < parent.data.metrics["win_rate_high/ppo"]
    assert parent.data.metrics["match/ok"] == 1.0
    assert parent.data.tags["match.ok"] == "true"
    assert parent.data.params["arms.ppo.kl_coef"] == "0.1"
    assert "**verdict**" in parent.data.tags["mlflow.note.content"]
    assert "| sft |" in parent.data.tags["mlflow.note.content"]
    (child,) = children
    assert child.data.params["nested.updates"] == "5"
    assert child.data.metrics["cost/wall_s"] == 2.5
    assert {entry.dataset.name: entry.dataset.digest for entry in child.inputs.dataset_inputs} == {
        "sft": "a" * 36,
        "reward_model": "b" * 36,
    }
    for key in ("score", "loss_main"):
        history = store.get_metric_history(child.info.run_id, key)
        assert [point.step for point in sorted(history, key=lambda point: point.step)] == [0, 1, 2, 3, 4]
    paths = {item.path for item in store.list_artifacts(parent.info.run_id)}
    assert {"config.json", "match.json", "figures"} <= paths


def test_logs_a_comparison_and_its_stages(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    tracker = Tracker.open(None, home, "t", CONFIG, {"host": "here"}, warn=said.append)
    assert tracker.describe()["run_id"] is not None
    drive(tracker, tmp_path)
    check(default_uri(home))
    assert said == []
    assert capfd.readouterr().out == ""  # stdout belongs to --json
    assert list((home / "spool").iterdir()) == []


def test_first_open_leaves_nothing_in_the_working_directory(mlflow_template: Path) -> None:
    assert (
        client(default_uri(mlflow_template))
        .get_experiment("0")
        .artifact_location.startswith(mlflow_template.resolve().as_uri())
    )
    assert not (mlflow_template / "mlflow.db.new").exists()


def test_reused_stage_links_to_the_run_that_made_it(home: Path, tmp_path: Path) -> None:
    first = Tracker.open(None, home, "t", CONFIG)
    first.stage_started("ppo[ppo,seed=0]", "ppo", {})
    made_by = first.stage_run("ppo[ppo,seed=0]")
    first.stage_finished(record())
    first.finish(None)
    for known in (made_by, None, "f" * 32):  # in the record, missing, of another server
        second = Tracker.open(None, home, f"again-{known}", CONFIG)
        second.stage_reused(record(mlflow_run_id=known))
        second.finish(None)
        store = client(default_uri(home))
        assert second.run_id is not None
        parent = store.get_run(second.run_id)
        assert parent.data.tags["reused"] == "1 stages"
        assert (
            store.get_experiment(parent.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
        )
        reused = Path(store.download_artifacts(second.run_id, "reused.json", str(tmp_path))).read_text()
        assert json.loads(reused) == {"ppo[ppo,seed=0]": made_by}
        assert f"/runs/{made_by}" in parent.data.tags["mlflow.note.content"]
        assert len(store.search_runs([parent.info.experiment_id])) == 1


def test_resumed_stage_sends_each_step_once(home: Path, tmp_path: Path) -> None:
    tracker = Tracker.open(None, home, "t", CONFIG)
    tracker.stage_started("ppo[ppo,seed=0]", "ppo", {})
    run_id = tracker.stage_run("ppo[ppo,seed=0]")
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, range(4), "w")
    tracker.stage_metrics("ppo[ppo,seed=0]", metrics, every_s=0.0)
    shorter = tmp_path / "new.jsonl"  # a resume drops the lines after its checkpoint, then computes them again
    write_metrics(shorter, range(2), "w")
    shorter.replace(metrics)
    with open(metrics, "a") as file:
        for step in range(2, 6):
            file.write(json.dumps({"step": step, "unix_s": 1_800_000_000.0, "values": {"score": step * 0.5}}) + "\n")
        file.write('{"step": 6, "unix_s": 18000')
    tracker.stage_finished(record(), metrics)
    tracker.finish(None)
    steps = [point.step for point in client(default_uri(home)).get_metric_history(run_id, "score")]
    assert sorted(steps) == [0, 1, 2, 3, 4, 5]


def test_a_stage_that_ends_is_told_in_one_call(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    calls: list[dict[str, int]] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, **parts: Any) -> Any:
        calls.append({name: len(part) for name, part in parts.items()})
        return log_batch(self, run_id, **parts)

    tracker = Tracker.open(None, home, "t", CONFIG)
    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    tracker.stage_started("ppo[ppo,seed=0]", "ppo", {"kl_coef": 0.1})
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, range(4), "w")
    tracker.stage_metrics("ppo[ppo,seed=0]", metrics)  # a moment after it began: its end may be as near
    assert calls == []
    tracker.stage_finished(record(), metrics)
    (call,) = calls
    assert call["metrics"] >= 8 + 8
    assert call["params"] >= 2 + 5
    assert call["tags"] >= 5
    tracker.finish(None)


def test_what_waits_of_a_stage_is_told_once_and_in_parts_that_mlflow_takes() -> None:
    stage = OpenStage("r", {"kl_coef": "0.1"})
    assert [one.get("params") for one in stage.take()] == [{"kl_coef": "0.1"}]
    assert list(stage.take()) == []
    stage.tags["kind"] = "stage"
    stage.metrics = [("score", 0.0, 0, step) for step in range(2500)]
    parts = list(stage.take())
    assert [len(one["metrics"]) for one in parts] == [800, 800, 800, 100]
    assert [one.get("tags") for one in parts] == [{"kind": "stage"}, None, None, None]
    assert list(stage.take()) == []


def test_failed_stage_and_what_was_still_running(home: Path) -> None:
    tracker = Tracker.open(None, home, "t", CONFIG)
    tracker.stage_started("ppo", "ppo", {})
    tracker.stage_started("dpo", "dpo", {"beta": 0.3})
    failed, other = tracker.stage_run("ppo"), tracker.stage_run("dpo")
    tracker.stage_failed("ppo", "NaN in the loss at step 3")
    tracker.finish(None, status="FAILED")
    store = client(default_uri(home))
    assert store.get_run(failed).info.status == "FAILED"
    assert "NaN" in store.get_run(failed).data.tags["workbench.error"]
    assert store.get_run(other).info.status == "KILLED"
    assert store.get_run(other).data.params == {"beta": "0.3"}
    assert tracker.run_id is not None
    assert store.get_run(tracker.run_id).info.status == "FAILED"


def test_what_a_signal_ended_in_the_middle_is_sent_again_and_is_there_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import tracking

    apply = tracking.Server.apply

    def ended(self: Any, operation: dict[str, Any]) -> None:
        apply(self, operation)
        raise KeyboardInterrupt

    tracker = Tracker.open(None, home, "t", CONFIG)
    tracker.put_off()
    tracker.stage_started("ppo", "ppo", {})
    monkeypatch.setattr(tracking.Server, "apply", ended)
    with pytest.raises(KeyboardInterrupt):
        tracker.send_one()
    monkeypatch.setattr(tracking.Server, "apply", apply)
    tracker.finish(None, status="KILLED")
    store = client(default_uri(home))
    runs = store.search_runs([store.get_experiment_by_name("t").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED", "KILLED"]  # the comparison and one stage


def test_next_open_ends_the_runs_of_a_killed_driver(home: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from workbench.tracking import Tracker\n"
        "t = Tracker.open(None, Path(sys.argv[1]), 't', {}); t.stage_started('ppo', 'ppo', {})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(home)], check=False, timeout=120)
    store = client(default_uri(home))
    experiment = store.get_experiment_by_name("t").experiment_id
    assert {run.info.status for run in store.search_runs([experiment])} == {"RUNNING"}
    live = Tracker.open(None, home, "other", {})
    assert {run.info.status for run in store.search_runs([experiment])} == {"KILLED"}
    Tracker.sync(home)  # the live one is left alone
    assert live.run_id is not None
    assert store.get_run(live.run_id).info.status == "RUNNING"
    live.finish(None)


def test_secrets_and_long_values_do_not_reach_the_store(home: Path) -> None:
    config = {
        "hub_token": "hf_" + "a" * 30,
        "data": {"preferences": "https://me:pw@host/x?token=abc"},
        "long": "x" * 9000,
    }
    tracker = Tracker.open(None, home, "t", config, {"uri": "http://me:pw@h"})
    tracker.finish(None)
    assert tracker.run_id is not None
    run = client(default_uri(home)).get_run(tracker.run_id)
    text = json.dumps([run.data.params, run.data.tags])
    assert run.data.params["hub_token"] == "***"
    assert "pw@" not in text
    assert "abc" not in text
    assert len(run.data.params["long"]) == names.MAX_PARAM_VALUE


def test_a_stages_parameters_tell_where_it_ran() -> None:
    told = names.record_params(dataclasses.asdict(record(processes=2)))
    assert {name: value for name, value in told.items() if name.startswith("stage.")} == {
        "stage.seed": "7", "stage.version": "1", "stage.device": "cpu", "stage.threads": "1", "stage.processes": "2",
        "stage.dtype": "float32",
    }  # fmt: skip


def test_redaction_knows_tokens_from_tokens() -> None:
    plain = {"stop_token_ids": [1], "max_response_tokens": 48, "pad_token": "<pad>", "note": "two tokens = fine"}
    assert redact(plain) == plain
    assert redact({"apiKey": "k", "deep": [{"password": "p"}]}) == {"apiKey": "***", "deep": [{"password": "***"}]}
    assert redact_text("GET http://u:p@h/a?sig=zz&x=1 Bearer abcdefghij") == "GET http://***@h/a?sig=***&x=1 Bearer ***"


def test_disabled_tracker_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drive(Tracker.disabled("t"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"frontier.png", "metrics.jsonl"}


def test_refused_value_is_kept_apart_and_the_rest_goes_on(home: Path) -> None:
    said: list[str] = []
    tracker = Tracker.open(None, home, "t", {"a": 1}, warn=said.append)
    tracker.stage_started("ppo", "ppo", {"kl_coef": 0.1})
    tracker.stage_metrics("ppo", home / "none.jsonl", every_s=0.0)
    stage = tracker.stage_run("ppo")
    tracker.stage_finished(record(instance="ppo", config={"kl_coef": 0.9}))  # MLflow: a parameter cannot change
    tracker.finish(results())
    store = client(default_uri(home))
    assert store.get_run(stage).data.metrics["cost/wall_s"] == 2.5
    assert store.get_run(stage).data.tags["workbench.output"] == "c" * 64
    assert tracker.run_id is not None
    assert store.get_run(tracker.run_id).data.metrics["win_rate/ppo"] == pytest.approx(0.71)
    assert len(said) == 1
    assert "refused" in said[0]
    (kept,) = (home / "spool").glob("*.rejected")
    assert "kl_coef" in kept.read_text()


def test_what_is_refused_of_an_operation_costs_its_own_kind_alone(home: Path) -> None:
    said: list[str] = []
    tracker = Tracker.open(None, home, "t", {"a": 1}, warn=said.append)
    points = [("score", float(step), 1_700_000_000_000, step) for step in range(2000)]
    told = {"params": {"a": "2"}, "tags": {"mine": "yes"}, "metrics": points}
    tracker._send({"op": "batch", "ref": tracker.ref} | told)
    run = tracker.run_id
    assert run is not None
    tracker.finish(None)
    store = client(default_uri(home))
    assert len(store.get_metric_history(run, "score")) == 2000
    assert store.get_run(run).data.tags["mine"] == "yes"
    assert store.get_run(run).data.params["a"] == "1"
    assert len(said) == 1
    assert "refused" in said[0]


def test_a_long_curve_is_sent_in_parts_that_have_deadlines_of_their_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    tracker = Tracker.open(None, home, "t", {})
    tracker.stage_started("ppo", "ppo", {})
    monkeypatch.setattr(Tracker, "_send", lambda _, operation: sent.append(len(operation.get("metrics", ()))))
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, range(2000))
    tracker.stage_metrics("ppo", metrics, every_s=0.0)
    assert sent == [800] * 5
    monkeypatch.undo()
    tracker.finish(None)


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["closed", "hanging", "unknown host"])
def test_dead_server_is_warned_about_once_and_costs_little(kind: str, hanging_port: int, tmp_path: Path) -> None:
    host = {"closed": f"127.0.0.1:{closed_port()}", "hanging": f"127.0.0.1:{hanging_port}"}.get(kind, "nowhere.invalid")
    said: list[str] = []
    start = time.monotonic()
    tracker = Tracker.open(
        f"http://me:pw@{host}", tmp_path / "home", "t", CONFIG, warn=said.append, limits=Limits(probe_s=1.0)
    )
    drive(tracker, tmp_path)
    assert time.monotonic() - start < 4.0  # two probes and what goes with them
    assert len(said) == 1
    assert "pw" not in said[0]
    assert tracker.describe()["run_id"] is None
    (spool,) = (tmp_path / "home" / "spool").glob("*.jsonl")
    assert "me:pw" not in spool.read_text()
    assert Tracker.sync(
        tmp_path / "home", limits=Limits(probe_s=1.0)
    ).left  # still dead: nothing is lost, nothing raised
    assert spool.exists()


def test_server_that_hangs_later_trips_the_breaker(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench import tracking

    calls: list[str] = []

    def hang(self: Any, operation: dict[str, Any]) -> None:
        calls.append(operation["op"])
        time.sleep(60)

    said: list[str] = []
    monkeypatch.setattr(tracking.Server, "apply", hang)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        threading.Thread(target=answer_health, args=(server,), daemon=True).start()
        start = time.monotonic()
        limits = Limits(probe_s=1.0, call_s=0.5)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        drive(Tracker.open(uri, home, "t", CONFIG, warn=said.append, limits=limits), tmp_path)
    assert time.monotonic() - start < 8.0
    assert len(calls) <= 2  # the first call, and the last chance at the end
    assert len(said) == 1


def answer_health(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")


def test_probe_tells_http_from_other_services() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        threading.Thread(target=answer_health, args=(server,), daemon=True).start()
        assert probe(f"http://127.0.0.1:{server.getsockname()[1]}/prefix", 2.0) is None
    assert probe(f"http://127.0.0.1:{closed_port()}", 2.0) is not None


def test_local_spool_is_replayed_without_duplicates(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails for a while: half of the run is logged, half is spooled; a second replay changes nothing."""
    from workbench import tracking

    apply, said = tracking.Server.apply, list[str]()
    state = {"calls": 0}

    def flaky(self: Any, operation: dict[str, Any]) -> None:
        state["calls"] += 1
        if state["calls"] > 8:
            apply(self, operation)  # done, but the answer is lost: the replay repeats it
            raise OSError("disk I/O error")
        apply(self, operation)

    monkeypatch.setattr(tracking.Server, "apply", flaky)
    drive(Tracker.open(None, home, "t", CONFIG, warn=said.append), tmp_path)
    monkeypatch.setattr(tracking.Server, "apply", apply)
    assert len(said) == 1
    (spool,) = (home / "spool").glob("*.jsonl")
    kept = spool.read_bytes()
    (tmp_path / "frontier.png").unlink()  # the spool has its own copy
    assert len(Tracker.sync(home).sent) == 1
    check(default_uri(home))
    assert list((home / "spool").iterdir()) == []
    spool.write_bytes(b"\n".join(line for line in kept.splitlines() if b'"file"' not in line) + b'\n{"op": "ba')
    assert len(Tracker.sync(home).sent) == 1
    check(default_uri(home))


@pytest.mark.slow
def test_first_opens_side_by_side_share_one_database(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from workbench.tracking import Tracker\n"
        "t = Tracker.open(None, Path(sys.argv[1]), 't', {}, warn=lambda line: sys.exit(line)); t.finish(None)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "home")]
    opened = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in opened:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(client(default_uri(tmp_path / "home")).search_runs(["1"])) == 3


def test_a_home_that_was_copied_keeps_its_artifacts(home: Path, tmp_path: Path) -> None:
    drive(Tracker.open(None, home, "t", CONFIG), tmp_path)
    elsewhere = client(default_uri(home)).create_experiment("elsewhere", artifact_location="file:///data/of/others")
    copy = tmp_path / "a folder" / "copy"
    shutil.copytree(home, copy)
    assert adopt_home(home) == 0
    assert adopt_home(copy) > 0
    assert adopt_home(copy) == 0
    shutil.rmtree(home)
    check(default_uri(copy))
    store = client(default_uri(copy))
    (parent,) = store.search_runs([store.get_experiment_by_name("t").experiment_id], "tags.match.ok = 'true'")
    assert Path(store.download_artifacts(parent.info.run_id, "figures/frontier.png")).read_bytes() == b"png"
    assert store.get_experiment(elsewhere).artifact_location == "file:///data/of/others"


def test_a_spool_that_was_moved_still_has_its_files(home: Path, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    drive(Tracker.open(uri, home, "t", CONFIG, warn=lambda line: None, limits=Limits(probe_s=1.0)), tmp_path)
    moved = home.rename(tmp_path / "moved")
    (spool,) = Spool.all(moved)
    paths = [Path(spool.located(one)["path"]) for one in spool.read() if one["op"] == "file"]
    assert [path.read_bytes() for path in paths] == [b"png"]
    assert all(path.is_relative_to(moved) for path in paths)


CROSSED = {
    "decomposition": [
        {
            "measure": "gold_reward", "at": "selected",
            "gap": {
                "total": estimate(0.4), "relabeling": estimate(0.0),
                "splits": [{"reward": estimate(0.1), "optimizer": estimate(0.3)}],
            },
        }
    ],
    "tilt": [
        {"reward": name, "seq_kl": estimate(kl), "gold_reward": estimate(kl), "proxy_reward": estimate(kl)}
        for name in ("main", "implicit/dpo", "gold") for kl in (0.1, 0.5, None)
    ],
}  # fmt: skip


def test_a_refused_point_of_a_tilt_is_left_out_and_keeps_its_place() -> None:
    points = [point for point in crossed.tilt_points(CROSSED, 7) if point[0] == "tilt_seq_kl/main"]
    assert points == [("tilt_seq_kl/main", 0.1, 7, 0), ("tilt_seq_kl/main", 0.5, 7, 1)]
    assert crossed.gap_metrics({"decomposition": [{"measure": "win_rate", "at": "selected", "gap": None}]}) == {}


def test_every_name_that_tracking_makes_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    made = set(names.headline_metrics(results())) | {key for key, *_ in names.frontier_points(results(), 0)}
    made |= {key for key, *_ in names.agreement_points(results(), 0)}
    made |= set(crossed.gap_metrics(CROSSED)) | {key for key, *_ in crossed.tilt_points(CROSSED, 0)}
    assert made >= {"gap/gold_reward/selected", "gap_optimizer_low/gold_reward/selected", "tilt_seq_kl/implicit/dpo"}
    made |= set(names.cost_metrics({"cost": dict.fromkeys(names.COST_FIELDS, 1.0)}))
    assert len(made) > 100
    for name in made:
        head, _, label = name.partition("/")
        for suffix in ("_low", "_high", "_with_upstream", "_per_answer"):
            head = head.removesuffix(suffix)
        assert f"`{head}/" in documented, name
        if head in ("cost", "match"):
            assert f"`{head}/{label}`" in documented, name


def test_importing_the_bench_does_not_import_what_is_slow() -> None:
    script = (
        "import sys, workbench.tracking, workbench.ui, workbench.report.terminal, workbench.report.live\n"
        "import workbench.report.figures, workbench.report.summary\n"
        "sys.exit(', '.join({'mlflow', 'matplotlib', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "")  # exits with the names as its message: none
