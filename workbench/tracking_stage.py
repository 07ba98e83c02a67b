"""A stage's run while it is open, and what it is sent next. No mlflow here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.tracking_names import METRICS_AT_ONCE, MetricsTail, Point, in_batches
from workbench.tracking_spool import Operation


@dataclass
class OpenStage:
    """A stage's run: what there is to tell of it waits, so that one call to the server takes all of it.

    Args:
        ref: Reference of the run.
        params, tags, metrics: What waits.
        readings: How often the machine was read.
        sent_s: When something was sent last, at first when the run was opened; by the monotonic clock.
    """

    ref: str
    params: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    readings: int = 0
    sent_s: float = field(default_factory=time.monotonic)
    tail: MetricsTail = field(default_factory=MetricsTail)

    def read(self, path: Path) -> None:
        """Adds what was written to metrics.jsonl since the last time.

        Raises:
            OSError: It is there and cannot be read.
        """
        self.metrics += self.tail.read(path)

    def machine(self, values: Mapping[str, float], unix_ms: int) -> None:
        """Adds a reading of the machine."""
        self.metrics += [(key, value, unix_ms, self.readings) for key, value in values.items()]
        self.readings += 1

    def take(self) -> Iterator[Operation]:
        """The operations that send all that waits; afterwards nothing does."""
        more: dict[str, Any] = {"params": self.params, "tags": self.tags} if self.params or self.tags else {}
        parts = list(in_batches(self.metrics, METRICS_AT_ONCE)) or ([[]] if more else [])
        self.params, self.tags, self.metrics, self.sent_s = {}, {}, [], time.monotonic()
        for part in parts:
            yield {"op": "batch", "ref": self.ref, "metrics": list(part)} | more
            more = {}
