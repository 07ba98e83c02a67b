"""Calibration of both rewards on the same pairs in the same random orientation, before and after temperature.

The labels are preferences of annotators, with their noise. The sign of the gold margin is none: it is right every
time, so that a model that says .7 where people prefer the first in 7 of 10 pairs would look underconfident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.metrics.calibration import brier, ece, reliability_curve
from workbench.metrics.calibration_slope import calibration_slope, cooled, slopes_by_seed, temperature_of
from workbench.metrics.estimates import Array
from workbench.metrics.pair_margins import PairMargins
from workbench.results_agreement import Calibration, ReliabilityPoint, Tempered
from workbench.results_base import E
from workbench.types import Estimate

SIDES = ("implicit", "explicit")
RELIABILITY_BINS = 10
MIN_PAIRS = 30


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Of one reward, fitted on validation pairs: the estimate, and each run seed's slope (or why there is none)."""

    estimate: Estimate
    slopes: dict[object, float] | str


def fitted_temperatures(pairs: PairMargins, labels: Array) -> dict[str, Temperature]:
    """Temperatures of both rewards ("implicit", "explicit") on validation pairs.

    Args:
        pairs: Validation pairs, which no figure is reported on.
        labels: (M,) 1 where the first is preferred.
    """
    found = {}
    for side in SIDES:
        margins = getattr(pairs, side)
        slope = calibration_slope(margins, labels, list(pairs.prompts), pairs.seeds)
        slopes = slopes_by_seed(margins, labels, pairs.seeds) if slope.value is not None else slope.method
        found[side] = Temperature(estimate=temperature_of(slope), slopes=slopes)
    return found


def calibration_of_pairs(
    pairs: PairMargins,
    labels: Array,
    kind: Literal["given", "fresh"],
    rng: np.random.Generator,
    temperatures: dict[str, Temperature] | None = None,
    n_resamples: int = 500,
) -> Calibration | None:
    """ECE, Brier, slope and reliability of both rewards.

    Args:
        pairs: M pairs.
        labels: (M,) 1 where the first is preferred, 0 the second, 0.5 a tie; NaN = unlabeled.
        kind: Where the labels come from.
        rng: Orientation and resampling.
        temperatures: From validation pairs; None where there are none.
        n_resamples: Bootstrap draws of the ECE.

    Returns:
        None below 30 labeled pairs: bins of fewer than five pairs say nothing.
    """
    if int((~np.isnan(labels)).sum()) < MIN_PAIRS:
        return None
    turned = rng.choice([-1.0, 1.0], size=len(pairs))
    shown = (1 + turned * (2 * labels - 1)) / 2
    margins = {side: turned * getattr(pairs, side) for side in SIDES}
    before = _figures(pairs, margins, shown, rng, n_resamples)
    after = None
    if temperatures is not None:
        slopes = {side: temperatures[side].slopes for side in SIDES}
        cool = {
            side: None if isinstance(found, str) else cooled(margins[side], found, pairs.seeds)
            for side, found in slopes.items()
        }
        usable = {side: values for side, values in cool.items() if values is not None}
        if len(usable) == len(SIDES):
            after = Tempered(**_figures(pairs, usable, shown, rng, n_resamples))
    return Calibration(
        **before,
        labels=kind,
        implicit_temperature=None if temperatures is None else E.of(temperatures["implicit"].estimate),
        explicit_temperature=None if temperatures is None else E.of(temperatures["explicit"].estimate),
        tempered=after,
        implicit_reliability=_reliability(pairs, margins["implicit"], shown),
        explicit_reliability=_reliability(pairs, margins["explicit"], shown),
    )


def _figures(
    pairs: PairMargins, margins: dict[str, Array], labels: Array, rng: np.random.Generator, n_resamples: int
) -> dict[str, E]:
    prompts, found = list(pairs.prompts), {}
    for side, values in margins.items():
        found[f"{side}_ece"] = E.of(ece(values, labels, prompts, rng, seeds=pairs.seeds, n_resamples=n_resamples))
        found[f"{side}_brier"] = E.of(brier(values, labels, prompts, pairs.seeds))
        found[f"{side}_slope"] = E.of(calibration_slope(values, labels, prompts, pairs.seeds))
    return found


def _reliability(pairs: PairMargins, margins: Array, labels: Array) -> list[ReliabilityPoint]:
    """The diagram's points over all run seeds together."""
    curve = reliability_curve(margins, labels, list(pairs.prompts), RELIABILITY_BINS, pairs.seeds)
    return [ReliabilityPoint(predicted=one.predicted, preferred=E.of(one.preferred), pairs=one.pairs) for one in curve]
