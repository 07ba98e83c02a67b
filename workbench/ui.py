"""`workbench ui`: MLflow's server on the home's store, with safe settings; and what a server missed, sent later.

Plain `mlflow ui` would not find the store.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from workbench.errors import ConfigError, ResourceError
from workbench.tracking_delivery import Limits
from workbench.tracking_moved import adopt_home
from workbench.tracking_spool import held, probe

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PATIENCE_S = 600.0  # for all slow calls of a sync that somebody waits for


def server_command(home: Path, host: str, port: int, workers: int = 1) -> list[str]:
    """The mlflow server's command line for a home.

    One worker: several race on SQLite. The allowed hosts keep other web pages from reaching the server by DNS tricks.
    """
    names = list(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]))
    hosts = ",".join(f"{name}:{port}" for name in names if name not in ("0.0.0.0", "[::]"))
    database = home.resolve() / "mlflow.db"
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", (home.resolve() / "artifacts").as_uri()),
        *("--host", host, "--port", str(port), "--workers", str(workers)),
        *("--allowed-hosts", hosts, "--x-frame-options", "DENY"),
    ]


def server_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: no telemetry, no job execution, no unpickling, one connection per request."""
    kept = {name: value for name, value in base.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    return kept | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    }


def check_home(home: Path) -> None:
    """Raises ConfigError when there is nothing to show."""
    if not (home / "mlflow.db").is_file():
        raise ConfigError(
            f"there is nothing to show yet: {home / 'mlflow.db'} does not exist. Run `workbench compare CONFIG` first, "
            "or name the folder of your runs with --home.",
            where=str(home),
        )


def check_port(host: str, port: int) -> None:
    """Raises ResourceError when the address is taken or cannot be used."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"a port is between 1 and 65535, got {port}", where="--port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. Is a `workbench ui` running already? "
            f"Choose another port, as in --port {port + 1 if port < 65535 else 5001}.",
            where=f"{host}:{port}",
        ) from error


def serve(
    home: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    workers: int = 1,
    say: Callable[[str], None] | None = None,
    start_timeout_s: float = 90.0,
) -> int:
    """Runs the server until Ctrl-C.

    Args:
        home: Folder that all runs share (with mlflow.db).
        host: Address to listen on; anything but the loopback lets others read, and is warned about.
        port: TCP port.
        workers: Server processes.
        say: Takes lines for people; default: stderr.

    Returns:
        0 after Ctrl-C or a SIGTERM, else the server's exit status.

    Raises:
        ConfigError: `home` has no database. ResourceError: the port is taken, or the server does not start.
    """
    speak = say or (lambda line: print(line, file=sys.stderr, flush=True))
    check_home(home)
    check_port(host, port)
    try:
        with held(home / "mlflow.lock"):
            adopt_home(home)
    except (OSError, sqlite3.Error) as error:
        speak(f"warning: this home was moved, and its artifacts may not open: {error}")
    if host not in LOOPBACK:
        speak(f"warning: anybody who reaches {host} can read and delete these runs: the server asks for no password")
    # Its own session: the group is ended as one, so that no worker stays behind on the port.
    server = subprocess.Popen(
        server_command(home, host, port, workers),
        env=server_environment(os.environ),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if _has_descriptor() else subprocess.DEVNULL,
    )
    try:
        with _signals_as_interrupts():
            reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
            _wait_until_up(server, url, start_timeout_s)
            speak(f"MLflow shows {home.resolve()} at {url} (Ctrl-C ends it)")
            return server.wait()
    except KeyboardInterrupt:
        speak("stopped")
        return 0
    finally:
        _end_group(server)


def send_spool(home: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """Sends what tracking servers could not take when it was logged. Sending twice changes nothing.

    Args:
        home: Folder that all runs share (with spool/).
        say: Takes lines for people.

    Returns:
        What was sent and what was not, as JSON; 0 if nothing is left that could be sent, else 3.

    Raises:
        ConfigError: There is no such home.
    """
    from workbench.tracking import Tracker

    if not home.is_dir():
        raise ConfigError("there is no such folder; name the folder of your runs with --home", where=str(home))
    report = Tracker.sync(home, limits=Limits(budget_s=PATIENCE_S))
    told = ", ".join(f"{count} {what}" for what, count in sorted(report.counts.items()))
    if report.sent or told:
        say(f"sent {len(report.sent)} comparison(s) completely: {told or 'nothing was missing but their end'}")
    if report.refused:
        say(f"{report.refused} operation(s) were refused for good; they are kept in {home / 'spool'}/*.rejected")
    for ref in report.running:
        say(f"{ref} is still running: it sends its own when it ends")
    for ref, reason in report.left.items():
        say(f"{ref} stays in {home / 'spool'}: {reason}")
    if not (report.sent or report.running or report.left):
        say(f"nothing to send: {home / 'spool'} is empty")
    plain = {
        "sent": report.sent,
        "left": report.left,
        "running": report.running,
        "counts": dict(report.counts),
        "refused": report.refused,
    }
    return {"schema": 1} | plain, ResourceError.exit_code if report.left else 0


def _has_descriptor() -> bool:
    try:
        sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _wait_until_up(server: subprocess.Popen[bytes], url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while probe(url, 2.0) is not None:
        if server.poll() is not None:
            raise ResourceError(f"the MLflow server ended with status {server.returncode}; its messages are above")
        if time.monotonic() > deadline:
            raise ResourceError(f"the MLflow server did not answer at {url} within {timeout_s:.0f} s")
        time.sleep(0.2)


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that the server is ended too."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before: dict[signal.Signals, object] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, interrupt)
    except ValueError:
        pass  # not in the main thread: the caller's signals stay as they are
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _end_group(server: subprocess.Popen[bytes]) -> None:
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
            if not _group_lives(server.pid):
                return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
