"""How a stage's training goes, in a few characters: ▇▅▃▂▁ loss 0.41."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from workbench.tracking_names import MetricsTail

BLOCKS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 12
HEADLINES: Final = ("score", "loss")  # the first that a stage logs: PPO's and its sisters' score, the others' loss


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The course of a series, one block a bucket of consecutive values, from its lowest to its highest mean.

    Args:
        values: In order; those that are not finite are left out.
        width: Most characters.
    """
    finite = [value for value in values if math.isfinite(value)]
    buckets = min(width, len(finite))
    edges = [round(i * len(finite) / buckets) for i in range(buckets + 1)] if buckets else []
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    step = (high - low) / (len(BLOCKS) - 1)
    return "".join(BLOCKS[round((mean - low) / step)] if step > 0 else BLOCKS[len(BLOCKS) // 2] for mean in means)


class Trend:
    """Follows the headline metric of one running stage."""

    def __init__(self) -> None:
        self._tail = MetricsTail()
        self._values: dict[str, list[float]] = {}

    def update(self, metrics: Path) -> str:
        """Reads what is new in a metrics.jsonl; returns the text, empty as long as there is no headline metric."""
        for name, value, _, _ in self._tail.read(metrics):
            if name in HEADLINES:
                self._values.setdefault(name, []).append(value)
        for name in HEADLINES:
            if values := self._values.get(name):
                return f"{sparkline(values)} {name} {values[-1]:.3g}"
        return ""
