"""The arms as each annotator sees them: expectations against drawn labels, and a minority of another taste."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.data.annotators import DEFAULT_ANNOTATORS, Annotator, label_pairs
from workbench.metrics.annotator_wins import (
    expected_wins,
    labels_against_majority,
    leave_one_out,
    minority_of,
    p_prefers,
)


def test_expected_wins_are_what_drawn_labels_come_to() -> None:
    rng = np.random.default_rng(0)
    gold_a, gold_b = rng.normal(0.8, 1, 4), rng.normal(0, 1, 4)
    words_a, words_b = rng.integers(10, 40, 4).astype(float), rng.integers(10, 40, 4).astype(float)
    expected = expected_wins(DEFAULT_ANNOTATORS, (gold_a, words_a), (gold_b, words_b))
    pairs = [(i, j) for i in range(4) for j in range(4)] * 2500
    i, j = (np.array(side) for side in zip(*pairs, strict=True))
    for annotator, rate in zip(DEFAULT_ANNOTATORS, expected, strict=True):
        labels = label_pairs(gold_a[i], gold_b[j], words_a[i], words_b[j], [annotator], 1, rng)
        assert labels.prefers_a.mean() == pytest.approx(rate, abs=0.01)


def test_order_does_not_help_anybody() -> None:
    shown_first = Annotator(name="first", position_bias=2.0)
    assert p_prefers(shown_first, np.array([0.0]), np.array([0.0]))[0] == pytest.approx(0.5)
    gap = np.array([0.7])
    assert p_prefers(shown_first, gap, gap)[0] + p_prefers(shown_first, -gap, -gap)[0] == pytest.approx(1)


def test_weights_pick_and_unscored_is_left_out() -> None:
    one = [Annotator(name="exact", temperature=0.01)]
    a = (np.array([5.0, -5.0, math.nan]), np.zeros(3))
    b = (np.array([0.0]), np.zeros(1))
    assert expected_wins(one, a, b)[0] == pytest.approx(0.5)
    assert expected_wins(one, a, b, np.array([0.9, 0.1, 0.0]))[0] == pytest.approx(0.9)
    assert math.isnan(expected_wins(one, (np.array([math.nan]), np.zeros(1)), b)[0])


def test_leave_one_out_against_drawn_votes() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.9, size=(1, 5))
    votes = rng.random((200_000, 5)) < p
    found = leave_one_out(p)[0]
    for one in range(5):
        others = np.delete(votes, one, axis=1).sum(axis=1) * 2 - 4
        agreed = np.where(others == 0, 0.5, (others > 0) == votes[:, one])
        assert agreed.mean() == pytest.approx(found[one], abs=0.005)
    assert np.isnan(leave_one_out(np.array([[0.7]]))).all()


def test_labels_against_the_others() -> None:
    assert labels_against_majority({"a": True}) == {}
    assert labels_against_majority({"a": True, "b": False}) == {"a": 0.0, "b": 0.0}
    # For a, b and c split; for c, both others say the opposite.
    assert labels_against_majority({"a": True, "b": True, "c": False}) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_the_minority_is_who_agrees_least() -> None:
    assert minority_of({"a": 0.8, "b": 0.6, "c": 0.7}) == ["b"]
    assert minority_of({str(i): i / 20 for i in range(10)}) == ["0", "1"]
    assert minority_of({"a": 0.8, "b": 0.6}) == []
    assert minority_of({"a": 0.8, "b": 0.6, "c": None}) == []


def test_a_minority_that_wants_short_answers_is_lost_by_a_long_winded_arm() -> None:
    """Four like length, one does not; the arm is longer and no better."""
    rng = np.random.default_rng(2)
    people = [Annotator(name=f"long-{i}", length_bias=0.5) for i in range(4)] + [
        Annotator(name="terse", length_bias=-0.5)
    ]
    gold, words = rng.normal(0, 1, 300), rng.normal(20, 3, 300)
    rates = expected_wins(people, (gold, words + 10), (gold, words))
    assert rates[:4].min() > 0.6
    assert rates[4] < 0.4
    gaps = rng.normal(0, 1, 500), rng.normal(0, 10, 500)
    agreed = leave_one_out(np.stack([p_prefers(one, *gaps) for one in people], axis=1)).mean(axis=0)
    assert minority_of(dict(zip([one.name for one in people], agreed.tolist(), strict=True))) == ["terse"]
