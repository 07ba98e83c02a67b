"""How far an implicit reward (DPO's) and an explicit one (a reward model's) order the same responses the same way.

Everything is about *margins within a prompt*: an implicit reward holds an unknown term of the prompt, so raw rewards
are never compared between prompts. Ties count half. A pair has no natural order, so rank correlations of margins take
each pair in both orders; they do not depend on which response stands first.

Agreement alone rewards two accurate scorers for being accurate. Kappa is error consistency, (agreement - e) / (1 - e)
with e = a b + (1 - a)(1 - b): 0 for two scorers whose errors are independent given their accuracies a and b.

Source: Geirhos, Meding & Wichmann 2020 (error consistency); Kendall 1945 (tau-b).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from workbench.metrics.calibration import ordered_like
from workbench.metrics.estimates import Array, Index, Labels, Values, as_values, mean_by_cluster
from workbench.metrics.pair_margins import pairs_within
from workbench.metrics.rank_correlation import spearman_of_margins
from workbench.metrics.resampling import Rows, Statistic, bootstrap_bca_by_cluster, bootstrap_vector
from workbench.results_agreement import Agreement
from workbench.results_base import E
from workbench.types import Estimate

Mask = npt.NDArray[np.bool_]

MIN_SAMPLES = 4
_TOO_FEW = Estimate(
    value=None, low=None, high=None, n=0, method=f"undefined: no prompt with {MIN_SAMPLES} samples scored by both"
)


def agreement_on_pairs(
    implicit_margins: Values,
    explicit_margins: Values,
    prompts: Labels,
    rng: np.random.Generator,
    *,
    labels: Values | None = None,
    seeds: Labels | None = None,
    n_resamples: int = 500,
) -> Agreement:
    """Agreement on given pairs, such as held-out labelled ones.

    Args:
        implicit_margins, explicit_margins: (M,) first minus second, nats; None or NaN = unscored.
        prompts: (M,) prompt of each pair.
        rng: Seeded generator.
        labels: (M,) sign says which is better: > 0 the first, < 0 the second, 0 a tie (gold margins do; all 1 for
            chosen minus rejected). None without labels: no accuracies, no kappa.
        seeds: (M,) run seed of each pair, where several: figures are means over seeds.
        n_resamples: Bootstrap draws for kappa, rank correlation and ECE.

    Returns:
        results.Agreement; within-prompt figures need several samples a prompt and are null here.
    """
    x, y = as_values(implicit_margins), as_values(explicit_margins)
    truth = None if labels is None else as_values(labels)
    same = ordered_like(x, y)

    def share(values: Array) -> E:
        return E.of(mean_by_cluster(values, prompts, None, seeds, proportion=True))

    def resampled(statistic: Statistic, columns: dict[str, Array], low: float) -> Estimate:
        keep: Mask = ~np.any(np.isnan(np.stack(list(columns.values()))), axis=0)
        return bootstrap_bca_by_cluster(
            statistic,
            {name: column[keep] for name, column in columns.items()},
            _kept(prompts, keep),
            rng,
            n_resamples,
            seeds=None if seeds is None else _kept(seeds, keep),
            n_unscored=int((~keep).sum()),
            bounds=(low, 1.0),
        )

    kappa = chance = difference = None
    if truth is not None:
        kappa, chance = error_consistency(x, y, truth, prompts, rng, seeds=seeds, n_resamples=n_resamples)
        difference = accuracy_difference(x, y, truth, prompts, seeds)
    return Agreement(
        implicit_accuracy=None if truth is None else share(ordered_like(x, truth)),
        explicit_accuracy=None if truth is None else share(ordered_like(y, truth)),
        agreement=share(same),
        kappa=kappa,
        spearman_margins=E.of(resampled(_spearman_of_margins, {"x": x, "y": y}, -1.0)),
        spearman_within_prompt=None,
        kendall_tau=E.of(_TOO_FEW),
        calibration=None,
        n_pairs=int((~np.isnan(same)).sum()),
        implicit_ties=int((x == 0).sum()),
        explicit_ties=int((y == 0).sum()),
        accuracy_difference=difference,
        chance=chance,
    )


def accuracy_difference(
    implicit: Array, explicit: Array, truth: Array, prompts: Labels, seeds: Labels | None = None
) -> E:
    """Accuracy of the explicit reward less that of the implicit one on the same pairs.

    Paired: where both are right or both wrong a pair adds nothing, so this interval is narrower than those of the two
    accuracies suggest. Clustered by prompt, crossed with run seeds.

    Args:
        implicit, explicit: (M,) margins; NaN = unscored, which takes the pair out of both accuracies.
        truth: (M,) its sign says which is better, 0 a tie.
    """
    found = mean_by_cluster(ordered_like(explicit, truth) - ordered_like(implicit, truth), prompts, None, seeds)
    return E.of(within_bounds(found, -1.0, 1.0))


def within_bounds(found: Estimate, low: float, high: float) -> Estimate:
    """An estimate with its interval cut to the range of the quantity."""
    return replace(
        found,
        low=None if found.low is None else max(low, found.low),
        high=None if found.high is None else min(high, found.high),
    )


def error_consistency(
    implicit: Array,
    explicit: Array,
    truth: Array,
    prompts: Labels,
    rng: np.random.Generator,
    *,
    seeds: Labels | None = None,
    n_resamples: int = 500,
) -> tuple[E | None, E | None]:
    """Kappa, and the chance line e = a b + (1 - a)(1 - b), from the same resamples.

    Returns:
        (kappa, chance); kappa is None where it is 0 / 0, both without a scored pair.
    """
    same = ordered_like(implicit, explicit)
    columns = {"same": same, "a": ordered_like(implicit, truth), "b": ordered_like(explicit, truth)}
    keep: Mask = ~np.any(np.isnan(np.stack(list(columns.values()))), axis=0)
    found = bootstrap_vector(
        _kappa_and_chance,
        {name: column[keep] for name, column in columns.items()},
        _kept(prompts, keep),
        rng,
        n_resamples,
        seeds=None if seeds is None else _kept(seeds, keep),
        n_unscored=int((~keep).sum()),
        bounds=(-math.inf, 1.0),
    )
    kappa, chance = found or (None, None)
    return (
        None if kappa is None or kappa.value is None else E.of(kappa),
        None if chance is None else E.of(within_bounds(chance, 0.0, 1.0)),
    )


def agreement_on_samples(
    implicit: Values,
    explicit: Values,
    prompts: Labels,
    rng: np.random.Generator,
    *,
    gold: Values | None = None,
    seeds: Labels | None = None,
    n_resamples: int = 500,
) -> Agreement:
    """Agreement on all pairs of samples of the same prompt (and run seed).

    Args:
        implicit, explicit: (N,) reward of each sample; None or NaN = unscored.
        prompts: (N,) prompt of each sample.
        rng: Seeded generator.
        gold: (N,) true reward of each sample, the label of its pairs; None without.
        seeds: (N,) run seed of each sample, where several.
        n_resamples: Bootstrap draws.

    Returns:
        results.Agreement. Within a prompt a reward that is the same for all samples has rank correlation 0, as ties
        count half in the agreement. Calibration is measured apart, in calibration_of_pairs.py.
    """
    x, y = as_values(implicit), as_values(explicit)
    first, second, members = pairs_within(prompts, seeds)
    truth = None if gold is None else as_values(gold)
    found = agreement_on_pairs(
        x[first] - x[second],
        y[first] - y[second],
        [prompts[i] for i in first],
        rng,
        labels=None if truth is None else truth[first] - truth[second],
        seeds=None if seeds is None else [seeds[i] for i in first],
        n_resamples=n_resamples,
    )
    rho, tau = _within(x, y, members)
    if not np.isfinite(rho).any():
        return found
    names = [rows[0] for rows in members]
    by_prompt = [prompts[i] for i in names]
    by_run = None if seeds is None else [seeds[i] for i in names]
    return found.model_copy(
        update={
            "spearman_within_prompt": E.of(mean_by_cluster(rho, by_prompt, None, by_run)),
            "kendall_tau": E.of(mean_by_cluster(tau, by_prompt, None, by_run)),
        }
    )


def _within(x: Array, y: Array, members: list[Index]) -> tuple[Array, Array]:
    """Spearman and Kendall's tau-b within each group of rows; NaN below 4 samples that both rewards score."""
    rho, tau = np.full(len(members), math.nan), np.full(len(members), math.nan)
    scored = [rows[~np.isnan(x[rows]) & ~np.isnan(y[rows])] for rows in members]
    for k in {len(rows) for rows in scored if len(rows) >= MIN_SAMPLES}:
        where = np.array([g for g, rows in enumerate(scored) if len(rows) == k])
        table = np.stack([scored[g] for g in where])  # (G, k)
        sx = np.sign(x[table][:, :, None] - x[table][:, None, :])  # (G, k, k)
        sy = np.sign(y[table][:, :, None] - y[table][:, None, :])
        tau[where] = _cosine(sx.reshape(len(where), -1), sy.reshape(len(where), -1))
        rho[where] = _cosine(sx.sum(axis=2), sy.sum(axis=2))  # sums of signs are midranks, centered and doubled
    return rho, tau


def _cosine(a: Array, b: Array) -> Array:
    """(..., k) x (..., k) -> (...): sum(a b) / sqrt(sum(a a) sum(b b)), 0 where either is all 0."""
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    cosine: Array = (a * b).sum(axis=-1) / np.where(scale > 0, scale, 1.0)
    return cosine


def _kappa_and_chance(rows: Rows, weights: Array) -> Array:
    """(B, M) -> (B, 2): error consistency, NaN where both scorers are always right (0 / 0), and the chance line."""
    mass = weights.sum(axis=1)
    same, a, b = (weights @ rows[name] / mass for name in ("same", "a", "b"))
    e = a * b + (1 - a) * (1 - b)
    kappa = np.where(1 - e > 1e-12, (same - e) / np.maximum(1 - e, 1e-12), math.nan)
    return np.stack([kappa, e], axis=1)


def _spearman_of_margins(rows: Rows, weights: Array) -> Array:
    return spearman_of_margins(rows["x"], rows["y"], weights)


def _kept(labels: Labels, keep: Mask) -> list[Hashable]:
    return [label for label, k in zip(labels, keep, strict=True) if k]
