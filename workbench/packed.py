"""Tokenised prompts and pairs on disk: ids once for every arm, mapped into memory, digests whatever the order.

{prompt,chosen,rejected}_ids.npy      int32, flat
{prompt,chosen,rejected}_offsets.npy  int64 (n + 1): row i is ids[offsets[i]:offsets[i + 1]]
rows.jsonl                            {"pair_id", "prompt_id", "split", "annotations", "target_margin"}
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from workbench.data.records_io import FILTER_FILE, PROMPTS_FILE, LineFile, json_line, read_jsonl, write_jsonl
from workbench.errors import IntegrityError
from workbench.types import SPLITS

Ids = NDArray[np.int32]
COLUMNS: Final = ("prompt", "chosen", "rejected")
ROWS_FILE: Final = "rows.jsonl"
_FLUSH_IDS: Final = 2**18


def row_hash(
    prompt_ids: Sequence[int] | Ids, chosen_ids: Sequence[int] | Ids, rejected_ids: Sequence[int] | Ids
) -> str:
    """sha256 of one pair's ids, as little-endian int32 with lengths before them."""
    digest = hashlib.sha256()
    for ids in (prompt_ids, chosen_ids, rejected_ids):
        data = np.asarray(ids, dtype="<i4")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data.tobytes())
    return digest.hexdigest()


def rows_digest(hashes: Iterable[str]) -> str:
    """sha256 of a *set* of row hashes: neither order, nor epochs, nor equal rows change it."""
    return hashlib.sha256("\n".join(sorted(set(hashes))).encode()).hexdigest()


class PackedWriter:
    """Writes packed pairs one by one; what it holds is a few bytes a pair.

    Args:
        folder: Where to. The files are whole once the `with` block has ended without an error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: (folder / f"{name}_ids.npy").open("wb") for name in COLUMNS}
        self._rows = (folder / ROWS_FILE).open("wb")
        self._waiting = {name: array("i") for name in COLUMNS}
        self._ends = {name: array("q", [0]) for name in COLUMNS}
        for file in self._files.values():
            _write_header(file, 0)

    def __enter__(self) -> PackedWriter:
        return self

    def append(
        self, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], meta: Mapping[str, Any]
    ) -> None:
        """One pair: its ids, responses with their stop id, and its line of rows.jsonl."""
        for name, ids in zip(COLUMNS, (prompt, chosen, rejected), strict=True):
            waiting = self._waiting[name]
            waiting.extend(ids)
            self._ends[name].append(self._ends[name][-1] + len(ids))
            if len(waiting) >= _FLUSH_IDS:
                self._flush(name)
        self._rows.write(json_line(meta))

    def _flush(self, name: str) -> None:
        self._files[name].write(np.asarray(self._waiting[name], dtype="<i4").tobytes())
        self._waiting[name] = array("i")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for name, file in self._files.items():
            if kind is None:
                self._flush(name)
                ends = np.asarray(self._ends[name], dtype=np.int64)
                file.seek(0)
                _write_header(file, int(ends[-1]))
                np.save(self._folder / f"{name}_offsets.npy", ends, allow_pickle=False)
            file.close()
        self._rows.close()


def _write_header(file: BinaryIO, count: int) -> None:
    """The header of a flat int32 .npy file; its size is the same whatever the count, so it can be written again."""
    header = {"descr": "<i4", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def write_packed_pairs(
    folder: Path, rows: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]], meta: Iterable[dict[str, Any]]
) -> None:
    """Writes packed pairs.

    Args:
        folder: Where to.
        rows: (prompt_ids, chosen_ids, rejected_ids) of each pair; responses include their stop id.
        meta: One line of rows.jsonl for each.
    """
    with PackedWriter(folder) as writer:
        for (prompt, chosen, rejected), line in zip(rows, meta, strict=True):
            writer.append(prompt, chosen, rejected, line)


class PackedPairs:
    """Reads packed pairs; ids and the lines of rows.jsonl stay on disk until a row is asked for.

    Args:
        folder: A packed pairs artifact.

    Raises:
        IntegrityError: A file is missing, or the files do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = LineFile(folder / ROWS_FILE)
        margins, splits = array("d"), array("b")
        for row in self._lines:
            margin, split = row.get("target_margin"), row.get("split")
            margins.append(math.nan if margin is None else margin)
            splits.append(SPLITS.index(split) if split in SPLITS else -1)
        self._margins = np.asarray(margins, dtype=np.float64)
        self._splits = np.asarray(splits, dtype=np.int8)
        self._ids: dict[str, Ids] = {}
        self._offsets: dict[str, NDArray[np.int64]] = {}
        for name in COLUMNS:
            try:
                offsets = np.load(folder / f"{name}_offsets.npy", allow_pickle=False)
                # An empty file cannot be mapped.
                mode = "r" if offsets[-1] > 0 else None
                ids = np.load(folder / f"{name}_ids.npy", mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
            except (OSError, ValueError, IndexError) as error:
                raise IntegrityError(
                    f"packed pairs cannot be read: {error}; rebuild them", where=str(folder)
                ) from error
            if len(offsets) != len(self) + 1 or offsets[0] != 0 or offsets[-1] != len(ids):
                raise IntegrityError(
                    f"packed pairs do not fit: {len(self)} rows, {len(offsets)} offsets of {name} up to "
                    f"{int(offsets[-1])}, {len(ids)} ids; rebuild them",
                    where=str(folder),
                )
            self._ids[name], self._offsets[name] = ids, offsets

    def __len__(self) -> int:
        return len(self._margins)

    def _column(self, name: str, index: int) -> Ids:
        offsets = self._offsets[name]
        return np.asarray(self._ids[name][offsets[index] : offsets[index + 1]])

    def row(self, index: int) -> tuple[Ids, Ids, Ids]:
        """(prompt_ids (P,), chosen_ids (C,), rejected_ids (R,)) of one pair, int32; stop ids included."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        prompt, chosen, rejected = (self._column(name, index) for name in COLUMNS)
        return prompt, chosen, rejected

    def as_lists(self, index: int) -> dict[str, Any]:
        """{"prompt_ids", "chosen_ids", "rejected_ids", "margin"}: what trainers take; margin may be None."""
        prompt, chosen, rejected = self.row(index)
        margin = float(self._margins[index])
        return {
            "prompt_ids": prompt.tolist(),
            "chosen_ids": chosen.tolist(),
            "rejected_ids": rejected.tolist(),
            "margin": None if math.isnan(margin) else margin,
        }

    def meta(self, index: int) -> dict[str, Any]:
        """The line of rows.jsonl of one pair."""
        return self._lines[index]

    def split_rows(self, split: str) -> list[int]:
        """Row numbers of one split, in order."""
        known = SPLITS.index(split) if split in SPLITS else len(SPLITS)
        rows: list[int] = np.flatnonzero(self._splits == known).tolist()
        return rows

    def ids_digest(self, rows: Iterable[int] | None = None) -> str:
        """Digest of the set of pairs in `rows` (all by default), whatever their order. See `rows_digest`."""
        return rows_digest(row_hash(*self.row(index)) for index in (range(len(self)) if rows is None else rows))

    def filter_digest(self) -> str:
        """Digest of the filter's report: which rows were dropped, and why."""
        return hashlib.sha256((self.folder / FILTER_FILE).read_bytes()).hexdigest()


def write_packed_prompts(folder: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows {"prompt_id", "prompt", "split", "ids"}; returns how many."""
    return write_jsonl(folder / PROMPTS_FILE, rows)


def read_packed_prompts(folder: Path) -> list[dict[str, Any]]:
    """Rows {"prompt_id", "prompt", "split", "ids"} of a packed prompts artifact."""
    return list(read_jsonl(folder / PROMPTS_FILE))
