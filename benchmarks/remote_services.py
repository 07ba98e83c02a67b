"""PostgreSQL and MLflow's server as child processes on the loopback, in folders of their own; ended with the block."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from workbench.tracking_spool import probe
from workbench.ui import server_command, server_environment

START_S = 120.0


def free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def postgresql_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them off the path."""
    found = [Path(one).resolve().parent for one in (shutil.which("postgres"), shutil.which("initdb")) if one]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in found if (one / "initdb").exists() and (one / "postgres").exists()), None)


def missing(programs: Path | None = None) -> str | None:
    """Why PostgreSQL cannot be used here, or None."""
    if programs is None and postgresql_programs() is None:
        return "PostgreSQL's programs are not installed (apt install postgresql)"
    try:
        import psycopg  # noqa: F401 - what SQLAlchemy takes for postgresql://
    except ImportError:
        return "psycopg is not installed (pip install -e '.[postgres]')"
    return None


class PostgreSQL:
    """A database server with a password, in a temporary folder of its own.

    Args:
        programs: Folder with initdb and postgres; None: found.
    """

    def __init__(self, programs: Path | None = None) -> None:
        why, found = missing(programs), programs or postgresql_programs()
        if why is not None or found is None:
            raise SystemExit(why)
        self.programs, self.port = found, free_port()
        # PostgreSQL refuses to run as root; its package makes a user for it.
        self.user = "postgres" if os.geteuid() == 0 else None
        self.password = secrets.token_hex(8)
        self.process: subprocess.Popen[bytes] | None = None
        told = subprocess.run([found / "postgres", "--version"], capture_output=True, text=True, check=True)
        self.version = told.stdout.strip()

    def __enter__(self) -> PostgreSQL:
        self.folder = Path(tempfile.mkdtemp(prefix="workbench-postgresql-"))
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        password = self.folder / "password"
        password.write_text(self.password)
        if self.user:
            for path in (self.folder, password):
                shutil.chown(path, self.user)
        made = [self.programs / "initdb", "-D", self.folder / "data", "-U", "workbench", "-A", "scram-sha-256"]
        made += [f"--pwfile={password}", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=self.user, cwd=self.folder)
        options = ["-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "fsync=off"]
        self.process = subprocess.Popen(
            [self.programs / "postgres", *options], user=self.user, cwd=self.folder, start_new_session=True,
            stderr=(self.folder / "log").open("w"),
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._ask("SELECT 1")
                return
            except Exception:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _ask(self, sentence: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sentence.encode())

    def url(self, name: str) -> str:
        """Address of a database, with the password."""
        return f"postgresql://workbench:{self.password}@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """An empty database; its address."""
        self._ask(f"CREATE DATABASE {name}")
        return self.url(name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # "fast shutdown": lets no client hold it up
            self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class MlflowServer:
    """`mlflow server` on a database and an artifact destination; it keeps its address over `kill` and `start`."""

    def __init__(self, backend: str, destination: Path) -> None:
        self.backend, self.destination, self.port = backend, destination, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits for its first answer."""
        words = ["--artifacts-destination", str(self.destination), "--port", str(self.port), "--workers", "1"]
        hidden = {"MLFLOW_BACKEND_STORE_URI": self.backend}  # as docs/servers.md has it: `ps` shows no password
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words], env=server_environment(os.environ) | hidden,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until_up(self.uri, self.process)

    def kill(self) -> None:
        """SIGKILL for it and its workers."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def reset(self, backend: str) -> None:
        """The same address with an empty database behind it."""
        self.kill()
        self.backend = backend
        self.start()

    def __enter__(self) -> MlflowServer:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *failure: Any) -> None:
        self.kill()


@contextlib.contextmanager
def home_server(home: Path) -> Iterator[str]:
    """The server of `workbench ui` on a home; its address."""
    port = free_port()
    server = subprocess.Popen(
        server_command(home, "127.0.0.1", port), env=server_environment(os.environ), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_up(uri: str, process: subprocess.Popen[bytes]) -> None:
    """Waits for the first answer of a server that is starting."""
    deadline = time.monotonic() + START_S
    while probe(uri, 2.0) is not None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the MLflow server did not start at {uri}")
        time.sleep(0.2)
