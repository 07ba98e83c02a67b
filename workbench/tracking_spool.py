"""What tracking does when its server does not answer: a journal on disk, a probe, a deadline. No mlflow here.

A tracking call is an operation, a small JSON object. The ones that cannot be delivered are appended to
``home/spool/<ref>.jsonl`` in order, and replayed later: each is idempotent (runs are found again by their tag
``workbench.ref``, metric points carry their own time and step).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from workbench.redact import redact_text

Operation = dict[str, Any]
T = TypeVar("T")


class TrackingUnavailable(Exception):
    """The tracking server did not answer, or not in time."""


def chosen_uri(configured: str | None) -> str | None:
    """The config's tracking URI, else MLFLOW_TRACKING_URI (which may hold a password); None: the home's database."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or None


def is_remote(uri: str) -> bool:
    """True for a tracking server reached over HTTP."""
    return urlsplit(uri).scheme in ("http", "https")


def probe(uri: str, timeout_s: float) -> str | None:
    """Whether an HTTP server answers at `uri`: None if so, else the reason in words.

    Any answer counts, a refusal too; what matters is that calls will not hang. Name resolution is inside the
    deadline. Nothing secret is sent: a GET of /health without credentials.
    """
    address = urlsplit(uri)
    host = address.hostname or ""
    proxy = getproxies().get(address.scheme)
    if proxy and proxy_bypass(host):
        proxy = None

    def ask() -> None:
        target = urlsplit(proxy) if proxy else address
        port = target.port or (443 if target.scheme == "https" else 80)
        with socket.create_connection((target.hostname or "", port), timeout=timeout_s) as connection:
            if proxy:
                return  # the proxy is there; what is behind it is bounded by the deadline of each call
            if address.scheme == "https":
                # The handshake alone; the certificate is checked by the client that sends something.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(connection, server_hostname=host).close()
                return
            path = f"{address.path.rstrip('/')}/health"
            request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc.rpartition('@')[2]}\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode("ascii", "replace"))
            if connection.recv(1) != b"H":
                raise TrackingUnavailable("it accepts connections but does not speak HTTP")

    try:
        with_deadline(ask, timeout_s)
    except TimeoutError:
        return f"it did not answer within {timeout_s:g} s"
    except Exception as error:
        return redact_text(str(error)) or type(error).__name__
    return None


def with_deadline(call: Callable[[], T], limit_s: float) -> T:
    """The result of `call`, or TimeoutError after `limit_s`: whatever it hangs in (name resolution, a read, retries).

    The call runs in a daemon thread, which a process may leave behind when it exits.
    """
    box: dict[str, Any] = {}

    def body() -> None:
        try:
            box["value"] = call()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=body, name="tracking", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {limit_s:g} s")
    if "error" in box:
        raise box["error"]
    value: T = box["value"]
    return value


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file for the block; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Spool:
    """The journal of one comparison, owned by the process that holds its lock.

    Args:
        home: Folder that all runs share.
        ref: The comparison's reference (its tag ``workbench.ref``); also the file name.
        header: Where the operations belong: {"uri": redacted or None, "experiment": name}.
    """

    def __init__(self, home: Path, ref: str, header: dict[str, Any]) -> None:
        self.folder = home / "spool"
        self.ref = ref
        self.header = header | {"spool": 1, "ref": ref}
        self.path = self.folder / f"{ref}.jsonl"
        self.files = self.folder / f"{ref}.files"
        self.lock_path = self.folder / f"{ref}.lock"
        self._lock: IO[str] | None = None

    def claim(self) -> bool:
        """Takes the lock; False when a live process has it. The lock file tells later processes where the run is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = open(self.lock_path, "a+")  # noqa: SIM115 - held until release()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(lock.fileno()).st_ino == os.stat(self.lock_path).st_ino
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            lock.close()
            return False
        if os.fstat(lock.fileno()).st_size == 0:
            lock.write(json.dumps(self.header) + "\n")
            lock.flush()
        self._lock = lock
        return True

    def release(self, *, forget: bool) -> None:
        """Gives the lock up; `forget` also removes the lock file, when nothing is left to be done."""
        if self._lock is None:
            return
        if forget:
            self.lock_path.unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def append(self, operation: Operation) -> None:
        """Adds one operation; the journal is made on the first one, with the header.

        Files are copied beside it, because the next run may write over the originals before they are sent; their paths
        are relative to the spool, because a home may be moved before that.
        """
        if operation["op"] == "file":
            folder = self.files / uuid.uuid4().hex
            folder.mkdir(parents=True)
            copy = Path(shutil.copy2(operation["path"], folder))
            operation = operation | {"path": str(copy.relative_to(self.folder))}
        fresh = not self.path.exists()
        with open(self.path, "a", encoding="utf-8") as file:
            if fresh:
                file.write(json.dumps(self.header) + "\n")
            file.write(json.dumps(operation, default=str) + "\n")

    def reject(self, operation: Operation, reason: str) -> None:
        """Keeps an operation that the server refuses for good, for people to read; it is not replayed."""
        with open(self.path.with_suffix(".rejected"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "operation": operation}, default=str) + "\n")

    def read(self) -> list[Operation]:
        """All operations in order, without the header; lines torn by a kill are left out."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        operations: list[Operation] = []
        for line in lines:
            with contextlib.suppress(ValueError):
                operation = json.loads(line)
                if isinstance(operation, dict) and "op" in operation:
                    operations.append(operation)
        return operations

    def located(self, operation: Operation) -> Operation:
        """The operation with the path of its file as it is now."""
        return operation | {"path": str(self.folder / operation["path"])} if operation["op"] == "file" else operation

    def rewrite(self, operations: Sequence[Operation]) -> None:
        """Leaves only these operations, atomically; without any, the journal and its files are removed."""
        if not operations:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.files, ignore_errors=True)
            return
        temporary = self.path.with_suffix(".tmp")
        lines = [json.dumps(entry, default=str) + "\n" for entry in (self.header, *operations)]
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, self.path)

    @staticmethod
    def all(home: Path) -> list[Spool]:
        """The spools and locks that earlier processes left in `home`, oldest first."""
        left: dict[str, tuple[float, Spool]] = {}
        for path in [*(home / "spool").glob("*.jsonl"), *(home / "spool").glob("*.lock")]:
            try:
                with open(path, encoding="utf-8") as file:
                    header = json.loads(file.readline())
                    left.setdefault(path.stem, (path.stat().st_mtime, Spool(home, path.stem, header)))
            except (OSError, ValueError, TypeError):
                continue  # being written or removed by its owner just now
        return [spool for _, spool in sorted(left.values(), key=lambda item: item[0])]
