"""Keys and values in memory that is allocated once, in place of a cache that is copied to grow.

static      one buffer a layer, as long as prompt and response may become; new keys are written in place and attention
            sees a view of what is filled: no copying, no longer attention, the same numbers
compiled    the same in fixed shapes throughout, so that the decode step can be compiled (on a GPU into one CUDA graph):
            finished rows stay until half of them can go, widths are rounded up, and attention masks what is not filled
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from workbench.errors import ConfigError

LENGTH_STEP: Final = 128  # fixed shapes are multiples of it, so that batches share compiled code
SHAPES: Final = 64  # batch sizes and lengths that one process may compile for


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer's keys and values, (B, heads, up to `capacity`, D) each, as views of two buffers.

    Args:
        capacity: Tokens that it can hold.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, T, D) behind what is there; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._keys is None or self._values is None:
            rows, heads, _, _ = key_states.shape
            self._keys = key_states.new_empty(rows, heads, self.capacity, key_states.shape[-1])
            self._values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        end = self.filled + key_states.shape[-2]
        self._keys[:, :, self.filled : end] = key_states
        self._values[:, :, self.filled : end] = value_states
        self.filled = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the named rows, in buffers of their size."""
        if self._keys is None or self._values is None:
            return
        for name in ("_keys", "_values"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(len(indices), *old.shape[1:])
            new[:, :, : self.filled] = old[indices, :, : self.filled]
            setattr(self, name, new)
        self.keys, self.values = self._keys[:, :, : self.filled], self._values[:, :, : self.filled]


def preallocated_cache(model: Any, capacity: int) -> DynamicCache:
    """A cache of `capacity` tokens; layers that keep only a window grow as before, they stay small."""
    cache = DynamicCache(config=model.config)
    cache.layers = [PreallocatedLayer(capacity) if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


class FixedShapes:
    """A decoder whose every step after the first has one of few shapes, for `torch.compile`.

    Args:
        model: A causal language model in eval mode whose layers all see everything.
        mask: (B, W + R) int64: 0 on left padding, 1 elsewhere.
        positions: (B, W + R) int64.
        width: W, tokens of the longest prompt.
        compile_step: Makes of the model the function that takes its steps; None: torch.compile.

    Raises:
        ConfigError: The model has layers that keep only a window.
    """

    def __init__(
        self,
        model: Any,
        mask: Tensor,
        positions: Tensor,
        width: int,
        *,
        compile_step: Callable[[Any], Any] | None = None,
    ) -> None:
        self._model, self._positions, self._width = model, positions, width
        self._length = -(-mask.shape[1] // LENGTH_STEP) * LENGTH_STEP
        self._mask = torch.nn.functional.pad(mask, (0, self._length - mask.shape[1]), value=1)
        self._cache = StaticCache(config=model.config, max_cache_len=self._length)
        if any(layer.is_sliding for layer in self._cache.layers):
            raise ConfigError(
                "got compiled, but this model has layers that see a window alone; use static", where="sampling.cache"
            )
        self._rows = torch.arange(len(mask), device=mask.device)  # where each wanted row is in the batch
        self._step = (compile_step or _compiled_step)(model)

    def logits(self, ids: Tensor, step: int) -> Tensor:
        """(L, V) for the wanted rows: of the prompts (L, W) at step 0, of the tokens (L, 1) drawn last after that."""
        if step == 0:
            return self._forward(self._model, ids, self._positions[:, : self._width])
        at = self._width + step - 1
        everything = ids.new_zeros(len(self._mask), 1).index_copy(0, self._rows, ids)
        return self._forward(self._step, everything, self._positions[:, at : at + 1])[self._rows]

    def _forward(self, forward: Any, ids: Tensor, positions: Tensor) -> Tensor:
        if ids.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits: Tensor = forward(
            input_ids=ids, attention_mask=self._mask, position_ids=positions.contiguous(), past_key_values=self._cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        return logits

    def keep(self, rows: Tensor) -> None:
        """Forgets all wanted rows but these; the batch is halved once they fit into the half."""
        self._rows = self._rows[rows]
        size = len(self._mask)
        while size % 2 == 0 and len(rows) <= size // 2:
            size //= 2
        if size == len(self._mask):
            return
        filler = self._rows[:1].expand(size - len(rows))  # computed and never read
        picked = torch.cat([self._rows, filler])
        old, self._cache = self._cache, StaticCache(config=self._model.config, max_cache_len=self._length)
        for before, after in zip(old.layers, self._cache.layers, strict=True):
            after.lazy_initialization(before.keys[picked], before.values[picked])
            after.keys.copy_(before.keys[picked])
            after.values.copy_(before.values[picked])
            after.cumulative_length.copy_(before.cumulative_length)
        self._mask, self._positions = self._mask[picked], self._positions[picked]
        self._rows = torch.arange(len(rows), device=rows.device)


def _compiled_step(model: Any) -> Any:
    # The class's function, not the model's own method: what is compiled must not keep the weights in memory.
    mode = "reduce-overhead" if model.device.type == "cuda" else None
    return partial(_compiled(type(model).forward, mode), model)


@cache
def _compiled(forward: Any, mode: str | None) -> Any:
    """An architecture's forward pass, compiled once a shape; on a GPU as CUDA graphs."""
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(forward, mode=mode, dynamic=False)
