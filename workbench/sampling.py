"""Sampling responses, with the log-probability of each token as it was drawn.

One hand-written loop over a key-value cache serves rollouts, candidate pools and evaluation: rows leave the batch as
they finish, the generator is passed, and the log-probabilities need no second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.batching import by_length, positions
from workbench.errors import DivergenceError
from workbench.types import FinishReason


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses are drawn; the same for every arm.

    Args:
        temperature: > 0; divides the logits.
        top_p: Nucleus mass in (0, 1]; 1 keeps the whole distribution.
        max_response_tokens: Longest response, the stop token included.
        stop_ids: Ids that end a response; the first one drawn is kept and nothing after it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_response_tokens: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response: ids (R,), log-probabilities (R,) at the sampling temperature before top-p, and why it ended.

    `values` (R,) are what `value_head` made of the state before each token, empty without one.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    values: list[float] = field(default_factory=list)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    pad_id: int,
    seed: int,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
    value_head: Callable[[Tensor], Tensor] | None = None,
) -> list[Sample]:
    """Draws one response per prompt row, in the order of `prompts`.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids of each prompt, not padded; repeat a prompt to sample it again.
        decoding: Temperature, top-p, length and stop ids.
        pad_id: Fills the left of shorter prompts; masked everywhere.
        seed: Seeds one generator per batch, so that a resumed or reordered run draws the same.
        batch_size: Rows per forward pass.
        on_batch: Called with the number of rows done after each batch.
        value_head: (B, H) -> (B,) on the last hidden state that each token is drawn from.

    Raises:
        DivergenceError: The model's probabilities are not finite.
    """
    results: list[Sample | None] = [None] * len(prompts)
    done = 0
    with _states_read(model, value_head is not None) as states:
        for number, rows in enumerate(by_length([len(p) for p in prompts], batch_size)):
            generator = torch.Generator(device=model.device).manual_seed((seed + 1_000_003 * number) % 2**63)
            picked = [prompts[row] for row in rows]
            drawn = _sample_batch(model, picked, decoding, pad_id, generator, value_head, states)
            for row, one in zip(rows, drawn, strict=True):
                results[row] = one
            done += len(rows)
            if on_batch is not None:
                on_batch(done)
    return [one for one in results if one is not None]


@contextmanager
def _states_read(model: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """A list that receives, at each forward pass, the (B, H) states that the model's output embedding reads."""
    states: list[Tensor] = []
    if not wanted:
        yield states
        return
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: states.append(given[0][:, -1]))
    try:
        yield states
    finally:
        hook.remove()


def _sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    pad_id: int,
    generator: torch.Generator,
    value_head: Callable[[Tensor], Tensor] | None,
    states: list[Tensor],
) -> list[Sample]:
    from transformers import DynamicCache

    device = model.device
    rows, width, length = len(prompts), max(map(len, prompts)), decoding.max_response_tokens
    input_ids = torch.full((rows, width), pad_id, dtype=torch.int64)
    mask = torch.zeros((rows, width + length), dtype=torch.int64)
    mask[:, width:] = 1
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) : width] = 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    position_ids = positions(mask)
    stops = torch.tensor(sorted(decoding.stop_ids), device=device)

    out_ids = torch.full((rows, length), pad_id, dtype=torch.int64, device=device)
    out_logprobs, out_values = (torch.zeros((rows, length), device=device) for _ in range(2))
    lengths = torch.full((rows,), length, dtype=torch.int64, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    active = torch.arange(rows, device=device)  # rows of the output that are still being written
    alive = torch.ones(rows, dtype=torch.bool, device=device)  # among `active`

    cache = DynamicCache(config=model.config)
    step_ids, step_positions = input_ids, position_ids[:, :width]
    for t in range(length):
        logits = model(
            input_ids=step_ids,
            attention_mask=mask[:, : width + t],
            position_ids=step_positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        ids, logprobs = _draw(logits, decoding, generator)
        writing = active[alive]
        out_ids[writing, t] = ids[alive]
        out_logprobs[writing, t] = logprobs[alive]
        if value_head is not None:
            out_values[writing, t] = value_head(states.pop())[alive]
        ended = alive & torch.isin(ids, stops)
        lengths[active[ended]] = t + 1
        stopped[active[ended]] = True
        alive &= ~ended
        living = int(alive.sum())
        if living == 0 or t + 1 == length:
            break
        if living <= 0.75 * len(alive):  # finished rows leave the batch once a quarter of it is idle
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            mask, position_ids, active, ids = mask[keep], position_ids[keep], active[keep], ids[keep]
            alive = alive[keep]
        step_ids = ids.unsqueeze(1)
        step_positions = position_ids[:, width + t : width + t + 1]

    all_ids, all_logprobs, all_values = out_ids.tolist(), out_logprobs.tolist(), out_values.tolist()
    ends, finished = lengths.tolist(), stopped.tolist()
    return [
        Sample(
            ids=all_ids[row][: ends[row]],
            logprobs=all_logprobs[row][: ends[row]],
            finish_reason="stop" if finished[row] else "length",
            values=all_values[row][: ends[row]] if value_head is not None else [],
        )
        for row in range(rows)
    ]


def _draw(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability at the sampling temperature, both (B,)."""
    logprobs = torch.log_softmax(logits.float() / decoding.temperature, dim=-1)
    probs = logprobs.exp()
    if decoding.top_p < 1.0:
        sorted_probs, order = probs.sort(dim=-1, descending=True)
        outside = sorted_probs.cumsum(-1) - sorted_probs >= decoding.top_p  # the token that crosses the mass stays
        probs = torch.zeros_like(probs).scatter(-1, order, sorted_probs.masked_fill(outside, 0.0))
    if not bool(torch.isfinite(probs).all()):
        raise DivergenceError("the policy's next-token probabilities are not finite; its weights have diverged")
    ids = torch.multinomial(probs, 1, generator=generator)
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1)


def truncate_at_stop(ids: Sequence[int], stop_ids: Collection[int]) -> tuple[list[int], FinishReason]:
    """`ids` up to and including the first stop id, and whether there was one; for responses sampled elsewhere."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[: position + 1]), "stop"
    return list(ids), "length"
