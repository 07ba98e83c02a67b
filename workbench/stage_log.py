"""What a stage is given besides its inputs: a scratch folder, metrics, progress, cost and the wish to stop."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench import fsio, ranks
from workbench.stages import Resources
from workbench.types import Cost

METRICS_FILE = "metrics.jsonl"
COST_FILE = "cost.jsonl"
_PROGRESS_EVERY_S = 0.2
_METRICS_EVERY_S = 0.5
_METER_EVERY_S = 1.0
COUNTERS = ("flops", "tokens_trained", "tokens_generated", "reward_queries")
_INTEGERS = {field.name for field in fields(Cost) if field.type == "int"}


class StageLog:
    """A stage's line to the outside; the same inline and in a worker.

    Args:
        work: Scratch of this key, kept over kills: checkpoints live here. The names out, metrics.jsonl, cost.jsonl,
            log.txt, worker.lock and ranks are taken.
        seed: The stage's seed.
        resources: What it may use.
        instance: Its name in the graph.
        send: Takes a message to the driver.
        stop: Set when the driver asks to stop.
        rank: Of several processes that run the stage together; all but 0 say nothing, and count their CPU time alone.

    Attributes:
        scratch: Like `work`, but of this process alone.
    """

    def __init__(
        self,
        *,
        work: Path,
        seed: int,
        resources: Resources,
        instance: str,
        send: Callable[[tuple[Any, ...]], None],
        stop: threading.Event,
        rank: int = 0,
    ) -> None:
        self.work = work
        self.scratch = ranks.scratch(work, rank)
        self.rank = rank
        self.seed = seed
        self.resources = resources
        self.instance = instance
        self._send = send
        self._stop = stop
        self._said: dict[str, float] = {}
        gpus = resources.gpus if resources.device == "cuda" else 0  # of all processes: rank 0 counts for them
        self._meter = Meter(work / COST_FILE, gpus=gpus, beside=rank > 0)
        if rank == 0:
            _drop_torn_tail(work / METRICS_FILE)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl: {"step", "unix_s", "values"}, on the disk's side of a kill at once."""
        self._meter.beat()
        if self.rank:
            return
        plain = {name: float(value) for name, value in values.items()}
        with fsio.disk_errors(f"Logging metrics of {self.instance}", self.work):
            fsio.append_json(
                self.work / METRICS_FILE, {"step": int(step), "unix_s": round(time.time(), 3), "values": plain}
            )
        if self._due("metrics", _METRICS_EVERY_S):
            self._send(("metrics",))

    def rewind(self, step: int) -> None:
        """On resume: drops what was logged after `step` (use -1 when starting over), so that no line comes twice."""
        path = self.work / METRICS_FILE
        if self.rank or not path.exists():
            return
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        with fsio.disk_errors(f"Rewinding metrics of {self.instance}", self.work):
            fsio.write_atomic(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept))

    def progress(self, done: int, total: int, note: str = "") -> None:
        """How far it is. Sent at most five times a second; the last one always."""
        self._meter.beat()
        if self.rank == 0 and (done >= total or self._due("progress", _PROGRESS_EVERY_S)):
            self._send(("progress", int(done), int(total), note))

    def say(self, message: str) -> None:
        """A line for people."""
        if self.rank == 0:
            self._send(("message", message))

    def cost(self, **counters: float) -> None:
        """Adds to flops, tokens_trained, tokens_generated or reward_queries; kept even if this attempt is killed."""
        unknown = counters.keys() - set(COUNTERS)
        if unknown:
            raise ValueError(f"unknown cost counters {sorted(unknown)}; expected some of {list(COUNTERS)}")
        if self.rank:
            return  # rank 0 counts the work of all
        with fsio.disk_errors(f"Logging cost of {self.instance}", self.work):
            self._meter.add(counters)

    def stop_requested(self) -> bool:
        """The driver asked to stop: write a checkpoint, then raise StageInterrupted."""
        return self._stop.is_set()

    def close(self) -> None:
        """Writes the attempt's final time and memory. Called by the executor."""
        self._meter.beat(force=True)

    def _due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._said.get(what, -every_s) < every_s:
            return False
        self._said[what] = now
        return True


class Meter:
    """Measures one attempt into cost.jsonl, about once a second: a killed attempt counts up to its last beat.

    Args:
        path: cost.jsonl.
        gpus: Accelerators in use.
        beside: Another process counts the same time by the clock.
    """

    def __init__(self, path: Path, *, gpus: int, beside: bool = False) -> None:
        self._path = path
        self._beside = beside
        self._gpus = gpus
        self._attempt = f"{os.getpid()}-{time.time_ns()}"
        self._wall = time.monotonic()
        self._cpu = _cpu_s()
        self._last = self._wall

    def add(self, counters: Mapping[str, float]) -> None:
        """Appends counters."""
        fsio.append_json(self._path, {"counters": {name: float(value) for name, value in counters.items()}})
        self.beat()

    def beat(self, *, force: bool = False) -> None:
        """Appends the attempt's figures so far; later lines of an attempt replace earlier ones."""
        now = time.monotonic()
        if not force and now - self._last < _METER_EVERY_S:
            return
        self._last = now
        wall_s = now - self._wall
        row = {
            "attempt": self._attempt,
            "wall_s": 0.0 if self._beside else round(wall_s, 4),
            "cpu_s": round(_cpu_s() - self._cpu, 4),
            "gpu_s": 0.0 if self._beside else round(wall_s * self._gpus, 4),
            "peak_memory_bytes": _peak_memory_bytes(cuda=self._gpus > 0),
        }
        fsio.append_json(self._path, row)


def total_cost(work: Path) -> Cost:
    """Cost of all attempts at a key, from its scratch folder; torn lines are left out."""
    counted = dict.fromkeys(COUNTERS, 0.0)
    attempts: dict[str, dict[str, Any]] = {}
    for row in fsio.read_json_lines(work / COST_FILE):
        for name, value in row.get("counters", {}).items():
            if name in counted:
                counted[name] += value
        if "attempt" in row:
            attempts[row["attempt"]] = row
    total = Cost(**{name: int(value) if name in _INTEGERS else value for name, value in counted.items()})  # type: ignore[arg-type]
    for row in attempts.values():
        total = total.plus(
            Cost(
                wall_s=row["wall_s"],
                cpu_s=row["cpu_s"],
                gpu_s=row["gpu_s"],
                peak_memory_bytes=row["peak_memory_bytes"],
            )
        )
    return total


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Rows {"step", "unix_s", "values"} of a metrics.jsonl, also while it is being written."""
    for row in fsio.read_json_lines(path):
        if isinstance(row.get("step"), int) and isinstance(row.get("values"), dict):
            yield row


def _drop_torn_tail(path: Path) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_memory_bytes(*, cuda: bool) -> int:
    """Peak of the device's memory on a GPU, of resident memory otherwise."""
    torch = sys.modules.get("torch")
    if cuda and torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
