"""The optimal tilt from samples: exact where it can be, right on average where it is an estimate, refused where not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from workbench.metrics.best_of_n import best_of_n_value, bound_kl
from workbench.metrics.estimates import Array
from workbench.metrics.tilt import (
    AFTER,
    EDGE,
    KL_TARGETS,
    MIN_ESS,
    betas,
    lower_ess,
    plug_in_kl,
    refusal,
    refusals,
    reward_at,
    tilt,
)

REWARD = np.array([-1.0, 0.2, 0.9, 2.0])
GOLD = np.array([0.5, -0.3, 1.1, 0.7])
PROBABILITY = np.array([0.4, 0.3, 0.2, 0.1])


def exact(beta: float, reward: Array = REWARD, gold: Array = GOLD, p: Array = PROBABILITY) -> tuple[float, float]:
    """KL and mean gold of pi_ref exp(r / beta) on a discrete world."""
    policy = p * np.exp(reward / beta)
    policy = policy / policy.sum()
    kept = policy > 0
    return float(policy[kept] @ np.log(policy[kept] / p[kept])), float(policy @ gold)


def drawn(prompts: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    picked = np.random.default_rng(seed).choice(4, size=(prompts, size), p=PROBABILITY)
    return REWARD[picked], GOLD[picked]


@pytest.mark.parametrize("beta", [0.3, 0.7, 2.0, 50.0])
def test_a_pool_that_is_the_distribution_gives_the_plug_in_exactly(beta: float) -> None:
    counts = (PROBABILITY * 10).astype(int)
    reward, gold = np.repeat(REWARD, counts)[None], np.repeat(GOLD, counts)[None]
    kl, _ = exact(beta)
    assert plug_in_kl(reward, beta) == pytest.approx(kl, abs=1e-12)
    # The jackknife by its definition, one candidate left out at a time.
    rest = [np.delete(np.arange(10), row) for row in range(10)]
    means = [exact(beta, reward[0, keep], gold[0, keep], np.full(9, 1 / 9)) for keep in rest]
    whole = exact(beta, reward[0], gold[0], np.full(10, 0.1))
    found = tilt(reward, [gold], beta)
    for value, at in ((found.seq_kl, 0), (found.values[0], 1)):
        assert value[0] == pytest.approx(10 * whole[at] - 9 * np.mean([one[at] for one in means]), abs=1e-9)
    assert found.gains[0][0] == pytest.approx(found.values[0][0] - gold.mean(), abs=1e-12)


@pytest.mark.parametrize("beta", [0.6, 1.0, 3.0])
def test_the_jackknife_is_right_on_average_where_the_plug_in_is_not(beta: float) -> None:
    reward, gold = drawn(20_000, 32)
    kl, value = exact(beta)
    found = tilt(reward, [gold], beta)
    for told, truth in ((found.seq_kl, kl), (found.values[0], value)):
        se = told.std() / math.sqrt(len(told))
        assert abs(told.mean() - truth) < 4 * se + 0.02 * abs(truth)
    assert abs(plug_in_kl(reward, beta) - kl) > 3 * abs(found.seq_kl.mean() - kl)


def test_constants_of_a_prompt_and_the_unit_of_the_reward_do_not_matter() -> None:
    reward, gold = drawn(50, 16)
    shift = np.linspace(-30, 500, 50)[:, None]
    one, other = tilt(reward, [gold], 0.5), tilt(7 * (reward + shift), [gold], 3.5)
    np.testing.assert_allclose(one.seq_kl, other.seq_kl, atol=1e-9)
    np.testing.assert_allclose(one.values[0], other.values[0], atol=1e-9)
    np.testing.assert_allclose(one.ess, other.ess, rtol=1e-9)


def test_a_large_beta_is_the_reference_and_ess_runs_from_all_to_one() -> None:
    reward, gold = drawn(30, 64)
    far = tilt(reward, [gold], 1e6)
    assert np.abs(far.seq_kl).max() < 1e-6
    np.testing.assert_allclose(far.values[0], gold.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(far.ess, 64, rtol=1e-6)
    single = np.arange(64.0)[None].repeat(3, axis=0)
    near = tilt(single, [single], 1e-3)
    np.testing.assert_allclose(near.ess, 1.0)
    assert np.isfinite(near.seq_kl).all()  # one candidate carries all, and no sum without it is made by subtraction
    assert "effective sample size 1.0" in str(refusal(near))


def test_betas_hit_their_targets_and_stop_before_the_pool_cannot_follow() -> None:
    reward = np.random.default_rng(1).normal(size=(200, 64))
    found = betas(reward)
    wanted = [one for one in KL_TARGETS if one <= math.log(64) - 1]
    assert len(found) == len(wanted)
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose([plug_in_kl(reward, beta) for beta in found], wanted, rtol=1e-6)
    assert betas(np.ones((5, 8))) == []


def test_points_are_refused_where_weights_rest_on_few_candidates_and_where_a_tail_is_missing() -> None:
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(300, 64))
    told = {beta: refusal(tilt(normal, [], beta)) for beta in (2.0, 1.0, 0.25)}
    assert told[2.0] is None
    assert told[1.0] is None
    assert "effective sample size" in str(told[0.25])
    # Exponential upper tail, beta near its scale: the true KL is far above what 64 candidates can show.
    heavy = rng.exponential(size=(300, 64))
    found = tilt(heavy, [], 1.7)
    assert lower_ess(found) >= MIN_ESS
    assert "on halves" in str(refusal(found))


def test_a_curve_ends_one_point_before_its_first_refused_one() -> None:
    reward = np.random.default_rng(2).normal(size=(300, 64))
    points = [tilt(reward, [], beta) for beta in (4.0, 2.0, 0.25, 3.0)]
    assert [refusal(one) is None for one in points] == [True, True, False, True]
    found = refusals(points)
    assert found[:2] == [None, EDGE]
    assert "effective sample size" in str(found[2])
    assert found[3] == AFTER
    assert refusals(points[:2]) == [None, None]
    assert refusals(points[2:]) == [found[2], AFTER]


def test_between_points_a_curve_is_linear_in_sqrt_kl_and_knows_what_kl_does_to_it() -> None:
    """Value and spread against redrawing the prompts; outside nothing."""
    reward, gold = drawn(400, 64)
    curve = [tilt(reward, [gold], beta) for beta in betas(reward)[:4]]
    kls = [float(one.seq_kl.mean()) for one in curve]
    read = reward_at(curve, kls[1])
    assert read is not None
    assert read.mean() == pytest.approx(curve[1].gains[0].mean())
    kl = ((kls[1] ** 0.5 + kls[2] ** 0.5) / 2) ** 2
    read = reward_at(curve, kl)
    assert read is not None
    assert read.mean() == pytest.approx((curve[1].gains[0].mean() + curve[2].gains[0].mean()) / 2)
    assert reward_at(curve, kls[0] * 0.9) is None
    assert reward_at(curve, kls[-1] * 1.1) is None
    rng = np.random.default_rng(4)
    again = []
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        drawn_again = [replace(one, seq_kl=one.seq_kl[rows], gains=(one.gains[0][rows],)) for one in curve]
        again.append(float(np.mean(reward_at(drawn_again, kl))))
    assert np.std(again) == pytest.approx(read.std() / 20, rel=0.15)


def test_the_tilt_by_gold_gives_at_least_as_much_gold_as_best_of_n_at_its_true_kl() -> None:
    """pi_ref exp(r / beta) is the best policy at its KL: no selector by the same reward beats it."""
    reward = np.random.default_rng(3).normal(size=(4000, 64))
    best = float(np.mean([best_of_n_value(row, row, 2) for row in reward[:1000]]))
    (beta,) = betas(reward, [bound_kl(2)])
    found = tilt(reward, [reward], beta)
    assert found.seq_kl.mean() == pytest.approx(bound_kl(2), abs=0.02)
    assert found.values[0].mean() > best


@pytest.mark.parametrize(
    ("reward", "beta"), [(np.ones((2, 3)), 1.0), (np.ones((2, 8)), 0.0), (np.full((2, 8), np.nan), 1.0)]
)
def test_what_cannot_be_tilted_is_refused(reward: Array, beta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        tilt(reward, [], beta)


def test_the_benchmark_finds_what_the_page_says() -> None:
    """Told points lie on the true curve; heavy upper tails are told far less than normal rewards, not told wrongly."""
    from benchmarks.tilt import cell

    rng = np.random.default_rng(0)
    normal, heavy = (cell(name, 64, 6, rng, nodes=20_000) for name in ("normal", "exponential upper tail"))
    assert float(str(normal["largest_kl"])) > 2 * float(str(heavy["largest_kl"]))
    for found in (normal, heavy):
        assert abs(float(str(found["worst_off_curve"]))) < 0.04
        assert abs(float(str(found["worst_bias_kl"]))) < 0.1
