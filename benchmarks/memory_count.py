"""What training holds in memory, counted tensor by tensor: the same number on every device and with every allocator."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

PARTS = ("parameters", "gradients", "optimizer", "activations")


class Kept:
    """A tensor that the graph keeps for its backward pass; counted while it lives."""

    def __init__(self, counter: Counter, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        counter.add(self.key, self.size)

    def __del__(self) -> None:
        self.counter.remove(self.key)


class Counter:
    """Counts, within its block, the bytes that training holds; `peak` has the largest of each part.

    parameters: of all models made within the block and alive at an optimizer step, frozen ones too, shared storage
    once. gradients: alive at a step. optimizer: states of all optimizers that have stepped. activations: storage that
    the graph keeps for backward passes, without parameters, from the second step on (until then it is not known which
    are parameters).
    Left out: what no graph keeps (logits of a rollout, key-value caches, temporaries of a kernel).
    """

    def __init__(self) -> None:
        self.peak = dict.fromkeys(PARTS, 0)
        self.steps = 0
        self._live: dict[int, list[int]] = {}  # storage -> [how often it is kept, bytes]
        self._weights: set[int] = set()
        self._bytes = 0
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._earlier: set[int] = set()  # parameters that were there before
        self._lock = threading.RLock()  # a graph may be freed on another thread
        self._stack = ExitStack()

    @property
    def total(self) -> int:
        """Sum of the parts' peaks: they need not fall together, but nearly do at the end of a forward pass."""
        return sum(self.peak.values())

    def __enter__(self) -> Counter:
        gc.collect()
        self._earlier = {id(one) for one in _parameters()}
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        for handle in (register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)):
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, key: int, size: int) -> None:
        """Notes that the graph keeps a storage (once more)."""
        with self._lock:
            entry = self._live.setdefault(key, [0, size])
            entry[0] += 1
            if entry[0] == 1 and key not in self._weights:
                self._bytes += size
                if self.steps:
                    self.peak["activations"] = max(self.peak["activations"], self._bytes)

    def remove(self, key: int) -> None:
        """Notes that the graph keeps a storage once less."""
        with self._lock:
            entry = self._live[key]
            entry[0] -= 1
            if entry[0] == 0:
                del self._live[key]
                if key not in self._weights:
                    self._bytes -= entry[1]

    def _pack(self, tensor: Tensor) -> Any:
        return tensor if tensor.untyped_storage().data_ptr() in self._weights else Kept(self, tensor)

    @staticmethod
    def _unpack(kept: Any) -> Tensor:
        tensor: Tensor = kept.tensor if isinstance(kept, Kept) else kept
        return tensor

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._optimizers.add(optimizer)
        parameters = [one for one in _parameters() if id(one) not in self._earlier]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in parameters}
        with self._lock:
            for key in storages.keys() - self._weights:  # kept as an activation before it was known to be a weight
                self._bytes -= self._live[key][1] if key in self._live else 0
            self._weights |= storages.keys()
            self.peak["parameters"] = max(self.peak["parameters"], sum(storages.values()))
            gradients = sum(one.grad.nbytes for one in parameters if one.grad is not None)
            self.peak["gradients"] = max(self.peak["gradients"], gradients)

    def _after(self, *_: Any) -> None:
        held = (
            value.nbytes
            for optimizer in list(self._optimizers)
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        self.peak["optimizer"] = max(self.peak["optimizer"], sum(held))
        self.steps += 1


def _parameters() -> list[nn.Parameter]:
    return [one for one in gc.get_objects() if isinstance(one, nn.Parameter)]
