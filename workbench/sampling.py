"""Sampling responses, with the log-probability of each token as it was drawn.

One hand-written loop over a key-value cache serves rollouts, candidate pools and evaluation: rows leave the batch as
they finish, the generator is passed, and the log-probabilities need no second pass. Where the cache lies
(`workbench.static_cache`) changes speed and memory, never what is drawn but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from workbench.batching import by_length, positions
from workbench.dealt import DealtRows
from workbench.errors import DivergenceError, ResourceError
from workbench.types import FinishReason

CacheKind = Literal["dynamic", "static", "compiled"]
_APART: Final = 500_009  # between the seeds of neighboring rows' batches, where a batch had to be halved


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
    cache: CacheKind = "dynamic",
    say: Callable[[str], None] | None = None,
    dealt: bool = False,
) -> list[Sample]:
    """Draws one response per prompt row, in the order of `prompts`.

    With `say`, a batch that the device has no memory for is halved, and so is every one after it; that is said, because
    the halves draw from other seeds than the whole would have. Without, nothing is changed: the error is the caller's.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids of each prompt, not padded; repeat a prompt to sample it again.
        decoding: Temperature, top-p, length and stop ids.
        pad_id: Fills the left of shorter prompts; masked everywhere.
        seed: Seeds one generator per batch, so that a resumed or reordered run draws the same.
        batch_size: Rows per forward pass.
        on_batch: Called with the number of rows done after each batch.
        value_head: (B, H) -> (B,) on the last hidden state that each token is drawn from.
        cache: Where keys and values lie; `compiled` takes no value_head.
        say: Takes a line for people where a batch was halved; None: none may be.
        dealt: All processes of the stage draw this together (`workbench.dealt`).

    Raises:
        DivergenceError: The model's probabilities are not finite.
        ResourceError: The device has no memory even for one row.
    """
    if value_head is not None and cache == "compiled":
        raise ValueError("values are read by a hook, which a compiled step does not call; use another cache")
    if dealt and say is not None:
        raise ValueError("a batch that several processes draw together cannot be halved by one of them")
    results: list[Sample | None] = [None] * len(prompts)
    done, most = 0, batch_size
    waiting = [
        ((seed + 1_000_003 * number) % 2**63, rows)
        for number, rows in enumerate(by_length([len(p) for p in prompts], batch_size))
    ][::-1]
    with _states_read(model, value_head is not None) as states:
        while waiting:
            own_seed, rows = waiting.pop()
            if len(rows) > most:
                half = len(rows) // 2
                waiting += [((own_seed + _APART * half) % 2**63, rows[half:]), (own_seed, rows[:half])]
                continue
            generator = torch.Generator(device=model.device).manual_seed(own_seed)
            picked = [prompts[row] for row in rows]
            draw = partial(_sample_batch, model, dealt, picked, decoding, pad_id, generator, value_head, states, cache)
            drawn = draw() if say is None else _unless_too_large(draw, model.device)
            if isinstance(drawn, str):
                assert say is not None
                most = _halved(len(rows), drawn, say)
                states.clear()
                waiting.append((own_seed, rows))
                continue
            for row, one in zip(rows, drawn, strict=True):
                results[row] = one
            done += len(rows)
            if on_batch is not None:
                on_batch(done)
    return [one for one in results if one is not None]


def _unless_too_large(draw: Callable[[], list[Sample]], device: torch.device) -> list[Sample] | str:
    """The samples of a batch, or what the device said where it had no memory for them; then it is free again."""
    try:
        return draw()
    except torch.OutOfMemoryError as error:
        told = str(error)
    if device.type == "cuda":  # behind `except`, whose traceback holds the tensors of the batch
        torch.cuda.empty_cache()
    return told


def _halved(rows: int, told: str, say: Callable[[str], None]) -> int:
    """Half of a batch that did not fit.

    Raises:
        ResourceError: It was one row.
    """
    if rows == 1:
        raise ResourceError(
            f"the device has no memory to sample even one response ({told}); lower evaluation.max_response_tokens or "
            "model.max_length, or take a larger device"
        )
    say(f"no memory to sample {rows} responses at once: going on with {rows // 2}; lower evaluation.batch_size")
    return rows // 2


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


class _Decoder(Protocol):
    """The model behind a cache; it keeps step with the rows that are still wanted."""

    def logits(self, ids: Tensor, step: int) -> Tensor:
        """(L, V) for the wanted rows: of the prompts (L, W) at step 0, of the tokens (L, 1) drawn last after that."""

    def keep(self, rows: Tensor) -> None:
        """Forgets all wanted rows but these."""


class _Growing:
    """A decoder that computes just the wanted rows and the tokens that there are."""

    def __init__(self, model: Any, mask: Tensor, positions: Tensor, width: int, cache: Any) -> None:
        self._model, self._mask, self._positions, self._width, self._cache = model, mask, positions, width, cache

    def logits(self, ids: Tensor, step: int) -> Tensor:
        end = self._width + step
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, :end],
            position_ids=self._positions[:, end - ids.shape[1] : end],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]


def _decoder(kind: CacheKind, model: Any, mask: Tensor, positions: Tensor, width: int) -> _Decoder:
    from transformers import DynamicCache

    from workbench.static_cache import FixedShapes, preallocated_cache

    if kind == "compiled":
        return FixedShapes(model, mask, positions, width)
    cache = preallocated_cache(model, mask.shape[1]) if kind == "static" else DynamicCache(config=model.config)
    return _Growing(model, mask, positions, width, cache)


def _sample_batch(
    model: Any,
    dealt: bool,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    pad_id: int,
    generator: torch.Generator,
    value_head: Callable[[Tensor], Tensor] | None,
    states: list[Tensor],
    cache: CacheKind,
) -> list[Sample]:
    device = model.device
    rows, width, length = len(prompts), max(map(len, prompts)), decoding.max_response_tokens
    input_ids = torch.full((rows, width), pad_id, dtype=torch.int64)
    mask = torch.zeros((rows, width + length), dtype=torch.int64)
    mask[:, width:] = 1
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) : width] = 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    stops = torch.tensor(sorted(decoding.stop_ids), device=device)

    out_ids = torch.full((rows, length), pad_id, dtype=torch.int64, device=device)
    out_logprobs, out_values = (torch.zeros((rows, length), device=device) for _ in range(2))
    lengths = torch.full((rows,), length, dtype=torch.int64, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    active = torch.arange(rows, device=device)  # rows of the output that are still being written
    alive = torch.ones(rows, dtype=torch.bool, device=device)  # among `active`

    decoder: _Decoder
    if dealt:
        made = partial(_decoder, cache, model, width=width)
        read = states if value_head is not None else None
        decoder = DealtRows(made, model, mask, positions(mask), read)
    else:
        decoder = _decoder(cache, model, mask, positions(mask), width)
    step_ids = input_ids
    for t in range(length):
        ids, logprobs = _draw(decoder.logits(step_ids, t), decoding, generator)
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
            decoder.keep(keep)
            active, ids = active[keep], ids[keep]
            alive = alive[keep]
        step_ids = ids.unsqueeze(1)

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


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """(B, V) probabilities with 0 outside the smallest set that holds `top_p`; not normalized anew."""
    if top_p >= 1.0:
        return probs
    sorted_probs, order = probs.sort(dim=-1, descending=True)
    outside = sorted_probs.cumsum(-1) - sorted_probs >= top_p  # the token that crosses the mass stays
    return torch.zeros_like(probs).scatter(-1, order, sorted_probs.masked_fill(outside, 0.0))


def _draw(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability at the sampling temperature, both (B,)."""
    logprobs = torch.log_softmax(logits.float() / decoding.temperature, dim=-1)
    probs = nucleus(logprobs.exp(), decoding.top_p)
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
