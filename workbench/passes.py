"""A training step of transformers' trainers, dealt to the processes of a stage and cut into passes.

The trainers see one process and whole batches: order of rows, steps, schedule, checkpoints and logs stay theirs. Only
the loss of a step is taken in parts: each process takes its share of the rows, `microbatch_size` of them at a time, and
weighs each part by what it counts in the whole step, so that gradients and logged means add up to the step's own. That
is what accelerate's data-parallel sampler does not give: it fills a last batch that is not full with rows seen before,
and averages means over shares of different sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench import processes


class Shares(NamedTuple):
    """What a part counts in its step: in the loss, in logged means, in those named; each sums to 1 over parts."""

    loss: float
    metrics: float
    named: Mapping[str, float] = {}


WHOLE = Shares(1.0, 1.0)


class Passes:
    """Mixin before a trainer. Its subclasses say what a part of a step counts."""

    microbatch_size: int | None = None  # rows of a pass; None: all that the process has
    sequences_per_row = 1  # 2: tensors of 2 B sequences, chosen first, are B rows
    shares: Shares = WHOLE  # of the part whose loss is being taken
    _step_parts: tuple[Tensor, dict[str, float]]  # this process's loss and metrics of the step that is under way
    model: Any
    accelerator: Any
    _metrics: Any

    @property
    def in_parts(self) -> bool:
        """Whether a step is not one pass of one process."""
        return self.microbatch_size is not None or processes.size() > 1

    def shares_of(self, part: Mapping[str, Any], step: Mapping[str, Any]) -> Shares:
        """Of losses and figures that are means over rows."""
        rows = self.rows_of(part) / self.rows_of(step)
        return Shares(rows, rows)

    def rows_of(self, inputs: Mapping[str, Any]) -> int:
        """Rows of a batch: examples, pairs or responses."""
        return next(len(one) for one in inputs.values() if _by_row(one)) // self.sequences_per_row

    def loss_of(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        """The trainer's own loss of one pass."""
        return super().compute_loss(model, inputs, return_outputs, **options)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        if not self.in_parts:
            return self.loss_of(model, inputs, return_outputs, **options)
        count = self.rows_of(inputs)
        rows = processes.share(range(count))
        # A process without a row makes a pass that counts nothing: all must have a gradient to add up.
        parts = _cut(rows, self.microbatch_size) if rows else [[0]]
        metrics, told = self._metrics["train"], dict[str, float]()
        total = torch.zeros((), device=inputs_device(inputs))
        for number, part in enumerate(parts):
            given = taken(inputs, part, count)
            self.shares = self.shares_of(given, inputs)
            before = {name: len(values) for name, values in metrics.items()}
            loss = self.loss_of(model, given, **options) * (self.shares.loss if rows else 0.0)
            for name, values in metrics.items():
                if new := values[before.get(name, 0) :]:
                    counts = self.shares.named.get(name, self.shares.metrics)
                    told[name] = told.get(name, 0.0) + (counts * sum(new) / len(new) if rows else 0.0)
                    del values[before.get(name, 0) :]
            total += loss.detach()
            if number + 1 < len(parts):
                self.accelerator.backward(loss)
        self.shares, self._step_parts = WHOLE, (total, told)
        return loss  # whose backward pass is the trainer's

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not self.in_parts:
            return loss
        own, told = self._step_parts
        processes.add_gradients(one for one in self.model.parameters() if one.requires_grad)
        names = sorted(told)
        numbers = processes.total(torch.tensor([float(own), *(told[name] for name in names)], dtype=torch.float64))
        for name, value in zip(names, numbers[1:].tolist(), strict=True):
            self._metrics["train"][name].append(value)
        return numbers[0].to(loss)


def taken(inputs: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """Some of the `count` rows of a batch, columns that hold only padding cut away.

    Args:
        inputs: Tensors of `count` rows, or of twice as many, or of none (0-dimensional); other values go along.
    """
    found = {}
    for name, value in inputs.items():
        if _by_row(value):
            picked = torch.tensor(list(rows), device=value.device)
            value = value.unflatten(0, (-1, count))[:, picked].flatten(0, 1)
        found[name] = value
    mask = found.get("attention_mask")
    if mask is not None:
        full, width = mask.shape[1], int(mask.sum(1).max())
        for name, value in found.items():
            if _by_row(value) and value.ndim == 2 and value.shape[1] == full:
                found[name] = value[:, :width]
    return found


def inputs_device(inputs: Mapping[str, Any]) -> torch.device:
    """Where a batch is."""
    device: torch.device = next(one.device for one in inputs.values() if _by_row(one))
    return device


def _by_row(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim > 0


def _cut(rows: Sequence[int], size: int | None) -> list[list[int]]:
    step = size or len(rows)
    return [list(rows[at : at + step]) for at in range(0, len(rows), step)]
