"""Packed pairs where batches are built: staged once to the device that trains, or mapped from disk where too large.

A batch is index arithmetic on flat columns: no row becomes a Python list, and lengths are known on the host, so no
batch waits for the device. Whether the ids were copied or are mapped changes where a batch is put together, never what
is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.label_targets import MARGIN, TARGET, labels_digest
from workbench.packed import COLUMNS, PackedPairs, row_hash, rows_digest

# Share of the GPU memory that is free when a stage starts: gradients, optimizer and activations are still to come.
STAGE_FRACTION: Final = 0.2

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Right-padded ids of L layouts of B rows, layout after layout.

    Args:
        ids: (L * B, T) int64.
        mask: (L * B, T) bool, True on real tokens.
        response_mask: (L * B, T) bool, True on the tokens of a layout's last column, stop ids included.
    """

    ids: Tensor
    mask: Tensor
    response_mask: Tensor


@dataclass(frozen=True)
class _Column:
    """ids (total,) int32 and offsets (N + 1,) int64 side by side; `bounds` are the same offsets on the host."""

    ids: Tensor
    offsets: Tensor
    bounds: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.offsets.nbytes

    def copy_to(self, device: torch.device) -> _Column:
        return _Column(self.ids.to(device, copy=True), self.offsets.to(device, copy=True), self.bounds)


class StagedPairs:
    """The columns of packed pairs as tensors, and perhaps a few numbers of each pair.

    Args:
        pairs: Packed pairs of N rows.
        device: Where batches are wanted.
        max_bytes: Columns and values that take more are not copied. Default: on a GPU `STAGE_FRACTION` of its free
            memory; on the CPU 0, because a mapped file is in memory as soon as it was read once.
        values: Name -> (N,) numbers, such as the reference's log-probabilities in nats.

    Attributes:
        nbytes: Of columns and values.
        copied: Whether they were copied to `device`; else batches are built on the host and sent one by one.

    Raises:
        ValueError: There is not one value for each pair.
    """

    def __init__(
        self,
        pairs: PackedPairs,
        device: str | torch.device = "cpu",
        *,
        max_bytes: int | None = None,
        values: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._rows = len(pairs)
        for name, numbers in (values or {}).items():
            if numbers.shape != (len(pairs),):
                raise ValueError(
                    f"{name} has shape {numbers.shape}, expected one number for each of {len(pairs)} pairs"
                )
        self._columns = {name: _mapped(pairs, name) for name in COLUMNS}
        self._values = {
            name: torch.tensor(numbers, dtype=torch.float32, device="cpu") for name, numbers in (values or {}).items()
        }
        self.nbytes = sum(column.nbytes for column in self._columns.values())
        self.nbytes += sum(numbers.nbytes for numbers in self._values.values())
        self.copied = self.nbytes <= _budget(self.device, max_bytes)
        if self.copied:
            self._columns = {name: column.copy_to(self.device) for name, column in self._columns.items()}
            self._values = {name: numbers.to(self.device) for name, numbers in self._values.items()}

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> frozenset[str]:
        """Names of the values."""
        return frozenset(self._values)

    def lengths(self, column: str, rows: Rows) -> NDArray[np.int64]:
        """(B,) tokens of a column; from the host, without a look at the device.

        Raises:
            IndexError: A row number is negative or too large.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        bounds = self._columns[column].bounds
        return np.asarray(bounds[numbers + 1] - bounds[numbers])

    def tokens(self, rows: Rows) -> int:
        """Tokens that a trainer of pairs reads: the prompt with either response."""
        prompt, chosen, rejected = (int(self.lengths(name, rows).sum()) for name in COLUMNS)
        return 2 * prompt + chosen + rejected

    def gather(self, layouts: Sequence[Sequence[str]], rows: Rows, *, pad_id: int) -> Gathered:
        """Rows as padded tensors on `device`.

        Args:
            layouts: Columns to write one after the other, such as [("prompt", "chosen"), ("prompt", "rejected")].
            rows: B row numbers, in the order of the batch.
            pad_id: Fills what is right of a row's end.

        Raises:
            IndexError: See `lengths`.
        """
        lengths = {name: self.lengths(name, rows) for layout in layouts for name in layout}
        width = max(int(np.sum([lengths[name] for name in layout], axis=0).max()) for layout in layouts)
        numbers = self._numbers(rows)
        at = torch.arange(width, device=numbers.device)
        parts = [self._fill(layout, numbers, at, pad_id) for layout in layouts]
        ids, mask, response_mask = (self._deliver(torch.cat(tensors)) for tensors in zip(*parts, strict=True))
        return Gathered(ids=ids.to(torch.int64), mask=mask, response_mask=response_mask)

    def values(self, name: str, rows: Rows) -> Tensor:
        """(B,) float32 on `device`."""
        return self._deliver(self._values[name][self._numbers(rows)])

    def ids_digest(self, rows: Iterable[int]) -> str:
        """`PackedPairs.ids_digest`, from the ids that batches were gathered from; a GPU's are read back at once."""
        read = {name: (column.ids.cpu().numpy(), column.bounds) for name, column in self._columns.items()}
        return rows_digest(
            row_hash(*(ids[bounds[row] : bounds[row + 1]] for ids, bounds in (read[name] for name in COLUMNS)))
            for row in rows
        )

    def labels_digest(self, rows: Iterable[int]) -> str:
        """`label_targets.labels_digest` of rows, from the ids and numbers that batches were gathered from."""
        picked = list(rows)
        read = {name: (column.ids.cpu().numpy(), column.bounds) for name, column in self._columns.items()}
        hashes = [
            row_hash(*(ids[bounds[row] : bounds[row + 1]] for ids, bounds in (read[name] for name in COLUMNS)))
            for row in picked
        ]
        given = {name: self._values[name].cpu().numpy()[picked] for name in (TARGET, MARGIN) if name in self._values}
        return labels_digest(hashes, given.get(TARGET), given.get(MARGIN))

    def labels(self, rows: Rows) -> dict[str, Tensor]:
        """ "target" and "margin", (B,) float32 on `device`; {} where labels are hard."""
        return {name: self.values(name, rows) for name in (TARGET, MARGIN) if name in self.names}

    def _numbers(self, rows: Rows) -> Tensor:
        place = self.device if self.copied else "cpu"
        return torch.from_numpy(np.array(rows, dtype=np.int64)).to(place, non_blocking=True)

    def _fill(self, layout: Sequence[str], numbers: Tensor, at: Tensor, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids (B, T) int32, mask and response_mask (B, T) bool, where the columns are."""
        ids = torch.full((len(numbers), len(at)), pad_id, dtype=torch.int32, device=at.device)
        inside, end = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(numbers)
        for name in layout:
            column = self._columns[name]
            start, first, stop = end, column.offsets[numbers], column.offsets[numbers + 1]
            end = start + stop - first
            inside = (at >= start[:, None]) & (at < end[:, None])
            if len(column.ids):  # a position outside reads id 0 of the column, which `where` then leaves out
                source = ((first - start)[:, None] + at).masked_fill(~inside, 0)
                ids = torch.where(inside, column.ids[source], ids)
        return ids, at < end[:, None], inside

    def _deliver(self, tensor: Tensor) -> Tensor:
        """To `device`; from pinned memory, so that the copy runs beside the step before."""
        if tensor.device.type == "cpu" and self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


class RereadPairs(StagedPairs):
    """Pairs in the ids of another tokenizer; what was consumed is told in the ids that every arm shares.

    Args:
        pairs: The same rows, tokenised anew.
        device: Where batches are wanted.
        original: The pairs that they are; their labels are taken too.
    """

    def __init__(self, pairs: PackedPairs, device: str | torch.device, *, original: StagedPairs) -> None:
        super().__init__(pairs, device)
        if len(pairs) != len(original):
            raise ValueError(f"{len(pairs)} pairs were read anew, expected {len(original)}")
        self._original = original

    def ids_digest(self, rows: Iterable[int]) -> str:
        return self._original.ids_digest(rows)

    def labels_digest(self, rows: Iterable[int]) -> str:
        return self._original.labels_digest(rows)

    def labels(self, rows: Rows) -> dict[str, Tensor]:
        return self._original.labels(rows)


class Batches:
    """A collator of row numbers that also notes the rows it gathered, whatever the trainer was given.

    Args:
        pairs: Staged where the model is.
        pad_id: Right of a row's end.
    """

    layouts: Final = (("prompt", "chosen"), ("prompt", "rejected"))

    def __init__(self, pairs: StagedPairs, pad_id: int) -> None:
        self.pairs, self.pad_id = pairs, pad_id
        self.seen: set[int] = set()

    def __call__(self, examples: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        rows = [one["row"] for one in examples]
        self.seen.update(rows)
        return self.collate(rows)

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        """(2B, T) int64 each: the chosen of all rows, then the rejected."""
        found = self.pairs.gather(self.layouts, rows, pad_id=self.pad_id)
        return {
            "input_ids": found.ids,
            "attention_mask": found.mask.to(torch.int64),
            "completion_mask": found.response_mask.to(torch.int64),
        }


class RewardBatches(Batches):
    """What the collator of TRL's reward trainer makes of the same pairs, bit for bit."""

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        """Ids and attention mask; "target" and "margin" (B,) float32 where the pairs have them."""
        batch = super().collate(rows)
        del batch["completion_mask"]
        return batch | self.pairs.labels(rows)


class PairBatches(Batches):
    """What the collator of TRL's DPO trainer makes of the same pairs, bit for bit."""

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        """Ids and both masks; the reference's log-probabilities (B,) float32, in nats; labels as `RewardBatches`."""
        names = ("ref_chosen_logps", "ref_rejected_logps")
        references = {name: self.pairs.values(name, rows) for name in names}
        return super().collate(rows) | references | self.pairs.labels(rows)


def _mapped(pairs: PackedPairs, name: str) -> _Column:
    """The column's file as memory. Copy-on-write: torch takes no read-only array, and the file is safe all the same."""
    bounds: NDArray[np.int64] = np.load(pairs.folder / f"{name}_offsets.npy", allow_pickle=False)
    # An empty file cannot be mapped.
    ids = np.load(pairs.folder / f"{name}_ids.npy", mmap_mode="c" if bounds[-1] > 0 else None, allow_pickle=False)
    return _Column(torch.from_numpy(ids), torch.from_numpy(bounds), bounds)


def _budget(device: torch.device, max_bytes: int | None) -> int:
    if max_bytes is not None:
        return max_bytes
    return int(STAGE_FRACTION * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
