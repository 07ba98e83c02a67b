"""Which kind of device there is, told without importing torch."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from workbench.errors import ResourceError

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_BEFORE: Final = "WORKBENCH_VISIBLE_GPUS"  # what it was before `take_gpu`


def device_kind(wanted: str) -> str:
    """ "cuda" or "cpu", without importing torch: a CUDA build beside a loaded NVIDIA driver.

    Raises:
        ResourceError: cuda is asked for and not to be had.
    """
    build = importlib.metadata.version("torch")
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    usable = driver and "+cpu" not in build and os.environ.get(_VISIBLE) != ""
    if wanted == "auto":
        return "cuda" if usable else "cpu"
    if wanted == "cuda" and not usable:
        found = f"torch {build}" + ("" if driver else ", no NVIDIA driver")
        raise ResourceError(
            f"resources.device is cuda, but there is no usable GPU ({found}); use auto or cpu, or install a CUDA build",
            where="resources.device",
        )
    return wanted


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them; without opening one."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    found = [*Path("/proc/driver/nvidia/gpus").glob("*")] or [*Path("/dev").glob("nvidia[0-9]*")]
    return [str(number) for number in range(len(found))]


def take_gpu(number: int) -> None:
    """From here on this process sees one GPU: transformers' trainers would spread a batch over all, their own way."""
    if gpus := visible_gpus():
        os.environ[_BEFORE] = ",".join(gpus)
        os.environ[_VISIBLE] = gpus[number % len(gpus)]


def with_all_gpus(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that is started: it sees the GPUs that were there before `take_gpu`."""
    found = dict(environment)
    if _BEFORE in found:
        found[_VISIBLE] = found.pop(_BEFORE)
    return found


def check_processes(processes: int, device: str) -> None:
    """Refuses more processes than there are GPUs.

    Raises:
        ResourceError: Each process needs one of its own.
    """
    there = len(visible_gpus())
    if device == "cuda" and processes > max(there, 1):
        raise ResourceError(
            f"got {processes} processes and {there} visible GPU{'' if there == 1 else 's'}, expected one GPU for each "
            "process; lower resources.processes, or look at CUDA_VISIBLE_DEVICES",
            where="resources.processes",
        )


def check_compiler(device: str, where: str) -> None:
    """Refuses torch.compile on a CPU without a C++ compiler, before anything runs.

    Raises:
        ResourceError: There is none; `where` names the field that asks for one.
    """
    found = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device == "cpu" and not any(shutil.which(name) for name in found if name):
        raise ResourceError(
            "torch.compile on a CPU needs a C++ compiler; expected g++ or clang++ on PATH, found neither; install one "
            "or leave compile out",
            where=where,
        )
