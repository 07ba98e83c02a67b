"""Worker processes as the driver sees them: started from a forkserver, heard over a pipe, killed with their session."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from workbench import worker
from workbench.errors import ResourceError
from workbench.worker import Job

# Imported once in the forkserver: a worker then starts in about 0.03 s instead of 7. Imports only, no tensor
# operation: thread pools and a CUDA context do not survive a fork.
TRAINING_PRELOAD = (
    "torch",
    "workbench.quantized",  # silences bitsandbytes before peft imports it
    "transformers",
    "datasets",
    "trl.trainer.sft_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.dpo_trainer",
)

_forkserver_started = False


class Worker:
    """One stage's process, seen from the driver. `result` is its last message."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result: tuple[Any, ...] | None = None
        self.asked_to_stop = False
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=worker.main, args=(theirs, job), name=f"stage {job.instance}")
        try:
            with bare_main_module():
                self.process.start()
        finally:
            theirs.close()  # ours would keep the pipe open after the worker's death
        assert self.process.pid is not None
        self.pid: int = self.process.pid
        self._closed = False

    def waitables(self) -> list[Any]:
        """What `multiprocessing.connection.wait` can wait on for news."""
        return [] if self._closed else [self._connection]

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """News since last time, but for the final message, which becomes `result`."""
        try:
            while not self._closed and self._connection.poll():
                message = self._connection.recv()
                if message[0] in ("done", "interrupted", "error"):
                    self.result = message
                else:
                    yield message
        except (EOFError, OSError):
            self._close()

    @property
    def ended(self) -> bool:
        """It has said its last word, or its end of the pipe is closed because it died."""
        return self._closed or self.result is not None

    def alive(self) -> bool:
        """Whether the process still runs."""
        return _alive(self.process)

    def ask_to_stop(self) -> None:
        """Asks for a checkpoint; safe to call from a signal handler, and again."""
        if not self.asked_to_stop and not self._closed:
            self.asked_to_stop = True
            with suppress(OSError):
                self._connection.send("stop")

    def kill(self) -> None:
        """Ends every process of the worker's session at once."""
        for end in (os.killpg, os.kill):  # its session may not be its own yet: then it is alone
            with suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """Waits for the process, kills what is left of its session. Returns its exit code; negative: the signal."""
        self.process.join(timeout=5.0)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.process.exitcode is None:
            self.kill()
            self.process.join(timeout=5.0)
        code = self.process.exitcode
        self._close()
        return code

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.close()


def start_forkserver(threads: int, preload: Sequence[str]) -> None:
    """Starts the forkserver in the background, if none is running: its imports overlap with the driver's first stages.

    Args:
        threads: Threads that numeric libraries see when they are loaded; each worker sets its own count as well.
        preload: Modules to import before the first fork.
    """
    global _forkserver_started
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(preload))
    environment = worker.thread_environment(threads) | {
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),  # the order of a set of strings is part of a result
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not open it before the fork
    }
    with _environment(environment), _sigint_ignored():
        forkserver.ensure_running()
    _forkserver_started = True


def forkserver_started() -> bool:
    """Whether `start_forkserver` was called: a process then starts without importing what workers need."""
    return _forkserver_started


def start(job: Job) -> Worker:
    """Starts a stage's worker.

    Raises:
        ResourceError: The system gives no process.
    """
    try:
        return Worker(job)
    except (OSError, EOFError) as error:
        raise ResourceError(
            f"cannot start a worker for {job.instance} ({error or type(error).__name__}). Check the limits on "
            "processes and memory (ulimit -u, ulimit -v), or set resources.workers to 1; finished stages are kept."
        ) from error


def listen(workers: Sequence[Worker], timeout_s: float) -> None:
    """Waits until a worker has news, or for `timeout_s`."""
    wait([waitable for one in workers for waitable in one.waitables()], timeout_s)


def _alive(process: Any) -> bool:
    # The forkserver relays exit codes; where it died itself, the process may live on, and only a signal can tell.
    if process.exitcode is None:
        return True
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(process.pid)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def bare_main_module() -> Iterator[None]:
    """Starts processes without the caller's main script.

    multiprocessing imports it into each child. Stages are named by import string, so a worker needs none of it, and a
    script without an `if __name__ == "__main__"` guard would run again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    # A program started while SIGINT is ignored goes on ignoring it: Ctrl-C reaches the driver alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = [
    "TRAINING_PRELOAD",
    "Connection",
    "Worker",
    "bare_main_module",
    "forkserver_started",
    "listen",
    "start",
    "start_forkserver",
]
