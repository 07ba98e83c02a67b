"""The driver's side without workers: budgets that end, deaths that count, records that are whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipelines.tune import Drive, with_tuning
from pipelines.tune_arm import ArmSweep
from pipelines.tune_collect import left_out
from pipelines.tune_pool import Message, Pool
from tests.pipelines.test_tune import as_tuned
from workbench.config import Comparison, load_config
from workbench.errors import ResourceError
from workbench.results_tuning import Budgeted
from workbench.store import Store
from workbench.tuning import Study, open_storage
from workbench.tuning_measure import Trial
from workbench.tuning_spaces import default_params, space_of, tuning_of
from workbench.types import Cost


class Fake:
    """Stands for the workers: what was submitted."""

    def __init__(self) -> None:
        self.jobs: list[Message] = []

    def submit(self, job: Message) -> None:
        self.jobs.append(job)


def config(tuning: str) -> Comparison:
    return with_tuning(load_config(Path("smoke"), (f"tuning={tuning}",)))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("optuna")
    open_storage(home, None)
    return (home / "optuna.db").read_bytes()


@pytest.fixture
def home(empty: bytes, tmp_path: Path) -> Path:
    (tmp_path / "optuna.db").write_bytes(empty)
    return tmp_path


def sweep(home: Path, comparison: Comparison, label: str, said: list[str] | None = None) -> ArmSweep:
    space, default = space_of(comparison, label), default_params(comparison, label)
    study = Study(open_storage(home, None), f"t/{label}", tuning_of(comparison, label), space, default, {})
    return ArmSweep(comparison, label, study, home / "trials", (said if said is not None else []).append)


def complete(key: str, tokens: int) -> Trial:
    scores = {f"p{place}": 0.1 * place for place in range(8)}
    return Trial(status="complete", scores=scores, costs={key: Cost(cpu_s=1.0, tokens_generated=tokens)})


def jobs(arm: ArmSweep) -> Iterator[Message]:
    while (job := arm.next_job()) is not None:
        yield job


def test_one_pool_for_all_n_does_not_try_forever(home: Path) -> None:
    arm = sweep(home, config("{budget: {tokens: 2000}, sampler: random}"), "best_of_n")
    for job in jobs(arm):
        arm.ended(job, complete("pool", 500))
    assert (arm.study.count(), arm.counted().free, arm.met(), arm.exhausted()) == (4, 3, True, None)


def test_an_exhausted_space_ends_the_arm_and_is_said(home: Path) -> None:
    said: list[str] = []
    tuning = "{budget: {tokens: 1000000}, sampler: random, spaces: {dpo: {beta: {categorical: [0.3, 0.1]}}}}"
    arm = sweep(home, config(tuning), "dpo", said)
    for job in jobs(arm):
        arm.ended(job, complete(str(job["params"]), 500))
    assert arm.study.count() < 30
    assert arm.met()
    found = arm.result()
    assert found.exhausted is not None
    assert found.free == found.trials - 2
    assert said[-1] == f"dpo: {found.exhausted}"
    assert arm.warnings() == [f"dpo: {found.exhausted}."]


def test_settings_that_never_fit_do_not_meet_the_budget(home: Path) -> None:
    arm = sweep(home, config("{budget: {seconds: 60}}"), "dpo")
    for job in jobs(arm):
        arm.ended(job, Trial(status="failed", reason="settings that do not fit"))
    assert (arm.study.count(), arm.met()) == (10, False)


def test_records_of_another_database_are_not_taken(home: Path, empty: bytes) -> None:
    comparison = config("{budget: {trials: 3}, sampler: random}")
    arm = sweep(home, comparison, "dpo")
    for number, job in enumerate(jobs(arm)):
        arm.ended(job, complete(str(number), 1) if number else Trial(status="complete", scores={"p": None}))
    after = sweep(home, comparison, "dpo")
    assert [row.state for row in after.rows()] == ["failed", "complete", "complete"]
    assert after.rows()[0].reason == "no response was scored"  # written back
    (home / "optuna.db").write_bytes(empty)
    fresh = sweep(home, config("{budget: {trials: 3}, sampler: random, seed: 2000}"), "dpo")
    first, second = fresh.next_job(), fresh.next_job()
    assert first is not None
    assert second is not None
    fresh.ended(first, complete("a", 1))
    (home / "trials" / "dpo" / "0001-1000.json").rename(home / "trials" / "dpo" / "0001-2000.json")
    fresh.ended(second, complete("b", 1))
    record = home / "trials" / "dpo" / "0001-2000.json"
    record.write_bytes((home / "trials" / "dpo" / "0002-1000.json").read_bytes())
    again = sweep(home, config("{budget: {trials: 3}, sampler: random, seed: 2000}"), "dpo")
    assert [one.number for one in again.again] == [1]  # of other settings: run again


def drive(arm: ArmSweep, home: Path) -> tuple[Drive, Fake]:
    pool = Fake()
    return Drive({arm.label: arm}, cast(Pool, pool), Store(home), 1000), pool


@pytest.mark.parametrize("who", ["stage", "worker"])
def test_a_trial_that_dies_twice_has_failed_and_the_sweep_goes_on(home: Path, who: str) -> None:
    arm = sweep(home, config("{budget: {trials: 2}}"), "dpo")
    one, pool = drive(arm, home)
    job = arm.next_job()
    assert job is not None
    dead = Trial(status="died", reason="dpo ran out of memory", costs={"k": Cost(cpu_s=3.0)})
    message: dict[str, Any] = {"event": "done", "trial": dead.to_json()}
    if who == "worker":
        message = {"event": "died", "why": "its worker ended with signal SIGKILL"}
    one._heard(job, message)
    assert (pool.jobs, arm.records) == ([job], {})
    one._heard(job, message)
    (row,) = arm.rows()
    assert (row.state, row.spent.cpu_s) == ("failed", 3.0 if who == "stage" else 0.0)
    assert row.reason is not None
    assert "died twice" in row.reason
    assert "memory" in row.reason
    assert arm.next_job() is not None


def test_the_attempt_that_died_is_charged_to_the_one_that_did_not(home: Path) -> None:
    arm = sweep(home, config("{budget: {trials: 1}}"), "dpo")
    one, _ = drive(arm, home)
    job = arm.next_job()
    assert job is not None
    dead = Trial(status="died", reason="killed", costs={"look": Cost(cpu_s=2.0), "dpo": Cost(cpu_s=3.0)})
    one._heard(job, {"event": "done", "trial": dead.to_json()})
    one._heard(job, {"event": "done", "trial": complete("dpo", 7).to_json()})
    (row,) = arm.rows()
    assert (row.state, row.spent.cpu_s) == ("complete", 2.0 + 1.0)


def test_what_stops_every_trial_ends_the_run(home: Path) -> None:
    arm = sweep(home, config("{budget: {trials: 2}}"), "dpo")
    one, _ = drive(arm, home)
    job = arm.next_job()
    assert job is not None
    with pytest.raises(ResourceError, match="no space"):
        one._heard(job, {"event": "error", "kind": "ResourceError", "message": "no space left", "where": None})


def test_arms_of_another_budget_are_named_until_they_are_tuned_again() -> None:
    before = as_tuned(load_config(Path("smoke")))
    now = {"dpo": before.arms["dpo"]}
    assert left_out(before, before.arms, before.budget, before.rule) == {}
    other = left_out(before, now, Budgeted(unit="trials", amount=9), "random")
    assert other.keys() == before.arms.keys() - {"dpo"}
    assert "2 trials" in other["ppo"]
    assert "tpe" in other["ppo"]
    later = before.model_copy(update={"arms": now, "left_out": other})
    assert left_out(later, now, before.budget, before.rule) == other
