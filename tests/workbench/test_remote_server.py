"""A real MLflow server on the loopback: one that dies in the middle, one on PostgreSQL; `ui --sync` sends the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.remote_services import MlflowServer, PostgreSQL, missing
from tests.workbench.test_tracking import CONFIG, check, client, drive
from workbench.cli import main
from workbench.tracking import Tracker
from workbench.tracking_delivery import Limits, sync_spools
from workbench.tracking_spool import Spool


def sync(home: Path) -> Any:
    done = CliRunner().invoke(main, ["ui", "--sync", "--home", str(home), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def check_places(uri: str, home: Path) -> None:
    """Artifacts are the server's: no address of theirs names a folder of the client."""
    store = client(uri)
    experiment = store.get_experiment_by_name("t")
    for run in store.search_runs([experiment.experiment_id]):
        assert run.info.artifact_uri.startswith(f"mlflow-artifacts:/{experiment.experiment_id}/")
        assert str(home) not in run.info.artifact_uri


def test_a_sync_that_runs_out_of_patience_names_all_that_is_left(tmp_path: Path) -> None:
    for ref in ("a", "b"):
        spool = Spool(tmp_path, ref, {"uri": None, "experiment": "t"})
        assert spool.claim()
        spool.append({"op": "end", "ref": ref})
        spool.release(forget=False)

    def never(*_: Any) -> Any:
        raise AssertionError("the patience is used up")

    found = sync_spools(tmp_path, "sqlite:///none.db", None, never, Limits(budget_s=-1.0))
    assert set(found.left) == {"a", "b"}
    assert all("send again" in reason for reason in found.left.values())
    assert {path.name for path in (tmp_path / "spool").iterdir()} >= {"a.jsonl", "b.jsonl"}


def test_a_sync_of_a_home_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["ui", "--sync", "--home", str(tmp_path / "typo")])
    assert done.exit_code == 2
    assert "--home" in done.stderr


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_a_warning_and_nothing_else(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    made, home = home / "mlflow.db", tmp_path / "client"  # a database that is made already
    with MlflowServer(f"sqlite:///{made}", tmp_path / "destination") as server:
        with_password = server.uri.replace("//", "//me:pw@")
        tracker = Tracker.open(with_password, home, "t", CONFIG, warn=said.append)
        drive(tracker, tmp_path, in_the_middle=server.kill)
        assert len(said) == 1
        assert "The comparison goes on" in said[0]
        assert "pw" not in said[0] + "".join(path.read_text() for path in (home / "spool").glob("*.jsonl"))
        lost = CliRunner().invoke(main, ["ui", "--sync", "--home", str(home)])
        assert lost.exit_code == 3
        assert "stays in" in lost.stderr
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)  # where the password comes from
        sent = sync(home)
        assert sent["sent"] == [tracker.ref]
        assert sent["counts"]["artifacts"] >= 2
        assert sent["counts"]["metric points"] > 100
        check(server.uri)
        check_places(server.uri, home)
        assert sync(home) == {"schema": 1, "sent": [], "left": {}, "running": [], "counts": {}, "refused": 0}


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_server_on_postgresql_takes_what_was_logged_before_it_was_there(tmp_path: Path) -> None:
    with PostgreSQL() as database:
        server = MlflowServer(database.create("mlflow"), tmp_path / "destination")
        drive(Tracker.open(server.uri, tmp_path / "home", "t", CONFIG, warn=lambda line: None), tmp_path)
        with server:
            assert sync(tmp_path / "home")["left"] == {}
            check(server.uri)
            check_places(server.uri, tmp_path / "home")
            assert list((tmp_path / "destination").rglob("frontier.png"))
