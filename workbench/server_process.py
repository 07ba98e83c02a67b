"""A server that is started for one policy: until it answers, while it is asked, and gone after that."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from workbench.config_sampling import MODEL, PORT
from workbench.device import with_all_gpus
from workbench.errors import SamplingError, StageInterrupted
from workbench.redact import redact_text

GUARD: Final = Path(__file__).with_name("server_guard.py")
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # of our environment, which is not the server's
_TAIL: Final = 1500


class Running:
    """A server that was started.

    Args:
        process: The guard that holds it.
        log: Its output.
        url: Base URL, up to /v1.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self._process, self.log, self.url = process, log, url

    def trouble(self) -> str | None:
        """Its exit code and its last words where it has ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        tail = redact_text(self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]).strip()
        return f"the server ended with exit code {code}; its last words: {tail or '(none)'}"


@contextmanager
def started(
    command: str, folder: Path, connection: Mapping[str, Any], work: Path, stop_requested: Callable[[], bool]
) -> Iterator[Running]:
    """A server of the model in `folder` on a free port of the loopback.

    Args:
        command: With {model} and {port}.
        folder: Of the checkpoint.
        connection: {"start_timeout_s"}.
        work: Receives server.log.
        stop_requested: Asked while waiting.

    Raises:
        SamplingError: It ended before it answered, or did not answer in time.
        StageInterrupted: A stop was requested.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace(PORT, str(port)).replace(MODEL, str(folder)) for word in shlex.split(command)]
    environment = with_all_gpus({name: value for name, value in os.environ.items() if name not in _OURS})
    log = work / "server.log"
    with log.open("wb") as output:
        # A session of its own: who is killed with all of its session must not take the guard along.
        process = subprocess.Popen(
            [sys.executable, str(GUARD), *words],
            stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        running = Running(process, log, f"http://127.0.0.1:{port}/v1")
        _wait(running, f"http://127.0.0.1:{port}", connection["start_timeout_s"], stop_requested)
        yield running
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the guard ends the server
        process.wait()


def _wait(running: Running, base: str, timeout_s: float, stop_requested: Callable[[], bool]) -> None:
    import httpx2

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if stop_requested():
            raise StageInterrupted
        if (trouble := running.trouble()) is not None:
            raise SamplingError(f"{trouble}; check sampling.server.command by hand", where="sampling.server.command")
        try:
            # Not by a proxy that the environment names: it is on this machine.
            found = (httpx2.get(f"{base}{path}", timeout=5, trust_env=False) for path in ("/health", "/v1/models"))
            if any(one.status_code == 200 for one in found):
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise SamplingError(
        f"the server did not answer within {timeout_s:g} s; raise sampling.server.start_timeout_s, or look into "
        f"{running.log}",
        where="sampling.server.command",
    )
