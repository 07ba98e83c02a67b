"""Byte records in an unnamed temporary file, read back by number: what a check must keep of a million rows."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path


class Spool:
    """Appends records, then reads any of them. The file has no name, so a killed process leaves nothing behind.

    Args:
        folder: Where the file is made, best on the disk of what is written next; None: the system's place for them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        # Closed with the object: whoever holds the records decides how long they live.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ends = array("q", [0])
        self._dirty = False

    def append(self, record: bytes) -> None:
        """Keeps one record; its number is how many were there before."""
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))
        self._dirty = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._dirty:
            self._file.flush()
            self._dirty = False
        start = self._ends[index]
        return os.pread(self._file.fileno(), self._ends[index + 1] - start, start)

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()
