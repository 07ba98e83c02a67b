"""The driver's side of the trial workers: start them when there is work, hear them, start them anew when they die."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from workbench.errors import ResourceError

GRACE_S = 40.0  # for the checkpoints of a trial that is stopped
Message = dict[str, Any]


@dataclass(kw_only=True)
class _Process:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    job: Message | None = None
    unread: bytes = b""


@dataclass(kw_only=True)
class Pool:
    """Up to `size` workers.

    Args:
        setup: First line to each: config, home, wait_s.
        logs: Folder of their logs.
    """

    size: int
    setup: Message
    logs: Path
    _running: list[_Process] = field(default_factory=list)

    def idle(self) -> bool:
        """Whether a job could start now."""
        return sum(one.job is not None for one in self._running) < self.size

    def busy(self) -> list[Message]:
        """The jobs that run."""
        return [one.job for one in self._running if one.job is not None]

    def submit(self, job: Message) -> None:
        """Gives a job to a worker that has none, started for it if need be."""
        one = next((one for one in self._running if one.job is None), None) or self._start()
        one.job = job
        self._send(one, job)

    def prune(self, job: str) -> None:
        """Asks the worker of a job to stop it."""
        for one in self._running:
            if one.job is not None and one.job["job"] == job:
                self._send(one, {"prune": job})

    def hear(self, timeout_s: float) -> Iterator[tuple[Message, Message]]:
        """(job, message) of what the workers said; a worker that died says {"event": "died"}."""
        with selectors.DefaultSelector() as selector:
            for one in self._running:
                assert one.process.stdout is not None
                selector.register(one.process.stdout, selectors.EVENT_READ, one)
            ready = [key.data for key, _ in selector.select(timeout_s)]
        for one in ready:
            assert one.process.stdout is not None
            data = os.read(one.process.stdout.fileno(), 1 << 20)
            if not data:
                yield from self._died(one)
                continue
            *lines, one.unread = (one.unread + data).split(b"\n")
            for line in lines:
                message, job = json.loads(line), one.job
                assert job is not None
                if message["event"] in ("done", "error"):
                    one.job = None
                yield job, message

    def _died(self, one: _Process) -> Iterator[tuple[Message, Message]]:
        code, job = one.process.wait(), one.job
        self._forget(one)
        if job is None:
            return
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        yield job, {"event": "died", "why": f"its worker ended with {why}; see {one.log.name}"}

    def _forget(self, one: _Process) -> None:
        self._running.remove(one)
        for stream in (one.process.stdin, one.process.stdout, one.log):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _start(self) -> _Process:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = (self.logs / f"worker-{len(self._running)}.log").open("ab")
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.tune_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        except OSError as error:
            raise ResourceError(f"cannot start a trial worker ({error}); use fewer with --workers") from error
        one = _Process(process=process, log=log)
        self._running.append(one)
        self._send(one, self.setup)
        return one

    def _send(self, one: _Process, message: Mapping[str, Any]) -> None:
        assert one.process.stdin is not None
        with suppress(BrokenPipeError):  # it died: `hear` finds that
            one.process.stdin.write(json.dumps(message).encode() + b"\n")
            one.process.stdin.flush()

    def close(self, *, now: bool = False) -> None:
        """Ends the workers: their stdin closes, what runs writes a checkpoint. `now`: no grace."""
        for one in self._running:
            if one.process.stdin is not None:
                with suppress(OSError):
                    one.process.stdin.close()
        deadline = time.monotonic() + (0.0 if now else GRACE_S)
        for one in list(self._running):
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(one.process.pid, signal.SIGKILL)
                one.process.wait()
            self._forget(one)
