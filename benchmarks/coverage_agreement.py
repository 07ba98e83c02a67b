"""Worlds for the study of coverage in which two rewards see gold: paired accuracies, the calibration slope, chance.

The two rewards' margins and the label come from one latent model, so that every truth is known in closed form: gold
margin g ~ N(0, 1), implicit and explicit margins g plus noise. A prompt with several pairs shifts both rewards' margins
together, a run seed shifts each reward's.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import special

from workbench.metrics.agreement import accuracy_difference, error_consistency
from workbench.metrics.calibration_slope import calibration_slope
from workbench.metrics.contrast import Sample, difference_of_means
from workbench.types import Estimate

IMPLICIT_NOISE, EXPLICIT_NOISE = 1.0, 0.7
SLOPE = 0.6
KINDS = ("accuracy-difference", "slope", "chance", "two-sets")


def accuracy_of(noise: float) -> float:
    """Chance that g + noise N(0, 1) has g's sign."""
    return 0.5 + math.asin(1 / math.sqrt(1 + noise**2)) / math.pi


def _pairs(
    n: int, samples: int, seeds: int, seed_sd: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """(implicit, explicit, gold, prompts, seeds): a run seed draws how noisy its two rewards are."""
    prompts = np.repeat(np.arange(n), samples)
    if seeds > 1:
        prompts = np.tile(prompts, seeds)
    run = np.repeat(np.arange(seeds), n * samples)
    gold = rng.normal(size=len(prompts))
    shared = np.sqrt(0.3) * rng.normal(size=n)[prompts] if samples > 1 or seeds > 1 else 0.0
    rest = np.sqrt(0.7) if samples > 1 or seeds > 1 else 1.0
    margins = []
    for noise in (IMPLICIT_NOISE, EXPLICIT_NOISE):
        error = np.sign(gold) * shared + rest * rng.normal(size=len(prompts))
        margins.append(gold + noise * error + seed_sd * rng.normal(size=seeds)[run] * np.sign(gold))
    return margins[0], margins[1], gold, prompts, run if seeds > 1 else None


@cache
def truth_of(kind: str, seed_sd: float) -> float:
    """The figure of a world without end."""
    a, b = _accuracies(seed_sd)
    if kind == "accuracy-difference":
        return b - a
    if kind == "chance":
        return a * b + (1 - a) * (1 - b)
    return SLOPE if kind == "slope" else 0.0


def _accuracies(seed_sd: float) -> tuple[float, float]:
    # P(|g| + noise e + s > 0) with e ~ N(0, 1) and s ~ N(0, seed_sd^2): Gaussian noise of that size together.
    spread = (math.hypot(noise, seed_sd) for noise in (IMPLICIT_NOISE, EXPLICIT_NOISE))
    a, b = (accuracy_of(noise) for noise in spread)
    return a, b


def interval(
    kind: str, n: int, samples: int, seeds: int, seed_sd: float, rng: np.random.Generator
) -> tuple[float, Estimate]:
    """(truth, what the workbench says) of one world."""
    truth = truth_of(kind, seed_sd)
    if kind == "slope":
        return truth, _slope(n, samples, seeds, rng)
    implicit, explicit, gold, prompts, run = _pairs(n, samples, seeds, seed_sd, rng)
    if kind == "chance":
        found = error_consistency(implicit, explicit, gold, prompts, rng, seeds=run, n_resamples=300)[1]
    elif kind == "two-sets":
        other = _pairs(n, samples, seeds, seed_sd, rng)
        sides = []
        for name, (x, y, truth_margin, where, by) in (("a", (implicit, explicit, gold, prompts, run)), ("b", other)):
            lead = (np.sign(y) * np.sign(truth_margin) - np.sign(x) * np.sign(truth_margin)) / 2
            seed_labels = None if by is None else by.tolist()
            sides.append(Sample(values=lead, prompts=[f"{name}{p}" for p in where], seeds=seed_labels))
        return truth, difference_of_means(sides[0], sides[1])
    else:
        found = accuracy_difference(implicit, explicit, gold, prompts, run)
    assert found is not None
    return truth, Estimate(value=found.value, low=found.low, high=found.high, n=found.n, method=found.method)


def _slope(n: int, samples: int, seeds: int, rng: np.random.Generator) -> Estimate:
    """Labels with P(first) = sigmoid(SLOPE margin); a prompt's pairs have margins of a common size."""
    prompts = np.repeat(np.arange(n), samples)
    if seeds > 1:
        prompts = np.tile(prompts, seeds)
    size = np.exp(0.5 * rng.normal(size=n))[prompts] if samples > 1 else 1.0
    margins = 1.5 * size * rng.normal(size=len(prompts))
    labels = (rng.random(len(prompts)) < special.expit(SLOPE * margins)).astype(np.float64)
    run = np.repeat(np.arange(seeds), n * samples).tolist() if seeds > 1 else None
    return calibration_slope(margins, labels, prompts.tolist(), run)
