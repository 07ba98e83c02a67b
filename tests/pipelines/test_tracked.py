"""When a comparison tells MLflow what: the texts while its figures are measured, the same in the end on every path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import compare
from pipelines.compare import run_comparison
from pipelines.tracked import Tracking
from tests.bench import copy_home, forget
from workbench.config import load_config
from workbench.tracking_mlflow import default_uri


def runs_of(home: Path, parent: str | None) -> Iterator[Any]:
    """The runs of one comparison but its stages'."""
    from mlflow import MlflowClient

    store = MlflowClient(tracking_uri=default_uri(home))
    ref = store.get_run(parent).data.tags["workbench.comparison_ref"]
    place = [store.get_run(parent).info.experiment_id]
    found = store.search_runs(place, f"tags.`workbench.comparison_ref` = '{ref}'")
    return (run for run in found if run.data.tags["kind"] != "stage")


def shown(home: Path, parent: str | None) -> dict[str, Any]:
    """What people see of the arms, the sets and the comparison, without ids, times and what was reused."""
    found = {}
    for run in runs_of(home, parent):
        tags = run.data.tags
        kept = {key: value for key, value in tags.items() if not key.endswith(("ref", "note.content"))}
        kept.pop("reused", None)
        note = len(tags["mlflow.note.content"].partition("| reused stage |")[0].split())
        found[run.info.run_name] = [run.info.status, run.data.params, run.data.metrics, kept, note]
    return found


@pytest.mark.slow
def test_the_texts_are_told_while_the_figures_are_measured(
    smoke_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    results = json.loads((home / "results" / "smoke" / "results.json").read_text())
    forget(home, [row["key"] for row in results["stages"] if row["name"] in ("samples", "measure")])
    seen, sent = [], []
    tell, trace = Tracking._texts, "workbench.tracking_shown.Shown.traces"

    def watched(tracking: Tracking) -> None:
        if not tracking.told:
            seen.append("measure" in tracking.artifacts)
        tell(tracking)

    monkeypatch.setattr(Tracking, "_texts", watched)
    fresh = run_comparison(load_config(Path("smoke")), home=home)
    assert seen == [False], "once, before the figures are there"
    monkeypatch.undo()
    monkeypatch.setattr(trace, lambda tracker, ref, traces: sent.append(len(traces)))
    cached = run_comparison(load_config(Path("smoke")), home=home)
    assert sent == [16] * 5, "with everything in the store they are told at the end"
    monkeypatch.undo()
    whole = run_comparison(load_config(Path("smoke")), home=home)
    first, last = (shown(home, one.results.mlflow.run_id) for one in (fresh, whole))
    assert {status for status, *_ in first.values()} == {"FINISHED"}
    assert {"smoke", "sft", "ppo", "dpo", "best_of_n", "best_of_n-implicit"} <= first.keys()
    assert first["ppo"][2]["traces"] == 16.0
    assert first == last
    assert cached.exit_code == 0


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED"), (ValueError("no"), "FAILED")]
)
def test_what_a_signal_ends_is_killed_and_nothing_goes_on_running(
    error: BaseException, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, opened = tmp_path / "home", []
    execute = compare.execute

    def ended(*stages: Any, **options: Any) -> Any:
        if "record_fields" not in options:  # the light stages at the head
            return execute(*stages, **options)
        tracking = options["record_fields"].__self__
        tracking.tracker.begin_beside("ppo", {"kind": "arm"})
        opened.append(tracking.describe()["run_id"])
        raise error

    monkeypatch.setattr(compare, "execute", ended)
    monkeypatch.setattr(compare, "warm_up", lambda *_: None)
    with pytest.raises(type(error)):
        compare.run_comparison(load_config(Path("smoke")), home=home)
    found = {run.info.run_name: run.info.status for run in runs_of(home, opened[0])}
    assert found == {"smoke": status, "ppo": status}
