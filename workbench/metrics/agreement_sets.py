"""Everything about one set of pairs that needs nothing but the set: labelled pairs, or samples of the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.metrics.agreement import agreement_on_pairs, agreement_on_samples
from workbench.metrics.agreement_parts import bucketed, correlation_with_length, per_token, quantile_edges
from workbench.metrics.calibration_of_pairs import Temperature, calibration_of_pairs
from workbench.metrics.estimates import Array, Values
from workbench.metrics.pair_margins import PairMargins, pairs_of_samples
from workbench.results_agreement import Agreement, Bucket

TERCILES = 3


def agreement_of_pairs(
    pairs: PairMargins, rng: np.random.Generator, temperatures: Mapping[str, Temperature] | None = None
) -> Agreement:
    """Labelled pairs: agreement, accuracies, calibration against the given labels, and what stands behind them."""
    assert pairs.truth is not None
    found = agreement_on_pairs(
        pairs.implicit, pairs.explicit, list(pairs.prompts), rng, labels=pairs.truth, seeds=pairs.seeds
    )
    labels = (1 + np.sign(pairs.truth)) / 2
    cooled = None if temperatures is None else dict(temperatures)
    calibration = calibration_of_pairs(pairs, labels, "given", rng, cooled)
    return found.model_copy(update=details(pairs, rng) | {"calibration": calibration})


def agreement_of_samples(
    implicit: Values,
    explicit: Values,
    prompts: Sequence[Any],
    rng: np.random.Generator,
    *,
    tokens: Values,
    kl: Values | None = None,
) -> Agreement:
    """All pairs of samples of the same prompt, without a truth: agreement, rank correlations, buckets.

    Args:
        implicit, explicit: (N,) rewards, nats.
        prompts: (N,) prompt of each sample.
        tokens: (N,) length of each response.
        kl: (N,) log-ratio of each response, nats; only for the policy's own samples, whose mean it makes a KL.
    """
    found = agreement_on_samples(implicit, explicit, prompts, rng)
    pairs = pairs_of_samples(implicit, explicit, prompts, tokens=tokens, kl=kl)
    return found.model_copy(update=details(pairs, rng))


def details(pairs: PairMargins, rng: np.random.Generator) -> dict[str, Any]:
    """Fields of `Agreement` that any set has: what the accuracies are against, buckets, length, per token."""
    return {
        "truth": pairs.truth_kind,
        "by_kl": terciles(pairs, pairs.mean_kl),
        "by_length": terciles(pairs, pairs.mean_tokens),
        "length": correlation_with_length(pairs, rng),
        "per_token": per_token(pairs, rng),
    }


def terciles(pairs: PairMargins, by: Array | None) -> list[Bucket]:
    """Thirds of the set's own pairs; none where all are equal, as the reference's log-ratios to itself are."""
    return [] if by is None or np.ptp(by) < 1e-9 else bucketed(pairs, by, quantile_edges(by, TERCILES))
