"""`workbench doctor`: is this machine fit to run a comparison? Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cores import usable_cores
from workbench.device import device_kind
from workbench.errors import WorkbenchError
from workbench.store import MINIMUM_FREE_BYTES, Store

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "mlflow", "click", "pydantic", "scipy")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in --json."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def examine(home: Path) -> list[Check]:
    """All checks, none of which stops the others."""
    checks: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("device", _device),
        ("processor", _processor),
        ("memory", _memory),
        ("home", lambda: _home(home)),
        ("disk", lambda: _disk(home)),
    ]
    found = []
    for name, check in checks:
        try:
            ok, detail = check()
        except WorkbenchError as error:
            ok, detail = False, str(error)
        found.append(Check(name=name, ok=ok, detail=detail))
    return found


def _python() -> tuple[bool, str]:
    fits = sys.version_info >= (3, 11)
    return fits, f"{platform.python_version()} at {sys.executable}" + ("" if fits else "; 3.11 or newer is needed")


def _packages() -> tuple[bool, str]:
    """Installed versions against what the distribution asks for."""
    from packaging.requirements import Requirement

    wanted = {}
    try:
        for line in importlib.metadata.requires("alignment-workbench") or []:
            requirement = Requirement(line)
            if requirement.marker is None:
                wanted[requirement.name] = requirement.specifier
    except importlib.metadata.PackageNotFoundError:
        pass
    told, ok = [], True
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            told.append(f"{name} is missing")
            ok = False
            continue
        fits = name not in wanted or wanted[name].contains(version, prereleases=True)
        told.append(f"{name} {version}" + ("" if fits else f" (expected {wanted[name]})"))
        ok = ok and fits
    return ok, ", ".join(told) + ("" if ok else "; install with the constraints file: see the README")


def _device() -> tuple[bool, str]:
    kind = device_kind("auto")
    return True, {"cpu": "CPU only (stages run in float32)", "cuda": "NVIDIA GPU (stages run in bfloat16)"}[kind]


def _processor() -> tuple[bool, str]:
    cores = usable_cores()
    busy = os.getloadavg()[0]
    return True, f"{cores} cores, load {busy:.1f}" + ("; other work is running" if busy > cores else "")


def _memory() -> tuple[bool, str]:
    import psutil

    memory = psutil.virtual_memory()
    fits = memory.available > 2e9
    told = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    return fits, told + ("" if fits else "; two workers need about 2 GB")


def _home(home: Path) -> tuple[bool, str]:
    Store.open(home)
    return True, f"{home} can be written"


def _disk(home: Path) -> tuple[bool, str]:
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    fits = free > MINIMUM_FREE_BYTES
    return fits, f"{free / 1e9:.1f} GB free at {home}" + ("" if fits else "; at least 0.2 GB is needed")
