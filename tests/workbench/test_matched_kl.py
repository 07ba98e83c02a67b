"""Curves of reward by KL: read-off, area, differences, ranges; what is known exactly, and how often intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lines_example import line

from workbench.metrics.best_of_n import bound_kl, bound_slack
from workbench.metrics.matched_kl import (
    Curves,
    area_weights,
    areas,
    grid,
    matched,
    pooled,
    read_at,
    round_down,
    selected,
)
from workbench.metrics.pareto import pareto, undominated


def curves(*lines: object, seed: int = 0, resamples: int = 300) -> Curves:
    return Curves(lines, np.random.default_rng(seed), resamples)  # type: ignore[arg-type]


def test_pooling_keeps_rising_kl_and_averages_what_falls_back() -> None:
    kl, reward = pooled(np.array([[0.0, 1.0, 3.0, 2.0, 4.0]]), np.array([[0.0, 1.0, 5.0, 3.0, 6.0]]))
    assert kl[0] == pytest.approx([0, 1, 2.5, 2.5, 4])
    assert reward[0] == pytest.approx([0, 1, 4, 4, 6])
    negative, _ = pooled(np.array([[-0.1, 0.2]]), np.zeros((1, 2)))
    assert negative[0] == pytest.approx([0, 0.2])  # noise below 0 counts as 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 50), min_size=2, max_size=9), st.integers(0, 2**32 - 1))
def test_pooling_is_isotonic_regression(values: list[float], seed: int) -> None:
    kl = np.array([values])
    fit, _ = pooled(kl, np.random.default_rng(seed).normal(size=kl.shape))
    assert (np.diff(fit[0]) >= -1e-9).all()
    assert fit.sum() == pytest.approx(kl.sum())  # a projection on a cone that holds the constants
    again, _ = pooled(fit, fit)
    assert again == pytest.approx(fit)


def test_between_points_the_reward_is_linear_in_the_root_of_kl() -> None:
    kl, at = np.array([[0.0, 1.0, 4.0]]), np.array([0.25, 1.0, 2.25, 4.0, 9.0])
    found = read_at(kl, np.array([[0.0, 1.0, 3.0]]), at)
    assert found[0] == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.0])


def test_area_of_a_known_curve() -> None:
    at, weights = area_weights(4.0)
    assert weights.sum() == pytest.approx(1)
    assert weights @ np.ones_like(at) == pytest.approx(1)
    assert weights @ np.sqrt(at) == pytest.approx(2 / 3 * 8 / 4)  # mean of sqrt(KL) over [0, 4]


def test_a_curve_is_read_off_where_it_is_known() -> None:
    kl = [0.0, 0.16, 0.36, 1.0, 1.96, 4.0, 5.76, 7.0]
    found = curves(line(kl, np.sqrt(kl), noise=0.01, between=0.0))
    for at in (0.25, 1.0, 6.25):
        estimate = found.at("ppo", at)
        assert estimate.value == pytest.approx(math.sqrt(at), abs=0.01)
        assert (estimate.low or 9) < math.sqrt(at) + 0.005
        assert (estimate.high or 0) > math.sqrt(at) - 0.005
    assert "between points at KL 1.96 and 4" in found.at("ppo", 2.0).method


def test_nothing_is_read_between_points_far_apart() -> None:
    """Gao's bon form bends away from the straight line by beta (d - d0)(d1 - d): no interval of prompts covers that."""
    d = np.array([0.0, 0.4, 0.8, 2.0, 2.2])
    found = curves(line(d**2, d * (4 - d), arm="a", noise=0.01, between=0.0), line(d**2, d, arm="b", noise=0.01))
    refused = found.at("a", 1.96)
    assert refused.value is None
    assert "a has no point between KL 0.64 and 4" in refused.method
    for told in (0.36, 0.65, 3.9, 4.5):  # also between those points where one of them is near
        estimate = found.at("a", told)
        truth = math.sqrt(told) * (4 - math.sqrt(told))
        assert estimate.value == pytest.approx(truth, abs=0.07)
    at = np.array([1.96])
    assert found.difference("a", "b", at, np.ones(1), "").value is None
    assert found.area("a", 0.64).value is not None
    assert found.area("a", 4.0).value is None
    assert "too far apart" in found.difference("a", "b", *area_weights(4.0), "").method
    policy = line([1.96], [1.8], arm="dpo", noise=0.1)
    assert "too far apart" in found.beside(policy, "a").method  # type: ignore[union-attr]


def test_nothing_is_extrapolated() -> None:
    found = curves(line([0, 1, 4], [0, 1, 2], kl_noise=0.5, prompts=50))
    assert found.reach["ppo"] < 4.0 + 0.5
    beyond = found.at("ppo", found.reach["ppo"] + 0.01)
    assert beyond.value is None
    assert "nothing is extrapolated" in beyond.method
    rows = matched(curves(line([0, 1, 4], [0, 1, 2], arm="a"), line([0, 4, 9], [0, 1, 2], arm="b")), "gold_reward")
    assert all(row.kl <= 4 for row in rows if row.against is not None)
    assert {row.estimate.value is None for row in rows if row.arm == "a" and row.kl > 4} == {True}


@pytest.mark.parametrize(
    ("kl", "prompts", "reason"),
    [
        ([0, 1, 8, 3], 50, "fell back"),
        ([0, 0.01, 0.02], 50, "reaches"),
        ([0, 1, 2], 5, "5 prompts"),
        ([0], 50, "1 point"),
    ],
)
def test_an_arm_without_a_curve_is_refused_with_the_reason(kl: list[float], prompts: int, reason: str) -> None:
    found = curves(line(kl, list(range(len(kl))), prompts=prompts), line([0, 1, 2], [0, 1, 2], arm="dpo"))
    assert found.usable() == ["dpo"]
    rows = [row for row in matched(found, "gold_reward") if row.arm == "ppo"]
    assert rows
    assert all(row.estimate.value is None and reason in row.estimate.method for row in rows)
    (area,) = (row for row in areas(found, "gold_reward") if row.arm == "ppo")
    assert (area.estimate.value, area.kl_to) == (None, None)


def test_no_curve_at_all_is_said_and_not_raised() -> None:
    found = curves(line([0], [1]))
    assert grid(found) == []
    assert [row.estimate.value for row in matched(found, "gold_reward")] == [None]


def test_arms_on_the_same_prompts_are_paired() -> None:
    rng = np.random.default_rng(0)
    levels = 5 * rng.normal(size=100)
    a = line([0, 0.25, 1, 4], [0, 0.5, 1, 2], rng, arm="a", levels=levels, noise=0.1)
    b = line([0, 0.25, 1, 4], [0, 0.4, 0.8, 1.6], rng, arm="b", levels=levels, noise=0.1)
    (row,) = (r for r in matched(curves(a, b), "gold_reward") if r.against and r.kl == 1.0)
    assert row.estimate.value == pytest.approx(0.2, abs=0.05)
    assert (row.estimate.high or 9) - (row.estimate.low or 0) < 0.1  # prompts differ by 5, and cancel
    assert "paired by prompt" in row.estimate.method
    elsewhere = {"prompt_set": "test", "kl_kind": "bound"}
    other = line([0, 0.25, 1, 4], [0, 0.4, 0.8, 1.6], rng, arm="c", levels=levels, noise=0.1, **elsewhere)
    (row,) = (r for r in matched(curves(a, other), "gold_reward") if r.against and r.kl == 1.0)
    assert (row.kl_kind, row.prompt_set) == ("mixed", "mixed")
    assert "unpaired: test and validation prompts" in row.estimate.method
    assert "bound" in row.estimate.method
    assert (row.estimate.high or 9) - (row.estimate.low or 0) > 1  # here they do not cancel


def test_differences_turn_their_sign_with_the_order() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        line([0, 0.25, 1, 2.25, 4], g * np.arange(5), rng, arm=n, levels=np.zeros(40), prompts=40)
        for n, g in (("a", 1), ("b", 2))
    )
    (one,), (other,) = (
        [row.estimate for row in areas(curves(*order), "gold_reward") if row.against] for order in ((a, b), (b, a))
    )
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))  # type: ignore[operator]


def test_a_selected_policy_stands_beside_a_curve_on_its_own_prompts_at_its_own_kl() -> None:
    rng = np.random.default_rng(0)
    options = {"levels": 5 * rng.normal(size=100), "noise": 0.1, "prompt_set": "test"}
    pool = line([0, 1, 2, 3, 4], np.sqrt(range(5)), rng, arm="bon", kl_kind="bound", **options)  # type: ignore[arg-type]
    policy = line([2.25], [1.8], rng, arm="dpo", kl_noise=0.5, **options)  # type: ignore[arg-type]
    far = line([9.0], [1.8], rng, arm="ppo", **options)  # type: ignore[arg-type]
    elsewhere = line([2.25], [1.8], rng, arm="dpo-0.1")
    found = selected(curves(pool), [policy, far, elsewhere], "gold_reward")
    assert [(row.arm, row.against) for row in found] == [("dpo", "bon"), ("ppo", "bon")]
    near, beyond = (row.estimate for row in found)
    assert near.value == pytest.approx(0.3, abs=0.05)  # the curve is at sqrt(2.25) = 1.5
    assert (near.high or 9) - (near.low or 0) < 0.2  # paired: the prompts' levels cancel
    assert (found[0].prompt_set, found[0].kl_kind) == ("test", "mixed")
    assert beyond.value is None
    assert "nothing is extrapolated" in beyond.method


@pytest.mark.parametrize(("seeds", "seed_sd", "prompts"), [(1, 0.0, 40), (5, 0.3, 40)])
def test_matched_differences_and_areas_cover(seeds: int, seed_sd: float, prompts: int) -> None:
    """Two curves that differ by .5 sqrt(KL) / 2; KL is estimated with noise like gold."""
    rng = np.random.default_rng(seeds)
    kl, worlds, hits, area_hits = np.array([0.0, 0.3, 0.8, 1.3, 1.8, 2.5, 4.0]), 150, 0, 0
    for _ in range(worlds):
        levels = rng.normal(size=prompts)
        options = {
            "prompts": prompts,
            "seeds": seeds,
            "seed_sd": seed_sd,
            "noise": 1.0,
            "levels": levels,
            "kl_noise": 1.0,
        }
        a = line(kl, np.sqrt(kl), rng, arm="a", **options)  # type: ignore[arg-type]
        b = line(kl, 0.75 * np.sqrt(kl), rng, arm="b", **options)  # type: ignore[arg-type]
        found = Curves([a, b], rng, 200)
        gap = found.difference("a", "b", np.array([1.5]), np.ones(1), "")
        hits += (gap.low or 9) <= 0.25 * math.sqrt(1.5) <= (gap.high or -9)
        gap = found.difference("a", "b", *area_weights(2.0), "")
        area_hits += (gap.low or 9) <= 0.25 * math.sqrt(2.0) * 2 / 3 <= (gap.high or -9)
    assert hits / worlds >= 0.91
    assert area_hits / worlds >= 0.91


def test_round_down() -> None:
    assert [round_down(kl) for kl in (1.179, 0.0999, 23.4, 2.0, 0.3)] == [1.1, 0.099, 23.0, 2.0, 0.3]


# ------------------------------------------------------------------------------------------- best-of-n's KL


@pytest.mark.parametrize("n", [2, 4, 16])
def test_bound_slack_on_distributions_whose_best_of_n_is_known(n: int) -> None:
    rng = np.random.default_rng(n)
    for masses in (np.full(3, 1 / 3), np.array([0.6, 0.3, 0.1]), np.full(40, 1 / 40)):
        top = np.cumsum(masses)
        best = top**n - (top - masses) ** n
        exact = float((best * np.log(best / masses)).sum())
        drawn = rng.choice(len(masses), size=40_000, p=masses)
        (found,) = bound_slack([n], drawn.astype(float), np.log(masses[drawn]))
        assert bound_kl(n) - found == pytest.approx(exact, abs=0.02)


def test_the_bound_is_exact_without_ties_and_repeated_texts() -> None:
    scores = np.random.default_rng(0).normal(size=256)
    assert bound_slack([1, 16], scores, np.full(256, -40.0)).tolist() == [0.0, 0.0]
    assert bound_slack([1], scores, np.zeros(256)) == pytest.approx(0.0)


# -------------------------------------------------------------------------------------------------- Pareto


def test_undominated_points() -> None:
    kl, reward = np.array([[1.0, 2.0, 2.0, 2.0]]), np.array([[1.0, 0.5, 2.0, 2.0]])
    assert undominated(kl, reward)[0].tolist() == [True, False, True, True]  # equal points do not beat each other


def test_pareto_share_says_how_sure_the_set_is() -> None:
    rng = np.random.default_rng(0)
    clear = line([1, 2, 2.2], [1, 3, 1], rng, noise=0.1, between=0.0)
    found = pareto([clear], rng)[0]
    assert [flag[0] for flag in found if flag] == [True, True, False]
    assert [flag[1] for flag in found if flag] == [1.0, 1.0, 0.0]
    close = line([1, 1.5], [1, 1], rng, noise=1.0, between=0.0)
    point, other = (flag for flag in pareto([close], rng)[0] if flag)
    assert point == (True, 1.0)  # nothing has less KL
    assert 0.02 < other[1] < 0.98


def test_pareto_compares_within_a_prompt_set_and_leaves_the_oracle_out() -> None:
    rng = np.random.default_rng(0)
    options = {"noise": 0.01, "between": 0.0}
    worse = line([2.0], [1.0], rng, **options)  # type: ignore[arg-type]
    better = line([1.0], [2.0], rng, prompt_set="test", **options)  # type: ignore[arg-type]
    oracle = line([1.0], [9.0], rng, selector="gold", **options)  # type: ignore[arg-type]
    flags = pareto([worse, better, oracle], rng)
    assert flags == [[(True, 1.0)], [(True, 1.0)], [None]]


def test_a_bound_stands_where_the_pool_says_its_kl_is() -> None:
    rng = np.random.default_rng(0)
    options = {"noise": 0.01, "between": 0.0, "prompt_set": "test"}
    trained = line([1.0], [1.0], rng, **options)  # type: ignore[arg-type]
    slack = np.full((1, 100, 1), 0.5)
    pool = line([1.2], [2.0], rng, arm="bon", kl_kind="bound", kl_slack=slack, **options)  # type: ignore[arg-type]
    assert [flag for flags in pareto([trained, pool], rng) for flag in flags] == [(False, 0.0), (True, 1.0)]
