"""Scores are one number per response, whatever the batch and the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.ml_helpers import CPU, PAD, World, build_world, policy_of, random_rows
from workbench.batching import make_batch
from workbench.head_logprobs import plain_head
from workbench.models import load_reward_model
from workbench.scoring import (
    last_token_scores,
    response_logprobs,
    reward_scores,
    sequence_logprobs,
    token_figures,
)

Rows = tuple[list[list[int]], list[list[int]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def policy(world: World) -> Any:
    return policy_of(world.model)


@pytest.fixture(scope="module")
def reward_model(world: World) -> Any:
    return load_reward_model(world.reward_model / "checkpoints" / "last", CPU)


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(1)
    return random_rows(rng, 30, end=False), random_rows(rng, 30)


def test_sequence_logprobs_equal_unpadded_passes(policy: Any, rows: Rows) -> None:
    found = sequence_logprobs(policy, *rows, pad_id=PAD)
    for prompt, response, value in zip(*rows, found, strict=True):
        logprobs = torch.log_softmax(policy(input_ids=torch.tensor([prompt + response])).logits[0], -1)
        expected = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(response))
        assert value == pytest.approx(expected, abs=1e-4)


def test_reward_scores_equal_the_classifier_on_unpadded_rows(reward_model: Any, rows: Rows) -> None:
    found = reward_scores(reward_model, *rows, pad_id=PAD)
    for prompt, response, value in zip(*rows, found, strict=True):
        expected = reward_model(input_ids=torch.tensor([prompt + response])).logits[0, 0]
        assert value == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("function", [sequence_logprobs, reward_scores])
def test_scores_do_not_depend_on_the_batch(
    policy: Any, reward_model: Any, rows: Rows, function: Any, batch_size: int
) -> None:
    model = policy if function is sequence_logprobs else reward_model
    together = function(model, *rows, pad_id=PAD)
    assert function(model, *rows, pad_id=PAD, batch_size=batch_size) == pytest.approx(together, abs=1e-5)
    backwards = function(model, rows[0][::-1], rows[1][::-1], pad_id=PAD, batch_size=batch_size)
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("function", [sequence_logprobs, reward_scores])
def test_scores_do_not_depend_on_padding_or_on_its_id(
    policy: Any, reward_model: Any, rows: Rows, function: Any
) -> None:
    model = policy if function is sequence_logprobs else reward_model
    alone = function(model, *rows, pad_id=PAD)
    wide = [[33] * 25], [[34] * 25]
    padded = function(model, rows[0] + wide[0], rows[1] + wide[1], pad_id=77)[:-1]
    assert padded == pytest.approx(alone, abs=1e-5)


def test_the_score_is_read_at_the_last_real_token_even_if_that_is_the_pad_id(reward_model: Any) -> None:
    prompts, responses = [[40, 41], [42]], [[50, PAD], [51, 52, 53, 54]]
    scores = last_token_scores(reward_model, make_batch(prompts, responses, PAD))
    hidden = reward_model.base_model(input_ids=torch.tensor([[40, 41, 50, PAD]])).last_hidden_state
    assert float(scores[0]) == pytest.approx(float(reward_model.score(hidden)[0, -1, 0]), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_are_at_the_stated_temperature(policy: Any, rows: Rows, temperature: float) -> None:
    batch = make_batch(*rows, PAD)
    logits = policy(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.before]
    expected = torch.log_softmax(logits / temperature, -1).gather(-1, batch.tokens[:, None])[:, 0]
    found = response_logprobs(policy, batch, temperature)
    assert found.shape == batch.response_mask.shape
    assert torch.allclose(found[batch.response_mask], expected, atol=1e-6)
    assert not found[~batch.response_mask].any()


def test_padded_positions_hold_no_nan_that_could_leak(policy: Any, reward_model: Any) -> None:
    batch = make_batch([[30] * 12, [31]], [[32], [33] * 12], PAD)
    assert torch.isfinite(response_logprobs(policy, batch)).all()
    assert torch.isfinite(last_token_scores(reward_model, batch)).all()


def test_progress_counts_rows(policy: Any, rows: Rows) -> None:
    done: list[int] = []
    sequence_logprobs(policy, *rows, pad_id=PAD, batch_size=20, on_batch=done.append)
    assert done == [20, 30]


@pytest.mark.parametrize("with_entropy", [False, True])
def test_a_model_that_caps_its_logits_gives_the_same_figures_as_its_own_logits(with_entropy: bool) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=40, final_logit_softcapping=0.5, max_position_embeddings=32, **size, **heads)
    model = Gemma2ForCausalLM(config).eval()
    assert plain_head(model) is None
    batch = make_batch([[3, 4], [5]], [[6, 7], [8, 9, 10]], PAD)
    logits = model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.before]
    found = token_figures(model, batch, 0.7, with_entropy=with_entropy)
    expected = torch.log_softmax(logits / 0.7, -1)
    assert torch.allclose(found.logprobs, expected.gather(1, batch.tokens[:, None])[:, 0], atol=1e-6)
    assert found.states.shape == (5, 16)
    if found.entropy is not None:
        assert torch.allclose(found.entropy, -(expected.exp() * expected).sum(1), atol=1e-5)
