"""Opinions as a matrix of pairs and annotators, and how its figures get their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from workbench.data.opinions import UNNAMED, Opinions
from workbench.errors import DataError
from workbench.metrics.estimates import Array
from workbench.metrics.resampling import Rows, bootstrap_bca_by_cluster
from workbench.results_base import E

RESAMPLES: Final = 500
MOST_PEOPLE: Final = 2_000
MOST_CELLS: Final = 10_000_000  # pairs times annotators: 80 MB an array
NO_NAME: Final = "such labels have no names: a place in a list is no person"
Mask = npt.NDArray[np.bool_]


def refused(why: str, n: int = 0, value: float | None = None) -> E:
    """No figure, and why; with a value: a figure without interval, and why."""
    return E(value=value, low=None, high=None, n=n, method=f"refused: {why}" if value is None else why)


def verdict(value: Array) -> Array:
    """1, 0.5 or 0 of a preference that may be a probability."""
    found: Array = np.where(value > 0.5, 1.0, np.where(value < 0.5, 0.0, 0.5))
    return found


@dataclass
class OpinionTable:
    """Labels of one annotator on one pair as cells, with the prompts they are resampled by.

    Args:
        opinions: Labels.
        seed: Of the sample of prompts and of resampling; each figure has its own generator.
        most_prompts: More prompts than these are sampled; fewer, where pairs times annotators are over `MOST_CELLS`.

    Raises:
        DataError: There are more annotators than `MOST_PEOPLE`.
    """

    opinions: Opinions
    seed: int
    most_prompts: int

    def __post_init__(self) -> None:
        o = self.opinions
        if len(o.annotators) > MOST_PEOPLE:
            raise DataError(
                f"{len(o.annotators):,} annotators; expected at most {MOST_PEOPLE:,}, because every two are compared: "
                "give the labels of fewer, or one name to all who labeled little"
            )
        _, prompt = np.unique(np.array(o.prompts), return_inverse=True)
        self.n_prompts = len(np.unique(prompt[o.unit]))
        keep = np.ones(len(o.unit), dtype=bool)
        self.sampled: int | None = None
        cells = len(np.unique(o.unit)) * len(o.annotators) / max(1, self.n_prompts)  # of one prompt
        most = min(self.most_prompts, max(1, int(MOST_CELLS / max(1.0, cells))))
        if self.n_prompts > most:
            drawn = np.random.default_rng([self.seed, 9]).permutation(np.unique(prompt[o.unit]))[:most]
            keep, self.sampled = np.isin(prompt[o.unit], drawn), len(drawn)
        self.unit, self.who, self.value = o.unit[keep], o.who[keep], o.value[keep]
        self.grade, self.shown = o.grade[keep], o.shown[keep]
        self.prompt, self.people = prompt, o.annotators
        self.named = np.array([UNNAMED.fullmatch(name) is None for name in self.people], dtype=bool)
        self._merge()

    def _merge(self) -> None:
        """(U, J) mean of an annotator's labels of a unit (both orders of a judge), NaN where there is none."""
        used, place = np.unique(self.unit, return_inverse=True)
        self.units, self.place = used, place
        shape = (len(used), len(self.people))
        self.table, self.grades = np.full(shape, math.nan), np.full(shape, math.nan)
        for column, target in ((self.value, self.table), (self.grade, self.grades)):
            known = ~np.isnan(column)
            total, count = np.zeros(shape), np.zeros(shape)
            np.add.at(total, (place[known], self.who[known]), column[known])
            np.add.at(count, (place[known], self.who[known]), 1.0)
            target[count > 0] = total[count > 0] / count[count > 0]
        self.cluster = self.prompt[used]
        self.labeled = ~np.isnan(self.table)
        self.votes = self.labeled.sum(axis=1)
        self.graded = bool((~np.isnan(self.grades)).sum(axis=1).max(initial=0) > 1)

    def rng(self, number: int) -> np.random.Generator:
        """The generator of one figure."""
        return np.random.default_rng([self.seed, number])

    def estimate(
        self, statistic: Callable[[Rows, Array], Array], rows: dict[str, Array], keep: Mask, number: int,
        bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> E:  # fmt: skip
        """A bootstrapped figure of the units in `keep` (U,) bool."""
        data = {name: column[keep] for name, column in rows.items()}
        found = bootstrap_bca_by_cluster(
            statistic, data, self.cluster[keep], self.rng(number), RESAMPLES, bounds=bounds
        )
        return E.of(found)
