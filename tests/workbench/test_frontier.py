"""Frontier points and over-optimization fits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.metrics.best_of_n import bound_kl
from workbench.metrics.frontier import best_of_n_point, bound_estimate, checkpoint_point, kl_fault, with_pareto
from workbench.metrics.overoptimization import overoptimization
from workbench.metrics.win_rate import Judged
from workbench.results_base import KL, E
from workbench.results_curves import FrontierPoint
from workbench.types import Estimate


def point(kl: float, gold: float | None, kind: str = "mc_k1") -> FrontierPoint:
    e = {"low": None, "high": None, "n": 9, "method": "test"}
    return FrontierPoint(
        arm="ppo",
        label=f"{kl}",
        seq_kl=KL(value=kl, kl_kind=kind, **e),
        proxy_reward=None,
        gold_reward=None if gold is None else E(value=gold, **e),
        win_rate=None,
    )


def test_checkpoint_point_is_about_its_own_samples() -> None:
    found = checkpoint_point(
        "dpo",
        "step 25",
        prompts=["p", "p", "q", "q"],
        seq_kl=[1.0, 2.0, 3.0, 4.0],
        proxy_reward=[0.0, 0.0, 1.0, 1.0],
        gold_reward=None,
        step=25,
    )
    assert (found.seq_kl.value, found.seq_kl.kl_kind, found.seq_kl.n) == (2.5, "mc_k1", 2)
    assert found.proxy_reward is not None
    assert found.proxy_reward.value == 0.5
    assert (found.gold_reward, found.win_rate, found.step) == (None, None, 25)


def test_best_of_n_point_is_labelled_a_bound_and_rises_with_n() -> None:
    rng = np.random.default_rng(0)
    proxy = {str(p): rng.normal(size=32) for p in range(40)}
    gold = {p: s + rng.normal(size=32) for p, s in proxy.items()}
    sft = [Judged(scores={p: rng.normal(0, math.sqrt(2), size=4) for p in proxy})]
    found = [best_of_n_point("bon", n, selector=[proxy], proxy=[proxy], gold=[gold], baseline=sft) for n in (1, 4, 16)]
    assert [p.label for p in found] == ["n=1", "n=4", "n=16"]
    assert [p.seq_kl.value for p in found] == [bound_kl(n) for n in (1, 4, 16)]
    assert {p.seq_kl.kl_kind for p in found} == {"bound"}
    assert all(p.seq_kl.low is None for p in found)
    for name in ("proxy_reward", "gold_reward", "win_rate"):
        values = [getattr(p, name).value for p in found]
        assert values == sorted(values), name
    assert found[0].gold_reward.value == pytest.approx(np.mean([g.mean() for g in gold.values()]))  # type: ignore[union-attr]


def test_pareto_compares_only_points_of_the_same_kl_kind() -> None:
    points = [point(1, 1), point(2, 0.5), point(2, 2), point(0.5, 3, "bound"), point(3, None)]
    assert [p.pareto for p in with_pareto(points)] == [True, False, True, True, None]


def test_a_negative_kl_is_noise_until_four_standard_errors() -> None:
    def made(value: float, half: float) -> Estimate:
        return Estimate(value=value, low=None, high=None, n=9, method="test", prompt_se=half / 2)

    assert kl_fault(made(-0.1, 0.2)) is None
    assert kl_fault(made(5.0, 0.2)) is None
    assert kl_fault(bound_estimate(1, 9)) is None
    assert "below 0" in (kl_fault(made(-1.0, 0.2)) or "")


def curve(form: str, alpha: float, beta: float, kl: np.ndarray) -> np.ndarray:
    d = np.sqrt(kl)
    return d * (alpha - beta * (d if form == "bon" else np.log(d)))


@pytest.mark.parametrize(("form", "beta", "peak"), [("bon", 0.25, 4.0), ("rl", 0.5, math.exp(2))])
def test_fit_recovers_gaos_coefficients_and_the_peak(form: str, beta: float, peak: float) -> None:
    rng = np.random.default_rng(0)
    kl = np.array([0.3, 1.0, 2.5, 5.0, 8.0, 12.0])
    start = rng.normal(size=(300, 1)) * 2
    gold = start + curve(form, 1.0, beta, kl) + 0.3 * rng.normal(size=(300, 6))
    found = overoptimization("arm", form, kl, gold, start[:, 0], range(300), rng)  # type: ignore[arg-type]
    for estimate, truth in ((found.alpha, 1.0), (found.beta, beta), (found.peak_kl, peak)):
        assert estimate is not None
        assert estimate.value == pytest.approx(truth, rel=0.1)
        assert (estimate.low or 9) < truth < (estimate.high or 0)


def test_drop_from_the_peak_is_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    means = np.array([1.0, 2.0, 2.5, 1.5])
    gold = 10 * rng.normal(size=(100, 1)) + means + 0.5 * rng.normal(size=(100, 4))
    found = overoptimization("ppo", "rl", [1, 2, 4, 8], gold, np.zeros(100), range(100), rng).drop_from_peak
    assert found is not None
    assert found.value == pytest.approx((gold[:, 2] - gold[:, 3]).mean())
    assert 0.5 < (found.low or 0) < found.value < (found.high or 9) < 1.5  # prompts differ by 10, and cancel


def test_drop_of_a_flat_curve_reaches_zero_although_the_best_of_many_looks_better() -> None:
    rng = np.random.default_rng(0)
    proven = 0
    observed = []
    for _ in range(150):
        found = overoptimization(
            "ppo", "rl", np.arange(1, 9), rng.normal(size=(60, 8)), np.zeros(60), range(60), rng, n_resamples=200
        ).drop_from_peak
        assert found is not None
        observed.append(found.value)
        proven += (found.low or 0) > 0
    assert np.mean(observed) > 0.1  # what an uncorrected reading would call a fall
    assert proven / 150 <= 0.08


def test_drop_interval_covers() -> None:
    rng = np.random.default_rng(1)
    means = np.array([0.0, 0.5, 0.6, 0.3])
    hits = 0
    for _ in range(200):
        gold = rng.normal(size=(50, 1)) + means + rng.normal(size=(50, 4))
        found = overoptimization("ppo", "rl", [1, 2, 3, 4], gold, np.zeros(50), range(50), rng, n_resamples=200)
        assert found.drop_from_peak is not None
        hits += (found.drop_from_peak.low or 0) <= 0.3 <= (found.drop_from_peak.high or 0)
    assert hits / 200 >= 0.93


@pytest.mark.parametrize(
    ("kl", "prompts", "reason"),
    [
        ([1, 2, 4], 50, "3 points"),
        ([4.0, 4.1, 4.2, 4.3], 50, "spans"),
        ([-0.1, 0.0, 1, 2], 50, "2 points"),
        ([1, 2, 4, 8], 5, "5 prompts"),
    ],
)
def test_a_fit_without_enough_behind_it_is_refused_with_the_reason(kl: list[float], prompts: int, reason: str) -> None:
    gold = np.random.default_rng(0).normal(size=(prompts, len(kl)))
    found = overoptimization("a", "bon", kl, gold, np.zeros(prompts), range(prompts), np.random.default_rng(0))
    assert found.alpha.value is None
    assert found.peak_kl is not None
    assert found.peak_kl.value is None
    assert reason in found.alpha.method


def test_a_peak_outside_the_kl_reached_is_not_extrapolated() -> None:
    rng = np.random.default_rng(0)
    kl = np.array([0.1, 0.3, 0.6, 1.0])
    gold = curve("bon", 1.0, 0.1, kl) + 0.01 * rng.normal(size=(50, 4))
    found = overoptimization("a", "bon", kl, gold, np.zeros(50), range(50), rng)
    assert found.beta.value == pytest.approx(0.1, abs=0.05)
    assert found.peak_kl is not None
    assert found.peak_kl.value is None
    assert "KL reached" in found.peak_kl.method


def test_prompts_unscored_somewhere_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(40, 4))
    gold[3, 2] = np.nan
    found = overoptimization("a", "rl", [1, 2, 4, 8], gold, np.zeros(40), range(40), rng)
    assert (found.alpha.n, found.alpha.n_unscored) == (39, 1)
    assert found.drop_from_peak is not None
    assert (found.drop_from_peak.n, found.drop_from_peak.n_unscored) == (39, 1)
    nothing = overoptimization("a", "rl", [1, 2], np.full((4, 2), np.nan), np.zeros(4), range(4), rng)
    assert nothing.alpha.value is None
