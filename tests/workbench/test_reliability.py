"""Agreement beyond chance and reliability, against published worked examples, another implementation and simulation."""

from __future__ import annotations

import itertools

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from workbench.metrics import dawid_skene, kappa, krippendorff
from workbench.metrics.estimates import Array
from workbench.metrics.rank_correlation import spearman

NONE = np.nan
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", data C: four observers, twelve units.
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)
# Fleiss 1971 as it is commonly reproduced: ten subjects, five categories, fourteen raters; kappa 0.210.
FLEISS = np.array(
    [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
     [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]], dtype=float,
)  # fmt: skip


def alpha_of(table: Array, level: krippendorff.Level) -> float:
    """Alpha of a matrix of observers and units."""
    who, unit = np.nonzero(~np.isnan(table))
    counts, values = krippendorff.unit_counts(unit, table[who, unit], table.shape[1])
    return float(krippendorff.alpha(krippendorff.coincidences(counts).sum(axis=0)[None], values, level)[0])


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: krippendorff.Level, published: float) -> None:
    assert alpha_of(EXAMPLE, level) == pytest.approx(published, abs=5e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(3, 12), st.integers(2, 5))
def test_alpha_is_what_another_implementation_gives(seed: int, people: int, units: int, grades: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, grades, (people, units)).astype(float)
    table[rng.random(table.shape) < 0.2] = np.nan
    table[:, 0] = [0, 1, *[np.nan] * (people - 2)]  # something disagrees
    for level in ("nominal", "ordinal", "interval"):
        theirs = evalica.alpha(pd.DataFrame(table), distance=level).alpha
        assert alpha_of(table, level) == pytest.approx(theirs, abs=1e-9)


def test_interval_alpha_from_moments_is_the_same() -> None:
    who, unit = np.nonzero(~np.isnan(EXAMPLE))
    moments = krippendorff.interval_moments(unit, EXAMPLE[who, unit], EXAMPLE.shape[1])
    assert krippendorff.alpha_of_moments(moments.sum(axis=0)[None])[0] == pytest.approx(alpha_of(EXAMPLE, "interval"))


def test_mirrored_alpha_does_not_depend_on_which_response_is_called_first() -> None:
    """Turning every pair so that the majority wins leaves mirrored alpha as it is, and ruins the plain one."""
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    votes = np.where(rng.random((400, 3)) < 0.8, truth[:, None], ~truth[:, None])
    majority = votes.sum(axis=1) >= 2
    found = {}
    for name, table in (("random", votes), ("turned", votes == majority[:, None])):
        first = table.sum(axis=1)
        o = krippendorff.coincidences(np.stack([3 - first, first], axis=1).astype(float)).sum(axis=0)[None]
        for mirrored in (False, True):
            found[name, mirrored] = float(krippendorff.alpha(o, np.arange(2.0), "nominal", mirrored=mirrored)[0])
    assert found["random", True] == pytest.approx(found["turned", True], abs=1e-12)
    assert found["random", False] == pytest.approx(found["random", True], abs=0.01)
    assert found["turned", False] < found["random", True] - 0.2
    agreement = np.mean([votes[:, a] == votes[:, b] for a, b in itertools.combinations(range(3), 2)])
    assert found["random", True] == pytest.approx(2 * agreement - 1, abs=2e-3)


def test_fleiss_kappa_of_the_published_example() -> None:
    assert kappa.fleiss_kappa(FLEISS, np.ones((1, 10)))[0] == pytest.approx(0.210, abs=5e-4)
    alone = np.vstack([FLEISS, [[1, 0, 0, 0, 0]]])  # a single label says nothing of agreement
    assert kappa.fleiss_kappa(alone, np.ones((1, 11)))[0] == pytest.approx(0.210, abs=5e-4)
    assert np.isnan(kappa.fleiss_kappa(alone[10:], np.ones((1, 1)))[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_cohen_kappa_and_spearman_are_what_others_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([0.0, 0.5, 1.0], 60)
    y = np.where(rng.random(60) < 0.5, x, rng.choice([0.0, 0.5, 1.0], 60))
    weights = rng.integers(0, 3, (2, 60)).astype(float)
    one, other = kappa.categories(x), kappa.categories(y)
    for row, count in enumerate(weights.astype(int)):
        a, b = np.repeat(x, count), np.repeat(y, count)
        theirs = cohen_kappa_score((2 * a).astype(int), (2 * b).astype(int))
        assert kappa.cohen_kappa(one, other, weights)[row] == pytest.approx(theirs)
        assert spearman(x, y, weights)[row] == pytest.approx(stats.spearmanr(a, b).statistic)


def test_mirrored_kappa_is_twice_the_agreement_less_one() -> None:
    x = kappa.categories(np.array([1.0, 1, 1, 1, 0, 1, 1, 1]))
    y = kappa.categories(np.array([1.0, 1, 1, 0, 0, 1, 1, 0]))
    found = kappa.cohen_kappa(x, y, np.ones((1, 8)), mirrored=True)[0]
    assert found == pytest.approx(2 * 6 / 8 - 1)


def simulated(accuracies: list[float], units: int, seed: int, share: float = 1.0) -> tuple[dawid_skene.Votes, Array]:
    """Labels of annotators who are right with known chances, on random truths; and the truths."""
    rng = np.random.default_rng(seed)
    truth = rng.random(units) < 0.5
    right = rng.random((units, len(accuracies))) < np.array(accuracies)
    labels = np.where(right, truth[:, None], ~truth[:, None]).astype(float)
    unit, who = np.nonzero(rng.random(labels.shape) < share)
    return dawid_skene.Votes.of(unit, who, labels[unit, who], labels.shape), truth


@pytest.mark.parametrize("mirrored", [False, True])
def test_dawid_skene_finds_known_accuracies(mirrored: bool) -> None:
    accuracies = [0.95, 0.85, 0.75, 0.6, 0.5]
    votes, truth = simulated(accuracies, 4000, 0)
    found = dawid_skene.fit(votes, np.ones((1, 4000)), mirrored=mirrored)
    assert found.accuracy[0] == pytest.approx(accuracies, abs=0.03)
    assert np.mean((found.posterior > 0.5) == truth) > 0.95
    # The posterior is calibrated: of pairs that are right with p, about p are.
    sure = np.maximum(found.posterior, 1 - found.posterior)
    for low, high in ((0.6, 0.9), (0.9, 0.99)):
        inside = (sure >= low) & (sure < high)
        assert np.mean(((found.posterior > 0.5) == truth)[inside]) == pytest.approx(sure[inside].mean(), abs=0.05)


def test_dawid_skene_beats_the_majority_where_annotators_differ_and_takes_missing_labels() -> None:
    votes, truth = simulated([0.95, 0.6, 0.55, 0.55, 0.55], 4000, 1, share=0.9)
    found = dawid_skene.fit(votes, np.ones((1, 4000)), mirrored=True)
    first, second = (np.asarray(side.sum(axis=1)).ravel() for side in (votes.first, votes.second))
    majority = np.where(first == second, 0.5, (first > second) == truth).mean()
    assert np.mean((found.posterior > 0.5) == truth) > majority + 0.1


def test_dawid_skene_with_weights_is_the_fit_of_repeated_units() -> None:
    votes, _ = simulated([0.9, 0.8, 0.7], 60, 2)
    count = np.random.default_rng(3).integers(0, 3, 60)
    weighted = dawid_skene.fit(votes, count[None].astype(float), mirrored=True)
    where = np.repeat(np.arange(60), count)
    repeated = dawid_skene.Votes(votes.first[where], votes.second[where])
    whole = dawid_skene.fit(repeated, np.ones((1, len(where))), mirrored=True)
    assert weighted.accuracy == pytest.approx(whole.accuracy, abs=1e-5)


def test_mirrored_dawid_skene_does_not_depend_on_the_orientation() -> None:
    votes, _ = simulated([0.9, 0.8, 0.7, 0.6], 300, 4)
    turn = np.random.default_rng(5).random(300) < 0.5
    first, second = votes.first.toarray(), votes.second.toarray()
    turned = dawid_skene.Votes(
        *(type(votes.first)(np.where(turn[:, None], a, b)) for a, b in ((second, first), (first, second)))
    )
    one, other = (dawid_skene.fit(each, np.ones((1, 300)), mirrored=True) for each in (votes, turned))
    assert one.accuracy == pytest.approx(other.accuracy, abs=1e-6)
    assert np.where(turn, 1 - one.posterior, one.posterior) == pytest.approx(other.posterior, abs=1e-5)
