"""Column mapping: which column of a file is read as which of the names that the workbench knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from workbench.data.sources_csv import Cell, margin_of
from workbench.errors import ConfigError

# The names that formats.py, rated.py and votes.py read.
COLUMNS: Final = (
    "prompt", "chosen", "rejected", "split", "annotations", "target_margin", "score_chosen", "score_rejected",
    "response", "responses", "scores", "ranks", "completions",
    "response_1", "response_2", "annotator", "preferred", "preference_strength", "labels",
)  # fmt: skip
_OPTIONAL: Final = frozenset({"split", "annotations", "target_margin"})  # a held-out source may do without
LOOKED_AT: Final = 100  # rows in whose columns a mapped one must turn up


def rename(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """The row under the names that the workbench knows.

    A mapped column is read from the file's column alone, even where the file has one of that name too; None hides it.
    The margin of a csv becomes a number.

    Args:
        row: As the source gave it.
        columns: Known name -> the file's name, or None.
    """
    if columns:
        hidden = {*columns, *columns.values()}
        renamed = {name: value for name, value in row.items() if name not in hidden}
        for known, own in columns.items():
            if own is not None and own in row:
                renamed[known] = row[own]
    else:
        renamed = dict(row)
    if isinstance(margin := renamed.get("target_margin"), Cell):
        renamed["target_margin"] = margin_of(margin)
    return renamed


def with_margin(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Mapping[str, Any]:
    """The row under its own names, a csv's margin as the number that `rename` makes of it."""
    own = columns.get("target_margin", "target_margin")
    if own is not None and isinstance(margin := row.get(own), Cell):
        return {**row, own: margin_of(margin)}
    return row


def check_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str | None], source: str) -> None:
    """Refuses a mapping to a column that the first rows do not have.

    Raises:
        ConfigError: Names the column, and those that there are.
    """
    found = list(dict.fromkeys(name for row in rows for name in row))
    if not found:
        return
    for known, own in columns.items():
        if own is not None and own not in found:
            raise ConfigError(
                f"{source} has no column {own!r}; it has {', '.join(map(repr, found[:20]))}: name one of them",
                where=f"data.columns.{known}",
            )


def without_missing(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """The same mapping for a second source: what rows need not have is hidden where its first rows do not have it."""
    found = {name for row in rows for name in row}
    return {known: own if own in found or known not in _OPTIONAL else None for known, own in columns.items()}
