"""Wall and CPU seconds of a command with everything that it starts, servers that outlive their parent included."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
ORPHAN_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a command took.

    Args:
        wall_s: From its start to its end.
        cpu_s: User and system, of the command and of all processes below it.
        code: Exit code.
    """

    wall_s: float
    cpu_s: float
    code: int


def metered(command: Sequence[str], *, env: Mapping[str, str], stdout: Path, stderr: Path) -> Spent:
    """Runs a command to its end; its orphans become this process's children, so that their CPU time is counted too."""
    _adopt_orphans(True)
    mine = {child.pid for child in psutil.Process().children()}
    before = _children_cpu_s()
    with stdout.open("wb") as out, stderr.open("wb") as errors:
        start = time.monotonic()
        code = subprocess.run(command, env=dict(env), stdout=out, stderr=errors, check=False).returncode
        wall_s = time.monotonic() - start
    _reap({child.pid for child in psutil.Process().children()} - mine)
    _adopt_orphans(False)
    return Spent(wall_s=wall_s, cpu_s=_children_cpu_s() - before, code=code)


def _adopt_orphans(wanted: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap(orphans: set[int]) -> None:
    deadline = time.monotonic() + ORPHAN_WAIT_S
    while orphans and time.monotonic() < deadline:
        for pid in list(orphans):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                ended = True
            if ended:
                orphans.discard(pid)
        time.sleep(0.02)
