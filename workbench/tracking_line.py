"""One comparison's line to its tracking server: each operation is delivered, kept in the spool or refused.

Whatever goes wrong here is warned about once, kept in ``home/spool`` and sent later; it never stops or stalls a
comparison.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path

from workbench.redact import redact_text
from workbench.tracking_delivery import ASIDE, Limits, Patience, deliver, reason_of, refused, replay, sync_spools
from workbench.tracking_mlflow import Server, default_uri
from workbench.tracking_mlflow_traces import TracesLost
from workbench.tracking_spool import Operation, Spool, TrackingUnavailable, is_remote, probe


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)


class Line:
    """The line of one comparison; no method raises but `_begin`.

    Attributes:
        tracking_uri: Where to, with credentials hidden; None when disabled.
        experiment: The comparison's name.
        ref: The comparison's reference: its tag `workbench.ref`, and the name of its spool.
    """

    def __init__(self, uri: str | None, home: Path, experiment: str, warn: Callable[[str], None], limits: Limits):
        self.home, self.experiment = home, experiment
        self.ref = uuid.uuid4().hex
        self._uri = uri or default_uri(home)
        self.tracking_uri: str | None = redact_text(self._uri)
        self._patience = Patience(limits)
        self._spool = Spool(home, self.ref, {"uri": redact_text(uri) if uri else None, "experiment": experiment})
        self._server: Server | None = None
        self._warn, self._warned = warn, set[str]()
        self._off = self._down = self._spooled = False
        self._runs: deque[Operation] = deque()  # they go first: a stage's record names its run
        self._waiting: deque[Operation] = deque()
        self._unhurried = False

    @property
    def run_id(self) -> str | None:
        """The parent run's id; None while it only exists in the spool."""
        return self._server.runs.get(self.ref) if self._server else None

    def problem(self, error: Exception) -> None:
        """Says once that something could not be told to MLflow."""
        self._fault("problem", f"tracking: {type(error).__name__}: {reason_of(error)}")

    def put_off(self) -> None:
        """From now on what is to be sent waits for `send_one`: whoever calls it has more urgent things to do."""
        self._unhurried = True

    def send_one(self) -> bool:
        """Sends what has waited longest, first of all runs; False where nothing waits. Never raises."""
        line = self._runs or self._waiting
        if not line:
            return False
        operation = line[0]
        line[0] = operation | {"replay": True}  # sent again where a signal ends this in the middle
        self._deliver(operation)
        line.popleft()
        return True

    def _waits(self, ref: str) -> bool:
        """Whether something of a run that is open waits to be sent."""
        return any(operation["ref"] == ref for operation in self._waiting)

    def _run_of(self, ref: str) -> str | None:
        """A run's id; what waits is sent until it has one. None while it only exists in the spool."""
        while self._server and ref not in self._server.runs and self._runs:
            self.send_one()
        return self._server.runs.get(ref) if self._server else None

    def send_all(self) -> None:
        """Sends all that waits, and from now on everything at once."""
        self._unhurried = False
        while self.send_one():
            pass

    def close(self) -> None:
        """Gives the server one more chance to take what was spooled, and lets go of the spool. Called by `finish`."""
        if self._off:
            return
        try:
            left = self._catch_up() if self._spooled else False
            self._spool.release(forget=not left)
        except Exception as error:
            self._fault("close", f"tracking: {reason_of(error)}")
        self._off = True

    def _begin(self) -> None:
        reason = probe(self._uri, self._patience.limits.probe_s) if is_remote(self._uri) else None
        if reason is not None:
            raise TrackingUnavailable(f"MLflow at {self.tracking_uri} is not reachable: {reason}")
        self._server = Server(self._uri, self.home, self.experiment)
        if any(spool.ref != self.ref for spool in Spool.all(self.home)):
            sync_spools(self.home, default_uri(self.home), self._uri, Server, self._patience.limits)

    def _send(self, operation: Operation) -> None:
        """Sends an operation when its turn has come. Never raises."""
        if self._off:
            return
        (self._runs if operation["op"] == "run" else self._waiting).append(operation)
        if not self._unhurried:
            self.send_all()

    def _deliver(self, operation: Operation) -> None:
        """Delivers an operation, or keeps it. Never raises."""
        if self._down or self._server is None:
            self._keep(operation)
            return
        try:
            deliver(self._server, operation, self._patience)
        except TracesLost as error:
            self._fault("traces", f"tracking: {error}")
        except Exception as error:
            reason = reason_of(error)
            if refused(operation, error):
                self._keep(operation, refused=reason)
                self._fault("refused", f"tracking: MLflow refused a {operation['op']}: {reason}")
                return
            self._keep(operation)
            if operation["op"] in ASIDE and not self._stuck(error):
                what = "an artifact" if operation["op"] in ("file", "text") else f"a {operation['op']}"
                self._fault("aside", f"tracking: {what} could not be stored: {reason}")
            else:
                self._fault("down", f"tracking: MLflow at {self.tracking_uri} failed: {reason}")
        else:
            if self._patience.exhausted:
                self._fault("down", f"tracking: MLflow at {self.tracking_uri} is too slow")

    def _stuck(self, error: Exception) -> bool:
        """Whether the next operation would fail as well, and cost as much time."""
        return "database is locked" in str(error) or self._patience.exhausted or self._unreachable()

    def _unreachable(self) -> bool:
        return is_remote(self._uri) and probe(self._uri, self._patience.limits.probe_s) is not None

    def _keep(self, operation: Operation, refused: str | None = None) -> None:
        try:
            if refused is not None:
                self._spool.reject(operation, refused)
            else:
                self._spool.append(operation)
                self._spooled = True
        except OSError as error:
            self._fault("spool", f"tracking: cannot write {self._spool.path}, so this is lost: {reason_of(error)}")

    def _fault(self, kind: str, message: str) -> None:
        if kind == "down":
            self._down = True
            message += (
                f". The comparison goes on; what it logs is kept in {self._spool.folder} and sent by the next "
                "comparison that reaches the server from this home."
            )
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)

    def _catch_up(self) -> bool:
        """Sends the own spool if the server is back; True when something is left."""
        if self._unreachable():
            return True
        server = self._server or Server(self._uri, self.home, self.experiment)
        left = replay(server, self._spool, Patience(self._patience.limits))
        if not left:
            self._server, self._down = server, False
            self._warn(f"tracking: MLflow at {self.tracking_uri} took what was kept in the spool")
        return bool(left)
