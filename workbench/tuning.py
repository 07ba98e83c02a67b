"""Optuna: storage, studies, what is asked and told. The only file that imports optuna.

Ask and tell happen in the driver alone, so the database sees one writer. Trial k's settings depend on the study's seed,
k and the trials before it, never on how often the driver was started: the sampler is seeded anew for every ask. A trial
that a killed driver left RUNNING is taken up again under its own number, with its own settings; its stages go on from
their checkpoints. So nothing is lost, nothing runs twice, and the budget is met exactly.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from workbench.config_tuning import Param, Tuning
from workbench.errors import BusyError, ResourceError
from workbench.locks import FileLock, held
from workbench.redact import redact_text
from workbench.tuning_spaces import Params, Space

DATABASE = "optuna.db"
BUSY_S = 30.0
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial that is to run: its number and settings."""

    number: int
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Told:
    """A trial that has ended. `extra` is what was stored with it."""

    number: int
    state: str
    params: dict[str, Any]
    intermediate: dict[int, float]
    extra: dict[str, Any]


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """A database that stays locked is busy (75); one that cannot be used is a resource that is missing (3)."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        if any("database is locked" in str(one) for one in causes):
            message = f"Optuna's database stayed locked for {BUSY_S:.0f} s. Run the command again to go on from here."
            raise BusyError(message, where=where) from error
        reason = redact_text(str(causes[-1]).splitlines()[0])
        message = f"Optuna's database cannot be used ({reason}). Check the URL, the driver, the server and your rights."
        raise ResourceError(message, where=where) from error


def open_storage(home: Path, url: str | None) -> optuna.storages.BaseStorage:
    """SQLite in the home, made under a lock and put in place in one step, or the database at `url`.

    Raises:
        BusyError, ResourceError: It stays locked, or cannot be used.
    """
    path = home / DATABASE
    address = url or f"sqlite:///{path}"
    sqlite = address.startswith("sqlite")
    options = {"connect_args": {"timeout": BUSY_S}} if sqlite else {"pool_pre_ping": True}
    home.mkdir(parents=True, exist_ok=True)
    with storage_errors(redact_text(address)), held(FileLock(home / "locks" / "optuna.lock", label=DATABASE), BUSY_S):
        if url is None and not path.exists():
            aside = path.with_name(f"{DATABASE}.new")
            aside.unlink(missing_ok=True)
            made = optuna.storages.RDBStorage(f"sqlite:///{aside}")
            made.remove_session()
            made.engine.dispose()
            os.replace(aside, path)
        return optuna.storages.RDBStorage(address, engine_kwargs=options)


class Study:
    """One arm's study.

    Args:
        storage: From `open_storage`.
        name: Unique in it; the same name goes on where an earlier driver stopped.
        tuning: Sampler, pruner, objective.
        space: The arm's ranges.
        default: The config's own values: trial 0.
        proportion: The objective is better when larger in any case; kept for readers of the database.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        tuning: Tuning,
        space: Space,
        default: Params,
        about: Mapping[str, Any],
    ) -> None:
        self.name, self.tuning, self.space = name, tuning, space
        self._live: dict[int, optuna.Trial] = {}
        directions: list[Literal["maximize", "minimize"]] = ["maximize"]
        if tuning.objective.against_kl:
            directions.append("minimize")
        with storage_errors(name):
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=directions,
                load_if_exists=True,
                pruner=_pruner(tuning),
            )
            if not self._study.get_trials(deepcopy=False):
                for key, value in about.items():
                    self._study.set_user_attr(key, value)
                self._study.enqueue_trial(dict(default), user_attrs={"default": True})

    def stale(self) -> list[Asked]:
        """Trials that an earlier driver left running; they are live again, under their numbers."""
        found = []
        with storage_errors(self.name):
            for one in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if one.number not in self._live:
                    self._sow(one.number)
                    self._live[one.number] = optuna.Trial(self._study, one._trial_id)
                    found.append(self._suggested(one.number))
        return found

    def count(self) -> int:
        """Trials that have ended or run; those that wait in the queue are not counted."""
        with storage_errors(self.name):
            return len(self._study.get_trials(deepcopy=False)) - self._waiting()

    def ask(self) -> Asked:
        """The next trial."""
        with storage_errors(self.name):
            self._sow(self.count())
            trial = self._study.ask()
            self._live[trial.number] = trial
            return self._suggested(trial.number)

    def report(self, number: int, steps: Mapping[int, float]) -> bool:
        """Takes intermediate values of a live trial; whether the pruner would stop it."""
        trial = self._live[number]
        with storage_errors(self.name):
            known = self._frozen(number).intermediate_values
            for step, value in steps.items():
                if step not in known:
                    trial.report(value, step)
            stop = trial.should_prune()  # asked in any case: hyperband notes there which rungs a trial has reached
            return bool(stop) and number >= self.tuning.pruner.startup

    def tell(
        self,
        number: int,
        state: str,
        values: Sequence[float] | None,
        extra: Mapping[str, Any],
        constraint: float | None,
    ) -> None:
        """Ends a live trial.

        Args:
            state: complete, pruned or failed.
            values: One a direction; None where it is not complete.
            extra: Kept with the trial.
            constraint: Above 0: not feasible; None: there is no constraint.
        """
        trial = self._live.pop(number)
        with storage_errors(self.name):
            for name, value in extra.items():
                trial.set_user_attr(name, value)
            if constraint is not None and values is not None:
                trial.set_constraint("max_kl", constraint)
            ended = {name: one for one, name in STATES.items()}[state]
            self._study.tell(trial, None if values is None else list(values), state=ended)

    def ended(self) -> list[Told]:
        """All trials that have ended, by number."""
        with storage_errors(self.name):
            return [
                Told(
                    number=one.number,
                    state=STATES[one.state],
                    params=dict(one.params),
                    intermediate=dict(one.intermediate_values),
                    extra=dict(one.user_attrs),
                )
                for one in self._study.get_trials(deepcopy=False, states=tuple(STATES))
            ]

    def pareto(self) -> list[int]:
        """Numbers of the trials that no other one beats in both objectives; empty with one objective."""
        return [one.number for one in self._study.best_trials] if self.tuning.objective.against_kl else []

    def importance(self) -> dict[str, float]:
        """Share of the score's variance that each setting explains (fANOVA); empty where trials do not suffice."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        shared = set.intersection(*(set(one.params) for one in ended)) if ended else set()
        if len(ended) < 4 or len(shared) < 2:
            return {}
        target = (lambda one: one.values[0]) if self.tuning.objective.against_kl else None
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            found = optuna.importance.get_param_importances(self._study, evaluator=evaluator, target=target)
        except (ValueError, RuntimeError):  # no variance among the scores
            return {}
        return {name: float(share) for name, share in found.items()}

    # --- inside --------------------------------------------------------------------------------------------------

    def _sow(self, number: int) -> None:
        """Seeds the sampler for a trial: by the study and the trial's number alone."""
        digest = hashlib.sha256(f"{self.tuning.seed}/{self.name.rpartition('/')[2]}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4])
        if self.tuning.sampler == "random":
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.tuning.startup)

    def _suggested(self, number: int) -> Asked:
        """The settings of a live trial; those that it has already are not drawn again."""
        trial, params = self._live[number], dict[str, Any]()
        for name, param in self.space.items():
            if param.active(params):
                params[name] = _suggest(trial, name, param)
        return Asked(number=number, params=params)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _waiting(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _suggest(trial: optuna.Trial, name: str, param: Param) -> Any:
    if param.categorical is not None:
        return trial.suggest_categorical(name, param.categorical)
    if param.int is not None:
        return trial.suggest_int(name, param.int[0], param.int[1], log=param.log)
    assert param.float is not None
    return trial.suggest_float(name, param.float[0], param.float[1], log=param.log)


class _Feasible:
    """A study as a pruner sees it, without the complete trials whose KL passes the limit."""

    def __init__(self, study: optuna.Study, max_kl: float) -> None:
        self._study, self._max_kl = study, max_kl

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Those that a setting could be chosen from; a KL that is not known is no violation."""
        found = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [one for one in found if (one.user_attrs.get("seq_kl") or 0.0) <= self._max_kl]


class FeasibleMedian(optuna.pruners.MedianPruner):
    """The median of the trials within the KL limit: those beyond it score high and cannot be chosen."""

    def __init__(self, startup: int, max_kl: float) -> None:
        super().__init__(n_startup_trials=startup)
        self._max_kl = max_kl

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop it."""
        seen: Any = _Feasible(study, self._max_kl)
        return super().prune(seen, trial)


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    pruner, max_kl = tuning.pruner, tuning.objective.max_kl
    if pruner.kind == "median" and max_kl is not None:
        return FeasibleMedian(pruner.startup, max_kl)
    if pruner.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup)
    if pruner.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=len(pruner.at), reduction_factor=2)
    if pruner.kind == "wilcoxon":
        return optuna.pruners.WilcoxonPruner(p_threshold=pruner.p_threshold, n_startup_steps=8)
    return optuna.pruners.NopPruner()
