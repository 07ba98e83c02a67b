"""Best-of-n from one pool of candidates: exact order-statistic weights, the KL bound, and plain samples.

Drawing n of a pool of N without replacement and keeping the best picks the candidate of rank r (1 = worst) with
probability C(r - 1, n - 1) / C(N, n). Averaging with these weights uses the whole pool; the naive maximum of the
first n candidates throws most of it away.

Source: Nakano et al. 2021 (WebGPT) and Gao et al. 2022 for the estimator; Stiennon et al. 2020, G.3, for the bound;
Beirami et al. 2024, https://arxiv.org/abs/2401.01879, theorem 3.1: it is one, and exact without atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from workbench.metrics.estimates import Array, Index, Values, as_values


def best_of_n_weights(proxy: Values, n: int) -> Array:
    """Probability of each candidate to be the best of n drawn without replacement from the pool.

    Candidates with equal scores share their ranks' probability equally, as with ties broken at random.

    Args:
        proxy: (N,) selecting score of each candidate.
        n: Candidates drawn, 1 <= n <= N.

    Returns:
        (N,) weights that sum to 1.

    Raises:
        ValueError: n is out of range, or a candidate has no score: it could have been the best.
    """
    scores = _checked(proxy, n)
    size = len(scores)
    by_rank = _by_rank(size, n)
    order = np.argsort(scores, kind="stable")
    ranked, weights = scores[order], np.empty(size)
    if (ranked[1:] > ranked[:-1]).all():  # the rule, and four times as fast
        weights[order] = by_rank
        return weights
    _, tied, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    weights[order] = (np.bincount(tied, weights=by_rank) / counts)[tied]
    return weights


@lru_cache(maxsize=256)
def _by_rank(size: int, n: int) -> Array:
    """(N,) weights of the ranks from worst to best; not to be written to."""
    by_rank = np.zeros(size)
    by_rank[-1] = weight = n / size
    # C(r - 2, n - 1) / C(r - 1, n - 1) = (r - n) / (r - 1): no factorial is ever formed.
    for rank in range(size, n, -1):
        weight *= (rank - n) / (rank - 1)
        by_rank[rank - 2] = weight
    by_rank.flags.writeable = False
    return by_rank


def best_of_n_value(proxy: Values, gold: Values, n: int) -> float:
    """Expected gold (or any other value) of the candidate that the proxy picks among n.

    Args:
        proxy: (N,) selecting score.
        gold: (N,) value of the same candidates in the same order; None or NaN = unscored.
        n: Candidates drawn.

    Returns:
        sum(weights * gold), NaN ("unscored") when a candidate that can be picked has no value.
    """
    weights, values = best_of_n_weights(proxy, n), as_values(gold)
    if len(values) != len(weights):
        raise ValueError(f"{len(weights)} proxy scores but {len(values)} values: they must be the same candidates")
    possible = weights > 0
    return float(weights[possible] @ values[possible])


def bound_kl(n: int) -> float:
    """log n - (n - 1) / n: upper bound, in nats, on KL(best-of-n || the policy sampled from). Not an estimate."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def bound_slack(sizes: Sequence[int], scores: Array, logprobs: Array) -> Array:
    """Estimate of how far log n - (n - 1)/n lies above best-of-n's KL at one prompt, in nats.

    Texts that tie in score, and a text that the policy writes again and again, form an atom of the score's
    distribution: mass m below which F lies. Best-of-n spreads what falls on it evenly, so its part of the KL is
    g log g for the mean g of n u^(n-1) over the atom in place of the mean of n u^(n-1) log(n u^(n-1)): less, by
    Jensen's inequality. The mean over the pool of that difference, each text with the atom that it belongs to, is its
    integral over the whole distribution.

    Args:
        sizes: (K,) candidates drawn, n.
        scores: (N,) selecting scores of the pool.
        logprobs: (N,) log-probability of each text under the policy that drew it.

    Returns:
        (K,) nats, 0 at n = 1.
    """
    size = len(scores)
    nothing = np.zeros(len(sizes))
    if size < 2:
        return nothing
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores, side="left")
    ties = np.searchsorted(ordered, scores, side="right") - below
    _, same, copies = np.unique(np.stack([scores, logprobs]), axis=1, return_inverse=True, return_counts=True)
    # A text's own mass is known; what else has its score is counted. Copies of it are one text by both numbers.
    mass = np.clip(np.exp(logprobs) + (ties - copies[same.ravel()]) / (size - 1), 0.0, 1.0)
    low = np.minimum(below / (size - 1), 1.0 - mass)
    high = low + mass
    real = mass > 1e-9  # below it the difference is of the order of mass squared
    if not real.any():
        return nothing
    low, high, mass = low[real], high[real], mass[real]
    n = np.array(sizes, dtype=np.float64)[:, None]

    def integral(u: Array) -> Array:  # of n u^(n-1) log(n u^(n-1))
        safe = np.maximum(u, 1e-300)
        return np.asarray(np.where(u > 0, u**n * (np.log(n) + (n - 1) * np.log(safe) - (n - 1) / n), 0.0))

    gained = high**n - low**n
    mean = gained / mass
    lost = (integral(high) - integral(low)) / mass - mean * np.log(np.maximum(mean, 1e-300))
    found: Array = np.minimum(np.maximum(lost, 0.0).sum(axis=1) / size, [bound_kl(one) for one in sizes])
    return found


def best_of_n_samples(proxy: Values, n: int, k: int, rng: np.random.Generator) -> Index:
    """k independent answers of the best-of-n policy: the best of each of k disjoint random blocks of n candidates.

    Args:
        proxy: (N,) selecting score, N >= k n.
        n: Candidates a block.
        k: Answers.
        rng: Seeded generator; it also breaks ties.

    Returns:
        (k,) indices into the pool, all different.
    """
    scores = _checked(proxy, n)
    if k < 1 or k * n > len(scores):
        raise ValueError(f"{k} blocks of {n} need a pool of {k * n} candidates, got {len(scores)}")
    blocks = rng.permutation(len(scores))[: k * n].reshape(k, n)  # a random order: the first of equals is a random one
    best = np.argmax(scores[blocks], axis=1)
    chosen: Index = blocks[np.arange(k), best].astype(np.int64)
    return chosen


def _checked(proxy: Values, n: int) -> Array:
    scores = as_values(proxy)
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} candidate(s) have no selecting score; score them or drop the pool"
        )
    if not 1 <= n <= len(scores):
        raise ValueError(f"best of {n} needs between 1 and {len(scores)} candidates (the pool)")
    return scores
