"""A call in a process of its own, beside what the driver does; it ends when the driver does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from workbench.worker import heed_driver
from workbench.worker_pool import bare_main_module, forkserver_started

T = TypeVar("T")


@contextmanager
def side_process(call: Callable[..., T], *arguments: Any, alone: bool = False) -> Iterator[Callable[[], T]]:
    """Starts a call in a process from the forkserver. Leaving the context ends that process, whatever it does.

    Args:
        call: A function of a module, with arguments and a result that can be pickled.
        alone: There is nothing to do beside it. Then, where no forkserver was started, and where the system gives no
            process, the call is made here, when its result is asked for.

    Yields:
        What waits for the result, or raises what the call has raised.
    """
    started = _start(call, arguments) if forkserver_started() and not alone else None
    if started is None:
        yield lambda: call(*arguments)
        return
    process, connection = started

    def result() -> T:
        try:
            returned, found = connection.recv()
        except (EOFError, OSError):  # somebody killed it, or its answer could not be sent
            return call(*arguments)
        if not returned:
            raise found
        return found  # type: ignore[no-any-return]

    try:
        yield result
    finally:
        connection.close()  # which it takes for the driver's end
        process.join(timeout=1.0)
        process.kill()
        process.join(timeout=5.0)


def _start(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Connection] | None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, call, arguments), name=call.__name__, daemon=True)
    try:
        with bare_main_module():
            process.start()
    except (OSError, EOFError, RuntimeError):
        ours.close()
        return None
    finally:
        theirs.close()
    return process, ours


def _main(connection: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    threading.Thread(target=heed_driver, args=(connection, threading.Event()), daemon=True).start()
    try:
        answer = (True, call(*arguments))
    except BaseException as error:
        answer = (False, error)
    with suppress(OSError):
        connection.send(answer)
