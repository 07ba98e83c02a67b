"""What the last bits of numbers depend on, and numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.errors import DivergenceError


def numerics(model: Any) -> dict[str, Any]:
    """What the last bits depend on, read off the model and the process, for the certificate."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"dtype": dtype, "device": model.device.type, "threads": torch.get_num_threads()}


def check_finite(columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuses scores that are no numbers before they reach a mean.

    Raises:
        DivergenceError: Names the scorer and the first response.
    """
    for column, values in columns.items():
        wrong = [row for row, value in enumerate(values) if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            raise DivergenceError(
                f"{column} scores {len(wrong)} of {len(values)} responses with numbers that are not finite, first row "
                f"{wrong[0]}; its weights have diverged: lower its learning rate"
            )
