"""Getting operations to the tracking server: bounds on time, retries, refusals, replay. No mlflow here."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from workbench.redact import redact_text
from workbench.tracking_names import clip_text
from workbench.tracking_spool import Operation, Spool, TrackingUnavailable, is_remote, probe, with_deadline

T = TypeVar("T")
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
_UNKNOWN = ("ENDPOINT_NOT_FOUND", "NOT_FOUND", "NOT_IMPLEMENTED")
_RECENT = frozenset({"traces", "count", "link", "model", "view"})  # what older servers know nothing of
# Nothing else needs these: one that fails holds nothing up.
ASIDE = _RECENT | {"file", "text"}
_LARGE = frozenset({"file", "text", "model"})


class Server(Protocol):
    """A connected tracking store."""

    uri: str

    def apply(self, operation: Operation) -> None: ...

    def settle(self, ref: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much time a remote server may cost. Seconds.

    Args:
        probe_s: For the answer to a first HTTP request, before anything else is tried.
        call_s: For one call; after it the server counts as gone.
        budget_s: For all slow calls (over a second each) of a comparison together.
    """

    probe_s: float = 3.0
    call_s: float = 15.0
    budget_s: float = 60.0


class Patience:
    """Counts the time that slow calls took, and says when it is enough."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lost_s = 0.0

    def timed(self, call: Callable[[], T], factor: float = 1.0) -> T:
        """Runs a remote call under the deadline; TrackingUnavailable once the budget is used up."""
        start = time.monotonic()
        try:
            return with_deadline(call, self.limits.call_s * factor)
        except TimeoutError as error:
            raise TrackingUnavailable(str(error)) from error
        finally:
            took = time.monotonic() - start
            self._lost_s += took if took > 1.0 else 0.0

    @property
    def exhausted(self) -> bool:
        """True when slow calls have used up the budget."""
        return self._lost_s > self.limits.budget_s


def refused(operation: Operation, error: Exception) -> bool:
    """True when the server will never take this operation, so that keeping it would block the rest."""
    if operation["op"] == "run":
        return False  # also what a server that is not MLflow answers
    code = getattr(error, "error_code", None)
    if operation["op"] in _RECENT and (code in _UNKNOWN or isinstance(error, NotImplementedError)):
        return True
    return isinstance(error, FileNotFoundError) or code in _REFUSALS


def reason_of(error: Exception) -> str:
    text = redact_text(str(error)).strip() or type(error).__name__
    return clip_text(text.splitlines()[0], 300)


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What `Tracker.sync` did.

    Args:
        sent: References of the comparisons that were sent completely.
        left: Reference -> why it was not.
        running: References that a live process holds; they are its own to send.
        counts: What the servers took: runs, parameters, tags, metric points, artifacts, datasets. All of it may have
            been there already: sending twice changes nothing.
        refused: Operations that a server will never take; they are kept in `home/spool/REF.rejected`.
    """

    sent: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: int = 0


def deliver(server: Server, operation: Operation, patience: Patience) -> None:
    """One operation with a bound on its time (remote) or a few retries (SQLite that another process has locked)."""
    if is_remote(server.uri):
        patience.timed(lambda: server.apply(operation), factor=4.0 if operation["op"] in _LARGE else 1.0)
        return
    for pause_s in (0.2, 0.8, 2.0, None):
        try:
            server.apply(operation)
            return
        except Exception as error:
            if pause_s is None or "database is locked" not in str(error):
                raise
            time.sleep(pause_s)


def count_of(operation: Operation) -> dict[str, int]:
    """How much of what people look at is in an operation."""
    kind = operation["op"]
    found = {"runs": int(kind == "run"), "artifacts": int(kind in ("file", "text"))}
    parts = {"parameters": "params", "tags": "tags", "metric points": "metrics", "datasets": "datasets"}
    return found | {name: len(operation.get(part, ())) for name, part in parts.items()}


def replay(server: Server, spool: Spool, patience: Patience, counts: Counter[str] | None = None) -> list[Operation]:
    """Sends a spool in order; what fails, and what needs it, stays in the journal and is returned.

    Args:
        counts: Takes what was delivered, and the number of refusals as "refused".
    """
    left: list[Operation] = []
    counts = Counter() if counts is None else counts
    down = False
    for operation in spool.read():
        if down:
            left.append(operation)
            continue
        try:
            deliver(server, spool.located(operation) | {"replay": True}, patience)
            counts.update(count_of(operation))
        except Exception as error:
            if refused(operation, error):
                spool.reject(operation, reason_of(error))
                counts["refused"] += 1
                continue
            left.append(operation)
            down = operation["op"] not in ASIDE or isinstance(error, TrackingUnavailable)
            down = down or "database is locked" in str(error)
        down = down or patience.exhausted
    spool.rewrite(left)
    return left


def with_credentials(uri: str, known: Iterable[str | None]) -> str:
    """The URI with the credentials that a spool does not hold, where one of the known URIs has them."""
    return next((one for one in known if one and redact_text(one) == redact_text(uri)), uri)


def sync_spools(
    home: Path, own_uri: str, uri: str | None, connect: Callable[[str, Path, str], Server], limits: Limits
) -> SyncReport:
    """Replays the spools in `home` that no live process holds. Never raises.

    Args:
        own_uri: What a spool without a URI means: the home's own database.
        uri: Only spools of this URI, which supplies the credentials; None: all, with those of MLFLOW_TRACKING_URI.
        connect: (uri, home, experiment) -> a connected store.
    """
    report, counts = SyncReport(), Counter[str]()
    patience = Patience(limits)
    silent: dict[str, str] = {}  # URI -> why; asked once for all of its spools
    for spool in Spool.all(home):
        target = with_credentials(spool.header.get("uri") or own_uri, (uri, os.environ.get("MLFLOW_TRACKING_URI")))
        if uri is not None and redact_text(uri) != redact_text(target):
            continue
        try:
            if not spool.claim():
                report.running.append(spool.ref)
                continue
        except OSError as error:
            report.left[spool.ref] = reason_of(error)
            continue
        reason: str | None = "unfinished"
        try:
            if target not in silent and is_remote(target):
                silent[target] = probe(target, limits.probe_s) or ""
            if patience.exhausted:
                silent[target] = f"slow calls took {limits.budget_s:.0f} s in all: send again for what is left"
            reason = silent.get(target) or _settle_one(spool, target, home, connect, patience, counts)
        except Exception as error:
            reason = reason_of(error)
        finally:
            spool.release(forget=reason is None)
        if reason is None:
            report.sent.append(spool.ref)
        else:
            report.left[spool.ref] = reason
    return replace(report, refused=counts.pop("refused", 0), counts=+counts)


def _settle_one(
    spool: Spool,
    uri: str,
    home: Path,
    connect: Callable[[str, Path, str], Server],
    patience: Patience,
    counts: Counter[str],
) -> str | None:
    server = connect(uri, home, str(spool.header["experiment"]))
    left = replay(server, spool, patience, counts)
    if left:
        return f"{len(left)} operations could not be sent"
    patience.timed(lambda: server.settle(spool.ref), factor=2.0)
    return None
