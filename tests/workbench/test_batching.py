"""The one layout of prompt and response: padding, masks, positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.batching import by_length, make_batch, microbatches, positions

PAD, EOS = 0, 1
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5)


def test_prompt_and_response_are_joined_and_padded_on_the_right() -> None:
    batch = make_batch([[5, 6], [7]], [[8, EOS], [9, 8, EOS]], PAD)
    assert batch.input_ids.tolist() == [[5, 6, 8, EOS], [7, 9, 8, EOS]]
    assert make_batch([[5], [7]], [[8], [9, EOS]], PAD).attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.response_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.response_ids.tolist() == [[8, EOS, 0], [9, 8, EOS]]
    assert batch.tokens.tolist() == [8, EOS, 9, 8, EOS]
    assert batch.input_ids.flatten()[batch.before].tolist() == [6, 8, 7, 9, 8]
    assert batch.input_ids.flatten()[batch.last].tolist() == [EOS, EOS]
    assert batch.spread(torch.arange(1.0, 6.0)).tolist() == [[1, 2, 0], [3, 4, 5]]


def test_masks_come_from_lengths_never_from_ids() -> None:
    # EOS counts even if somebody pads with it, and a sampled pad token is a token.
    batch = make_batch([[EOS, 5], [6]], [[7, EOS], [PAD, EOS, 7]], pad_id=EOS)
    assert batch.response_mask.sum(1).tolist() == [2, 3]
    assert batch.attention_mask.sum(1).tolist() == [4, 4]


@given(ROWS)
def test_real_tokens_are_numbered_from_zero_in_every_row(rows: list[tuple[list[int], list[int]]]) -> None:
    batch = make_batch([p for p, _ in rows], [r for _, r in rows], PAD)
    for index, (prompt, response) in enumerate(rows):
        real = batch.attention_mask[index].bool()
        assert batch.input_ids[index][real].tolist() == prompt + response
        assert batch.position_ids[index][real].tolist() == list(range(len(prompt) + len(response)))
        assert batch.response_ids[index][batch.response_mask[index]].tolist() == response


@given(ROWS, st.data())
def test_a_selection_of_rows_equals_a_batch_made_of_them(
    rows: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    batch = make_batch([p for p, _ in rows], [r for _, r in rows], PAD).rows(picked)
    expected = make_batch([rows[i][0] for i in picked], [rows[i][1] for i in picked], PAD)
    for name in ("input_ids", "attention_mask", "response_mask", "tokens", "before", "last"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_positions_ignore_left_padding() -> None:
    assert positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("prompts", "responses"), [([[1]], [[]]), ([[]], [[1]]), ([], []), ([[1]], [[1], [2]])], ids=str
)
def test_rows_that_cannot_be_laid_out_are_refused(prompts: list[list[int]], responses: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        make_batch(prompts, responses, PAD)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 7))
def test_batches_by_length_hold_every_row_once_longest_first(lengths: list[int], size: int) -> None:
    batches = list(by_length(lengths, size))
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    assert all(len(batch) <= size for batch in batches)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 80), st.integers(10, 200))
def test_passes_hold_every_row_once_and_cost_no_more_than_one_or_all_alone(
    lengths: list[int], cost: int, most: int
) -> None:
    def price(parts: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in part) * len(part) + cost for part in parts)

    parts = microbatches(lengths, cost_of_pass=cost)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert price(parts) <= min(price([list(range(len(lengths)))]), price([[i] for i in range(len(lengths))]))
    bounded = microbatches(lengths, cost_of_pass=cost, max_tokens=most)
    assert sorted(row for part in bounded for row in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or max(lengths[i] for i in part) * len(part) <= most for part in bounded)
