"""Scores of responses, one way for every arm: sequence log-probabilities (hence KL and implicit reward) and rewards.

KL is measured here and nowhere else: on a policy's own samples, at temperature 1, over the full sequence, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.batching import Batch, by_length, make_batch
from workbench.head_logprobs import head_logprobs, plain_head
from workbench.objectives import token_entropy, token_logprobs

KL_ESTIMATOR = "k1 of the full sequence on own samples, temperature 1, top-p 1, nats"


class TokenFigures(NamedTuple):
    """Of N response tokens that count, row below row: log-probabilities and entropies (N,), states before (N, H)."""

    logprobs: Tensor
    entropy: Tensor | None
    states: Tensor


def response_states(trunk: Any, batch: Batch) -> Tensor:
    """(N, H): the trunk's last hidden state before each response token that counts, row below row."""
    hidden = trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    states: Tensor = hidden.flatten(0, 1)[batch.before]
    return states


def token_figures(
    model: Any, batch: Batch, temperature: float = 1.0, *, trunk: Any = None, with_entropy: bool = False
) -> TokenFigures:
    """Log-probabilities of the response tokens, in nats, and what else one pass gives.

    Args:
        model: A causal language model.
        batch: Of B rows with N response tokens that count.
        temperature: Divides the logits.
        trunk: What to run instead of `model.base_model`: the same, compiled.
        with_entropy: Also entropies, nats, without a gradient.
    """
    head = plain_head(model)
    if head is not None:
        states = response_states(model.base_model if trunk is None else trunk, batch)
        return TokenFigures(*head_logprobs(states, head, batch.tokens, temperature, with_entropy=with_entropy), states)
    states, logits = _states_and_logits(model, batch)
    entropy = token_entropy(logits.detach(), temperature) if with_entropy else None
    return TokenFigures(token_logprobs(logits, batch.tokens, temperature), entropy, states)


def _states_and_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, H) and (N, V) of a model that does more to its logits than its output embedding."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        hook.remove()
    return seen[0].flatten(0, 1)[batch.before], logits.flatten(0, 1)[batch.before]


def response_logprobs(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(B, R) float32 log-probability of each response token, nats; 0 outside the mask."""
    return batch.spread(token_figures(model, batch, temperature).logprobs)


def last_token_scores(reward_model: Any, batch: Batch) -> Tensor:
    """(B,) float32: the head's output at the last real token, the same whatever the padding.

    A reward model with a tokenizer of its own reads the same texts in its own ids (`workbench.reader`).
    """
    reader = getattr(reward_model, "reader", None)
    batch = batch if reader is None else reader.batch(batch)
    hidden = reward_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    scores: Tensor = reward_model.score(hidden.flatten(0, 1)[batch.last]).squeeze(-1).float()
    return scores


@torch.no_grad()
def sequence_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> list[float]:
    """Sum over each response of its log-probability at temperature 1, nats, in the order given."""

    def one(batch: Batch) -> Tensor:
        logprobs = response_logprobs(model, batch)
        return torch.where(batch.response_mask, logprobs, logprobs.new_zeros(())).double().sum(1)

    return _in_batches(one, model, prompts, responses, pad_id, batch_size, on_batch)


@torch.no_grad()
def reward_scores(
    reward_model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> list[float]:
    """The reward model's raw score of each prompt and response, in the order given; centering is the caller's."""
    return _in_batches(
        lambda batch: last_token_scores(reward_model, batch),
        reward_model, prompts, responses, pad_id, batch_size, on_batch,
    )  # fmt: skip


def _in_batches(
    function: Callable[[Batch], Tensor],
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None,
) -> list[float]:
    results = [0.0] * len(prompts)
    done = 0
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    for rows in by_length(lengths, batch_size):
        batch = make_batch([prompts[i] for i in rows], [responses[i] for i in rows], pad_id, model.device)
        for row, value in zip(rows, function(batch).tolist(), strict=True):
            results[row] = value
        done += len(rows)
        if on_batch is not None:
            on_batch(done)
    return results
