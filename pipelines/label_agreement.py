"""Warns, before anything is trained, where the pairs' labels hardly agree with each other."""

from __future__ import annotations

import sys
from collections.abc import Callable

from workbench.outcome import Event


class LabelWatch:
    """Listens for the end of the pairs stage and looks at its labels.

    Args:
        minimum: `data.min_alpha`.
        warn: Receives the line for people; None: stderr.
    """

    def __init__(self, minimum: float, warn: Callable[[str], None] | None) -> None:
        self.minimum, self.warn = minimum, warn or (lambda line: print(line, file=sys.stderr))
        self.found: list[str] = []

    def hear(self, event: Event) -> None:
        """Takes one event of the executor; the pairs' end comes before any training starts."""
        if event.kind != "finished" or event.name != "pairs" or event.artifact is None or self.found:
            return
        from workbench.data.pairs_agreement import alpha_of_pairs
        from workbench.report.wording import interval

        alpha = alpha_of_pairs(event.artifact.path)
        if alpha is None or alpha.value is None or alpha.value >= self.minimum:
            return
        told = (
            f"The annotators' labels hardly agree: Krippendorff's alpha {interval(alpha.model_dump())}, below "
            f"data.min_alpha {self.minimum:g}. Look at `workbench data annotators` before you train on them."
        )
        self.found.append(told)
        self.warn(told)
