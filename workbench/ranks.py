"""The processes of one stage: forked from its worker, watched by it, gone with it.

Rank 0 is the worker itself: it alone talks to the driver, writes artifacts and logs. The others are forks of it, made
before it has done anything: they start in milliseconds, where a launcher such as torchrun imports everything anew in
each. They share its session, so that whoever ends the worker ends them, and each ends by itself when rank 0 is gone.
How they exchange numbers is `workbench.processes`'s business.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import fsio

FOLDER = "ranks"  # below the stage's scratch folder: rendezvous, last words, each rank's own scratch
_LOOK_EVERY_S = 0.1


def rendezvous(work: Path) -> Path:
    """The file over which the processes of an attempt find each other."""
    return work / FOLDER / "rendezvous"


def scratch(work: Path, rank: int) -> Path:
    """A folder that no other rank writes to."""
    return work if rank == 0 else work / FOLDER / str(rank)


def _last_words(work: Path, rank: int) -> Path:
    return work / FOLDER / f"{rank}.json"


def leave_word(work: Path, rank: int, message: Sequence[Any]) -> None:
    """What rank 0 is to say of the failure of this one."""
    with suppress(OSError):
        fsio.write_atomic(_last_words(work, rank), json.dumps([time.time(), list(message)]))


@dataclass(frozen=True)
class Fallen:
    """A process that failed. `message`: what it said, when; None: killed by `signal_number` or ended with `code`."""

    rank: int
    unix_s: float
    message: tuple[Any, ...] | None
    signal_number: int | None
    code: int | None


@dataclass
class Ranks:
    """The other processes, as rank 0 sees them."""

    work: Path
    pids: dict[int, int]  # rank -> process id
    _pipe: int  # its end closes with rank 0
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def size(self) -> int:
        """Processes, rank 0 counted."""
        return len(self.pids) + 1

    def fallen(self, wait_s: float = 0.0) -> Fallen | None:
        """The process that failed first, looked for as long as `wait_s`: the others fail for want of it."""
        deadline = time.monotonic() + wait_s
        while True:
            found = []
            for rank, pid in self.pids.items():
                end = None
                with suppress(ChildProcessError):  # `end` was faster than the thread that watches
                    # WNOWAIT: a process that is reaped would hide its exit code from the next look.
                    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if end is not None and end.si_status != 0:
                    found.append(self._told(rank, killed=end.si_code != os.CLD_EXITED, status=end.si_status))
            if found:
                return min(found, key=lambda one: one.unix_s)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_EVERY_S)

    def _told(self, rank: int, *, killed: bool, status: int) -> Fallen:
        message, unix_s = None, 0.0  # who said nothing did not fail for want of another
        with suppress(OSError, ValueError):
            unix_s, words = json.loads(_last_words(self.work, rank).read_text())
            message = tuple(words)
        return Fallen(rank, unix_s, message, status if killed else None, None if killed else status)

    def watch(self, end: Callable[[Fallen], None], grace_s: float) -> None:
        """Calls `end` once, `grace_s` after a process failed, unless rank 0 has ended by then: it may wait for ever."""

        def look() -> None:
            while not self._over.wait(_LOOK_EVERY_S):
                if (found := self.fallen()) is not None:
                    if not self._over.wait(grace_s):
                        end(found)
                    return

        threading.Thread(target=look, daemon=True).start()

    def end(self) -> None:
        """Ends the processes that are left, and waits for all. They have told their CPU time themselves."""
        self._over.set()
        for pid in self.pids.values():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(pid, 0)
        os.close(self._pipe)


def fork(work: Path, size: int) -> tuple[int, Ranks | None]:
    """Makes `size - 1` copies of this process, which must have no thread yet. Returns (0, the others) or (rank, None).

    Raises:
        OSError: The system gives no process.
    """
    fsio.remove_tree(work / FOLDER)
    (work / FOLDER).mkdir(parents=True)
    ours, theirs = os.pipe()
    pids: dict[int, int] = {}
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(1, size):
        pid = os.fork()
        if pid == 0:
            os.close(theirs)
            scratch(work, rank).mkdir()
            threading.Thread(target=_die_with_rank_0, args=(ours,), daemon=True).start()
            return rank, None
        pids[rank] = pid
    os.close(ours)
    return 0, Ranks(work, pids, theirs)


def _die_with_rank_0(pipe: int) -> None:
    with suppress(OSError):
        os.read(pipe, 1)
    os._exit(1)


__all__ = ["FOLDER", "Fallen", "Ranks", "fork", "leave_word", "rendezvous", "scratch"]
