"""`workbench data annotators`: who agrees with whom, who errs, and which pairs to label again.

Every figure is of all prompts (beyond 20,000 annotated ones of a seeded sample) with a 95% interval by prompt. What the
labels cannot tell is refused: value null, the reason in `method`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from workbench.annotators_records import AnnotatorRow, Annotators, BetweenRow, Overall
from workbench.data.opinions import Opinions
from workbench.measure_advice import cautions, p_of_gap, retrain
from workbench.measure_reliability import Reliability
from workbench.measure_triples import triples_of
from workbench.metrics import kappa, krippendorff
from workbench.metrics.estimates import Array, holm, mean_by_cluster
from workbench.metrics.rank_correlation import spearman, spearman_of_margins
from workbench.metrics.resampling import Rows, bootstrap_vector
from workbench.opinions_table import NO_NAME, RESAMPLES, OpinionTable, refused, verdict
from workbench.results_base import E

MOST_PROMPTS: Final = 20_000
MOST_BETWEEN: Final = 200
RELABEL_BELOW: Final = 0.75
MINIMUM_ALPHA: Final = 0.2
_PERSONAL: Final = (
    "leave_one_out", "gap", "reliability", "first_shown_preferred", "longer_preferred", "longer_gap"
)  # fmt: skip


def annotators(
    opinions: Opinions,
    sources: Sequence[str],
    *,
    threshold: float = MINIMUM_ALPHA,
    relabel_below: float = RELABEL_BELOW,
    seed: int = 0,
    most_prompts: int = MOST_PROMPTS,
) -> Annotators:
    """Every figure of the dashboard.

    Args:
        opinions: Labels of at least one annotator.
        sources: Names for the record.
        threshold: alpha under which `compare` warns.
        relabel_below: Pairs whose recorded label is right with a smaller chance are listed.
        seed: Of samples and resampling; each figure has its own generator.
        most_prompts: More prompts than these are sampled.
    """
    dashboard = _Dashboard(opinions, seed, most_prompts)
    return dashboard.build(sources, threshold, relabel_below)


@dataclass
class _Dashboard(OpinionTable):
    """The figures, each a method."""

    # ------------------------------------------------------------------------------------------ all together

    def build(self, sources: Sequence[str], threshold: float, relabel_below: float) -> Annotators:
        between, left_out = self._between()
        overall = self._overall(between)
        o, alpha = self.opinions, overall.alpha_nominal.value
        low = overall.alpha_nominal.low
        reliability = Reliability(self, agree=alpha is not None and low is not None and low > 0)
        rows = [self._row(place, reliability.rows[place]) for place in range(len(self.people))]
        nobody = dict.fromkeys(_PERSONAL, refused(NO_NAME))
        rows = [row if named else row.model_copy(update=nobody) for row, named in zip(rows, self.named, strict=True)]
        adjusted = holm([p_of_gap(row.gap, row.leave_one_out) for row in rows])
        rows = [row.model_copy(update={"p_holm": p}) for row, p in zip(rows, adjusted, strict=True)]
        doubtful, total = reliability.relabel(relabel_below)
        return Annotators(
            sources=list(sources), kind=o.kind, pairs=len(np.unique(o.unit)), shared=int((self.votes > 1).sum()),
            prompts=self.n_prompts, labels=len(o.unit), sampled_prompts=self.sampled, overall=overall, annotators=rows,
            between=between, between_left_out=left_out, retrain=dict(retrain(rows)), relabel=doubtful,
            relabel_total=total, relabel_below=relabel_below, threshold=threshold,
            below_threshold=None if alpha is None else alpha < threshold,
            warnings=list(cautions(self, overall, threshold)),
        )  # fmt: skip

    def _overall(self, between: Sequence[BetweenRow]) -> Overall:
        mirrored, shared = self.opinions.mirrored, self.votes > 1
        counts = self._counts()
        none = refused("no pair has labels of two annotators")
        if not shared.any():
            parts = {"agreement": none, "fleiss_kappa": none, "alpha_nominal": none}
        else:
            meetings = self.votes * (self.votes - 1) / 2
            same = (counts * (counts - 1)).sum(axis=1) / 2 / np.maximum(meetings, 1)
            o = krippendorff.coincidences(counts)
            parts = {
                "agreement": E.of(
                    mean_by_cluster(same[shared], self.cluster[shared], meetings[shared], proportion=True)
                ),
                "fleiss_kappa": self.estimate(
                    lambda rows, w: kappa.fleiss_kappa(rows["counts"], w, mirrored=mirrored),
                    {"counts": counts}, shared, 1,
                ),
                "alpha_nominal": self.estimate(
                    lambda rows, w: krippendorff.alpha(
                        np.einsum("bn,nij->bij", w, rows["o"]), np.arange(3.0), "nominal", mirrored=mirrored
                    ),
                    {"o": o}, shared, 2,
                ),
            }  # fmt: skip
        rho = [row.spearman for row in between if row.spearman is not None and row.spearman.value is not None]
        return Overall(
            **parts,
            alpha_ordinal=self._graded_alpha("ordinal"),
            alpha_interval=self._graded_alpha("interval"),
            spearman=self._mean_spearman(rho) if self.graded else None,
            triples=triples_of(self.opinions, self.unit, self.who, self.value, self.prompt, None),
        )

    def _counts(self) -> Array:
        """(U, 3) labels of each unit: second, tie, first."""
        counts: Array = np.zeros((len(self.units), 3))
        for column, holds in enumerate((self.table < 0.5, self.table == 0.5, self.table > 0.5)):
            counts[:, column] = (holds & self.labeled).sum(axis=1)
        return counts

    @staticmethod
    def _mean_spearman(found: Sequence[E]) -> E:
        values = [one.value for one in found if one.value is not None]
        if not values:
            return refused("no two annotators graded enough pairs in common")
        if len(values) == 1:
            return found[0]
        return refused(
            f"mean of {len(values)} correlations; intervals stand at each", len(values), float(np.mean(values))
        )

    def _graded_alpha(self, level: krippendorff.Level) -> E | None:
        """Alpha of the grades; a grade of mirrored units is signed, its mirror image is its negative."""
        if not self.graded:
            return None
        mirrored = self.opinions.mirrored
        unit, who = np.nonzero(~np.isnan(self.grades))
        grade = self.grades[unit, who]
        shared = np.bincount(unit, minlength=len(self.units)) > 1
        if level == "interval":
            moments = krippendorff.interval_moments(unit, grade, len(self.units))
            middle = 0.0 if mirrored else None
            return self.estimate(
                lambda rows, w: krippendorff.alpha_of_moments(w @ rows["m"], middle=middle), {"m": moments}, shared, 3
            )
        both = np.concatenate([grade, -grade]) if mirrored else grade  # the scale of values holds the mirror images
        values = np.unique(both)
        if len(values) > krippendorff.MOST_GRADES or len(self.units) * len(values) ** 2 > 2e7:
            return refused(
                f"{len(values)} different grades; the ordinal form is for at most {krippendorff.MOST_GRADES}"
            )
        counts = np.zeros((len(self.units), len(values)))
        np.add.at(counts, (unit, np.searchsorted(values, grade)), 1.0)
        o = krippendorff.coincidences(counts)
        return self.estimate(
            lambda rows, w: krippendorff.alpha(
                np.einsum("bn,nij->bij", w, rows["o"]), values, level, mirrored=mirrored
            ),
            {"o": o}, shared, 4,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ one by one

    @cached_property
    def against_majority(self) -> Array:
        """(U, J) agreement of each label with the majority of the unit's other labels; NaN without others."""
        side = np.where(self.labeled, np.sign(np.nan_to_num(self.table) - 0.5), 0.0)
        others = np.sign(side.sum(axis=1, keepdims=True) - side)
        agree = np.where((others == 0) | (side == 0), 0.5, (others == side).astype(float))
        found: Array = np.where(self.labeled & (self.votes > 1)[:, None], agree, math.nan)
        return found

    @cached_property
    def _gaps(self) -> list[E]:
        """Each annotator's leave-one-out agreement less the others' together, of whom each label counts once: a mean
        over annotators would let a colleague of few lucky labels weigh as much as everybody else."""
        people, name = len(self.people), "no pair of theirs has another label"
        scored = np.nan_to_num(self.against_majority)
        known = (~np.isnan(self.against_majority)).astype(float)
        able = known.sum(axis=0) > 0
        if able.sum() < 2:
            return [refused(name)] * people
        if able.sum() == 2:
            return [refused("of two annotators each agrees with the other as often")] * people

        def statistic(rows: Rows, weights: Array) -> Array:
            total, count = weights @ rows["scored"], weights @ rows["known"]
            mean = np.where(count > 0, total / np.maximum(count, 1e-300), math.nan)
            others = count.sum(axis=1, keepdims=True) - count
            rest = (total.sum(axis=1, keepdims=True) - total) / np.maximum(others, 1e-300)
            return np.asarray(np.where(others > 0, mean - rest, math.nan))

        shared = self.votes > 1
        found = bootstrap_vector(
            statistic, {"scored": scored[shared][:, able], "known": known[shared][:, able]}, self.cluster[shared],
            self.rng(5), RESAMPLES, bounds=(-1.0, 1.0),
        )  # fmt: skip
        at = iter(found)
        return [E.of(next(at)) if one else refused(name) for one in able]

    def _row(self, place: int, reliability: E) -> AnnotatorRow:
        mine, labels = self.labeled[:, place], self.who == place
        shared = mine & (self.votes > 1)
        agreed = self.against_majority[shared, place]
        none = refused("no pair of theirs has another label")
        return AnnotatorRow(
            name=self.people[place], labels=int(labels.sum()), pairs=int(mine.sum()), shared=int(shared.sum()),
            ties=int((self.value[labels] == 0.5).sum()),
            leave_one_out=E.of(mean_by_cluster(agreed, self.cluster[shared], proportion=True)) if len(agreed) else none,
            gap=self._gaps[place], p_holm=None,
            reliability=reliability,
            first_shown_preferred=self._first_shown(labels),
            longer_preferred=self._longer(mine, place), longer_gap=self._longer_gaps[place],
            triples=triples_of(self.opinions, self.unit, self.who, self.value, self.prompt, place),
        )  # fmt: skip

    def _first_shown(self, labels: Array) -> E:
        known = labels & ~np.isnan(self.shown)
        if not known.any():
            return refused("the source does not say which response was shown first")
        for_shown = np.where(self.shown[known] == 1, self.value[known], 1 - self.value[known])
        return E.of(mean_by_cluster(verdict(for_shown), self.prompt[self.unit[known]], proportion=True))

    def _longer(self, mine: Array, place: int) -> E:
        known = mine & ~np.isnan(self.opinions.longer[self.units])
        if not known.any():
            return refused("no pair of theirs has responses of different known length")
        toward = self._toward_longer(known, self.table[known, place])
        return E.of(mean_by_cluster(toward, self.cluster[known], proportion=True))

    def _toward_longer(self, known: Array, value: Array) -> Array:
        longer = self.opinions.longer[self.units[known]]
        return verdict(np.where(longer == 1, value, 1 - value))

    @cached_property
    def _longer_gaps(self) -> list[E]:
        """How much more each annotator prefers the longer response than the others on the same pairs.

        One annotator's bias moves everybody's "others", so the median of these gaps is taken off each of them.
        """
        known = (self.votes > 1) & ~np.isnan(self.opinions.longer[self.units])
        able = (self.labeled & known[:, None]).any(axis=0)
        none = refused("no shared pair has responses of different known length")
        if not able.any():
            return [none] * len(self.people)
        mine = self.labeled[known][:, able]
        side = np.where(mine, verdict(np.nan_to_num(self.table[known][:, able])), 0.0)
        others = (side.sum(axis=1, keepdims=True) - side) / (self.votes[known][:, None] - 1)
        toward = np.where(self.opinions.longer[self.units[known]] == 1, 1.0, -1.0)[:, None]
        gaps = np.where(mine, toward * (side - others), 0.0)

        def statistic(rows: Rows, weights: Array) -> Array:
            count = weights @ rows["mine"]
            gap = np.where(count > 0, weights @ rows["gaps"] / np.maximum(count, 1e-300), math.nan)
            return np.asarray(gap - np.nanmedian(gap, axis=1, keepdims=True))

        columns = {"gaps": gaps, "mine": mine.astype(float)}
        found = iter(
            bootstrap_vector(statistic, columns, self.cluster[known], self.rng(10), RESAMPLES, bounds=(-1.0, 1.0))
        )
        return [E.of(next(found)) if one else none for one in able]

    # ------------------------------------------------------------------------------------------ two by two

    def _between(self) -> tuple[list[BetweenRow], int]:
        mine = (self.labeled & self.named).astype(np.float32)  # counts are exact up to 2**24
        common = (mine.T @ mine).astype(np.int64)
        met = [(int(common[a, b]), a, b) for a, b in itertools.combinations(range(len(self.people)), 2) if common[a, b]]
        met.sort(key=lambda one: (-one[0], one[1], one[2]))
        rows = [self._pair(a, b) for _, a, b in met[:MOST_BETWEEN]]
        return rows, max(0, len(met) - MOST_BETWEEN)

    def _pair(self, a: int, b: int) -> BetweenRow:
        both = self.labeled[:, a] & self.labeled[:, b]
        mirrored = self.opinions.mirrored
        x, y = (kappa.categories(np.nan_to_num(self.table[:, one])) for one in (a, b))
        graded = ~np.isnan(self.grades[:, a]) & ~np.isnan(self.grades[:, b])
        rho = None
        if graded.any():
            correlate = spearman_of_margins if mirrored else spearman
            rho = self.estimate(
                lambda rows, w: correlate(rows["x"], rows["y"], w),
                {"x": self.grades[:, a], "y": self.grades[:, b]}, graded, 8,
            )  # fmt: skip
        return BetweenRow(
            a=self.people[a], b=self.people[b],
            agreement=E.of(mean_by_cluster((x * y).sum(axis=1)[both], self.cluster[both], proportion=True)),
            kappa=self.estimate(
                lambda rows, w: kappa.cohen_kappa(rows["x"], rows["y"], w, mirrored=mirrored), {"x": x, "y": y}, both, 7
            ),
            spearman=rho,
        )  # fmt: skip
