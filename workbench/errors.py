"""Every failure that a user can cause or meet, each with its exit code.

A message says what went wrong, what was found, what was expected and what to do. Exit codes: 0 fine · 2 usage,
config, data · 3 resources · 4 integrity or certificate · 5 divergence · 6 judging, or sampling by a server,
incomplete · 75 store busy · 130/143 signals.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of all expected failures.

    Args:
        message: What happened, what was found, what was expected and what to do, in plain words.
        where: File, row or field the message is about (``"pairs.jsonl:12"``), or None.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross the worker pipe; the default pickling would lose the keyword-only `where`.
        return (_rebuild, (type(self), self.message, self.where))

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


def _rebuild(kind: type[WorkbenchError], message: str, where: str | None) -> WorkbenchError:
    return kind(message, where=where)


class ConfigError(WorkbenchError):
    """The config or the command line is wrong."""

    exit_code = 2
    code = "config"


class DataError(WorkbenchError):
    """The data is missing, malformed or too small for what was asked."""

    exit_code = 2
    code = "data"


class ResourceError(WorkbenchError):
    """Disk, memory, device or permissions do not suffice."""

    exit_code = 3
    code = "resources"


class IntegrityError(WorkbenchError):
    """A stored artifact, a checkpoint or the match certificate does not hold."""

    exit_code = 4
    code = "integrity"


class DivergenceError(WorkbenchError):
    """Training left the finite or the useful range."""

    exit_code = 5
    code = "divergence"


class JudgingError(WorkbenchError):
    """Judging could not be completed."""

    exit_code = 6
    code = "judging"


class SamplingError(WorkbenchError):
    """A server did not give all the responses that were asked of it."""

    exit_code = 6
    code = "sampling"


class BusyError(WorkbenchError):
    """Another process is building the same thing and did not finish in time."""

    exit_code = 75
    code = "busy"


class StageInterrupted(Exception):
    """Raised inside a stage that was asked to stop and has written its checkpoint. Not a failure."""
