"""Work that nobody waits for, done in the spare moments of a loop that watches workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from workbench.cores import usable_cores

SHARE = 0.005  # of the processor time of all cores, where workers use all of them: what a run is longer by
LONGEST_PAUSE_S = 30.0  # after one long piece (a database is made, say) the next shall not wait for hours
_log = logging.getLogger(__name__)


class SpareTime:
    """Calls `work` piece by piece: at once where a core is free, else as often as its share of processor time allows.

    A core counts as taken by each thread that a running stage has declared.

    Args:
        work: Does one piece; returns whether there is more. What it raises is logged and goes no further.
        cores: That the workers share; default: those that this process may use.
    """

    def __init__(self, work: Callable[[], bool], cores: int | None = None) -> None:
        self._work = work
        self._cores = cores or usable_cores()
        self._pause_ends_s = 0.0

    def piece(self, threads: int) -> bool:
        """One piece of the work, if its time has come.

        Args:
            threads: That the workers compute with now.

        Returns:
            Whether there is more that may be done at once.
        """
        busy = threads >= self._cores
        if busy and time.monotonic() < self._pause_ends_s:
            return False
        start_s = time.process_time()
        try:
            return self._work() and not busy
        except Exception:
            _log.warning("what is done between two looks at the workers failed; going on", exc_info=True)
            return False
        finally:
            # Processor time: while it waits for a server it takes nothing from the workers.
            took_s = time.process_time() - start_s
            self._pause_ends_s = time.monotonic() + min(took_s / (SHARE * self._cores), LONGEST_PAUSE_S)
