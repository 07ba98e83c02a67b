"""Staged pairs: the batches of TRL's collators, from one copy or one map, with the digest of what was gathered."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference as TrlPairs
from trl.trainer.reward_trainer import DataCollatorForPreference as TrlReward

from tests.ml_helpers import PAD, random_rows
from workbench import staged
from workbench.packed import COLUMNS, PackedPairs, write_packed_pairs
from workbench.staged import PairBatches, RewardBatches, StagedPairs

COUNT = 40
LARGE = 2**40
BOTH = [("prompt", "chosen"), ("prompt", "rejected")]


def write(folder: Path, rows: list[tuple[list[int], list[int], list[int]]]) -> PackedPairs:
    folder.mkdir()
    write_packed_pairs(folder, rows, [{"pair_id": str(i), "target_margin": None} for i in range(len(rows))])
    return PackedPairs(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PackedPairs:
    """Ragged: lengths of 1 to 30, one prompt without a token, one pair twice."""
    rng = np.random.default_rng(0)
    columns = [random_rows(rng, COUNT, high=30, end=name != "prompt") for name in COLUMNS]
    columns[0][3] = []
    for column in columns:
        column[7] = column[6]
    return write(tmp_path_factory.mktemp("staged") / "pairs", list(zip(*columns, strict=True)))


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(-20, 9, COUNT) for name in ("ref_chosen_logps", "ref_rejected_logps", "margin")}


def trl_batch(
    kind: str, pairs: PackedPairs, values: dict[str, np.ndarray[Any, Any]], rows: list[int]
) -> dict[str, torch.Tensor]:
    """What TRL's own collator makes of lists."""
    examples = []
    for row in rows:
        example = pairs.as_lists(row)
        del example["margin"]
        example |= {name: float(numbers[row]) for name, numbers in values.items()}
        if kind == "reward":
            for side in ("chosen_ids", "rejected_ids"):
                example[side] = example["prompt_ids"] + example[side]
        examples.append(example)
    batch: dict[str, torch.Tensor] = (TrlReward if kind == "reward" else TrlPairs)(pad_token_id=PAD)(examples)
    return batch


def check_parity(
    kind: str, pairs: PackedPairs, given: StagedPairs, values: dict[str, np.ndarray[Any, Any]], device: str = "cpu"
) -> None:
    """Bit-equal to TRL's batches, with repeated rows, one row and many."""
    rng, collator = np.random.default_rng(2), (RewardBatches if kind == "reward" else PairBatches)(given, PAD)
    gathered: set[int] = set()
    for size in (1, 2, 5, 16, 90):
        rows = rng.integers(COUNT, size=size).tolist()
        batch, expected = collator([{"row": row} for row in rows]), trl_batch(kind, pairs, values, rows)
        if kind == "dpo" and "margin" in values:  # TRL's DPO has none; the adapter takes it out again
            assert torch.equal(batch.pop("margin"), given.values("margin", rows))
        assert list(batch) == list(expected)
        for name, tensor in batch.items():
            assert (tensor.device.type, tensor.dtype) == (device, expected[name].dtype), name
            assert torch.equal(tensor.cpu(), expected[name]), name
        gathered |= set(rows)
        assert collator.seen == gathered


@pytest.mark.parametrize("max_bytes", [None, LARGE], ids=["mapped", "copied"])
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_batches_are_those_of_trl(
    kind: str, max_bytes: int | None, pairs: PackedPairs, values: dict[str, np.ndarray[Any, Any]]
) -> None:
    given = StagedPairs(pairs, max_bytes=max_bytes, values=values)
    assert given.copied == (max_bytes is not None)
    check_parity(kind, pairs, given, values)


def test_without_margins_a_reward_batch_has_none(pairs: PackedPairs) -> None:
    batch = RewardBatches(StagedPairs(pairs), PAD)([{"row": 0}, {"row": 3}])
    expected = trl_batch("reward", pairs, {}, [0, 3])
    assert list(batch) == list(expected) == ["input_ids", "attention_mask"]
    assert torch.equal(batch["input_ids"], expected["input_ids"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("max_bytes", [None, 0], ids=["copied", "mapped"])
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_batches_on_a_gpu_are_those_of_trl(
    kind: str, max_bytes: int | None, pairs: PackedPairs, values: dict[str, np.ndarray[Any, Any]]
) -> None:
    given = StagedPairs(pairs, "cuda", max_bytes=max_bytes, values=values)
    assert given.copied == (max_bytes is None)
    check_parity(kind, pairs, given, values, device="cuda")
    assert given.ids_digest(range(COUNT)) == pairs.ids_digest()


def test_ids_are_copied_only_where_they_fit(pairs: PackedPairs, values: dict[str, np.ndarray[Any, Any]]) -> None:
    tokens = sum(len(ids) for row in range(COUNT) for ids in pairs.row(row))
    nbytes = 4 * tokens + 3 * 8 * (COUNT + 1) + len(values) * 4 * COUNT
    for max_bytes, copied in ((None, False), (nbytes - 1, False), (nbytes, True)):
        given = StagedPairs(pairs, max_bytes=max_bytes, values=values)
        assert (given.nbytes, given.copied) == (nbytes, copied)


def test_a_gpu_gives_a_share_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert staged._budget(torch.device("cuda"), None) == 1000 * staged.STAGE_FRACTION
    assert staged._budget(torch.device("cuda"), 7) == 7
    assert staged._budget(torch.device("cpu"), None) == 0


def test_a_map_costs_no_copy_and_no_warning_and_its_file_cannot_be_written(
    pairs: PackedPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = np.load, []
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: loaded.append(load(*args, **kwargs)) or loaded[-1])
    before = {name: (pairs.folder / f"{name}_ids.npy").read_bytes() for name in COLUMNS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = StagedPairs(pairs)
        given.gather(BOTH, range(COUNT), pad_id=PAD).ids.fill_(9)
    maps = {array.ctypes.data for array in loaded if isinstance(array, np.memmap)}
    assert {column.ids.data_ptr() for column in given._columns.values()} == maps
    for column in given._columns.values():
        column.ids.fill_(9)
    assert {name: (pairs.folder / f"{name}_ids.npy").read_bytes() for name in COLUMNS} == before


@pytest.mark.parametrize("max_bytes", [None, LARGE], ids=["mapped", "copied"])
def test_the_digest_is_that_of_the_ids_that_are_gathered(pairs: PackedPairs, max_bytes: int | None) -> None:
    given = StagedPairs(pairs, max_bytes=max_bytes)
    for rows in (range(COUNT), [5, 2, 2, 9], {3}, []):
        assert given.ids_digest(rows) == pairs.ids_digest(rows)
    assert given.ids_digest([6]) == given.ids_digest([7])  # equal pairs
    given._columns["rejected"].ids[0] += 1
    assert given.ids_digest([0, 1]) != pairs.ids_digest([0, 1])


def test_lengths_and_tokens_are_those_of_the_rows(pairs: PackedPairs) -> None:
    given, rows = StagedPairs(pairs), [3, 0, 0, 39]
    lengths = [[len(ids) for ids in pairs.row(row)] for row in rows]
    for number, name in enumerate(COLUMNS):
        assert given.lengths(name, rows).tolist() == [row[number] for row in lengths]
    assert given.tokens(rows) == sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths)
    assert given.tokens([]) == 0
    assert len(given) == COUNT


def test_any_layout_can_be_gathered(pairs: PackedPairs) -> None:
    found = StagedPairs(pairs).gather([("rejected",), ("chosen", "prompt", "rejected")], [3, 4], pad_id=-1)
    expected = []
    for layout in ([2], [1, 0, 2]):
        for row in (3, 4):
            parts = [pairs.row(row)[column].tolist() for column in layout]
            expected.append(([one for part in parts for one in part], len(parts[-1])))
    for (ids, last), got, mask, tail in zip(expected, found.ids, found.mask, found.response_mask, strict=True):
        assert got[: len(ids)].tolist() == got[mask].tolist() == ids
        assert (got[len(ids) :] == -1).all()
        assert tail.nonzero().squeeze(1).tolist() == list(range(len(ids) - last, len(ids)))
    assert found.ids.shape[1] == max(len(ids) for ids, _ in expected)


def test_a_column_without_a_token_is_a_column(tmp_path: Path) -> None:
    given = StagedPairs(write(tmp_path / "pairs", [([], [5, 6], [7]), ([], [8], [9, 1])]))
    found = given.gather(BOTH, [1, 0], pad_id=PAD)
    assert found.ids.tolist() == [[8, 0], [5, 6], [9, 1], [7, 0]]
    assert given.gather([("prompt",)], [0, 1], pad_id=PAD).ids.shape == (2, 0)


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_that_is_not_there_is_refused(pairs: PackedPairs, row: int) -> None:
    with pytest.raises(IndexError, match=f"of {COUNT}"):
        StagedPairs(pairs).gather(BOTH, [0, row], pad_id=PAD)


def test_values_must_be_one_for_each_pair(pairs: PackedPairs) -> None:
    with pytest.raises(ValueError, match=r"margin has shape \(2,\).* 40 pairs"):
        StagedPairs(pairs, values={"margin": np.zeros(2)})
