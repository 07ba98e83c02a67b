"""What stands behind one number of agreement: how close the pairs are, how long, how far from the SFT.

Buckets say where two rewards part. The standardized figures answer one question: on-policy responses are all good, so
their pairs are closer in gold, and any scorer orders closer pairs worse. Weighted to the gold margins of a reference
set, a set whose agreement is still lower has more wrong with it than closeness.
"""

from __future__ import annotations

import numpy as np

from workbench.metrics.agreement import within_bounds
from workbench.metrics.calibration import ordered_like
from workbench.metrics.estimates import Array, cluster_mean, interval_of_mean, mean_by_cluster
from workbench.metrics.pair_margins import PairMargins
from workbench.metrics.rank_correlation import length_correlations, spearman_of_margins
from workbench.metrics.resampling import Rows, bootstrap_bca_by_cluster
from workbench.results_agreement import Bucket, LengthCorrelation, PerToken, Standardized
from workbench.results_base import E
from workbench.types import Estimate

MIN_PAIRS = 20
MIN_PROMPTS = 8  # pairs of one prompt are one cluster: fewer make no interval
GAP_BUCKETS = 4


def quantile_edges(values: Array, buckets: int) -> Array:
    """Inner edges of `buckets` buckets with as many values each; fewer where values are equal, none where all are."""
    values = values[~np.isnan(values)]
    if not len(values):
        return np.zeros(0)
    edges: Array = np.unique(np.quantile(values, np.arange(1, buckets) / buckets))
    return np.asarray(edges[edges > values.min()])


def bucketed(pairs: PairMargins, by: Array | None, edges: Array) -> list[Bucket]:
    """Agreement and both accuracies by bucket.

    Args:
        pairs: M pairs.
        by: (M,) what the buckets are of; None or NaN: in no bucket.
        edges: Inner edges, rising; a value at an edge is in the bucket above it.

    Returns:
        One more bucket than edges; empty without edges. Below 20 pairs or 8 prompts a bucket's figures are null.
    """
    if by is None or not len(edges):
        return []
    ends = [None, *edges.tolist(), None]
    found = []
    for number in range(len(edges) + 1):
        rows = pairs.where((np.searchsorted(edges, by, side="right") == number) & ~np.isnan(by))
        figures = {name: _share(rows, values) for name, values in _shares(rows).items()}
        found.append(
            Bucket(
                low=ends[number],
                high=ends[number + 1],
                pairs=len(rows),
                agreement=figures["agreement"],
                implicit_accuracy=figures.get("implicit_accuracy"),
                explicit_accuracy=figures.get("explicit_accuracy"),
            )
        )
    return found


def _shares(pairs: PairMargins) -> dict[str, Array]:
    found = {"agreement": ordered_like(pairs.implicit, pairs.explicit)}
    if pairs.truth is not None:
        found["implicit_accuracy"] = ordered_like(pairs.implicit, pairs.truth)
        found["explicit_accuracy"] = ordered_like(pairs.explicit, pairs.truth)
    return found


def _share(pairs: PairMargins, values: Array) -> E:
    prompts = len(set(pairs.prompts))
    if len(pairs) < MIN_PAIRS or prompts < MIN_PROMPTS:
        found = f"{len(pairs)} pairs of {prompts} prompts"
        return _none(prompts, f"undefined: {found}, a bucket needs {MIN_PAIRS} of {MIN_PROMPTS}")
    return E.of(mean_by_cluster(values, list(pairs.prompts), None, pairs.seeds, proportion=True))


def _none(n: int, method: str) -> E:
    return E(value=None, low=None, high=None, n=n, method=method)


def standardized(
    pairs: PairMargins, reference: PairMargins, name: str, buckets: int = GAP_BUCKETS
) -> Standardized | None:
    """Agreement and accuracies with the buckets of |gold margin| weighted as in the reference set.

    The weights are taken as known: the figures are about this set of pairs made as far apart as those, not about a
    population of reference sets. Refused where a bucket that the reference has holds fewer than 20 pairs, or pairs of
    fewer than 8 prompts, here.

    Args:
        pairs, reference: Both with gold.
        name: Of the reference set.
        buckets: Quantile buckets of the reference set.

    Source: post-stratification, Holt & Smith 1979.
    """
    if pairs.gold is None or reference.gold is None or pairs.truth is None:
        return None
    edges = quantile_edges(np.abs(reference.gold), buckets)
    target = np.bincount(_place(np.abs(reference.gold), edges), minlength=len(edges) + 1).astype(np.float64)
    figures = {
        what: _weighted(values, pairs, edges, target / target.sum(), name) for what, values in _shares(pairs).items()
    }
    return Standardized(reference=name, **figures)


def _place(gaps: Array, edges: Array) -> np.ndarray:
    return np.searchsorted(edges, gaps[~np.isnan(gaps)], side="right")


def _weighted(values: Array, pairs: PairMargins, edges: Array, target: Array, name: str) -> E:
    assert pairs.gold is not None
    keep = ~np.isnan(values) & ~np.isnan(pairs.gold)
    kept = pairs.where(keep)
    y = values[keep]
    place = _place(np.abs(pairs.gold[keep]), edges)
    counts = np.bincount(place, minlength=len(target))
    n = len(set(kept.prompts))
    if counts[target > 0].min(initial=MIN_PAIRS) < MIN_PAIRS:
        thin = int(counts[target > 0].argmin())
        return _none(n, f"undefined: {int(counts[target > 0][thin])} pairs are as far apart as a part of {name}'s")
    each = [
        len({kept.prompts[row] for row in np.flatnonzero(place == bucket).tolist()}) for bucket in range(len(target))
    ]
    if (fewest := min((one for one, share in zip(each, target, strict=True) if share > 0), default=0)) < MIN_PROMPTS:
        return _none(n, f"undefined: pairs of {fewest} prompts are as far apart as a part of {name}'s")
    means = np.bincount(place, weights=y, minlength=len(target)) / np.maximum(counts, 1)
    total = float(target @ means)
    # What varies is the mean of each bucket: a value counts by how far it is from its own bucket's.
    found = interval_of_mean(
        cluster_mean(y - means[place] + total, list(kept.prompts), (target / np.maximum(counts, 1))[place], kept.seeds)
    )
    found = within_bounds(found, 0.0, 1.0)
    return E.of(found).model_copy(update={"method": f"{found.method}, gold margins weighted to {name}"})


def correlation_with_length(
    pairs: PairMargins, rng: np.random.Generator, n_resamples: int = 200
) -> LengthCorrelation | None:
    """Rank correlation of each reward's margin with the difference in length, and the part beyond gold.

    Margins and lengths are differences within a prompt, so prompts with long answers do not come in.
    """
    if pairs.tokens is None:
        return None
    columns = {"x": pairs.implicit, "y": pairs.explicit, "length": pairs.tokens}
    if pairs.gold is not None:
        columns["gold"] = pairs.gold
    found = length_correlations(columns, list(pairs.prompts), rng, seeds=pairs.seeds, n_resamples=n_resamples)
    return LengthCorrelation(
        implicit=E.of(found["x"]),
        explicit=E.of(found["y"]),
        gold=E.of(found["gold"]) if "gold" in found else None,
        implicit_given_gold=E.of(found["x given gold"]) if "gold" in found else None,
        explicit_given_gold=E.of(found["y given gold"]) if "gold" in found else None,
    )


def per_token(pairs: PairMargins, rng: np.random.Generator, n_resamples: int = 200) -> PerToken | None:
    """The implicit reward per token against the explicit one: is agreement, or its lack, the length of the sum?"""
    if pairs.per_token is None or pairs.tokens is None:
        return None
    keep = ~np.isnan(pairs.per_token) & ~np.isnan(pairs.tokens)
    kept = pairs.where(keep)
    assert kept.per_token is not None
    assert kept.tokens is not None

    def share(values: Array) -> E:
        return E.of(mean_by_cluster(values, list(pairs.prompts), None, pairs.seeds, proportion=True))

    def statistic(rows: Rows, weights: Array) -> Array:
        return spearman_of_margins(rows["x"], rows["y"], weights)

    length: Estimate = bootstrap_bca_by_cluster(
        statistic, {"x": kept.per_token, "y": kept.tokens}, list(kept.prompts), rng, n_resamples, seeds=kept.seeds,
        n_unscored=int((~keep).sum()), bounds=(-1.0, 1.0),
    )  # fmt: skip
    truth = pairs.truth
    return PerToken(
        agreement=share(ordered_like(pairs.per_token, pairs.explicit)),
        implicit_accuracy=None if truth is None else share(ordered_like(pairs.per_token, truth)),
        length=E.of(length),
    )
