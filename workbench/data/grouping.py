"""Rows that belong together but may stand apart, gathered in bounded memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.spool import Spool

Group = tuple[int, Any, list[tuple[int, Any]]]


def grouped(records: Iterable[tuple[int, Any, Any]], scratch: Path | None) -> Iterator[Group]:
    """Gathers records of equal keys, wherever they stand; what waits, waits on disk.

    Args:
        records: (row number, key, value); key and value are JSON.
        scratch: Folder for the file in which they wait.

    Yields:
        (row number of the first, key, [(row number, value)] in the order of rows), groups in the order of their first.
    """
    spool, rows, digests = Spool(scratch), array("q"), bytearray()
    for row, key, value in records:
        written = json.dumps(key, sort_keys=True)
        digests += hashlib.sha256(written.encode()).digest()[:16]
        rows.append(row)
        spool.append(json.dumps([key, value]).encode())
    if not rows:
        return
    _, first, inverse = np.unique(np.frombuffer(bytes(digests), dtype="V16"), return_index=True, return_inverse=True)
    order = np.argsort(first[inverse], kind="stable")
    starts = np.flatnonzero(np.diff(first[inverse][order], prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        members = [(rows[at], json.loads(spool[at])) for at in order[start:end].tolist()]
        yield members[0][0], members[0][1][0], [(row, value) for row, (_, value) in members]
    spool.close()
