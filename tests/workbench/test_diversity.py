"""Diversity: each measure against arithmetic by hand, at equal size, with variances that hold up in simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from workbench.metrics.diversity import (
    distinct,
    entropy_per_token,
    gram_totals,
    rarefied,
    self_bleu,
    similarity,
)
from workbench.metrics.estimates import mean_by_cluster


def test_rarefied_is_the_mean_over_every_draw() -> None:
    kinds = [0, 0, 0, 1, 1, 2]
    for size in range(1, 7):
        every = [len(set(draw)) / size for draw in itertools.combinations(kinds, size)]
        assert rarefied(np.array([3.0, 2.0, 1.0]), size) == pytest.approx(sum(every) / len(every))


def test_distinct_does_not_fall_because_an_arm_says_more() -> None:
    rng = np.random.default_rng(0)
    short = {str(p): [rng.integers(30, size=10).tolist() for _ in range(4)] for p in range(200)}
    long = {str(p): [rng.integers(30, size=30).tolist() for _ in range(4)] for p in range(200)}
    size = {prompt: min(gram_totals(short, 1)[prompt], gram_totals(long, 1)[prompt]) for prompt in short}
    at_equal = [np.mean(list(distinct(one, 1, size).values())) for one in (short, long)]
    naive = [np.mean(list(distinct(one, 1, gram_totals(one, 1)).values())) for one in (short, long)]
    assert at_equal[0] == pytest.approx(at_equal[1], abs=0.01)
    assert naive[0] > naive[1] + 0.2


def test_no_gram_spans_two_samples() -> None:
    assert gram_totals({"p": [[1, 2], [3], []]}, 2) == {"p": 1}
    assert distinct({"p": [[1, 2], [1, 2]]}, 2, {"p": 2}) == {"p": 0.5}
    assert math.isnan(distinct({"p": [[1]]}, 2, {"p": 0})["p"])


def test_self_bleu_is_one_for_copies_and_low_for_strangers() -> None:
    same, other = [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]
    assert self_bleu({"p": [same, same, same]})["p"] == pytest.approx(1)
    assert self_bleu({"p": [same, other]})["p"] < 0.15
    assert math.isnan(self_bleu({"p": [same]})["p"])
    assert self_bleu({"p": [[], []]})["p"] == 1


def test_self_bleu_by_hand() -> None:
    # Precisions of [1 2 3 4 5] against [1 2 3 9 9]: 3/5, 2/4, 1/3, 0 -> half a match of 2.
    by_hand = (3 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25
    assert self_bleu({"p": [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]]})["p"] == pytest.approx(by_hand)


def test_similarity_tells_within_from_between() -> None:
    within, between = similarity({"a": [[1, 2, 3], [1, 2, 3]], "b": [[7, 8, 9], [7, 8, 9]]})
    assert within == {"a": 1.0, "b": 1.0}
    assert np.mean(list(between.values())) == 0
    # Everything answered alike: both are 1.
    within, between = similarity({"a": [[1, 2], [1, 2]], "b": [[1, 2], [1, 2]]})
    assert np.mean(list(within.values())) == np.mean(list(between.values())) == 1
    # Bigrams with both ends: {^1, 12, 2$} and {^1, 13, 3$} share one of five.
    within, _ = similarity({"a": [[1, 2], [1, 3]]})
    assert within["a"] == pytest.approx(1 / 5)
    assert math.isnan(similarity({"a": [[1, 2], [1, 3]]})[1]["a"])


def test_between_prompts_the_interval_carries_both_prompts() -> None:
    """A prompt's mean over others, taken as it is, would halve the standard error."""
    rng = np.random.default_rng(1)
    found, errors = [], []
    for _ in range(300):
        # Each prompt has its own share of a common vocabulary: some are alike, some are not.
        texts = {}
        for prompt in range(12):
            words = rng.integers(6 if rng.random() < 0.5 else 60, size=(1, 8))
            texts[str(prompt)] = [words[0].tolist()]
        values = similarity(texts)[1]
        told = mean_by_cluster(list(values.values()), list(values))
        found.append(told.value)
        errors.append(told.prompt_se)
    spread = float(np.std([one for one in found if one is not None]))
    assert 0.75 < float(np.mean([one for one in errors if one is not None])) / spread < 1.3


def test_entropy_is_the_rate_of_all_tokens() -> None:
    tokens = {"a": np.array([1.0, 3.0]), "b": np.array([6.0, 10.0])}
    values = entropy_per_token({"a": [-1.0, -2.0], "b": [-3.0, -14.0]}, tokens)
    assert np.mean(list(values.values())) == pytest.approx(20 / 20)
    assert set(entropy_per_token({"a": [0.0]}, {"a": np.array([0.0])}).values()) != {0.0}


def test_entropy_of_a_known_policy() -> None:
    """Tokens are drawn from a distribution whose entropy is known, until a stop token comes."""
    p = np.array([0.5, 0.2, 0.2, 0.1])
    rng = np.random.default_rng(2)
    logprobs: dict[str, list[float]] = {}
    tokens: dict[str, np.ndarray] = {}
    for prompt in range(400):
        lengths = rng.geometric(p[3], size=4)
        draws = [[*rng.choice(3, size=length - 1, p=p[:3] / 0.9), 3] for length in lengths]
        logprobs[str(prompt)] = [float(np.log(p[one]).sum()) for one in draws]
        tokens[str(prompt)] = lengths.astype(float)
    values = entropy_per_token(logprobs, tokens)
    told = mean_by_cluster(list(values.values()), list(values))
    assert told.low is not None
    assert told.high is not None
    assert told.low < -(p * np.log(p)).sum() < told.high
    assert told.high - told.low < 0.1
