"""Which finished comparison a word on the command line means."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import DataError

RESULTS_FILE = "results.json"


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
