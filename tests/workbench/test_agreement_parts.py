"""Paired accuracies, the chance line, closeness, length, calibration slope and temperature, differences of sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from workbench.data.annotators import Annotator
from workbench.data.fresh import fresh_labels
from workbench.measure_disagreements import largest_disagreements, shown
from workbench.measure_shifts import verdict
from workbench.metrics.agreement import accuracy_difference, agreement_on_pairs, agreement_on_samples
from workbench.metrics.agreement_parts import (
    bucketed,
    correlation_with_length,
    per_token,
    quantile_edges,
    standardized,
)
from workbench.metrics.agreement_sets import agreement_of_samples
from workbench.metrics.calibration_of_pairs import calibration_of_pairs, fitted_temperatures
from workbench.metrics.calibration_slope import calibration_slope, fitted_slope, temperature_of
from workbench.metrics.contrast import Sample, difference_of_means
from workbench.metrics.pair_margins import PairMargins, pairs_of_samples
from workbench.types import Estimate


def pair_world(n: int = 600, seed: int = 0, near: float = 1.0, lengthy: float = 0.0) -> PairMargins:
    """Pairs whose gold margin has scale `near`; both rewards see gold through noise of their own."""
    rng = np.random.default_rng(seed)
    gold, tokens = near * rng.normal(size=n), np.round(rng.normal(0, 5, size=n))
    implicit, explicit = (gold + rng.normal(size=n) + lengthy * tokens for _ in range(2))
    return PairMargins(
        implicit=implicit, explicit=explicit, prompts=list(range(n)), truth=gold, truth_kind="gold", gold=gold,
        tokens=tokens, mean_tokens=np.abs(tokens) + 10, per_token=implicit / 10,
    )  # fmt: skip


# --- the difference of accuracies, and chance --------------------------------------------------------------------


def test_accuracy_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    truth = np.ones(400)
    common = np.where(rng.random(400) < 0.7, 1.0, -1.0)
    better = np.where(rng.random(400) < 0.1, 1.0, common)  # right where the other is, and a little oftener
    found = accuracy_difference(common, better, truth, range(400))
    assert found.value == pytest.approx((better > 0).mean() - (common > 0).mean())
    alone = agreement_on_pairs(common, better, range(400), rng, labels=truth)
    assert alone.implicit_accuracy is not None
    assert alone.accuracy_difference == found
    width = (found.high or 0) - (found.low or 0)
    assert width < 0.5 * ((alone.implicit_accuracy.high or 0) - (alone.implicit_accuracy.low or 0))


def test_accuracy_difference_of_one_reward_with_itself_has_no_interval() -> None:
    margins = np.random.default_rng(0).normal(size=50)
    found = accuracy_difference(margins, margins, np.ones(50), range(50))
    assert (found.value, found.low, found.high) == (0, None, None)
    assert "no variance" in found.method


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 1.0])] * 3), min_size=2, max_size=12))
def test_swapping_the_rewards_turns_the_difference_round(rows: list[tuple[float, float, float]]) -> None:
    x, y, truth = (np.array(column) for column in zip(*rows, strict=True))
    one, other = accuracy_difference(x, y, truth, range(len(x))), accuracy_difference(y, x, truth, range(len(x)))
    assert one.value == pytest.approx(-(other.value or 0))
    assert -1 <= (one.value or 0) <= 1
    if one.low is not None:
        assert other.high == pytest.approx(-one.low)
        assert one.low >= -1


def test_chance_is_what_independent_errors_agree_on() -> None:
    rng = np.random.default_rng(0)
    x, y = (np.where(rng.random(4000) < share, 1.0, -1.0) for share in (0.8, 0.7))
    found = agreement_on_pairs(x, y, range(4000), rng, labels=np.ones(4000))
    a, b = (x > 0).mean(), (y > 0).mean()
    assert found.chance is not None
    assert found.chance.value == pytest.approx(a * b + (1 - a) * (1 - b))
    assert (found.chance.low or 1) < (found.agreement.value or 0) < (found.chance.high or 0) + 0.02
    assert agreement_on_pairs(x, y, range(4000), rng, n_resamples=10).chance is None


def test_always_right_scorers_have_a_chance_line_and_no_kappa() -> None:
    margins = np.random.default_rng(0).random(50) + 0.1
    found = agreement_on_pairs(margins, margins, range(50), np.random.default_rng(0), labels=np.ones(50))
    assert found.kappa is None
    assert found.chance is not None
    assert found.chance.value == 1


# --- buckets and closeness --------------------------------------------------------------------------------------


def test_buckets_hold_every_pair_once_and_closer_pairs_are_harder() -> None:
    pairs = pair_world(1200)
    assert pairs.gold is not None
    gaps = np.abs(pairs.gold)
    found = bucketed(pairs, gaps, quantile_edges(gaps, 4))
    assert sum(bucket.pairs for bucket in found) == 1200
    assert [bucket.high for bucket in found[:-1]] == [bucket.low for bucket in found[1:]]
    accuracies = [bucket.implicit_accuracy.value for bucket in found if bucket.implicit_accuracy is not None]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] - accuracies[0] > 0.25


def test_many_pairs_of_few_prompts_are_refused() -> None:
    """Pairs of one prompt are one cluster."""
    pairs = pair_world(280)
    assert pairs.gold is not None
    edges = quantile_edges(np.abs(pairs.gold), 2)
    for prompts, told in ((7, False), (8, True)):
        few = replace(pairs, prompts=[row % prompts for row in range(280)])
        assert all((one.agreement.value is not None) == told for one in bucketed(few, np.abs(pairs.gold), edges))
        found = standardized(few, pairs, "all", buckets=2)
        assert found is not None
        assert (found.agreement.value is not None) == told
        assert told or "7 prompts" in found.agreement.method


def test_small_buckets_and_constant_values_are_refused() -> None:
    pairs = pair_world(30)
    assert pairs.gold is not None
    thin = bucketed(pairs, np.abs(pairs.gold), np.array([5.0]))
    assert thin[1].agreement.value is None
    assert "needs 20" in thin[1].agreement.method
    assert bucketed(pairs, np.zeros(30), quantile_edges(np.zeros(30), 3)) == []
    assert bucketed(pairs, None, np.array([1.0])) == []


def test_standardizing_undoes_closeness() -> None:
    """Near pairs ordered by the same rewards agree less; with the far pairs' gold margins they agree as much."""
    far, near = pair_world(4000, 0), pair_world(4000, 1, near=0.6)
    plain, target = (
        agreement_on_pairs(one.implicit, one.explicit, one.prompts, np.random.default_rng(0), n_resamples=10)
        for one in (near, far)
    )
    found = standardized(near, far, "far", buckets=8)
    assert found is not None
    assert (target.agreement.value or 0) - (plain.agreement.value or 0) > 0.05
    assert found.agreement.value == pytest.approx(target.agreement.value, abs=0.03)
    assert found.agreement.low is not None
    assert "weighted to far" in found.agreement.method


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_standardizing_to_itself_changes_nothing(seed: int) -> None:
    pairs = pair_world(200, seed)
    found = standardized(pairs, pairs, "itself")
    plain = agreement_on_pairs(
        pairs.implicit, pairs.explicit, pairs.prompts, np.random.default_rng(0), labels=pairs.truth, n_resamples=2
    )
    assert found is not None
    assert plain.implicit_accuracy is not None
    assert found.agreement.value == pytest.approx(plain.agreement.value)
    assert found.implicit_accuracy.value == pytest.approx(plain.implicit_accuracy.value)


def test_standardizing_without_overlap_is_refused() -> None:
    found = standardized(pair_world(300, 1, near=0.01), pair_world(300, 0), "far")
    assert found is not None
    assert found.agreement.value is None
    assert "as far apart" in found.agreement.method


# --- length ----------------------------------------------------------------------------------------------------


def test_length_correlations_are_scipys_over_both_orders() -> None:
    pairs = pair_world(400, lengthy=0.1)
    found = correlation_with_length(pairs, np.random.default_rng(0), n_resamples=50)
    assert found is not None
    assert pairs.tokens is not None
    assert pairs.gold is not None
    both = {n: np.r_[v, -v] for n, v in (("x", pairs.implicit), ("l", pairs.tokens), ("g", pairs.gold))}
    r = {a + b: stats.spearmanr(both[a], both[b]).statistic for a in "xg" for b in "lg"}
    assert found.implicit.value == pytest.approx(r["xl"])
    partial = (r["xl"] - r["xg"] * r["gl"]) / np.sqrt((1 - r["xg"] ** 2) * (1 - r["gl"] ** 2))
    assert found.implicit_given_gold is not None
    assert found.implicit_given_gold.value == pytest.approx(partial)
    assert (found.implicit_given_gold.low or 0) > 0.1  # length is in it beyond gold
    plain = correlation_with_length(pair_world(400), np.random.default_rng(0), n_resamples=50)
    assert plain is not None
    assert plain.implicit_given_gold is not None
    assert (plain.implicit_given_gold.low or 0) < 0 < (plain.implicit_given_gold.high or 0)


def test_per_token_rewards_are_divided_before_they_are_compared() -> None:
    implicit, tokens = [6.0, 4.0], [6.0, 2.0]  # the longer one wins in sum, the shorter one per token
    pairs = pairs_of_samples(implicit, [0.0, 1.0], ["p", "p"], tokens=tokens)
    assert pairs.per_token == pytest.approx([1.0 - 2.0])
    many = pairs_of_samples(implicit * 30, [0.0, 1.0] * 30, np.repeat(range(30), 2).tolist(), tokens=tokens * 30)
    found = per_token(many, np.random.default_rng(0), n_resamples=20)
    assert found is not None
    assert found.agreement.value == 1
    assert agreement_on_samples(implicit * 30, [0.0, 1.0] * 30, np.repeat(range(30), 2), np.random.default_rng(0),
                                n_resamples=20).agreement.value == 0  # fmt: skip


# --- calibration ------------------------------------------------------------------------------------------------


def labelled(slope: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins and labels with P(first) = sigmoid(slope margin)."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 1.5, size=n)
    return margins, (rng.random(n) < special.expit(slope * margins)).astype(float)


@pytest.mark.parametrize("slope", [0.4, 1.0, 2.0])
def test_slope_is_found_and_orientation_does_not_matter(slope: float) -> None:
    margins, labels = labelled(slope, 3000, 0)
    found = calibration_slope(margins, labels, range(3000))
    assert found.value == pytest.approx(slope, rel=0.12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < slope < found.high
    turned = np.random.default_rng(1).choice([-1.0, 1.0], size=3000)
    again = calibration_slope(turned * margins, (1 + turned * (2 * labels - 1)) / 2, range(3000))
    assert (again.value, again.low) == pytest.approx((found.value, found.low))


def test_slope_is_the_maximum_of_the_likelihood() -> None:
    margins, labels = labelled(0.8, 200, 3)
    slope = fitted_slope(margins, labels)
    assert slope is not None

    def loss(b: float) -> float:
        return float(-np.sum(special.log_expit(np.where(labels == 1, 1, -1) * b * margins)))

    assert loss(slope) < min(loss(slope * 1.01), loss(slope * 0.99))


def test_slope_of_clustered_pairs_is_wider_than_of_as_many_prompts() -> None:
    margins, labels = labelled(1.0, 300, 0)
    repeated = calibration_slope(np.repeat(margins, 4), np.repeat(labels, 4), np.repeat(range(300), 4))
    plain = calibration_slope(margins, labels, range(300))
    assert (repeated.value, repeated.low) == pytest.approx((plain.value, plain.low), rel=0.02)
    assert repeated.n == 300


def test_slope_is_the_mean_over_run_seeds() -> None:
    margins, labels = labelled(1.0, 800, 0)
    both = calibration_slope(
        np.r_[margins, 4 * margins], np.r_[labels, labels], [*range(800), *range(800)], [0] * 800 + [1] * 800
    )
    one = calibration_slope(margins, labels, range(800))
    assert both.value == pytest.approx((one.value or 0) * (1 + 1 / 4) / 2)
    assert both.seed_se is not None
    assert both.seed_se > 0


@pytest.mark.parametrize(
    ("margins", "labels", "reason"),
    [
        (np.ones(20), np.r_[np.ones(10), np.zeros(10)], "20 prompts, a slope needs 30"),
        (np.linspace(1, 2, 60), np.ones(60), "0 pairs one way"),
        (np.linspace(1, 2, 60), np.r_[np.ones(57), np.zeros(3)], "3 pairs one way"),
        (np.zeros(60), np.ones(60), "0 pairs one way"),
        (np.full(60, np.nan), np.ones(60), "no scored pair"),
    ],
)
def test_slope_is_refused_where_the_data_cannot_tell(margins: np.ndarray, labels: np.ndarray, reason: str) -> None:
    found = calibration_slope(margins, labels, range(len(margins)))
    assert (found.value, found.low) == (None, None)
    assert reason in found.method
    assert temperature_of(found).value is None


def test_temperature_turns_the_slope_over() -> None:
    found = temperature_of(Estimate(value=0.5, low=0.4, high=0.8, n=100, method="m"))
    assert (found.value, found.low, found.high) == (2, 1.25, 2.5)
    open_above = temperature_of(Estimate(value=0.5, low=-0.1, high=0.8, n=100, method="m"))
    assert (open_above.value, open_above.low, open_above.high) == (2, None, None)
    assert temperature_of(Estimate(value=-0.5, low=-1.0, high=0.1, n=100, method="m")).value is None


def test_temperature_from_validation_calibrates_test_pairs() -> None:
    def overconfident(seed: int) -> tuple[PairMargins, np.ndarray]:
        margins, labels = labelled(1.0, 2500, seed)
        return PairMargins(implicit=3 * margins, explicit=margins, prompts=list(range(2500))), labels

    validation, test = overconfident(0), overconfident(1)
    temperatures = fitted_temperatures(*validation)
    found = calibration_of_pairs(*test, "fresh", np.random.default_rng(0), temperatures, n_resamples=100)
    assert found is not None
    assert found.tempered is not None
    assert found.implicit_temperature is not None
    assert found.implicit_temperature.value == pytest.approx(3, rel=0.15)
    assert (found.implicit_ece.value or 0) > 0.1
    assert (found.tempered.implicit_ece.value or 0) < 0.03
    assert (found.tempered.implicit_brier.value or 1) < (found.implicit_brier.value or 0)
    assert found.explicit_ece.value == pytest.approx(found.tempered.explicit_ece.value or 0, abs=0.03)
    assert sum(point.pairs for point in found.implicit_reliability) == 2500
    assert calibration_of_pairs(test[0].where(np.arange(2500) < 20), test[1][:20], "given",
                                np.random.default_rng(0)) is None  # fmt: skip


# --- fresh labels -----------------------------------------------------------------------------------------------


def test_fresh_labels_follow_the_annotators() -> None:
    person = {"name": "a", "temperature": 0.7, "length_bias": 0.2, "position_bias": 0.5, "careless": 0.1}
    gold, words = np.full(20_000, 0.4), np.full(20_000, -3.0)
    labels = fresh_labels(gold, words, [person], 1, np.random.default_rng(0))
    one = Annotator(**{k: v for k, v in person.items() if isinstance(v, float)}, name="a")
    shown_first, shown_second = one.p_first(gold[:1], words[:1])[0], 1 - one.p_first(-gold[:1], -words[:1])[0]
    assert labels.mean() == pytest.approx((shown_first + shown_second) / 2, abs=0.015)
    again = fresh_labels(gold, words, [person], 1, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, again)
    assert not np.array_equal(labels, fresh_labels(gold, words, [person], 1, np.random.default_rng(1)))


def test_fresh_labels_of_unknown_gold_are_unknown() -> None:
    people = [{"name": str(i)} for i in range(3)]
    labels = fresh_labels(np.array([50.0, np.nan, -50.0]), np.zeros(3), people, 3, np.random.default_rng(0))
    assert labels.tolist()[::2] == [1.0, 0.0]
    assert np.isnan(labels[1])


# --- differences of sets ---------------------------------------------------------------------------------------


def test_difference_on_the_same_prompts_is_the_paired_one() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    one, other = base + 0.3, base + 0.1 * rng.normal(size=200)
    found = difference_of_means(Sample(values=one, prompts=range(200)), Sample(values=other, prompts=range(200)))
    paired = stats.ttest_rel(one, other).confidence_interval()
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high), rel=0.02)


def test_difference_on_other_prompts_is_welchs() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.5, 1, size=150), rng.normal(0, 2, size=300)
    found = difference_of_means(
        Sample(values=one, prompts=[f"a{i}" for i in range(150)]),
        Sample(values=other, prompts=[f"b{i}" for i in range(300)]),
    )
    welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=0.01)
    assert found.n == 450


def test_difference_takes_what_a_run_seed_shares_out() -> None:
    """A seed that lifts both sets lifts their difference by nothing; one that lifts one set widens the interval."""
    rng = np.random.default_rng(0)
    seeds = np.repeat(range(5), 100).tolist()
    lift = rng.normal(0, 0.5, size=5)[seeds]
    noise = [0.3 * rng.normal(size=500) for _ in range(2)]
    prompts = [[f"{name}{i}" for i in list(range(100)) * 5] for name in "ab"]

    def width(other_lift: np.ndarray) -> float:
        found = difference_of_means(
            Sample(values=noise[0] + lift, prompts=prompts[0], seeds=seeds),
            Sample(values=noise[1] + other_lift, prompts=prompts[1], seeds=seeds),
        )
        return (found.high or 0) - (found.low or 0)

    assert width(lift) < 0.3 < width(np.zeros(500))


def test_difference_is_refused_without_values_and_cut_to_its_range() -> None:
    none, one = (
        Sample(values=np.array([np.nan]), prompts=["p"]),
        Sample(values=np.array([1.0, 0.0]), prompts=["p", "q"]),
    )
    assert difference_of_means(none, one).value is None
    found = difference_of_means(one, Sample(values=np.array([0.0, 1.0]), prompts=["r", "s"]), (-1.0, 1.0))
    assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "expected"),
    [(0.01, 0.1, 5, True), (-0.1, -0.01, 5, False), (-0.1, 0.1, 5, "unresolved"), (0.01, 0.1, 1, "unresolved"),
     (None, None, 5, "unresolved")],
)  # fmt: skip
def test_a_statement_on_methods_needs_seeds_and_an_interval_off_zero(
    low: float | None, high: float | None, seeds: int, expected: Any
) -> None:
    value = 0.0 if low is None or high is None else (low + high) / 2
    holds, reason = verdict(Estimate(value=value, low=low, high=high, n=9, method="m"), seeds)
    assert holds == expected
    assert reason


# --- disagreements ---------------------------------------------------------------------------------------------


def test_disagreements_have_opposite_signs_and_one_of_a_prompt() -> None:
    pairs = PairMargins(
        implicit=np.array([3.0, 2.0, -1.0, 5.0, 0.0]),
        explicit=np.array([-1.0, -1.0, 1.0, 5.0, -9.0]),
        prompts=["p", "p", "q", "r", "s"],
    )
    rows = largest_disagreements(pairs, 10)
    assert [row for row, _ in rows] == [0, 2]  # agreed and tied pairs are none, nor a prompt's second
    scale = np.sqrt(np.mean(pairs.implicit**2)) * np.sqrt(np.mean(pairs.explicit**2))
    assert rows[0][1] == pytest.approx(3.0 / scale)
    assert len(largest_disagreements(pairs, 1)) == 1
    assert largest_disagreements(pairs.where(np.zeros(5, dtype=bool)), 3) == []


def test_the_file_is_headed_by_what_is_shown() -> None:
    listed = [{"set": name, "n": number} for name in "ab" for number in range(5)]
    assert shown(listed, 2) == [listed[0], listed[1], listed[5], listed[6]]


def test_samples_without_a_truth_have_no_accuracy() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(range(40), 4).tolist()
    implicit, kl = rng.normal(size=160), rng.normal(1, 1, size=160)
    found = agreement_of_samples(implicit, implicit, prompts, rng, tokens=np.full(160, 9.0), kl=kl)
    assert (found.truth, found.implicit_accuracy, found.accuracy_difference, found.calibration) == (None,) * 4
    assert found.agreement.value == 1
    assert found.spearman_within_prompt is not None
    assert [bucket.pairs for bucket in found.by_kl] == [80, 80, 80]
    assert found.by_length == []  # all of one length
