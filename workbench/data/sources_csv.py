"""Rows of a csv: what is wrong with a line refuses the whole row that it belongs to, and no other."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from workbench.data.findings import Findings


class Line(NamedTuple):
    """One line of a text file.

    Args:
        number: 1-based.
        text: Decoded; where something is wrong with it, only good for finding where a quoted cell ends.
        fault: (code, message) of what is wrong; None: nothing.
        quotes: Quotation marks of a line that was too long to keep; its `text` is empty.
    """

    number: int
    text: str
    fault: tuple[str, str] | None = None
    quotes: int = 0


QUOTE: Final = '"'


class Cell(str):
    """A text of a csv, which has no numbers: the column that is read as the margin becomes one after renaming."""

    __slots__ = ()


def margin_of(cell: Cell) -> float | str | None:
    """A target margin's cell as a number; None where it is empty. Other texts stay, and are refused as margins."""
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


class _Feed:
    """Gives the parser its lines, and keeps what is wrong with those of the row that it is reading."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._inside = False
        self.faults: list[tuple[int, str, str]] = []

    def start_row(self) -> None:
        self._inside, self.faults = False, []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if line.fault is not None:
                self.faults.append((line.number, *line.fault))
            # The parser asks for a second line of a row within a quoted cell alone.
            turns = line.quotes % 2 == 1
            stand_in = f"x{QUOTE}\n" if turns and self._inside else f"{QUOTE * turns}x\n"
            self._inside = True
            yield line.text or stand_in

    def note(self, findings: Findings) -> bool:
        """Adds what is wrong with the row, once; whether there is anything."""
        if not self.faults:
            return False
        number, code, message = self.faults[0]
        more = f" (and {len(self.faults) - 1} more lines of this row)" if len(self.faults) > 1 else ""
        findings.add(code, number, message + more)
        return True


def read_csv(lines: Iterator[Line], findings: Findings, limit: int | None, cap: int) -> Iterator[tuple[int, Any]]:
    """Rows by the header's names. A number is the line on which the row ends; cells are text.

    Args:
        lines: All lines of the file, faulty ones among them.
        findings: Takes what cannot be read.
        limit: Read only this many rows from the top, unreadable ones counted.
        cap: Largest cell.
    """
    csv.field_size_limit(cap)
    feed = _Feed(lines)
    reader = csv.reader(iter(feed), strict=True)
    header: list[str] | None = None
    seen = 0
    try:
        while header is None or limit is None or seen < limit:
            feed.start_row()
            cells = next(reader, None)
            if cells is None:
                return
            faulty = feed.note(findings)
            if header is None:
                header = cells
                if faulty or len(set(header)) != len(header):
                    what = "cannot be read" if faulty else f"has a column name twice: {header}"
                    findings.add("unreadable", reader.line_num, f"the header {what}")
                    return
                continue
            seen += 1
            if faulty:
                continue
            if len(cells) != len(header):
                message = f"{len(cells)} cells, but the header has {len(header)}"
                findings.add("malformed_csv", reader.line_num, message)
                continue
            yield reader.line_num, dict(zip(header, map(Cell, cells), strict=True))
    except csv.Error as error:
        feed.note(findings)
        findings.add("unreadable", reader.line_num, f"csv: {error}")
