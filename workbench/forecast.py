"""`workbench doctor CONFIG`: what the comparison needs beside what this machine has. Memory is counted, time guessed.

Time is operations over a matrix-product rate that is measured here, in a second, at the shape that a layer of the model
has, times a share of it that training reaches, plus a fixed cost of every pass. Both were fitted on the 0.1M-parameter
model of the quickstart on a CPU (docs/models.md); larger models reach more, and nothing was fitted on a GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from workbench.estimate import Size
from workbench.estimate_stages import NOT_COUNTED, Lengths, Need
from workbench.report.wording import number

REACHED: Final = 0.15  # of the rate of bare products, by whole stages
PASS_S: Final = {"cpu": 0.004, "cuda": 0.02}  # a pass through a small model, whatever is in it


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is.

    Args:
        device: "cpu" or "cuda".
        memory: Bytes that are free where models are: main memory, or the GPU's.
        rate: Operations a second of one stage, from a measured product.
        workers: Stages side by side.
    """

    device: str
    memory: float
    rate: float
    workers: int


def measure_rate(size: Size, *, threads: int, device: str, tokens: int = 1024, seconds: float = 1.0) -> float:
    """Operations a second of (tokens, hidden) x (hidden, intermediate), the best of what fits into the time."""
    if device == "cuda":
        return _cuda_rate(size, seconds)
    import numpy as np

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    left = np.ones((tokens, size.hidden), dtype=np.float32)
    right = np.ones((size.hidden, size.intermediate), dtype=np.float32)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2.0 * tokens * size.hidden * size.intermediate / best


def _cuda_rate(size: Size, seconds: float) -> float:
    import torch

    left = torch.ones(4096, size.hidden, dtype=torch.bfloat16, device="cuda")
    right = torch.ones(size.hidden, size.intermediate, dtype=torch.bfloat16, device="cuda")
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * 4096 * size.hidden * size.intermediate / best


def free_memory(device: str) -> float:
    """Bytes that are free: of the GPU, or of the machine."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    import psutil

    return float(psutil.virtual_memory().available)


def seconds_of(need: Need, machine: Machine) -> float:
    """Wall time of a stage, all run seeds one after the other."""
    return need.operations / (REACHED * machine.rate) + PASS_S[machine.device] * need.passes


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Needs beside the machine."""

    needs: Sequence[Need]
    machine: Machine
    lengths: Lengths

    @property
    def largest(self) -> float:
        """Bytes of what may run side by side: the largest stages, one for each worker; one at a time on a GPU."""
        side_by_side = self.machine.workers if self.machine.device == "cpu" else 1
        return sum(need.bytes for need in list(self.needs)[:side_by_side])

    @property
    def seconds(self) -> float:
        """All stages, over the workers."""
        total = sum(seconds_of(need, self.machine) for need in self.needs)
        return total / (self.machine.workers if self.machine.device == "cpu" else 1)

    def too_large(self) -> list[Need]:
        """Stages that do not fit even alone."""
        return [need for need in self.needs if need.bytes > self.machine.memory]

    def problems(self) -> list[str]:
        """What does not fit, with the settings that would make it smaller."""
        found = [
            f"{need.stage} needs {_gb(need.bytes)}; try {need.lighter or 'a smaller model'}"
            for need in self.too_large()
        ]
        if not found and self.largest > self.machine.memory:
            workers, needed = self.machine.workers, _gb(self.largest)
            found.append(f"{workers} stages side by side need {needed}; lower resources.workers")
        return found

    def to_json(self) -> dict[str, Any]:
        """As it stands in --json."""
        return {
            "device": self.machine.device,
            "memory_free_bytes": int(self.machine.memory),
            "memory_needed_bytes": int(self.largest),
            "wall_s": self.seconds,
            "operations_per_s": self.machine.rate,
            "lengths": {"prompt": self.lengths.prompt, "response": self.lengths.response, "pairs": self.lengths.pairs},
            "stages": [
                {
                    "stage": need.stage, "memory_bytes": int(need.bytes), "operations": need.operations,
                    "wall_s": seconds_of(need, self.machine), "fits": need.bytes <= self.machine.memory,
                }
                for need in self.needs
            ],
            "not_counted": NOT_COUNTED.split(", "),
            "problems": self.problems(),
        }  # fmt: skip


def lines_of(forecast: Forecast) -> list[str]:
    """The forecast for people."""
    machine = forecast.machine
    lines = [
        f"{need.stage:24} {_gb(need.bytes):>9}  {_time(seconds_of(need, machine)):>8}"
        + ("" if need.bytes <= machine.memory else f"  DOES NOT FIT; try {need.lighter or 'a smaller model'}")
        for need in forecast.needs
    ]
    lengths = forecast.lengths
    lines.append(
        f"assumed: prompts up to {lengths.prompt} tokens, responses up to {lengths.response}, {lengths.pairs} training "
        f"pairs{lengths.told}; {number(machine.rate / 1e9)} G operations a second; time to a factor of three"
    )
    lines.append(f"not counted: {NOT_COUNTED}")
    return lines


def verdict(forecast: Forecast) -> tuple[bool, str]:
    """Whether it fits, in one line."""
    machine, problems = forecast.machine, forecast.problems()
    where = {"cpu": "main memory", "cuda": "the GPU"}[machine.device]
    told = f"about {_gb(forecast.largest)} of {_gb(machine.memory)} free in {where}, {_time(forecast.seconds)} in all"
    return not problems, told if not problems else f"{told}; " + "; ".join(problems)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
