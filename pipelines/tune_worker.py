"""A trial worker: a process of its own that runs trials one after another, told what over stdin, answering on stdout.

    in   {"config", "home", "wait_s"}                            once, first
         {"job", "label", "params", "seed", "report"}            run a trial
         {"job", "share": [LABEL...], "seed"}                    build what all trials stand on
         {"prune": job}                                          stop this trial, if it still runs
    out  {"job", "event": "rung", "rung", "scores"}
         {"job", "event": "stage", "instance"}                   a stage starts
         {"job", "event": "done", "trial"}  ·  {"job", "event": "error", "kind", "message", "where"}

It keeps one forkserver for all its trials, so that torch is imported once and not once a trial. Its session is its own:
Ctrl-C reaches the driver alone. When stdin closes, because the driver died or ends, the running stage writes a
checkpoint and the process exits.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from workbench.errors import WorkbenchError


class Worker:
    """The process: a listener on stdin, trials in the main thread."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.job: str | None = None
        self.pruned = self.stopping = self.missed = False

    def listen(self) -> None:
        """Reads stdin to its end, in a thread."""
        for line in sys.stdin:
            try:
                message = json.loads(line)
            except ValueError:
                break  # a torn line: the driver died while it wrote
            if "prune" in message:
                if message["prune"] == self.job:
                    self.pruned = True
                    os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.jobs.put(message)
        self.stopping = True
        self.jobs.put(None)
        if self.job is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def tell(self, **message: Any) -> None:
        """One line to the driver; without a driver, the end."""
        try:
            self.out.write(json.dumps(message, allow_nan=False) + "\n")
            self.out.flush()
        except OSError:
            os._exit(1)

    def on_signal(self, *_: Any) -> None:
        """SIGTERM while no executor listens: kept for the next one that does."""
        self.missed = True

    def hear(self, event: Any) -> None:
        """The executor's events: stages that start are told to people; a missed wish to stop is repeated."""
        if self.missed:
            self.missed = False
            os.kill(os.getpid(), signal.SIGTERM)
        if event.kind == "started":
            self.tell(job=self.job, event="stage", instance=event.instance)

    def serve(self) -> None:
        """Runs jobs until there is no driver."""
        first = self.jobs.get()
        if first is None:
            return
        from pipelines.sources import resolve_origin
        from pipelines.tune_trial import TrialRunner
        from workbench.config import Comparison
        from workbench.store import Store
        from workbench.tuning_measure import Trial
        from workbench.worker import thread_environment

        comparison = Comparison.model_validate(first["config"])
        os.environ.update(thread_environment(comparison.resources.threads))  # checkpoints are scored in this process
        store = Store(Path(first["home"]))
        runner = TrialRunner(
            comparison, resolve_origin(comparison, store, tuning=True), store, wait_s=float(first["wait_s"])
        )
        while (job := self.jobs.get()) is not None and not self.stopping:
            self.pruned = self.missed = False
            self.job = name = str(job["job"])
            try:
                if "share" in job:
                    runner.share(job["share"], job["seed"], self.hear)
                    trial = Trial(status="complete")
                else:

                    def report(rung: int, scores: Any, name: str = name) -> None:
                        self.tell(job=name, event="rung", rung=rung, scores=dict(scores))

                    wanted = report if job["report"] else None
                    trial = runner.run(job["label"], job["params"], job["seed"], self.hear, wanted)
            except (KeyboardInterrupt, SystemExit):
                if not self.pruned or self.stopping:
                    return
                trial = runner.pruned
            except WorkbenchError as error:
                self.job = None
                self.tell(job=name, event="error", kind=type(error).__name__, message=error.message, where=error.where)
                continue
            self.job = None
            self.tell(job=name, event="done", trial=trial.to_json())


def main() -> None:
    """Body of the process."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stdout is the line to the driver; what anything else prints goes to the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(out)
    signal.signal(signal.SIGTERM, worker.on_signal)
    threading.Thread(target=worker.listen, daemon=True).start()
    worker.serve()


if __name__ == "__main__":
    main()
