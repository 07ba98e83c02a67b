"""Sampling: the log-probabilities are those of a full forward pass, and nothing depends on who shares the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chisquare

from tests.ml_helpers import EOS, PAD, STOPS, random_rows, tiny_model
from workbench import sampling
from workbench.batching import make_batch
from workbench.errors import DivergenceError
from workbench.sampling import Decoding, sample, truncate_at_stop
from workbench.scoring import response_logprobs
from workbench.tokens import load_tokenizer
from workbench.worlds import helpdesk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    helpdesk.build_tokenizer(folder)
    return tiny_model(load_tokenizer(folder), num_layers=2)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_rows(np.random.default_rng(0), 60, end=False)


def decoding(**changes: Any) -> Decoding:
    return Decoding(**({"max_response_tokens": 10, "stop_ids": tuple(STOPS)} | changes))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_logprobs_at_sampling_equal_a_full_forward_pass(
    model: Any, prompts: list[list[int]], temperature: float, top_p: float
) -> None:
    drawn = sample(model, prompts, decoding(temperature=temperature, top_p=top_p), pad_id=PAD, seed=1)
    assert {one.finish_reason for one in drawn} == {"stop", "length"}
    for prompt, one in zip(prompts, drawn, strict=True):  # alone, unpadded: no layout is shared with the sampler
        ids = torch.tensor([prompt + one.ids])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_responses_end_with_the_first_stop_id_or_at_the_limit(model: Any, prompts: list[list[int]]) -> None:
    for one in sample(model, prompts, decoding(), pad_id=PAD, seed=2):
        assert len(one.ids) == len(one.logprobs)
        assert not set(one.ids[:-1]) & set(STOPS)
        if one.finish_reason == "stop":
            assert one.ids[-1] in STOPS
        else:
            assert len(one.ids) == 10
            assert one.ids[-1] not in STOPS


def test_a_stop_id_inside_the_prompt_ends_nothing(model: Any) -> None:
    (one,) = sample(model, [[EOS, STOPS[3], 40]], decoding(temperature=1e-4), pad_id=PAD, seed=0)
    (same,) = sample(model, [[EOS, STOPS[3], 40]], decoding(temperature=1e-4, stop_ids=()), pad_id=PAD, seed=0)
    assert (one.ids, one.finish_reason) == truncate_at_stop(same.ids, STOPS)


def test_rows_that_leave_the_batch_change_nothing(
    model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    selections = []
    select = transformers.DynamicCache.batch_select_indices

    def spy(self: Any, indices: torch.Tensor) -> None:
        selections.append(len(indices))
        select(self, indices)

    monkeypatch.setattr(transformers.DynamicCache, "batch_select_indices", spy)
    # Nearly greedy, so that both runs draw the same whatever the generator does.
    greedy = sample(model, prompts, decoding(temperature=1e-4, stop_ids=()), pad_id=PAD, seed=3)
    assert selections == []
    leaving = sample(model, prompts, decoding(temperature=1e-4), pad_id=PAD, seed=3)
    assert len(selections) >= 2, "rows left the batch"
    for whole, one in zip(greedy, leaving, strict=True):
        assert (one.ids, one.finish_reason) == truncate_at_stop(whole.ids, STOPS)
        assert one.logprobs == pytest.approx(whole.logprobs[: len(one.ids)], abs=1e-2)  # logits are divided by 1e-4


def test_padding_and_batch_size_change_nothing(model: Any, prompts: list[list[int]]) -> None:
    options = decoding(temperature=1e-4)
    together = sample(model, prompts, options, pad_id=PAD, seed=0)
    for size in (1, 7):
        apart = sample(model, prompts, options, pad_id=PAD, seed=9, batch_size=size)
        assert [one.ids for one in apart] == [one.ids for one in together]


def test_position_ids_are_the_same_in_rollout_and_training(model: Any) -> None:
    """Left padding in the rollout, right padding in training: what the layers are told of each real token is equal."""
    rows: list[list[int]] = [[30, 31, 32], [40]]
    seen: list[torch.Tensor] = []

    def spy(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"])

    handle = model.model.layers[0].register_forward_pre_hook(spy, with_kwargs=True)
    try:
        drawn = sample(model, rows, decoding(stop_ids=(), max_response_tokens=4), pad_id=PAD, seed=0)
        rollout = torch.cat(seen, dim=1)  # (2, 3 + 3): the last token is never fed back
        seen.clear()
        batch = make_batch(rows, [one.ids for one in drawn], PAD)
        response_logprobs(model, batch)
    finally:
        handle.remove()
    trained = seen[-1].expand(2, -1)
    for row, (prompt, padding) in enumerate(((3, 0), (1, 2))):
        assert rollout[row, padding:].tolist() == trained[row, : prompt + 3].tolist() == list(range(prompt + 3))


def test_the_same_seed_draws_the_same_and_another_does_not(model: Any, prompts: list[list[int]]) -> None:
    draws = [sample(model, prompts, decoding(), pad_id=PAD, seed=seed, batch_size=16) for seed in (5, 5, 6)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_global_seed_is_neither_read_nor_moved(model: Any, prompts: list[list[int]]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(model, prompts, decoding(), pad_id=PAD, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample(model, prompts, decoding(), pad_id=PAD, seed=5) == first


def test_batches_of_equal_prompts_draw_differently(model: Any) -> None:
    drawn = sample(model, [[30, 31]] * 40, decoding(stop_ids=()), pad_id=PAD, seed=0, batch_size=4)
    assert len({tuple(one.ids) for one in drawn}) == 40


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(4000, 4)
    generator = torch.Generator().manual_seed(0)
    ids, logprobs = sampling._draw(logits, decoding(temperature=temperature), generator)
    expected = torch.softmax(logits[0] / temperature, -1)
    counts, wanted = torch.bincount(ids, minlength=4).numpy(), expected.double().numpy()
    assert chisquare(counts, wanted * (counts.sum() / wanted.sum())).pvalue > 1e-3
    assert torch.allclose(logprobs, expected.log()[ids], atol=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.55, {0, 1}), (0.45, {0}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_token_that_crosses_the_mass(top_p: float, kept: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    ids, logprobs = sampling._draw(
        probabilities.log().expand(3000, 4), decoding(top_p=top_p), torch.Generator().manual_seed(1)
    )
    assert set(ids.tolist()) == kept
    assert torch.allclose(logprobs, probabilities.log()[ids], atol=1e-6)  # of the whole distribution


def test_a_diverged_policy_is_told() -> None:
    with pytest.raises(DivergenceError, match="not finite"):
        sampling._draw(torch.full((1, 2), float("nan")), decoding(), torch.Generator())


def test_progress_counts_rows(model: Any, prompts: list[list[int]]) -> None:
    done: list[int] = []
    sample(model, prompts, decoding(max_response_tokens=1), pad_id=PAD, seed=0, batch_size=25, on_batch=done.append)
    assert done == [25, 50, 60]


def test_truncation_keeps_the_stop_id_and_drops_what_follows() -> None:
    assert truncate_at_stop([5, 6, EOS, 7, EOS], {EOS}) == ([5, 6, EOS], "stop")
    assert truncate_at_stop([5, 6], {EOS}) == ([5, 6], "length")
    assert truncate_at_stop([EOS], {EOS}) == ([EOS], "stop")
