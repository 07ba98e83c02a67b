"""One layout for every forward pass over prompt and response: joined, padded on the right.

    | p p p r r r EOS pad pad |        attention_mask 1 on real tokens; the prompt's size says where r begins
    | p p p p p r r r EOS pad |        response_mask (B, R) counts from each row's first response token

Causal models never look right, so such a batch needs no mask at all (the fastest attention there is), and the position
of a token is its place in the row: the same as in the sampler, which pads prompts on the left and counts real tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded ids of B prompts and responses. Sizes stay on the host, so that no index waits for a GPU.

    Args:
        input_ids: (B, T) int64, T = the longest prompt and response together.
        prompt_sizes, response_sizes: (B,) int64 arrays, tokens of each.
    """

    input_ids: Tensor
    prompt_sizes: Sizes
    response_sizes: Sizes

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        return self.input_ids.device

    @property
    def lengths(self) -> Sizes:
        """(B,) real tokens of each row."""
        return self.prompt_sizes + self.response_sizes

    @cached_property
    def attention_mask(self) -> Tensor:
        """(B, T) int64, 1 on real tokens."""
        return self._tensor((np.arange(self.input_ids.shape[1]) < self.lengths[:, None]).astype(np.int64))

    @property
    def position_ids(self) -> Tensor:
        """(B, T) int64: what a model counts by itself."""
        return positions(self.attention_mask)

    @cached_property
    def response_mask(self) -> Tensor:
        """(B, R) bool, True then False along each row; R = the longest response."""
        return self._tensor(self._kept)

    @cached_property
    def response_ids(self) -> Tensor:
        """(B, R) int64, 0 outside the mask."""
        return self.spread(self.tokens)

    @cached_property
    def tokens(self) -> Tensor:
        """(N,) int64: the response tokens that count, row below row."""
        return self.input_ids.flatten()[self.before + 1]

    @cached_property
    def before(self) -> Tensor:
        """(N,) int64: place, in the (B T) flattened ids, of what stands before each of `tokens`: what predicts it."""
        rows, steps = np.nonzero(self._kept)
        return self._tensor(rows * self.input_ids.shape[1] + self.prompt_sizes[rows] + steps - 1)

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: place of each row's last real token in the flattened ids."""
        return self._tensor(np.arange(len(self.lengths)) * self.input_ids.shape[1] + self.lengths - 1)

    def spread(self, values: Tensor) -> Tensor:
        """(B, R) from (N,) values of `tokens`; 0 outside the mask."""
        kept = self._kept
        flat = values.new_zeros(kept.size).index_copy(0, self._tensor(np.flatnonzero(kept)), values)
        return flat.view(kept.shape)

    @property
    def _kept(self) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = np.arange(self.response_sizes.max()) < self.response_sizes[:, None]
        return kept

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def rows(self, index: Sequence[int]) -> Batch:
        """The named rows, columns that hold only padding cut away."""
        picked = np.asarray(index, dtype=np.int64)
        width = int(self.lengths[picked].max())
        return Batch(
            input_ids=self.input_ids[self._tensor(picked), :width],
            prompt_sizes=self.prompt_sizes[picked],
            response_sizes=self.response_sizes[picked],
        )


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> Batch:
    """Joins prompts and responses and pads them on the right.

    Raises:
        ValueError: A prompt or a response is empty, or the numbers of rows differ.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    if not prompts or not all(map(len, prompts)) or not all(map(len, responses)):
        raise ValueError("every row needs at least one prompt token and one response token")
    joined = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, joined))
    return Batch(
        input_ids=torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in joined], dtype=torch.int64).to(device),
        prompt_sizes=np.array([len(one) for one in prompts]),
        response_sizes=np.array([len(one) for one in responses]),
    )


def positions(attention_mask: Tensor) -> Tensor:
    """(B, T) position ids: real tokens counted from 0, left padding at 0."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row indices in batches of about equal length, longest first: little padding, and the worst case comes first."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def microbatches(lengths: Sequence[int], *, cost_of_pass: int, max_tokens: int | None = None) -> list[list[int]]:
    """Splits a minibatch by length so that padding plus the fixed cost of each pass is least.

    Args:
        lengths: (B,) tokens of each row.
        cost_of_pass: What one more forward and backward pass costs, in tokens.
        max_tokens: Most padded tokens of one pass, for memory; a longer row gets a pass of its own.

    Returns:
        Row numbers of each pass, longest rows first. Sums over rows do not depend on the split, means must be taken
        over the whole minibatch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = [lengths[i] for i in order]
    # best[k] = least cost of the first k rows, where the last pass starts at from_[k]: O(B^2), B is a minibatch.
    best, from_ = [0.0] + [float("inf")] * len(sizes), [0] * (len(sizes) + 1)
    for end in range(1, len(sizes) + 1):
        for start in range(end - 1, -1, -1):
            padded = sizes[start] * (end - start)
            if max_tokens is not None and padded > max_tokens and end - start > 1:
                break  # rows are sorted: a longer pass only pads more
            if padded + cost_of_pass >= best[end]:
                break
            if (cost := best[start] + padded + cost_of_pass) < best[end]:
                best[end], from_[end] = cost, start
    parts: list[list[int]] = []
    end = len(sizes)
    while end:
        parts.append(order[from_[end] : end])
        end = from_[end]
    return parts[::-1]
