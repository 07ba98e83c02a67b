"""How many processor cores this process may keep busy."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of each period, or "max"


def usable_cores(quota: Path = QUOTA) -> int:
    """Cores that this process may use: by its affinity, and by its container's quota rounded up."""
    cores = os.cpu_count() or 1
    with suppress(AttributeError):  # Linux alone has it
        cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        share, period = quota.read_text().split()
        cores = min(cores, max(1, math.ceil(int(share) / int(period))))
    return cores
