"""Calibration of P(chosen preferred) = sigmoid(margin), and the quality of a reward model on labelled pairs.

Every label of a (chosen, rejected) pair says "chosen", so calibration is measured on pairs in a random orientation:
half of them are turned round (margin and label), by a seeded generator. Equal-mass bins; the ECE is debiased, because
with 400 pairs even a perfectly calibrated model shows a plug-in ECE of some points.

Source: Naeini et al. 2015 (ECE); Kumar, Liang & Ma 2019 and Roelofs et al. 2022 (its bias, equal-mass bins). The
correction is by matching the plug-in's expectation; it leaves less bias than Kumar's for the absolute error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from workbench.metrics.estimates import Array, Index, Labels, Values, as_values, mean_by_cluster
from workbench.metrics.resampling import bootstrap_bca_by_cluster
from workbench.results import RewardModelQuality
from workbench.results_base import E
from workbench.types import Estimate

BINS = 10


def random_orientation(margins: Values, rng: np.random.Generator) -> tuple[Array, Array]:
    """Turns each pair round with probability one half.

    Args:
        margins: (M,) chosen minus rejected, nats; NaN stays NaN.
        rng: Seeded generator.

    Returns:
        Margins (M,) of first minus second as shown, and labels (M,): 1.0 where the first is the chosen one.
    """
    m = as_values(margins)
    labels = rng.integers(0, 2, size=len(m)).astype(np.float64)
    return np.where(labels == 1, m, -m), labels


def equal_mass_bins(probabilities: Array, n_bins: int = BINS) -> Index:
    """(M,) bin of each probability: as many in each bin as ties allow (equal values share a bin)."""
    n_bins = max(1, min(n_bins, len(probabilities) // 5))  # fewer than 5 a bin say nothing
    edges = np.unique(np.quantile(probabilities, np.arange(1, n_bins) / n_bins)) if len(probabilities) else np.zeros(0)
    return np.searchsorted(edges, probabilities, side="right").astype(np.int64)


def _ece(rows: Mapping[str, Array], weights: Array) -> Array:
    """Debiased ECE under each row weighting: (B, M) -> (B,). rows: p, label, bin (M, bins) one-hot.

    Noise of a bin's rate alone makes a gap. The gaps found are shrunk by the one factor at which gaps of that size
    plus noise would show the plug-in ECE that was found; a factor of 0 is no miscalibration beyond noise.
    """
    one_hot = rows["bin"]
    mass = np.maximum(weights @ one_hot, 1e-12)
    rate = (weights * rows["label"]) @ one_hot / mass
    gap = np.abs((weights * rows["p"]) @ one_hot / mass - rate)
    share = mass / mass.sum(axis=1, keepdims=True)
    # Repeated draws carry less: mass^2 / sum(w^2) rows' worth, so a resample's noise is taken off in full too.
    effective = np.maximum(mass**2 / np.maximum((weights**2) @ one_hot, 1e-12), 1.5)
    noise = np.sqrt(np.maximum(rate * (1 - rate), 0) / (effective - 1)) + 1e-9
    plug_in = (share * gap).sum(axis=1)
    low, high = np.zeros(len(plug_in)), np.ones(len(plug_in))
    for _ in range(20):
        middle = (low + high) / 2
        too_much = (share * _folded_mean(middle[:, None] * gap, noise)).sum(axis=1) > plug_in
        low, high = np.where(too_much, low, middle), np.where(too_much, middle, high)
    debiased: Array = low * plug_in
    return debiased


def _folded_mean(mean: Array, sd: Array) -> Array:
    """E|N(mean, sd^2)|."""
    z = mean / sd
    folded: Array = sd * math.sqrt(2 / math.pi) * np.exp(-z * z / 2) + mean * (1 - 2 * special.ndtr(-z))
    return folded


def ece(
    margins: Values,
    labels: Values,
    clusters: Labels,
    rng: np.random.Generator,
    *,
    seeds: Labels | None = None,
    n_resamples: int = 500,
    n_bins: int = BINS,
) -> Estimate:
    """Debiased expected calibration error of sigmoid(margin), bootstrap by prompt with the bins held.

    Args:
        margins: (M,) first minus second, nats; None or NaN = unscored.
        labels: (M,) 1 first preferred, 0 second, 0.5 a tie.
        clusters: (M,) prompt of each pair.
        rng: Seeded generator.
        seeds: (M,) run seed of each pair, where several.
    """
    p, y = special.expit(as_values(margins)), as_values(labels)
    keep = ~np.isnan(p) & ~np.isnan(y)
    bins = equal_mass_bins(p[keep], n_bins)
    one_hot = np.eye(int(bins.max()) + 1 if len(bins) else 1)[bins]
    return bootstrap_bca_by_cluster(
        _ece,
        {"p": p[keep], "label": y[keep], "bin": one_hot},
        [c for c, k in zip(clusters, keep, strict=True) if k],
        rng,
        n_resamples,
        seeds=None if seeds is None else [s for s, k in zip(seeds, keep, strict=True) if k],
        n_unscored=int((~keep).sum()),
        bounds=(0.0, 1.0),
    )


def brier(margins: Values, labels: Values, clusters: Labels, seeds: Labels | None = None) -> Estimate:
    """Mean of (sigmoid(margin) - label)^2; the same whichever way round a pair stands."""
    return mean_by_cluster((special.expit(as_values(margins)) - as_values(labels)) ** 2, clusters, None, seeds)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One point of the reliability curve: mean predicted probability, share preferred with its interval, pairs."""

    predicted: float
    preferred: Estimate
    pairs: int


def reliability_curve(
    margins: Values, labels: Values, clusters: Labels, n_bins: int = 10, seeds: Labels | None = None
) -> list[ReliabilityBin]:
    """Predicted against observed preference, equal-mass bins in rising order; intervals clustered by prompt, crossed
    with run seeds (M,) where several are given."""
    p, y = special.expit(as_values(margins)), as_values(labels)
    keep = ~np.isnan(p) & ~np.isnan(y)
    names = [c for c, k in zip(clusters, keep, strict=True) if k]
    run = None if seeds is None else [s for s, k in zip(seeds, keep, strict=True) if k]
    p, y = p[keep], y[keep]
    bins = equal_mass_bins(p, n_bins)
    curve = []
    for b in np.unique(bins):
        rows = np.flatnonzero(bins == b)
        share = mean_by_cluster(
            y[rows], [names[i] for i in rows], None, None if run is None else [run[i] for i in rows], proportion=True
        )
        curve.append(ReliabilityBin(predicted=float(p[rows].mean()), preferred=share, pairs=len(rows)))
    return curve


def ordered_like(margins: Array, truth: Array) -> Array:
    """(M,) 1 where the margin has the truth's sign, 0 where the opposite, 0.5 where either is 0; NaN where unscored."""
    return (1 + np.sign(margins) * np.sign(truth)) / 2


def reward_model_quality(
    margins: Values,
    prompts: Labels,
    rng: np.random.Generator,
    *,
    gold_margins: Values | None = None,
    seeds: Labels | None = None,
) -> RewardModelQuality:
    """How a reward model does on held-out pairs, for results.json.

    Args:
        margins: (M,) score of chosen minus score of rejected, nats.
        prompts: (M,) prompt of each pair.
        rng: Seeded generator.
        gold_margins: (M,) gold of chosen minus gold of rejected; None without gold.
        seeds: (M,) run seed of each pair, where the model was trained in several.
    """
    m = as_values(margins)
    shown, labels = random_orientation(m, rng)
    gold = None if gold_margins is None else as_values(gold_margins)
    ties = np.where(np.isnan(m), math.nan, m == 0)

    def share(values: Array) -> E:
        return E.of(mean_by_cluster(values, prompts, None, seeds, proportion=True))

    return RewardModelQuality(
        accuracy=share(ordered_like(m, np.ones_like(m))),
        accuracy_gold=None if gold is None else share(ordered_like(m, gold)),
        ece=E.of(ece(shown, labels, prompts, rng, seeds=seeds)),
        brier=E.of(brier(shown, labels, prompts, seeds)),
        tie_rate=share(ties),
    )
