"""How many pairs a source has and how long their texts are, from its first rows: for `workbench doctor CONFIG`."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from workbench.data.columns import rename
from workbench.data.findings import Findings
from workbench.data.formats import RowError, parse_pair
from workbench.data.layout import Layout
from workbench.data.pairing import Pairing
from workbench.data.sources import Row, read_rows

LOOKED_AT: Final = 20_000  # rows, for lengths and pairs a row
COUNTED_BYTES: Final = 4 * 2**20  # the lines of a smaller file are counted


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the first rows hold.

    Args:
        prompt, response: Mean characters; a response's is 0 where rows have prompts alone.
        pairs: Of the whole source, as many a row as in the first rows.
        train: Share of the pairs that name the split train; None: none names one.
        whole: Every row was read.
    """

    prompt: float
    response: float
    pairs: int
    train: float | None = None
    whole: bool = True


class Head:
    """The first rows of a source, counted while they are read."""

    def __init__(self, rows: Iterator[Row], most: int) -> None:
        self._rows, self._most = rows, most
        self.count = self.last = 0
        self.whole = False

    def __iter__(self) -> Iterator[Row]:
        for number, row in self._rows:
            if self.count == self._most:
                return
            self.count, self.last = self.count + 1, number
            yield number, row
        self.whole = True


def look(source: Path, layout: Layout, limit: int | None, *, looked_at: int = LOOKED_AT) -> Seen:
    """Pairs as the comparison will make them: columns renamed, rated rows paired, prompts found where they are implied.

    Args:
        limit: `data.limit`: rows.
        looked_at: Rows that are read at most.

    Raises:
        ConfigError, DataError: The layout does not fit, or the source cannot be read.
    """
    head = Head(read_rows(source, Findings(source.name), limit=limit, split=layout.split), looked_at)
    prompts = responses = pairs = train = named = 0
    for _, row in Pairing(layout, source.name, seed=0).pair_rows(head, lambda number, error: None):
        try:
            prompt, chosen, rejected = _lengths(row)
        except RowError:
            continue
        pairs, prompts, responses = pairs + 1, prompts + prompt, responses + chosen + rejected
        named, train = named + (row.get("split") is not None), train + (row.get("split") == "train")
    total = head.count if head.whole else _rows_of(source, layout.split, head)
    total = total if limit is None else min(total, limit)
    return Seen(
        prompt=prompts / max(pairs, 1), response=responses / max(2 * pairs, 1), whole=head.whole,
        pairs=round(pairs * total / max(head.count, 1)), train=train / named if named else None,
    )  # fmt: skip


def look_at_prompts(source: Path, columns: Mapping[str, str | None], limit: int | None) -> Seen:
    """The same of a source of prompts alone."""
    head = Head(read_rows(source, Findings(source.name), limit=limit), LOOKED_AT)
    found = [_characters(rename(row, columns).get("prompt")) for _, row in head]
    return Seen(prompt=sum(found) / max(len(found), 1), response=0.0, pairs=0, whole=head.whole)


def _lengths(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Characters of prompt, chosen and rejected.

    Raises:
        RowError: There is no pair in the row.
    """
    sides = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(side, list) for side in sides):
        texts = parse_pair(row)
        return len(texts.prompt), len(texts.chosen or ""), len(texts.rejected or "")
    chosen, rejected = ([one for one in side or () if isinstance(one, Mapping)] for side in sides)
    prompt = row.get("prompt")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    before = _characters(prompt) if prompt is not None else _characters(chosen[:shared])
    return before, _characters(chosen[shared:]), _characters(rejected[shared:])


def _characters(value: Any) -> int:
    if isinstance(value, list):
        return sum(len(str(one.get("content", ""))) for one in value if isinstance(one, Mapping))
    return len(value) if isinstance(value, str) else 0


def _rows_of(source: Path, split: str | None, head: Head) -> int:
    """Rows of a source of which the head was read: as it says itself, else by the bytes that the head took."""
    if source.is_dir():
        return _folder_rows(source, split)
    if source.suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(source).metadata.num_rows)
    with source.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        if source.stat().st_size < COUNTED_BYTES:
            return round(sum(1 for _ in stream) * head.count / head.last)
        for _ in range(head.last):
            stream.readline()
        taken = raw.tell()  # of the file as it lies there, compressed or not; a gzip stream is a buffer ahead
    return max(head.count, round(head.count * source.stat().st_size / max(taken, 1)))


def _folder_rows(source: Path, split: str | None) -> int:
    import datasets

    kept = (source / "dataset_dict.json").exists() or (source / "state.json").exists()
    data: Any = datasets.load_from_disk(str(source)) if kept else datasets.load_dataset(str(source))
    if isinstance(data, Mapping):
        data = data[split or ("train" if "train" in data else next(iter(data)))]
    return len(data)
