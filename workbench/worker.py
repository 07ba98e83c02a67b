"""One attempt at a stage: in a worker process of its own, or inline in the driver.

A worker takes no part in the store: it reads its inputs, writes below its scratch folder and tells the driver how it
ended; the driver commits. It holds a lock on the scratch folder only, so that a successor waits until it is gone.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from workbench import errors, fsio, keys, ranks
from workbench.device import take_gpu
from workbench.errors import ConfigError, ResourceError, StageInterrupted, WorkbenchError
from workbench.locks import FileLock
from workbench.stage_log import StageLog
from workbench.stages import Resources, StageFailedError

ORPHAN_WAIT_S = 20.0
PEER_GRACE_S = 10.0  # for a stage to notice by itself that another of its processes failed
# Variables of MPI, Slurm or torchrun around the command: accelerate would wait for their processes, and share a batch
# among them once more.
_LAUNCHER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_Send = Callable[[tuple[Any, ...]], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything an attempt needs, as plain values.

    `modules`: the code hashes that the key was made of; `parsed`: the driver's `keys.parsed_sources`.
    """

    instance: str
    function: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    work: Path
    seed: int
    resources: Resources
    packages: tuple[str, ...]
    modules: Mapping[str, str]
    parsed: Mapping[str, keys.Parsed]


def attempt(job: Job, send: _Send, stop: threading.Event) -> None:
    """Runs a stage's function once, into an empty out folder.

    Raises:
        BusyError: A worker of an earlier attempt is still alive.
        ConfigError: The code changed since the key was made.
        StageInterrupted, WorkbenchError, Exception: What the function raised.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.work / "worker.lock", label=f"the scratch folder of {job.instance}")
    lock.acquire(ORPHAN_WAIT_S)
    try:
        function = _load(job)
        out = job.work / "out"
        fsio.remove_tree(out)
        out.mkdir()
        log = StageLog(
            work=job.work, seed=job.seed, resources=job.resources, instance=job.instance, send=send, stop=stop
        )
        try:
            function(dict(job.config), dict(job.inputs), out, log)
        except BaseException:
            fsio.remove_tree(out)  # partial output is of no use to a resume, which goes by checkpoints
            raise
        finally:
            with suppress(OSError):
                log.close()
        if not any(out.iterdir()):
            raise StageFailedError(f"{job.instance} ended without writing a file into its output folder.")
    finally:
        lock.release()


def _load(job: Job) -> Callable[..., None]:
    module, _, name = job.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ConfigError(f"{job.instance}: there is no function {name!r} in {module}.") from error
    keys.adopt_parsed(job.parsed)
    changed = [m for m, digest in keys.module_hashes(job.function).items() if job.modules.get(m) != digest]
    if changed:
        raise ConfigError(
            f"{job.instance}: the code of {', '.join(changed)} changed since this run was planned, so its result would "
            "be filed under the wrong key. Run the command again."
        )
    assert callable(function)
    return function  # type: ignore[no-any-return]


# --- how an attempt ended --------------------------------------------------------------------------------------------


def as_error(error: BaseException, instance: str, work: Path) -> WorkbenchError:
    """What a stage raised, as an error with an exit code and advice; the traceback goes into `remote_traceback`."""
    if isinstance(error, WorkbenchError):
        return error
    text = str(error).strip()
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in text or "not enough memory" in text:
        what = f"{instance} ran out of memory ({text[:200] or type(error).__name__})"
        return ResourceError(out_of_memory_advice(what))
    if fsio.is_disk_full(error):
        return fsio.disk_full(f"Running {instance}", work)
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return StageFailedError(f"{instance} failed: {type(error).__name__}: {text}{at}")


def out_of_memory_advice(what: str) -> str:
    """The message of a memory failure: nothing is changed silently, an equal setting is offered."""
    return (
        f"{what}. Nothing was changed silently. Give it the same effective batch in smaller passes "
        "(microbatch_size; for ppo microbatch_tokens), shorten max_length, run fewer workers side by side "
        "(resources.workers), or use a machine with more memory; finished stages are kept and this one resumes."
    )


def _wire(error: BaseException, job: Job) -> tuple[Any, ...]:
    """An error as plain values: the driver must not import a stage's modules to read one."""
    known = as_error(error, job.instance, job.work)
    kind = next(c.__name__ for c in type(known).__mro__ if c is StageFailedError or c.__module__ == errors.__name__)
    trace = "".join(traceback.format_exception(error))
    return ("error", kind, known.message, known.where, trace)


def from_wire(message: tuple[Any, ...]) -> tuple[WorkbenchError, str]:
    """The error and its traceback's text."""
    _, kind, text, where, trace = message
    known: type[WorkbenchError] = StageFailedError if kind == "StageFailedError" else getattr(errors, kind)
    error = known(text, where=where)
    if isinstance(error, StageFailedError):
        error.remote_traceback = trace
    return error, trace


def attempt_inline(job: Job, send: _Send, stop: threading.Event) -> tuple[Any, ...]:
    """Runs an attempt in this process. Returns the message that a worker would end with."""
    try:
        with redirect_stdout(sys.stderr):  # stdout belongs to the command's JSON
            attempt(job, send, stop)
    except StageInterrupted:
        return ("interrupted",)
    except Exception as error:
        return _wire(error, job)
    return ("done",)


# --- the worker process ----------------------------------------------------------------------------------------------


def main(connection: Connection, job: Job) -> None:
    """Body of a worker process: own session, own log file, ends when its driver does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    sending = threading.Lock()
    others: ranks.Ranks | None = None

    def send(message: tuple[Any, ...]) -> None:
        try:
            with sending:
                connection.send(message)
        except OSError:
            _die()

    try:
        job.work.mkdir(parents=True, exist_ok=True)
        _redirect_output(job.work / "log.txt")
        if job.resources.processes > 1:  # before there is a thread that a fork would lose
            rank, others = ranks.fork(job.work, job.resources.processes)
            if others is None:
                connection.close()
                _assist(job, rank, stop)
        threading.Thread(target=heed_driver, args=(connection, stop), daemon=True).start()
        if others is not None:
            others.watch(lambda found: _end_with(found, job, send), PEER_GRACE_S)
        _prepare(job, send)
        attempt(job, send, stop)
        result: tuple[Any, ...] = ("done",)
    except StageInterrupted:
        result = ("interrupted",)
    except BaseException as error:
        traceback.print_exc()
        result = _wire(error, job)
        # All that went wrong here may be that another process is gone: its story is the one to tell.
        if others is not None and not isinstance(error, WorkbenchError) and (found := others.fallen(wait_s=3.0)):
            result = _of_fallen(found, job)
    if others is not None:
        others.end()
    sys.stdout.flush()
    sys.stderr.flush()
    send(result)


def _assist(job: Job, rank: int, stop: threading.Event) -> NoReturn:
    """Body of the other processes of a stage: the same function, with a log that is silent."""
    code = 1
    try:
        _prepare(job, lambda message: None, rank)
        function, out = _load(job), ranks.scratch(job.work, rank) / "out"
        out.mkdir()
        log = StageLog(
            work=job.work, seed=job.seed, resources=job.resources, instance=job.instance,
            send=lambda message: None, stop=stop, rank=rank,
        )  # fmt: skip
        try:
            function(dict(job.config), dict(job.inputs), out, log)
        finally:
            log.close()
        code = 0
    except StageInterrupted:
        code = 0
    except BaseException as error:
        traceback.print_exc()
        ranks.leave_word(job.work, rank, _wire(error, job))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(found: ranks.Fallen, job: Job, send: _Send) -> None:
    send(_of_fallen(found, job))
    _die()


def _of_fallen(found: ranks.Fallen, job: Job) -> tuple[Any, ...]:
    """The last message of a stage of which one process failed."""
    who = f"process {found.rank + 1} of {job.resources.processes} of {job.instance}"
    if found.message is not None:
        _, kind, text, where, trace = found.message
        return ("error", kind, f"{text} (in {who})", where, trace)
    if found.signal_number == signal.SIGKILL:
        told = f"{who} was killed (SIGKILL), most likely by the system because memory ran out"
        return ("error", "ResourceError", out_of_memory_advice(told), None, "")
    number = found.signal_number
    how = f"exit code {found.code}" if number is None else f"signal {signal.Signals(number).name}"
    return ("error", "ResourceError", f"{who} ended with {how}; its output is in {job.work / 'log.txt'}.", None, "")


def heed_driver(connection: Connection, stop: threading.Event) -> None:
    """Body of a thread: sets `stop` where the driver asks for it, and ends this process's session with the driver."""
    while True:
        try:
            if connection.recv() == "stop":
                stop.set()
        except (EOFError, OSError):
            _die()


def _die() -> None:
    """The driver is gone: nothing may write on, and no process of this session may stay."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()  # a crash in native code leaves its stack in log.txt


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that numeric and model libraries read when they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
        # Stages read folders: what comes from a hub was fetched by the driver before anything was planned.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _prepare(job: Job, send: _Send, rank: int = 0) -> None:
    """Threads, seeds, determinism and the device, before the stage's code runs."""
    os.environ.update(thread_environment(job.resources.threads))
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    if job.resources.device == "cuda":
        take_gpu(rank)
    random.seed(job.seed)
    if "torch" in job.packages:
        importlib.import_module("torch")
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(job.seed % 2**32)  # a safety: stages draw from generators of their own
        with suppress(ImportError):  # BLAS was loaded with the forkserver's count
            importlib.import_module("threadpoolctl").threadpool_limits(job.resources.threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(job.resources.threads)
        with suppress(RuntimeError):  # can be set once per process only
            torch.set_num_interop_threads(1)
        torch.manual_seed(job.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every new tensor is meant for finding bugs; it costs time and decides nothing here.
        torch.utils.deterministic.fill_uninitialized_memory = False
        _report_nondeterminism(send)
    if job.resources.processes > 1:
        meet = importlib.import_module("workbench.processes").join
        meet(rank, job.resources.processes, ranks.rendezvous(job.work), job.resources.device)


def _report_nondeterminism(send: _Send) -> None:
    """torch warns where an operation has no deterministic form: people must hear of it."""
    show = warnings.showwarning

    def tell(message: Warning | str, *rest: Any, **more: Any) -> None:
        if "deterministic" in str(message):
            send(("message", f"not reproducible bit for bit: {str(message).splitlines()[0]}"))
        show(message, *rest, **more)

    warnings.showwarning = tell


__all__ = ["Job", "as_error", "attempt", "attempt_inline", "from_wire", "heed_driver", "main", "thread_environment"]
