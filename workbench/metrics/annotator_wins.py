"""What each annotator would say of two arms, and which annotators the majority leaves out.

A mean over annotators hides an arm that pleases most of them and loses the rest. With simulated annotators the
preference probabilities are known, so the expected win rate needs no draw of labels: it is the annotator's own
probability, averaged over both orders in which a pair can be shown.

The minority are the annotators who agree least with the majority of the others (leave-one-out): the least agreeing
fifth, at least one. Low agreement may be another taste or more noise; the annotators' parameters tell which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from workbench.data.annotators import Annotator
from workbench.metrics.estimates import Array

MINORITY_SHARE = 5
FEWEST = 3


def p_prefers(annotator: Annotator, gold_delta: Array, words_delta: Array) -> Array:
    """Probability that the annotator prefers a to b, averaged over which is shown first.

    Args:
        annotator: Who.
        gold_delta, words_delta: Gold and words of a less those of b, any shape.
    """
    return (annotator.p_first(gold_delta, words_delta) + 1 - annotator.p_first(-gold_delta, -words_delta)) / 2


def expected_wins(
    annotators: Sequence[Annotator],
    a: tuple[Array, Array],
    b: tuple[Array, Array],
    a_weights: Array | None = None,
    b_weights: Array | None = None,
) -> Array:
    """Chance that a response of `a` is preferred to one of `b`, for each annotator.

    Args:
        annotators: (J,).
        a, b: (gold, words) of the responses to one prompt, (k,) and (m,); a gold of NaN is unscored.
        a_weights, b_weights: Probability of each response; None = equal.

    Returns:
        (J,), NaN where either arm has no scored response.
    """
    (gold, words, weights), (other_gold, other_words, other) = _scored(*a, a_weights), _scored(*b, b_weights)
    if weights.sum() <= 0 or other.sum() <= 0:
        return np.full(len(annotators), math.nan)
    gap, longer = gold[:, None] - other_gold, words[:, None] - other_words
    total = weights.sum() * other.sum()
    return np.array([float(weights @ p_prefers(one, gap, longer) @ other) / total for one in annotators])


def _scored(gold: Array, words: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    keep = ~np.isnan(gold)
    if weights is not None:
        keep &= weights > 0
    return gold[keep], words[keep], np.ones(int(keep.sum())) if weights is None else weights[keep]


def leave_one_out(p_chosen: Array) -> Array:
    """Chance that each annotator and the majority of the others prefer the same response; a tied vote counts half.

    Args:
        p_chosen: (N, J) probability that annotator j prefers the first response of pair i; labels are independent
            given the pair.

    Returns:
        (N, J); NaN with fewer than two annotators.
    """
    pairs, people = p_chosen.shape
    if people < 2:
        return np.full(p_chosen.shape, math.nan)
    found = np.empty_like(p_chosen)
    for one in range(people):
        votes = np.zeros((pairs, people))  # chance of each number of votes among the others
        votes[:, 0] = 1
        for other in range(people):
            if other != one:
                p = p_chosen[:, other, None]
                votes[:, 1:] = votes[:, 1:] * (1 - p) + votes[:, :-1] * p
                votes[:, :1] *= 1 - p
        count = np.arange(people)
        majority = votes @ np.where(2 * count > people - 1, 1.0, np.where(2 * count == people - 1, 0.5, 0.0))
        mine = p_chosen[:, one]
        found[:, one] = mine * majority + (1 - mine) * (1 - majority)
    return found


def labels_against_majority(labels: Mapping[str, bool]) -> dict[str, float]:
    """Whether each annotator of one pair agrees with the majority of its others: 1, 0, a tied vote 0.5.

    Args:
        labels: annotator -> prefers the first response; empty result for a single label.
    """
    if len(labels) < 2:
        return {}
    votes = sum(1 if label else -1 for label in labels.values())
    found = {}
    for name, label in labels.items():
        others = votes - (1 if label else -1)
        found[name] = 0.5 if others == 0 else float((others > 0) == label)
    return found


def minority_of(agreement: Mapping[str, float | None]) -> list[str]:
    """The annotators who agree least with the others: the least agreeing fifth, at least one; none of fewer than three.

    Args:
        agreement: annotator -> leave-one-out agreement; None where nothing of theirs can be compared.
    """
    known = sorted((value, name) for name, value in agreement.items() if value is not None and not math.isnan(value))
    if len(known) < FEWEST:
        return []
    return [name for _, name in known[: max(1, len(known) // MINORITY_SHARE)]]
