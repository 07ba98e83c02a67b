"""Runs the misses of a graph on this machine: in dependency order, side by side, interruptible, resumable.

The driver decides hits, holds the locks and commits; workers compute. This module is the seam for other engines: what
they need is `Job` (import string, JSON, paths) and the messages of `worker.attempt`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from workbench import fsio, worker, worker_pool
from workbench.build import Build
from workbench.errors import ResourceError, WorkbenchError
from workbench.locks import FileLock, key_lock
from workbench.manifest import Artifact
from workbench.outcome import Event, EventKind, OnEvent, Outcome
from workbench.spare_time import SpareTime
from workbench.stages import (
    Planned,
    Resources,
    Stage,
    StageFailedError,
    check_graph,
    decide,
    dependencies,
    input_digests,
    plan,
)
from workbench.store import CorruptArtifactError, Store
from workbench.store_index import History
from workbench.worker_pool import TRAINING_PRELOAD

TICK_S = 0.2
GRACE_S = 30.0
_log = logging.getLogger(__name__)


def run(
    stages: Sequence[Stage],
    store: Store,
    *,
    workers: int = 1,
    wait_s: float = 0.0,
    on_event: OnEvent | None = None,
    keep_going: bool = True,
    preload: Sequence[str] = TRAINING_PRELOAD,
    grace_s: float = GRACE_S,
    threads: int | None = None,
    record_fields: Callable[[Stage], Mapping[str, Any]] | None = None,
    between: Callable[[], bool] | None = None,
) -> Outcome:
    """Brings every stage of a graph to an artifact; what is in the store already is not run.

    Args:
        workers: Stages at a time.
        wait_s: How long to wait for a key that another process builds, in seconds; `math.inf`: until it is free.
        on_event: Hears what happens. What it raises is logged and goes no further.
        keep_going: After a failure, run what does not depend on it.
        preload: Modules that the forkserver imports before the first fork.
        grace_s: Time for checkpoints after the first Ctrl-C or SIGTERM; a second one ends everything at once.
        threads: Sum of the threads of stages side by side; default `workers` times the largest stage's.
        record_fields: More StageRecord fields at commit time (`mlflow_run_id`).
        between: A short piece of work that nobody waits for, done while workers compute, after what can start has
            been started; returns whether there is more of it. `SpareTime` says how often.

    Returns:
        Artifacts, failures and skipped stages. A failed stage is here, not an exception.

    Raises:
        ConfigError: The graph is broken.
        BusyError: gc is running.
        KeyboardInterrupt, SystemExit(143): After Ctrl-C or SIGTERM, when the workers have stopped.
    """
    ordered = check_graph(stages)
    budget = threads or workers * max((stage.resources.threads for stage in ordered), default=1)
    one = _Run(ordered, store, workers, wait_s, on_event, keep_going, budget, record_fields, between)
    with store.building(wait_s), one.signals(grace_s):
        one.execute(preload)
    one.raise_if_interrupted()
    return one.outcome


def warm_up(stages: Sequence[Stage], store: Store, preload: Sequence[str] = TRAINING_PRELOAD) -> None:
    """Starts the forkserver if `run` will need workers, so that its imports overlap with what the caller does first.

    Raises:
        ConfigError: The graph is broken.
    """
    ordered = check_graph(stages)
    cached = {planned.instance for planned in plan(ordered, store) if planned.artifact is not None}
    _start_forkserver(ordered, cached, preload)


def _start_forkserver(stages: Sequence[Stage], cached: Collection[str], preload: Sequence[str]) -> None:
    if any(not stage.inline and stage.instance not in cached for stage in stages):
        worker_pool.start_forkserver(min(stage.resources.threads for stage in stages), preload)


class _Run:
    def __init__(
        self,
        stages: list[Stage],
        store: Store,
        workers: int,
        wait_s: float,
        on_event: OnEvent | None,
        keep_going: bool,
        threads: int,
        record_fields: Callable[[Stage], Mapping[str, Any]] | None,
        between: Callable[[], bool] | None,
    ) -> None:
        self.stages = stages
        self.store = store
        self.workers = max(1, workers)
        self.wait_s = wait_s
        self.on_event = on_event
        self.keep_going = keep_going
        self.threads = threads
        self.record_fields = record_fields
        self.between = SpareTime(between) if between is not None else None
        self.outcome = Outcome()
        self.pending = {stage.instance: stage for stage in stages}
        self.builds: dict[str, Build] = {}
        self.decided: dict[str, Planned] = {}
        self.history = History()
        self.waiting_since: dict[str, float] = {}
        self.stop = threading.Event()
        self.signalled: list[int] = []
        self.inline = False
        self.deadline = float("inf")

    # --- the loop ----------------------------------------------------------------------------------------------------

    def execute(self, preload: Sequence[str]) -> None:
        """Runs until nothing is left, or a signal stops it. Whatever happens, no worker and no lock stays."""
        self.history = self.store.history()
        try:
            plans = plan(self.stages, self.store)
            for planned in plans:
                stage = self.pending[planned.instance]
                self._emit("planned", stage, key=planned.key, why=planned.why, cached=planned.cached)
            for planned in plans:
                if planned.key is not None:
                    self.decided[planned.instance] = planned
                if planned.artifact is not None:
                    self._finished(self.pending[planned.instance], planned, planned.artifact, cached=True)
            _start_forkserver(self.stages, self.outcome.artifacts, preload)
            while self.builds or (self.pending and not self.signalled):
                if not self.signalled:
                    self._start_what_can()
                self._hear(0.0 if self._between() else TICK_S)
                self._mind_the_deadline()
        finally:
            self._abandon()

    def _start_what_can(self) -> None:
        progressed = True
        while progressed and not self.signalled:
            progressed = False
            # Workers first, so that they compute while an inline stage occupies the driver.
            for stage in sorted(self.pending.values(), key=lambda stage: stage.inline):
                if stage.instance in self.builds or self.signalled:
                    continue
                if self._ready(stage) and self._advance(stage):
                    progressed = True
                    if stage.inline:
                        break  # it may have made work for the workers

    def _ready(self, stage: Stage) -> bool:
        """Its inputs are there; where one will never be, it is skipped."""
        for source in dependencies(stage):
            if source in self.outcome.failures or source in self.outcome.skipped:
                ended = "failed" if source in self.outcome.failures else "was skipped"
                self._skip(stage, f"needs {source}, which {ended}")
                return False
        if not self.keep_going and self.outcome.failures:
            self._skip(stage, f"not started after {next(iter(self.outcome.failures))} failed")
            return False
        return all(source in self.outcome.artifacts for source in dependencies(stage))

    def _advance(self, stage: Stage) -> bool:
        """Takes a ready stage one step on: a hit, a start, a failure. Returns whether anything changed."""
        try:
            planned = self._decision(stage)
            key = planned.key
            assert key is not None
            if planned.artifact is None and self.store.has(key):
                planned = self._look_again(planned)
            if planned.artifact is not None:
                self._finished(stage, planned, planned.artifact, cached=True)
                return True
            if not self._fits(stage) or any(build.key == key for build in self.builds.values()):
                return False
            lock = key_lock(self.store.home, key, stage.instance)
            if not lock.try_acquire():
                return self._wait_for(stage, planned, lock)
        except WorkbenchError as error:
            self._failed(stage, error)
            return True
        build = Build(stage=stage, planned=planned, store=self.store, lock=lock)
        self.builds[stage.instance] = build
        try:
            build.planned = self._look_again(planned)  # built while the lock was awaited?
            if build.planned.artifact is not None:
                self._end(build)
                self._finished(stage, build.planned, build.planned.artifact, cached=True)
            else:
                self._start(build)
        except WorkbenchError as error:
            self._end(build)
            self._failed(stage, error)
        return True

    def _decision(self, stage: Stage) -> Planned:
        if stage.instance not in self.decided:
            contents = {instance: artifact.content for instance, artifact in self.outcome.artifacts.items()}
            planned = decide(stage, input_digests(stage, contents), self.store, self.history)
            self.decided[stage.instance] = planned
        return self.decided[stage.instance]

    def _look_again(self, planned: Planned) -> Planned:
        """A key that was missing when it was planned may have been built since, here or by another process."""
        assert planned.key is not None
        try:
            artifact = self.store.find(planned.key)
        except CorruptArtifactError as error:
            return replace(planned, why=f"artifact was corrupt and quarantined: {error.message}")
        if artifact is None:
            return planned
        same = [i for i, key in self.outcome.keys.items() if key == planned.key and i != planned.instance]
        why = f"cached: the same as {same[0]}" if same else "cached: built meanwhile by another process"
        return replace(planned, cached=True, why=why, artifact=artifact)

    def _fits(self, stage: Stage) -> bool:
        running = [build.stage.resources for build in self.builds.values()]
        if stage.inline or not running:
            return True
        wants = stage.resources
        memory = sum(r.memory_bytes for r in running) + wants.memory_bytes
        return (
            len(running) < self.workers
            and _threads([*running, wants]) <= self.threads
            and not (wants.gpus and any(r.gpus for r in running))
            and (wants.memory_bytes == 0 or memory <= _physical_memory_bytes())
        )

    def _wait_for(self, stage: Stage, planned: Planned, lock: FileLock) -> bool:
        now = time.monotonic()
        if stage.instance not in self.waiting_since:
            self.waiting_since[stage.instance] = now
            if self.wait_s > 0:
                why = f"{lock.holder() or 'another process'} is building it"
                self._emit("waiting", stage, key=planned.key, why=why)
        if now - self.waiting_since[stage.instance] < self.wait_s:
            return False
        raise lock.busy()

    # --- one stage ---------------------------------------------------------------------------------------------------

    def _start(self, build: Build) -> None:
        job = build.job(self.outcome.artifacts)
        self._emit("started", build.stage, key=build.key, why=build.planned.why, path=build.metrics)
        if not build.stage.inline:
            build.worker = worker_pool.start(job)
            return
        self.inline = True
        try:
            if self.signalled:  # since the loop last looked
                raise KeyboardInterrupt
            result = worker.attempt_inline(job, lambda message: self._news(build, message), self.stop)
        except KeyboardInterrupt:  # from our own signal handler: an inline stage is light and has no checkpoint
            result = ("interrupted",)
        finally:
            self.inline = False
        self._conclude(build, result)

    def _between(self) -> bool:
        """A piece of the work that nobody waits for; whether more may be done at once."""
        if self.between is None or self.signalled:
            return False
        return self.between.piece(_threads(build.stage.resources for build in self.builds.values()))

    def _hear(self, wait_s: float) -> None:
        """Waits for news of the workers and acts on it."""
        active = [(build, build.worker) for build in self.builds.values() if build.worker is not None]
        if active:
            worker_pool.listen([one for _, one in active], wait_s)
        elif self.pending and not self.signalled:
            time.sleep(wait_s)
        for build, one in active:
            alive = one.alive()  # asked first: what a worker said before it died is still read
            for message in one.messages():
                self._news(build, message)
            if self.signalled:
                one.ask_to_stop()
            if one.ended or not alive:
                code = one.reap()
                died = ("interrupted",) if self.signalled else build.died(code)
                self._conclude(build, one.result or died)

    def _news(self, build: Build, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "progress":
            told = {"done": rest[0], "total": rest[1], "note": rest[2], "path": build.metrics}
            self._emit("progress", build.stage, key=build.key, **told)
        elif kind == "message":
            self._emit("message", build.stage, key=build.key, message=rest[0])
        elif kind == "metrics":
            self._emit("metrics", build.stage, key=build.key, path=build.metrics)

    def _conclude(self, build: Build, result: tuple[Any, ...]) -> None:
        """An attempt has ended: commits it, or files what went wrong. The scratch folder of a failure is kept."""
        artifact: Artifact | None = None
        failure: WorkbenchError | None = None
        trace = ""
        try:
            if result[0] == "done":
                artifact = build.commit(self._more_fields(build.stage))
            elif result[0] == "error":
                failure, trace = worker.from_wire(result)
            elif not self.signalled:
                failure = ResourceError(
                    f"{build.stage.instance} was told to stop by something other than this run. It has written a "
                    "checkpoint: run the command again to go on from there."
                )
        except WorkbenchError as error:
            failure = error
        except OSError as error:
            failure = ResourceError(f"cannot store the output of {build.stage.instance} ({error}). Check the disk.")
        finally:
            if artifact is None:
                fsio.remove_tree(build.work / "out")
            self._end(build)
        if artifact is not None:
            self._finished(build.stage, build.planned, artifact, cached=False)
        elif failure is not None:
            self._failed(build.stage, failure, trace)
        else:
            self._emit("interrupted", build.stage, key=build.key)

    def _more_fields(self, stage: Stage) -> Mapping[str, Any]:
        if self.record_fields is None:
            return {}
        try:
            return self.record_fields(stage)
        except Exception:
            _log.warning("no more record fields for %s; going on", stage.instance, exc_info=True)
            return {}

    def _end(self, build: Build) -> None:
        self.builds.pop(build.stage.instance, None)
        build.lock.release()

    # --- how stages end ----------------------------------------------------------------------------------------------

    def _finished(self, stage: Stage, planned: Planned, artifact: Artifact, *, cached: bool) -> None:
        self.pending.pop(stage.instance, None)
        self.outcome.artifacts[stage.instance] = artifact
        self.outcome.records[stage.instance] = artifact.record
        self.outcome.cached[stage.instance] = cached
        self.outcome.why[stage.instance] = planned.why
        self.outcome.keys[stage.instance] = artifact.key
        self._emit(
            "finished",
            stage,
            key=artifact.key,
            why=planned.why,
            cached=cached,
            cost=artifact.record.cost,
            artifact=artifact,
            path=artifact.metrics_path,
        )

    def _failed(self, stage: Stage, error: WorkbenchError, trace: str = "") -> None:
        self.pending.pop(stage.instance, None)
        self.outcome.failures[stage.instance] = error
        if trace:
            self.outcome.tracebacks[stage.instance] = trace
        planned = self.decided.get(stage.instance)
        self.outcome.why[stage.instance] = planned.why if planned else ""
        self._emit("failed", stage, key=planned.key if planned else None, error=error, message=str(error))

    def _skip(self, stage: Stage, why: str) -> None:
        self.pending.pop(stage.instance, None)
        self.outcome.skipped[stage.instance] = why
        self.outcome.why[stage.instance] = why
        self._emit("skipped", stage, why=why)

    def _emit(self, kind: EventKind, stage: Stage, **fields: Any) -> None:
        if self.on_event is None:
            return
        try:
            self.on_event(Event(kind=kind, instance=stage.instance, name=stage.name, **fields))
        except Exception:
            _log.warning("the listener failed on %s of %s; going on", kind, stage.instance, exc_info=True)

    # --- stopping ----------------------------------------------------------------------------------------------------

    @contextmanager
    def signals(self, grace_s: float) -> Iterator[None]:
        """Takes Ctrl-C and SIGTERM over while the run lasts (in the main thread; elsewhere they are the caller's)."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.signalled.append(number)
            if len(self.signalled) > 1:
                self._kill_workers()
                raise _as_exit(number)
            self.deadline = time.monotonic() + grace_s
            self.stop.set()
            for build in list(self.builds.values()):
                if build.worker is not None:
                    build.worker.ask_to_stop()
            if self.inline:
                raise KeyboardInterrupt

        with ExitStack() as undo:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    undo.callback(signal.signal, number, signal.signal(number, handle))
            yield

    def _mind_the_deadline(self) -> None:
        if self.signalled and time.monotonic() > self.deadline:
            self._kill_workers()

    def _kill_workers(self) -> None:
        for build in list(self.builds.values()):
            if build.worker is not None:
                build.worker.kill()

    def _abandon(self) -> None:
        """Leaves nothing behind when the loop ends early."""
        self._kill_workers()
        for build in list(self.builds.values()):
            if build.worker is not None:
                build.worker.reap()
            self._end(build)

    def raise_if_interrupted(self) -> None:
        """KeyboardInterrupt or SystemExit(143), if a signal stopped the run."""
        if self.signalled:
            raise _as_exit(self.signalled[0])


def _as_exit(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _threads(resources: Iterable[Resources]) -> int:
    """That stages compute with side by side."""
    return sum(one.threads * one.processes for one in resources)


def _physical_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


__all__ = ["Event", "OnEvent", "Outcome", "StageFailedError", "run", "warm_up"]
