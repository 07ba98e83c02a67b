"""Who is probably right: each annotator's estimated reliability, and the pairs whose label is in doubt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from scipy import special

from workbench.annotators_records import Relabel
from workbench.metrics import dawid_skene
from workbench.metrics.estimates import Array
from workbench.opinions_table import NO_NAME, OpinionTable, refused
from workbench.results_base import E
from workbench.types import Estimate

RELABEL_SHOWN: Final = 100
_RESAMPLES: Final = 100
_STEPS: Final = 30
_CELLS: Final = 2_000_000
_CHANCE: Final = "the labels are not shown to agree beyond chance, so nothing tells who is right"
_FEW: Final = f"it takes {dawid_skene.FEWEST_ANNOTATORS} annotators who share pairs to tell who errs"


class Reliability:
    """Dawid and Skene's fit of a table.

    Args:
        table: Labels.
        agree: The labels agree beyond chance; else a fit would explain noise, and is refused.

    Attributes:
        rows: (J,) estimated chance of the right label.
        posterior: (U,) chance that the first response is right; None: it takes more annotators.
    """

    def __init__(self, table: OpinionTable, *, agree: bool) -> None:
        self.table = table
        self.posterior: Array | None = None
        shared = table.labeled & (table.votes > 1)[:, None]
        self.active = shared.any(axis=0)
        enough = self.active.sum() >= dawid_skene.FEWEST_ANNOTATORS
        named = bool(table.named[self.active].all())
        self.rows = [refused((_CHANCE if enough else _FEW) if named else NO_NAME)] * len(table.people)
        if enough and agree and named:
            self._fit()

    def _fit(self) -> None:
        table, mirrored = self.table, self.table.opinions.mirrored
        unit, who = np.nonzero(table.labeled)
        votes = dawid_skene.Votes.of(unit, who, table.table[unit, who], table.table.shape)
        point = dawid_skene.fit(votes, np.ones((1, len(table.units))), mirrored=mirrored)
        spread = np.concatenate(list(self._redraw(votes, point)))
        prompts = len(np.unique(table.cluster))
        self.posterior = point.posterior
        self.rows = [
            _interval(float(point.accuracy[0, j]), spread[:, j], prompts)
            if self.active[j]
            else refused("no pair of theirs has another label")
            for j in range(len(table.people))
        ]

    def _redraw(self, votes: dawid_skene.Votes, point: dawid_skene.Fit) -> Iterator[Array]:
        """(B, J) reliability on resamples of the prompts, each fit started from the whole's."""
        table = self.table
        clusters, place = np.unique(table.cluster, return_inverse=True)
        n, rng = len(clusters), table.rng(6)
        step = max(1, _CELLS // len(table.units))
        for start in range(0, _RESAMPLES, step):
            drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(step, _RESAMPLES - start)).astype(float)[:, place]
            found = dawid_skene.fit(votes, drawn, mirrored=table.opinions.mirrored, start=point, steps=_STEPS)
            yield found.accuracy

    def relabel(self, below: float) -> tuple[list[Relabel], int]:
        """Pairs whose recorded label (chosen, or the majority's) is right with a chance below `below`, and how many.

        Without a fit: pairs on which two labels differ.
        """
        table = self.table
        found: list[tuple[float, int, str]] = []
        several = table.votes > 1
        if self.posterior is None:
            known = np.where(table.labeled, table.table, 0.5)
            differ = np.flatnonzero(several & (known.min(axis=1) < 0.5) & (known.max(axis=1) > 0.5))
            found = [(0.5, int(at), "its labels differ") for at in differ]
        else:
            first, majority = self.posterior, np.sign(np.where(table.labeled, table.table - 0.5, 0.0).sum(axis=1))
            recorded = np.ones(len(first)) if table.opinions.kind == "pairs" else majority
            right = np.where(recorded > 0, first, np.where(recorded < 0, 1 - first, np.maximum(first, 1 - first)))
            doubtful = np.flatnonzero((right < below) & several)
            for at in doubtful[np.argsort(right[doubtful], kind="stable")]:
                why = "more reliable labels say the opposite" if right[at] < 0.5 else "the labels leave it open"
                found.append((float(right[at]), int(at), why))
        return [self._row(*one) for one in found[:RELABEL_SHOWN]], len(found)

    def _row(self, chance: float, at: int, why: str) -> Relabel:
        table, opinions = self.table, self.table.opinions
        unit = table.units[at]
        votes = {table.people[j]: float(table.table[at, j]) for j in np.flatnonzero(table.labeled[at])}
        return Relabel(
            pair=opinions.units[unit], row=int(opinions.rows[unit]) or None, posterior=chance, votes=votes, why=why
        )


def _interval(value: float, drawn: Array, n: int) -> E:
    """A normal interval on the logit scale with the resamples' spread, so that the ends stay in (0, 1)."""
    inner = np.clip([value, *drawn], 1e-9, 1 - 1e-9)  # the ends of (0, 1) have no logit
    center, logits = float(special.logit(inner[0])), special.logit(inner[1:])
    half = 1.959964 * float(np.std(logits, ddof=1)) * math.sqrt(n / max(1, n - 1))
    low, high = (float(special.expit(center + side * half)) for side in (-1, 1))
    return E.of(
        Estimate(
            value=value,
            low=min(low, value),
            high=max(high, value),
            n=n,
            method=f"Dawid-Skene, logit bootstrap by prompt, {len(drawn)} resamples",
            prompt_se=float(np.std(drawn, ddof=1)),
        )
    )
