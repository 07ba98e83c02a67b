"""`workbench tune`: the driver. Asks the studies, runs trials in workers, tells the studies, repeats the best, chooses.

    share: SFT, pairs, reward model ...                     once for all arms and trials
    search: the arm that has spent least of its budget asks next, until every arm has spent its own
    repeat: the best few of each arm, and its default, on fresh run seeds
    choose, write tuning.json and figures, log to MLflow

Imports no torch: a sweep that is finished already costs no more than reading it.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from pipelines.compare import read_sources_first
from pipelines.sources import resolve_origin
from pipelines.tune_arm import ArmSweep, Say
from pipelines.tune_collect import collect
from pipelines.tune_graph import trial_comparison, trial_graph
from pipelines.tune_pool import Message, Pool
from workbench import errors
from workbench.config import Comparison, Tuning, check_paths
from workbench.config_tuning import REWARD_MODEL, Budget, run_seeds
from workbench.errors import ConfigError, DivergenceError, ResourceError, WorkbenchError
from workbench.fsio import disk_errors, remove_tree
from workbench.locks import FileLock, held
from workbench.redact import redact_text
from workbench.results_tuning import TuningResults, load_tuning
from workbench.store import Store
from workbench.tuning import DATABASE, Study, open_storage
from workbench.tuning_measure import Trial
from workbench.tuning_spaces import default_params, labels_of, space_of, tuning_of
from workbench.types import Cost

TICK_S = 0.5
MOST_DEATHS = 2


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A finished tuning: what it found, where it lies, the exit code of what is wrong with it."""

    results: TuningResults
    path: Path
    exit_code: int


def with_tuning(comparison: Comparison, budget: Budget | None = None, asked: tuple[str, ...] = ()) -> Comparison:
    """The comparison with a `tuning` section that is whole and fits the rest.

    Args:
        budget: In place of the section's.
        asked: Arms, as given to --arm: the reward model alone has no use for the objective, which may be left out.

    Raises:
        ConfigError: It does not fit.
    """
    tuning = comparison.tuning or Tuning()
    if budget is not None:
        tuning = tuning.model_copy(update={"budget": budget})
    unused = "objective" not in tuning.model_fields_set and bool(asked) and set(asked) == {REWARD_MODEL}
    section = tuning.model_dump(mode="json", exclude={"objective"} if unused else None)
    raw = comparison.model_dump(mode="json", exclude_unset=True) | {"tuning": section}
    try:
        return Comparison.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(str(first.get("ctx", {}).get("text") or first["msg"])) from error


def study_name(comparison: Comparison) -> str:
    """Name of a tuning: the comparison's, and a digest of all that a trial's score depends on but code."""
    assert comparison.tuning is not None
    about = {
        "config": comparison.semantic(),
        "tuning": comparison.tuning.model_dump(
            mode="json", exclude={"budget", "repeats", "storage", "spaces", "declared"}
        ),
        "spaces": {
            label: {name: param.model_dump(mode="json") for name, param in space_of(comparison, label).items()}
            for label in [*comparison.arms, REWARD_MODEL]
        },
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return f"{comparison.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def tune(
    comparison: Comparison,
    asked: tuple[str, ...],
    *,
    home: Path,
    workers: int | None = None,
    storage: str | None = None,
    wait_s: float = 0.0,
    say: Say = lambda line: None,
) -> Tuned:
    """Runs what the studies lack of their budgets, and chooses.

    Args:
        comparison: From `with_tuning`.
        asked: Arms, as given to --arm.
        workers: Trials at a time; None: resources.workers, on a GPU one.
        storage: Optuna storage URL; None: the config's, else the home's database.
        wait_s: How long to wait for another driver of the same tuning.
        say: Takes lines for people.

    Raises:
        WorkbenchError: All that ended is kept, and the next run goes on from there.
        KeyboardInterrupt, SystemExit: Stopped; the same.
    """
    tuning = comparison.tuning
    assert tuning is not None
    # ---- 1. Check; the light stages run here, so that a broken file ends the run before anything is started.
    labels = labels_of(comparison, asked)
    store = Store.open(home)
    check_paths(comparison)
    origin = resolve_origin(comparison, store, tuning=True)
    name = study_name(comparison)
    first = trial_comparison(comparison, labels[0], {}, tuning.seed)
    read_sources_first(trial_graph(first, origin, labels[0], tuning), store, wait_s, None)
    folder = home / "tuning" / name

    with held(FileLock(home / "locks" / f"tune-{name}.lock", label=f"tuning {name}"), wait_s), terminations():
        # ---- 2. Studies; trials that a killed driver left are taken up again.
        address = storage or tuning.storage
        database = open_storage(home, address)
        arms = {}
        for label in labels:
            space, default = space_of(comparison, label), default_params(comparison, label)
            about = {"arm": label, "tuning": name}
            study = Study(database, f"{name}/{label}", tuning_of(comparison, label), space, default, about)
            arms[label] = ArmSweep(comparison, label, study, folder / "trials", say)
        # ---- 3. Search, repeat.
        setup = {"config": comparison.model_dump(mode="json", exclude_unset=True), "home": str(home), "wait_s": 1e9}
        at_once = 1 if origin.device == "cuda" else comparison.resources.workers  # one trial has the GPU
        pool = Pool(size=workers or at_once, setup=setup, logs=folder / "logs")
        drive = Drive(arms, pool, store, tuning.seed)
        try:
            drive.search()
            drive.repeat(run_seeds(tuning)[1:])
        finally:
            pool.close()
        # ---- 4. Choose, write.
        path = folder / "tuning.json"
        before = load_tuning(home, name) if path.exists() else None
        results = collect(comparison, name, arms, redact_text(address or str(home / DATABASE)), before)
        with disk_errors("Writing the tuning", home):
            from workbench.tuning_figures import draw

            figures = draw(results, folder / "figures")
            results = results.model_copy(update={"figures": [str(one) for one in figures]})
            if comparison.tracking.enabled:
                from workbench.tracking_tuning import track

                curves = {label: arm.policies() for label, arm in arms.items()}
                logged = track(results, comparison, home, figures, curves, say)
                results = results.model_copy(update={"mlflow": logged})
            aside = path.with_name(".tuning.json.new")
            aside.write_text(results.to_json() + "\n", encoding="utf-8")
            aside.replace(path)
    hopeless = any(arm.best is None for arm in results.arms.values())
    return Tuned(results=results, path=path, exit_code=DivergenceError.exit_code if hopeless else 0)


class Drive:
    """Keeps the workers busy."""

    def __init__(self, arms: dict[str, ArmSweep], pool: Pool, store: Store, seed: int) -> None:
        self.arms, self.pool, self.store, self.seed = arms, pool, store, seed
        self.deaths: dict[str, int] = {}
        self.before: dict[str, Mapping[str, Cost]] = {}  # what attempts that died cost

    def search(self) -> None:
        """Runs trials until every arm has spent its budget."""
        if not all(arm.finished() for arm in self.arms.values()):
            self._share(self.seed)
        self._run(self._next_trial)

    def repeat(self, seeds: list[int]) -> None:
        """Runs each arm's finalists on fresh seeds."""
        jobs = [job for arm in self.arms.values() for job in arm.repeats(seeds)]
        for seed in dict.fromkeys(job["seed"] for job in jobs):
            self._share(seed)
        waiting = iter(jobs)
        self._run(lambda: next(waiting, None))

    def _next_trial(self) -> Message | None:
        """From the arm that has spent the smallest part of its budget, what runs included."""
        for arm in sorted(self.arms.values(), key=lambda one: one.progress()):
            job = arm.next_job()
            if job is not None:
                return job
        return None

    def _share(self, seed: int) -> None:
        """Builds what the trials of a run seed stand on, before the first one starts."""
        jobs: Iterator[Message] = iter([{"job": f"share/{seed}", "share": list(self.arms), "seed": seed}])
        self._run(lambda: next(jobs, None))

    def _run(self, next_job: Callable[[], Message | None]) -> None:
        while True:
            while self.pool.idle() and (job := next_job()) is not None:
                self.pool.submit(job)
            if not self.pool.busy():
                return
            for job, message in self.pool.hear(TICK_S):
                self._heard(job, message)

    def _heard(self, job: Message, message: Message) -> None:
        event, arm = message["event"], self.arms.get(job.get("label", ""))
        if event == "rung" and arm is not None:
            if arm.rung(job, message["rung"], message["scores"]):
                self.pool.prune(job["job"])
        elif event == "done" and arm is not None:
            trial = Trial.from_json(message["trial"])
            trial = replace(trial, costs={**self.before.get(job["job"], {}), **trial.costs})
            if trial.status == "died":
                self.before[job["job"]] = trial.costs
                self._died(job, trial.reason or "it died", trial)
                return
            arm.ended(job, trial)
            if trial.status == "pruned" and trial.policy is not None:
                remove_tree(self.store.work(trial.policy))  # what it cost is written down
        elif event == "error":
            raise _error(message)
        elif event == "died":
            self._died(job, f"{message['why']}; most likely memory ran out", None)

    def _died(self, job: Message, why: str, trial: Trial | None) -> None:
        """A worker, or a stage of the trial's own, died: once more, then the trial has failed."""
        arm = self.arms.get(job.get("label", ""))
        self.deaths[job["job"]] = deaths = self.deaths.get(job["job"], 0) + 1
        if deaths < MOST_DEATHS:
            self.pool.submit(job)  # its stage goes on from its checkpoint
        elif arm is not None:
            arm.ended(job, replace(trial or Trial(status="failed"), status="failed", reason=f"died twice: {why}"))
        else:
            raise ResourceError(f"the stages that all trials share could not be built: {why}")


def _error(message: Message) -> WorkbenchError:
    kind = getattr(errors, message["kind"], None)
    if isinstance(kind, type) and issubclass(kind, WorkbenchError):
        return kind(message["message"], where=message["where"])
    return WorkbenchError(message["message"], where=message["where"])


@contextmanager
def terminations() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the driver in order: workers write checkpoints first. Elsewhere than in the main thread
    they are the caller's."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                undo.callback(signal.signal, number, signal.signal(number, handle))
        yield
