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

import numpy as np
import numpy.typing as npt

from workbench.metrics.calibration import brier, ece, ordered_like
from workbench.metrics.estimates import Array, Index, Labels, Values, as_values, group_index, mean_by_cluster
from workbench.metrics.resampling import Rows, Statistic, bootstrap_bca_by_cluster
from workbench.results_agreement import Agreement, Calibration
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
    calibrate: bool = True,
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
        calibrate: Also measure calibration against the labels (the labels are preferences, not just any order).
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

    kappa = None
    if truth is not None:
        columns = {"same": same, "a": ordered_like(x, truth), "b": ordered_like(y, truth)}
        kappa = resampled(_kappa, columns, -math.inf)
    return Agreement(
        implicit_accuracy=None if truth is None else share(ordered_like(x, truth)),
        explicit_accuracy=None if truth is None else share(ordered_like(y, truth)),
        agreement=share(same),
        kappa=None if kappa is None or kappa.value is None else E.of(kappa),
        spearman_margins=E.of(resampled(_spearman_of_margins, {"x": x, "y": y}, -1.0)),
        spearman_within_prompt=None,
        kendall_tau=E.of(_TOO_FEW),
        calibration=None if truth is None or not calibrate else _calibration(x, y, truth, prompts, rng, seeds),
        n_pairs=int((~np.isnan(same)).sum()),
        implicit_ties=int((x == 0).sum()),
        explicit_ties=int((y == 0).sum()),
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
        count half in the agreement. No calibration: the order of two golds is no preference with noise.
    """
    x, y = as_values(implicit), as_values(explicit)
    run: Labels = [0] * len(x) if seeds is None else seeds
    index, groups = group_index([(p, s) for p, s in zip(prompts, run, strict=True)])
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index, minlength=len(groups)))[:-1]) if len(groups) else []
    pairs = [np.stack(np.triu_indices(len(rows), 1), axis=1) for rows in members]
    first, second = (
        np.concatenate([r[p[:, i]] for r, p in zip(members, pairs, strict=True)] or [order]) for i in (0, 1)
    )
    truth = None if gold is None else as_values(gold)
    found = agreement_on_pairs(
        x[first] - x[second],
        y[first] - y[second],
        [prompts[i] for i in first],
        rng,
        labels=None if truth is None else truth[first] - truth[second],
        calibrate=False,
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


def _kappa(rows: Rows, weights: Array) -> Array:
    """Error consistency under each weighting, (B, M) -> (B,); NaN where both scorers are always right (0 / 0)."""
    mass = weights.sum(axis=1)
    same, a, b = (weights @ rows[name] / mass for name in ("same", "a", "b"))
    e = a * b + (1 - a) * (1 - b)
    return np.where(1 - e > 1e-12, (same - e) / np.maximum(1 - e, 1e-12), math.nan)


def _spearman_of_margins(rows: Rows, weights: Array) -> Array:
    """Spearman over pairs taken in both orders, under each weighting, (B, M) -> (B,); NaN where all margins are 0.

    Among {x, -x} the midrank of x is sign(x) (2 #{|x_j| < |x|} + #{|x_j| = |x|}) but for a constant.
    """
    rx, ry = _signed_ranks(rows["x"], weights), _signed_ranks(rows["y"], weights)
    scale = np.sqrt((weights * rx * rx).sum(axis=1) * (weights * ry * ry).sum(axis=1))
    return np.where(scale > 0, (weights * rx * ry).sum(axis=1) / np.where(scale > 0, scale, 1.0), math.nan)


def _signed_ranks(margins: Array, weights: Array) -> Array:
    size = np.abs(margins)
    ordered = np.sort(size)
    mass = np.cumsum(weights[:, np.argsort(size)], axis=1)
    mass = np.concatenate([np.zeros((len(weights), 1)), mass], axis=1)
    below, up_to = (mass[:, np.searchsorted(ordered, size, side=side)] for side in ("left", "right"))
    return np.sign(margins) * (below + up_to)


def _calibration(
    x: Array, y: Array, truth: Array, prompts: Labels, rng: np.random.Generator, seeds: Labels | None
) -> Calibration:
    """Of sigmoid(margin) against the labels, both scorers on the same pairs in the same random orientation."""
    turned = rng.choice([-1.0, 1.0], size=len(x))
    labels = (1 + turned * np.sign(truth)) / 2
    return Calibration(
        implicit_ece=E.of(ece(turned * x, labels, prompts, rng, seeds=seeds)),
        explicit_ece=E.of(ece(turned * y, labels, prompts, rng, seeds=seeds)),
        implicit_brier=E.of(brier(turned * x, labels, prompts, seeds)),
        explicit_brier=E.of(brier(turned * y, labels, prompts, seeds)),
    )


def _kept(labels: Labels, keep: Mask) -> list[Hashable]:
    return [label for label, k in zip(labels, keep, strict=True) if k]
