"""Which finished comparison a word on the command line means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import DataError

RESULTS_FILE = "results.json"
CONFIG_FILE = "config.json"
SAMPLES_FILE = "samples.jsonl.gz"


def find_run(home: Path, name: str | None) -> Path:
    """Path of a comparison's results.json.

    Args:
        home: Folder of all that runs leave.
        name: A comparison's name, a folder with results, or a results.json; None: the one that finished last.

    Raises:
        DataError: There is none.
    """
    known = sorted((home / "results").glob(f"*/{RESULTS_FILE}"), key=lambda path: path.stat().st_mtime)
    if name is None:
        if not known:
            raise DataError("no results yet, expected results/NAME/results.json; run `workbench compare CONFIG` first",
                            where=str(home))  # fmt: skip
        return known[-1]
    tried = [home / "results" / name / RESULTS_FILE, Path(name) / RESULTS_FILE, Path(name)]
    if name in {path.parent.name for path in known}:
        return tried[0]
    for path in tried[1:]:
        if path.is_file():
            return path.absolute()
    listed = ", ".join(path.parent.name for path in known) or "none"
    raise DataError(
        f"no comparison {name!r}; expected one of this home's ({listed}), a folder with results.json, or such a file",
        where=str(home),
    )


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config that a comparison ran with, secrets redacted; None where an older one left none.

    Raises:
        DataError: It is broken.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is no JSON: {error}; run compare again to write it anew", where=str(path)) from error
    return found if isinstance(found, dict) else None
