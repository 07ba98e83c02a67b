"""What the machine did while a stage ran, under the names of MLflow's own system metrics. No mlflow here.

MLflow's monitor needs its active-run state and a thread per run; the driver hears of its stages often enough to look.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEGA = 1e6
LEAST_S = 0.2  # the load over less time than this says nothing
EVERY_S = 5.0


class SystemMeter:
    """Readings of the whole machine, at most one in `every_s` seconds.

    Args:
        home: Folder whose disk is told.
        every_s: Least time between two readings.
    """

    def __init__(self, home: Path, every_s: float = EVERY_S) -> None:
        import psutil

        self._psutil: Any = psutil
        self._home, self._every_s = home, every_s
        self._last_s = time.monotonic()
        self._network = psutil.net_io_counters()
        self._gpus = list(_gpus())
        psutil.cpu_percent()  # told is the share since the call before, which the first has not

    def read(self, *, now: bool = False) -> dict[str, float]:
        """`system/...` -> value; empty where the last reading is too fresh; `now`: after a moment."""
        time_s = time.monotonic()
        if time_s - self._last_s < (LEAST_S if now else self._every_s):
            return {}
        self._last_s = time_s
        memory, disk = self._psutil.virtual_memory(), self._psutil.disk_usage(str(self._home))
        found = {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGA,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGA,
            "disk_available_megabytes": disk.free / MEGA,
        }
        network = self._psutil.net_io_counters()
        if network is not None and self._network is not None:
            found["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / MEGA
            found["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / MEGA
        for place, gpu in enumerate(self._gpus):
            with contextlib.suppress(Exception):  # NVML's errors have no common base before it is loaded
                found |= _gpu(place, gpu)
        return {f"system/{name}": float(value) for name, value in found.items()}


def _gpus() -> Iterator[Any]:
    """Handles of the NVIDIA GPUs; none without nvidia-ml-py or a driver."""
    with contextlib.suppress(Exception):
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        for place in range(nvml.nvmlDeviceGetCount()):
            yield nvml.nvmlDeviceGetHandleByIndex(place)


def _gpu(place: int, handle: Any) -> dict[str, float]:
    nvml = importlib.import_module("pynvml")
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        f"gpu_{place}_memory_usage_percentage": 100 * memory.used / memory.total,
        f"gpu_{place}_memory_usage_megabytes": memory.used / MEGA,
        f"gpu_{place}_utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        f"gpu_{place}_power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
