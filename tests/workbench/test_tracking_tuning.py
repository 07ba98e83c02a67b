"""A tuning in MLflow: a parent run per study, a nested run per trial, once; every name documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workbench.test_tracking import client, write_metrics
from tests.workbench.test_tuning_choice import result, trial, tuning_results
from workbench.config import Comparison
from workbench.results_tuning import TunedArm, TuningResults
from workbench.tracking import default_uri
from workbench.tracking_tuning import study_metrics, track, trial_metrics
from workbench.tuning_figures import figures_of
from workbench.tuning_measure import Trial

COMPARISON = Comparison.model_validate(
    {"name": "t", "model": {"world": "helpdesk"}, "data": {"world": "helpdesk"}, "arms": {"dpo": {}}}
)


def arm(trials: int = 2) -> TunedArm:
    found = {n: trial(0.1 * n, key=str(n)) for n in range(trials)} | {trials: Trial(status="failed", reason="nan")}
    fresh = {(n, 1001): trial(0.1 * n) for n in range(trials)}
    done = result(found, fresh, repeats={"top": 2, "seeds": 1})
    rows = [row.model_copy(update={"intermediate": {"1": 0.2}}) for row in done.rows]
    return done.model_copy(update={"rows": rows})


def found(trials: int = 2) -> TuningResults:
    return tuning_results(dpo=arm(trials))


@pytest.mark.slow
def test_studies_and_trials_are_logged_once(tmp_path: Path) -> None:
    (tmp_path / "tuning" / "t-1").mkdir(parents=True)
    figure = tmp_path / "dpo-history.png"
    figure.write_bytes(b"png")
    (tmp_path / "store" / "k1").mkdir(parents=True)
    write_metrics(tmp_path / "store" / "k1" / "metrics.jsonl", range(3))
    said: list[str] = []
    policies = {"dpo": {1: "k1", 0: None}}
    for _ in range(2):
        logged = track(found(), COMPARISON, tmp_path, [figure], policies, said.append)
    assert said == []
    server = client(default_uri(tmp_path))
    experiment = server.get_experiment_by_name("t").experiment_id
    runs = server.search_runs([experiment])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [logged["runs"]["dpo"]]
    assert parents[0].data.metrics["tuning/trials"] == 3
    assert parents[0].data.metrics["tuning/gain"] == pytest.approx(0.1)
    assert [one.path for one in server.list_artifacts(parents[0].info.run_id, "figures")] == ["figures/dpo-history.png"]
    history = server.get_metric_history(parents[0].info.run_id, "tuning/best_so_far")
    assert [(point.step, point.value) for point in history] == [
        (1, pytest.approx(0.0)), (2, pytest.approx(0.1)), (3, pytest.approx(0.1)),
    ]  # fmt: skip
    trials = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert sorted(trials) == ["trial 000", "trial 001", "trial 002"]
    best = trials["trial 001"]
    assert best.data.tags["workbench.best"] == "true"
    assert best.data.params["beta"] == "0.2"
    assert best.info.status == "FINISHED"
    assert best.data.metrics["tuning/value"] == pytest.approx(0.1)
    assert best.data.metrics["loss_main"] > 0  # a curve of its training
    failed = trials["trial 002"]
    assert (failed.info.status, failed.data.tags["workbench.error"]) == ("FAILED", "nan")


def test_an_arm_has_no_figures_of_an_arm_whose_label_goes_on() -> None:
    names = ("dpo-history", "dpo-0.1-history", "dpo-0.1-slice", "dpo-slice", "best_so_far_trials", "ppo-history")
    found = figures_of("dpo", [Path(f"{name}.png") for name in names])
    assert [path.stem for path in found] == ["dpo-history", "dpo-slice", "best_so_far_trials"]


def test_every_name_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    one = arm()
    made = set(study_metrics(one)) | {name for row in one.rows for name in trial_metrics(row)}
    assert {"tuning/value", "tuning/low_value", "tuning/winners_curse", "tuning_importance/beta"} <= made
    for name in made | {"tuning/best_so_far", "tuning/intermediate"}:
        head = name.partition("/")[0]
        assert f"`{head}/SETTING`" in documented if head == "tuning_importance" else f"`{name}`" in documented, name
