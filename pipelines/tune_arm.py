"""One arm's sweep in the driver: its study, its budget, its records, and the jobs that it gives to workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.tune_pool import Message
from workbench.config import Comparison
from workbench.results_tuning import State, TrialRow, TunedArm
from workbench.tuning import Asked, Study
from workbench.tuning_budget import BARREN_IN_A_ROW, Counted, counted
from workbench.tuning_choice import Sweep, arm_result, charge, finalists, is_share, metric_of
from workbench.tuning_measure import (
    Trial,
    feasible,
    kl_of,
    new_costs,
    read_trial,
    score_of,
    violation,
    write_trial,
)
from workbench.tuning_spaces import kind_of, tuning_of
from workbench.types import Cost

Say = Callable[[str], None]


class ArmSweep:
    """An arm that is tuned.

    Args:
        comparison: With its `tuning` section.
        study: Its study, opened.
        folder: Of the records, LABEL/NUMBER-SEED.json.
        say: Takes lines for people.
    """

    def __init__(self, comparison: Comparison, label: str, study: Study, folder: Path, say: Say) -> None:
        self.label, self.study, self.tuning, self.say = label, study, tuning_of(comparison, label), say
        self.kind, self.folder = kind_of(comparison, label), folder / label
        self.live: dict[int, Asked] = {}
        self.stopped: dict[int, str] = {}  # why a live trial was told to stop
        self.metric = metric_of(label, self.tuning)
        self.queue = study.stale()
        self.records: dict[int, Trial] = {}
        self.params: dict[int, dict[str, Any]] = {}
        self.intermediate: dict[int, dict[int, float]] = {}
        self.again: list[Asked] = []  # ended trials whose record is not in this home
        for told in study.ended():
            self.params[told.number], self.intermediate[told.number] = told.params, told.intermediate
            record = self._read(told.number, self.tuning.seed, told.params)
            if record is not None and record.status == told.state:
                self.records[told.number] = record
            elif told.state == "complete":
                self.again.append(Asked(number=told.number, params=told.params))
            else:
                self.records[told.number] = Trial(status=told.state, reason=told.extra.get("reason"))
        if self.queue:
            numbers = ", ".join(str(one.number) for one in self.queue)
            say(f"{label}: trial {numbers} was left running by a run that died; it goes on")

    # --- budget --------------------------------------------------------------------------------------------------

    def counted(self) -> Counted:
        """What the ended trials count against the budget."""
        ended = ((self.params[number], self.records[number]) for number in sorted(self.records))
        return counted(self.tuning.budget.unit, ended)

    def exhausted(self) -> str | None:
        """Why the arm ends before its budget is spent; None where it does not."""
        budget = self.tuning.budget
        if budget.unit == "trials" or not self.counted().exhausted:
            return None
        return f"the last {BARREN_IN_A_ROW} trials cost nothing and tried nothing new; no more is tried"

    def progress(self) -> float:
        """Part of the budget that is spent, trials that run taken for average ones."""
        budget = self.tuning.budget
        begun = self.study.count() - len(self.queue)
        if budget.unit == "trials":
            return begun / budget.amount
        ended, spent = len(self.records), self.counted().amount
        part = (spent + len(self.live) * (spent / ended if ended else budget.amount / 4)) / budget.amount
        return part if self.exhausted() is None else max(1.0, part)

    def finished(self) -> bool:
        """Nothing is left to run in the search."""
        return not self.queue and not self.again and not self.live and self.progress() >= 1

    def met(self) -> bool:
        """The whole budget is spent, or there was nothing left to spend it on."""
        tried = self.exhausted() is not None and any(one.status == "complete" for one in self.records.values())
        return tried or self.counted().amount >= self.tuning.budget.amount

    # --- jobs ----------------------------------------------------------------------------------------------------

    def next_job(self) -> Message | None:
        """A trial to run now: one that was left, else a new one while there is budget."""
        if self.again:
            return self._job(self.again.pop(0), self.tuning.seed, "again")
        if self.queue:
            asked = self.queue.pop(0)
        elif self.progress() < 1:
            asked = self.study.ask()
        else:
            return None
        self.live[asked.number] = asked
        return self._job(asked, self.tuning.seed, "trial")

    def repeats(self, seeds: list[int]) -> list[Message]:
        """The finalists' runs on fresh seeds that have no record yet."""
        rows = finalists(self.rows(), self.tuning)
        return [
            self._job(Asked(number=row.number, params=dict(row.params)), seed, "repeat")
            for seed in seeds
            for row in rows
            if self._read(row.number, seed, row.params) is None
        ]

    def _job(self, asked: Asked, seed: int, purpose: str) -> Message:
        pruned = purpose == "trial" and self.tuning.pruner.kind != "none" and self.kind != "best_of_n"
        return {
            "job": f"{self.label}/{asked.number}/{seed}", "label": self.label, "params": asked.params, "seed": seed,
            "report": pruned and self.kind != "reward_model", "number": asked.number, "purpose": purpose,
        }  # fmt: skip

    def rung(self, job: Message, rung: int, scores: Mapping[str, float]) -> bool:
        """Takes the scores of a live trial's checkpoint; whether it is to stop."""
        number = job["number"]
        if number not in self.live:
            return False
        if self.tuning.pruner.kind == "wilcoxon":
            steps = dict(enumerate(scores[prompt] for prompt in sorted(scores)))
        else:
            steps = {rung: float(np.mean(list(scores.values())))}
        self.intermediate.setdefault(number, {}).update(steps)
        stop = self.study.report(number, steps)
        if stop:
            value = np.mean(list(scores.values()))
            self.stopped[number] = f"by {self.tuning.pruner.kind} at {self.metric} {value:.4f} after part {rung}"
        return stop

    def ended(self, job: Message, trial: Trial) -> None:
        """Takes the end of a job: writes its record, then tells the study."""
        number, seed = job["number"], job["seed"]
        if trial.status == "pruned":
            trial = replace(trial, reason=self.stopped.get(number, "pruned"))
        value = self._value(trial)
        if trial.status == "complete" and value is None:
            trial = replace(trial, status="failed", reason="no response was scored")
        write_trial(self._path(number, seed), trial, self.study.name, job["params"])
        if trial.warning is not None:
            self.say(f"{self.label} trial {number}: {trial.warning}")
        if job["purpose"] == "repeat":
            self.say(f"{self.label} trial {number} on seed {seed}: {self._told(trial)}")
            return
        self.records[number], self.params[number] = trial, job["params"]
        if number not in self.live:
            return  # read again, told long ago
        del self.live[number]
        kl = kl_of({seed: trial.kl}, trial.bound)
        limit = self.tuning.objective.max_kl
        values = list[float]()
        if trial.status == "complete" and value is not None:
            nats = [] if kl is None or kl.value is None else [kl.value]
            values = [value, *(nats if self.tuning.objective.against_kl else [])]
        extra = {"reason": trial.reason, "seq_kl": None if kl is None else kl.value, "spent_cpu_s": _cpu_s(trial)}
        self.study.tell(number, trial.status, values or None, extra, None if limit is None else violation(kl, limit))
        budget = self.tuning.budget
        of = f" of {budget.amount:.0f}" if budget.unit == "trials" else ""
        self.say(f"{self.label} trial {number + 1}{of}: {self._told(trial)}")
        if (why := self.exhausted()) is not None and not self.live:
            self.say(f"{self.label}: {why}")

    def _value(self, trial: Trial) -> float | None:
        return score_of({self.tuning.seed: trial.scores}, proportion=is_share(self.label, self.tuning)).value

    def _told(self, trial: Trial) -> str:
        value = self._value(trial) if trial.status == "complete" else None
        if value is None:
            return f"{trial.status} ({trial.reason})"
        kl = kl_of({0: trial.kl}, trial.bound)
        nats = f", KL {kl.value:.2f}" if kl is not None and kl.value is not None else ""
        return f"{self.metric} {value:.4f}{nats}, {_cpu_s(trial):.0f} CPU s"

    def _path(self, number: int, seed: int) -> Path:
        return self.folder / f"{number:04d}-{seed}.json"

    def _read(self, number: int, seed: int, params: Mapping[str, Any]) -> Trial | None:
        return read_trial(self._path(number, seed), self.study.name, params)

    def warnings(self) -> list[str]:
        """What went wrong beside its trials, and why it ended early."""
        found = [f"{self.label} trial {n}: {one.warning}" for n, one in sorted(self.records.items()) if one.warning]
        return [*found, *([f"{self.label}: {why}."] if (why := self.exhausted()) is not None else [])]

    # --- results -------------------------------------------------------------------------------------------------

    def rows(self) -> list[TrialRow]:
        """All ended trials by number."""
        found, charged = [], set[str]()
        for number in sorted(self.records):
            trial = self.records[number]
            state: State = trial.status  # type: ignore[assignment]
            kl = kl_of({self.tuning.seed: trial.kl}, trial.bound)
            share = is_share(self.label, self.tuning)
            complete = state == "complete"
            found.append(
                TrialRow(
                    number=number, state=state, params=self.params[number],
                    value=score_of({self.tuning.seed: trial.scores}, proportion=share) if complete else None,
                    seq_kl=kl, feasible=complete and feasible(kl, self.tuning.objective.max_kl), reason=trial.reason,
                    intermediate={str(step): value for step, value in self.intermediate.get(number, {}).items()},
                    spent=charge(trial, charged),
                )
            )  # fmt: skip
        return found

    def policies(self) -> dict[int, str | None]:
        """Trial -> key of the stage that trained it."""
        return {number: trial.policy for number, trial in self.records.items()}

    def result(self) -> TunedArm:
        """What the sweep comes to."""
        rows = self.rows()
        charged: set[str] = set()
        for trial in self.records.values():
            new_costs(trial.costs, charged)
        fresh: dict[tuple[int, int], Trial] = {}
        repeats = Cost()
        count = self.tuning.repeats.seeds
        for row in finalists(rows, self.tuning):
            for seed in range(self.tuning.seed + 1, self.tuning.seed + 1 + count):
                again = self._read(row.number, seed, row.params)
                if again is not None:
                    fresh[row.number, seed] = again
                    repeats = repeats.plus(new_costs(again.costs, charged))
        sweep = Sweep(
            label=self.label, kind=self.kind, study=self.study.name, rows=rows, scores=self.records, fresh=fresh,
            met=self.met(),
        )  # fmt: skip
        found = arm_result(sweep, self.tuning, self.study.importance(), self.study.pareto(), repeats)
        return found.model_copy(update={"free": self.counted().free, "exhausted": self.exhausted()})


def _cpu_s(trial: Trial) -> float:
    return sum(cost.cpu_s for cost in trial.costs.values())


__all__ = ["ArmSweep", "Say"]
