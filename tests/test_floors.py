"""The shape of the repository: floors, packages, what lies at the top, what is pinned."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    "pyproject.toml", "README.md", "workbench", "pipelines", "tests", "configs", "mlruns", "docs", "benchmarks",
    "examples", "Makefile", "constraints.txt", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore",
}  # fmt: skip
# Nothing of the project: git's own folder, the environment and what tools leave; git ignores them.
LEFT_BY_TOOLS = {".git", ".venv", "build", "dist"}


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def git(*words: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_floors_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 kept, 0 broken" in done.stdout


def test_floors_are_watched_from_inside_functions_too(tmp_path: Path) -> None:
    """The contracts catch what they are there for: a lazy import of an arm by the bench."""
    for name in ("workbench", "pipelines"):
        (tmp_path / name).mkdir()
        for file in (ROOT / name).rglob("*.py"):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(file.read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "workbench" / "doctor.py").write_text("def look():\n    from pipelines import ppo\n    return ppo\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "workbench.doctor" in done.stdout


def test_every_package_ships_and_nothing_else() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("workbench", "pipelines")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(settings["packages"]) == on_disk | {"workbench.configs"}
    assert settings["package-dir"] == {"workbench.configs": "configs"}
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("workbench", "pipelines")
        for file in (ROOT / top).rglob("*.py")
    }
    assert folders == on_disk, "a folder of modules without __init__.py is left out of the wheel"


def test_every_config_file_ships() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {file for pattern in patterns["workbench.configs"] for file in (ROOT / "configs").glob(pattern)}
    files = {file for file in (ROOT / "configs").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert files == shipped
    assert {file.stem for file in files} >= {"smoke", "quickstart", "study", "overoptimization", "stories", "hh"}


def test_top_of_the_repository() -> None:
    tracked = {path.partition("/")[0] for path in git("ls-files", "--cached", "--others", "--exclude-standard")}
    assert tracked <= TOP, f"not planned at the top: {sorted(tracked - TOP)}"
    missing = TOP - tracked - {path.name for path in ROOT.iterdir()}
    assert not missing
    ignored = set(git("ls-files", "--others", "--ignored", "--exclude-standard", "--directory"))
    stray = {path.name for path in ROOT.iterdir()} - TOP - LEFT_BY_TOOLS - {name.rstrip("/") for name in ignored}
    assert not stray


def test_of_mlruns_only_the_folder_is_tracked() -> None:
    assert git("ls-files", "mlruns") == ["mlruns/.gitkeep"]


def pins() -> dict[str, str]:
    """Canonical name -> version of constraints.txt, which must hold nothing but comments and exact pins."""
    found = {}
    for number, line in enumerate((ROOT / "constraints.txt").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)", line)
        assert match, f"constraints.txt:{number}: {line!r} is no exact pin"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt:{number}: {name} is pinned twice"
        found[name] = match[2]
    return found


def closure() -> dict[str, str]:
    """Canonical name -> installed version of all that the project needs, with the extras that `make` installs."""
    extras_of_make = re.search(r"-e '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    assert extras_of_make
    waiting: list[tuple[str, frozenset[str]]] = [("alignment-workbench", frozenset(extras_of_make[1].split(",")))]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, str] = {}
    while waiting:
        name, extras = entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        distribution = importlib.metadata.distribution(name)
        found[canonicalize_name(name)] = distribution.version
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                waiting.append((needed.name, frozenset(needed.extras)))
    del found["alignment-workbench"]
    return found


def test_every_dependency_is_pinned_to_what_is_tested() -> None:
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    needed = closure()
    assert sorted(needed.keys() - pinned.keys()) == []
    public = {name: version.partition("+")[0] for name, version in needed.items()}  # 2.13.0+cpu is 2.13.0
    assert {name: pinned[name].partition("+")[0] for name in public} == public


def test_pins_fit_what_the_project_asks_for() -> None:
    pinned = pins()
    settings = project()["project"]
    groups = [settings["dependencies"], *settings["optional-dependencies"].values()]  # type: ignore[index]
    for line in itertools.chain.from_iterable(groups):
        needed = Requirement(line)
        version = pinned[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version, prereleases=True), f"{line}: pinned to {version}"


def test_make_uses_the_pins() -> None:
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text()
