"""Studies: trial 0 is the config, what a killed driver left goes on, the same trials whoever asks, constraints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.config_tuning import Param, Tuning
from workbench.errors import BusyError, ResourceError
from workbench.locks import FileLock
from workbench.tuning import Study, open_storage

SPACE = {
    "rate": Param(float=[0.001, 1.0], log=True),
    "mode": Param(categorical=["a", "b"]),
    "size": Param(int=[1, 9], when={"mode": "b"}),
}
DEFAULT = {"rate": 0.1, "mode": "b", "size": 3}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an empty database: making its tables takes half a second."""
    home = tmp_path_factory.mktemp("optuna")
    open_storage(home, None)
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    (tmp_path / "optuna.db").write_bytes((template / "optuna.db").read_bytes())
    return tmp_path


def study(home: Path, name: str = "t/dpo", **options: Any) -> Study:
    return Study(open_storage(home, None), name, Tuning(**options), SPACE, DEFAULT, {"arm": "dpo"})


def finish(one: Study, number: int, value: float | None, constraint: float | None = None) -> None:
    state = "failed" if value is None else "complete"
    one.tell(number, state, None if value is None else [value], {"reason": None}, constraint)


def test_the_config_itself_is_trial_0_once(home: Path) -> None:
    first = study(home)
    assert first.ask().params == DEFAULT
    finish(first, 0, 1.0)
    second = study(home)
    asked = second.ask()
    assert asked.number == 1
    assert asked.params != DEFAULT
    assert ("size" in asked.params) == (asked.params["mode"] == "b")


def test_a_trial_that_was_left_running_goes_on_under_its_number(home: Path) -> None:
    before = study(home)
    asked = [before.ask(), before.ask()]
    finish(before, 0, 1.0)
    after = study(home)  # the driver before died here
    assert after.stale() == [asked[1]]
    assert after.count() == 2
    finish(after, 1, None)
    assert [(one.number, one.state) for one in after.ended()] == [(0, "complete"), (1, "failed")]
    assert after.ask().number == 2
    assert after.stale() == []


def test_trials_do_not_depend_on_restarts(home: Path) -> None:
    values = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8]
    whole, broken = study(home, "one/dpo", startup=3), study(home, "two/dpo", startup=3)
    for place, value in enumerate(values):
        if place % 2:
            broken = study(home, "two/dpo", startup=3)
        assert whole.ask() == broken.ask()
        finish(whole, place, value)
        finish(broken, place, value)


def test_pruned_and_failed_trials_are_kept_with_reason_and_steps(home: Path) -> None:
    one = study(home, pruner={"kind": "median", "startup": 1, "at": [0.3, 0.6]})
    for value in (1.0, 0.9):
        asked = one.ask()
        assert not one.report(asked.number, {1: value}) or asked.number >= 1
        one.report(asked.number, {1: -5.0})  # a step is taken once
        finish(one, asked.number, value)
    asked = one.ask()
    assert one.report(asked.number, {1: -3.0})
    one.tell(asked.number, "pruned", None, {"reason": "pruned"}, None)
    told = one.ended()[-1]
    assert (told.state, told.intermediate, told.extra["reason"]) == ("pruned", {1: -3.0}, "pruned")


def test_wilcoxon_prunes_by_the_prompts_of_the_best_trial(home: Path) -> None:
    one = study(home, pruner={"kind": "wilcoxon", "startup": 1})
    for number, shift in enumerate((1.0, 0.0)):
        asked = one.ask()
        scores = {prompt: shift + 0.1 * (prompt % 7) for prompt in range(20)}
        assert one.report(asked.number, scores) is (number == 1)
        finish(one, asked.number, shift)


def test_infeasible_trials_do_not_lead(home: Path) -> None:
    one = study(home, objective={"max_kl": 5.0})
    for value, kl in ((0.5, 4.0), (0.9, 9.0)):
        finish(one, one.ask().number, value, kl - 5.0)
    assert one._study.best_trial.number == 0


def test_median_compares_with_trials_within_the_kl_limit(home: Path) -> None:
    for name, limit in (("free/dpo", None), ("held/dpo", 5.0)):
        one = study(home, name, pruner={"kind": "median", "startup": 1}, objective={"max_kl": limit})
        for value, kl in ((0.5, 4.0), (0.9, 9.0), (0.8, 8.0)):  # the good scores are those that cannot be chosen
            asked = one.ask()
            one.report(asked.number, {1: value})
            one.tell(asked.number, "complete", [value], {"seq_kl": kl}, None if limit is None else kl - limit)
        assert one.report(one.ask().number, {1: 0.6}) is (limit is None)


def test_hyperband_sees_the_first_trials_too(home: Path) -> None:
    one = study(home, pruner={"kind": "hyperband", "startup": 3, "at": [0.2, 0.4, 0.6, 0.8]})
    for number in range(3):
        asked = one.ask()
        assert not any(one.report(asked.number, {rung: 1.0 - number}) for rung in (1, 2, 3))
        finish(one, asked.number, 1.0 - number)
    seen = [trial.system_attrs for trial in one._study.get_trials(deepcopy=False)]
    assert all(any("completed_rung" in key for key in attrs) for attrs in seen[:3])


def test_two_objectives_have_a_front(home: Path) -> None:
    one = study(home, objective={"against_kl": True})
    for value, kl in ((0.5, 4.0), (0.9, 9.0), (0.4, 5.0)):
        one.tell(one.ask().number, "complete", [value, kl], {}, None)
    assert sorted(one.pareto()) == [0, 1]


def test_who_makes_the_database_is_waited_for_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tuning.BUSY_S", 0.2)
    lock = FileLock(tmp_path / "locks" / "optuna.lock", label="optuna.db")
    lock.acquire()
    with pytest.raises(BusyError, match="pid"):
        open_storage(tmp_path, None)
    lock.release()
    assert not (tmp_path / "optuna.db").exists()


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/x.db", "nodialect://u:secret@h/d"])
def test_a_storage_that_cannot_be_used_is_a_missing_resource(tmp_path: Path, url: str) -> None:
    with pytest.raises(ResourceError) as caught:
        open_storage(tmp_path, url)
    assert "secret" not in str(caught.value)


def test_a_locked_database_is_busy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr("workbench.tuning.BUSY_S", 0.2)
    one = study(home)
    other = sqlite3.connect(home / "optuna.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BusyError, match="again"):
        one.ask()
    other.execute("ROLLBACK")
    assert one.ask().params == DEFAULT


def test_neither_torch_nor_mlflow_is_imported_to_ask_and_tell() -> None:
    code = "import sys, workbench.tuning, pipelines.tune; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
