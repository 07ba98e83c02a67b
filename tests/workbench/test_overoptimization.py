"""Over-optimization: fits, peak, drop, onset, gap and the Goodhart flag on curves whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lines_example import line, start_of

from workbench.metrics.fits import Form, fit, peak_kl
from workbench.metrics.lines import Line
from workbench.metrics.overoptimization import Start, overoptimization
from workbench.results_curves import Overoptimization


def turn(one: Line, start: Start | None = None, form: Form = "rl", *, resamples: int = 300) -> Overoptimization:
    (found,) = overoptimization(one, start or start_of(one), (form,), np.random.default_rng(1), resamples=resamples)
    return found


def curve(form: Form, alpha: float, beta: float, kl: np.ndarray) -> np.ndarray:
    d = np.sqrt(kl)
    return d * (alpha - beta * (d if form == "bon" else np.log(d)))


KL = np.array([0.3, 1.0, 2.5, 5.0, 8.0, 12.0])


@pytest.mark.parametrize(("form", "beta", "peak"), [("bon", 0.25, 4.0), ("rl", 0.5, math.exp(2))])
@pytest.mark.parametrize("seeds", [1, 5])
def test_fit_recovers_gaos_coefficients_and_the_peak(form: Form, beta: float, peak: float, seeds: int) -> None:
    one = line(KL, curve(form, 1.0, beta, KL), prompts=300, seeds=seeds, between=0.0)
    found = turn(one, form=form)
    for estimate, truth in ((found.alpha, 1.0), (found.beta, beta), (found.peak_kl, peak)):
        assert estimate is not None
        assert estimate.value == pytest.approx(truth, rel=0.1)
        assert (estimate.low or 9) < truth < (estimate.high or 0)
    assert found.alpha.seed_se is None if seeds == 1 else found.alpha.seed_se is not None
    assert (found.residual_rms or 9) < 0.05
    assert (found.lack_of_fit_p or 0) > 0.01


def test_least_squares_is_exact_on_its_own_form() -> None:
    for form, coefficients in (("bon", (1.3, 0.2)), ("rl", (0.7, -0.1))):
        found, residuals = fit(form, np.sqrt(KL), curve(form, *coefficients, KL))
        assert found == pytest.approx(coefficients)
        assert residuals == pytest.approx(np.zeros(len(KL)))
    assert peak_kl("bon", np.array([[1.0, 0.25], [1.0, -1.0], [-1.0, 1.0]])).tolist() == [4.0, math.inf, 0.0]


def test_a_form_that_does_not_fit_is_found_out() -> None:
    step = np.where(KL > 2, 2.0, 0.0)
    found = turn(line(KL, step, prompts=300, between=0.0), form="bon")
    assert (found.lack_of_fit_p or 1) < 0.01
    assert (found.residual_rms or 0) > 0.2


def test_drop_from_the_peak_is_paired_by_prompt() -> None:
    one = line([1, 2, 4, 8], [1.0, 2.0, 2.5, 1.5], between=10.0, noise=0.5)
    found = turn(one).drop_from_peak
    assert found is not None
    assert one.gold is not None
    assert found.value == pytest.approx((one.gold[0, :, 2] - one.gold[0, :, 3]).mean())
    assert 0.5 < (found.low or 0) < (found.value or 0) < (found.high or 9) < 1.5  # prompts differ by 10, and cancel


def test_seeds_that_disagree_widen_the_drop() -> None:
    rng = np.random.default_rng(0)
    same = line([1, 2, 4], [1.0, 2.0, 1.5], rng, seeds=5, noise=0.1)
    tilt = np.linspace(-1.5, 1.5, 5)[:, None, None] * np.array([1.0, 1.0, 0.0])
    assert same.gold is not None
    apart = Line(**{**same.__dict__, "gold": same.gold + tilt})
    one, other = turn(same).drop_from_peak, turn(apart).drop_from_peak
    assert one is not None
    assert other is not None
    assert one.value == pytest.approx(other.value)
    assert (one.low or 0) > 0
    assert other.low == 0  # two of five seeds do not fall
    assert "5 seeds" in one.method


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_flat_curve_proves_no_drop_although_the_best_of_many_looks_better(seeds: int) -> None:
    rng = np.random.default_rng(0)
    found = [
        turn(line(range(1, 9), np.zeros(8), rng, prompts=60, seeds=seeds, noise=1.0), resamples=200)  # type: ignore[arg-type]
        for _ in range(100)
    ]
    drops = [one.drop_from_peak for one in found if one.drop_from_peak is not None]
    assert (
        np.mean([drop.value for drop in drops if drop.value is not None]) > 0.04
    )  # what nobody corrected would call a fall
    assert np.mean([(drop.low or 0) > 0 for drop in drops]) <= 0.09
    assert np.mean([bool(one.goodhart) for one in found]) <= 0.05
    assert np.mean([one.onset_kl is not None and one.onset_kl.value is not None for one in found]) <= 0.05


def test_drop_interval_covers() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(150):
        drop = turn(line([1, 2, 3, 4], [0.0, 0.5, 0.6, 0.3], rng, prompts=50, noise=1.0), resamples=200).drop_from_peak
        assert drop is not None
        hits += (drop.low or 0) <= 0.3 <= (drop.high or 0)
    assert hits / 150 >= 0.92


def test_goodhart_needs_both_the_fall_of_gold_and_the_rise_of_the_proxy() -> None:
    gold = [1.0, 2.0, 1.5, 0.5]
    up, down, flat = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0, 0.5], [1.0, 2.0, 2.0, 2.0]
    flags = {
        name: turn(line(KL[:4], gold, proxy=proxy)) for name, proxy in (("up", up), ("down", down), ("flat", flat))
    }
    assert {name: found.goodhart for name, found in flags.items()} == {"up": True, "down": False, "flat": False}
    assert flags["up"].proxy_since_peak is not None
    assert flags["up"].proxy_since_peak.value == pytest.approx(2.0, abs=0.1)
    assert turn(line(KL[:4], [1, 2, 3, 4])).goodhart is False
    assert turn(line([0.0], [1])).goodhart is None  # the start alone
    assert turn(line(KL[:4], gold, proxy=up, prompts=5)).goodhart is None


def test_an_arm_may_turn_before_its_first_checkpoint() -> None:
    """Gold 0 at the start and -1 at every checkpoint, while the proxy rises: the start is a point of the turn."""
    for first in ([], [0.0]):  # best-of-n's line has it as n = 1
        kl, gold, proxy = [*first, 1, 2, 4, 8, 9], [*first, *[-1.0] * 5], [*first, 1.0, 2.0, 3.0, 4.0, 5.0]
        found = turn(line(kl, gold, proxy=proxy, between=0.0))
        assert found.goodhart is True
        assert found.drop_from_peak is not None
        assert found.drop_from_peak.value == pytest.approx(1.0, abs=0.1)
        assert (found.drop_from_peak.low or 0) > 0.8
        assert "best of 6 points" in found.drop_from_peak.method
        assert found.onset_kl is not None
        assert (found.onset_kl.value, found.onset_kl.low, found.onset_kl.high) == (0.0, 0.0, 0.0)
        assert found.proxy_since_peak is not None
        assert found.proxy_since_peak.value == pytest.approx(5.0, abs=0.2)


def test_onset_holds_the_points_that_may_be_the_best() -> None:
    kl = [0.5, 1.0, 2.0, 4.0, 8.0]
    proxy = [1.0, 2.0, 3.0, 4.0, 5.0]
    sharp = turn(line(kl, [0, 1, 3, 2, 0], proxy=proxy)).onset_kl
    assert sharp is not None
    assert (sharp.low, sharp.value, sharp.high) == pytest.approx((2.0, 2.0, 2.0))
    plateau = turn(line(kl, [0, 3, 3.0, 3, 0], proxy=proxy)).onset_kl
    assert plateau is not None
    assert (plateau.low, plateau.high) == pytest.approx((1.0, 4.0))
    rising = turn(line(kl, [0, 1, 2, 3, 3], proxy=proxy)).onset_kl
    assert rising is not None
    assert rising.value is None
    assert "may be the best" in rising.method
    together = turn(line(kl, [0, 1, 3, 2, 0], proxy=[0, 1, 3, 2, 0])).onset_kl
    assert together is not None
    assert together.value is None
    assert "proxy does not rise" in together.method


def test_gap_is_in_standard_deviations_of_the_reference() -> None:
    one = line(KL, np.zeros(6), proxy=[0, 1, 2, 3, 4, 6.0], between=0.0)
    start = start_of(one, sd=2.0)
    gap = turn(one, start).gap
    assert gap is not None
    assert gap.value == pytest.approx(3.0, abs=0.1)  # 6 / 2 less 0
    assert (gap.low or 9) < (gap.value or 0) < (gap.high or 0)
    bare = Start(gold=start.gold, proxy=start.proxy)
    assert turn(one, bare).gap is None


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
    found = turn(line(kl, np.zeros(len(kl)), prompts=prompts), form="bon")
    assert found.alpha.value is None
    assert found.peak_kl is not None
    assert found.peak_kl.value is None
    assert reason in found.alpha.method
    assert found.lack_of_fit_p is None


def test_a_peak_outside_the_kl_reached_is_not_extrapolated() -> None:
    kl = np.array([0.1, 0.3, 0.6, 1.0])
    found = turn(line(kl, curve("bon", 1.0, 0.1, kl), noise=0.01, between=0.0), form="bon")
    assert found.beta.value == pytest.approx(0.1, abs=0.05)
    assert found.peak_kl is not None
    assert found.peak_kl.value is None
    assert "KL reached" in found.peak_kl.method


def test_the_interval_of_a_peak_ends_where_the_kl_reached_does() -> None:
    kl = np.array([0.3, 1.0, 2.0, 3.0, 4.0])
    peak = turn(line(kl, curve("bon", 1.0, 0.28, kl), noise=1.0, between=0.0, prompts=60), form="bon").peak_kl
    assert peak is not None
    assert peak.value is not None
    assert peak.value < 4.0
    assert peak.high is None
    assert "open above: beyond the KL reached" in peak.method
    sure = turn(line(kl, curve("bon", 1.0, 0.4, kl), noise=0.1, between=0.0), form="bon").peak_kl
    assert sure is not None
    assert (sure.value or 9) < (sure.high or 0) < 4.0


def test_prompts_unscored_somewhere_are_left_out_and_counted() -> None:
    one = line([1, 2, 4, 8], [0, 1, 2, 3], prompts=40)
    assert one.gold is not None
    one.gold[0, 3, 2] = np.nan
    found = turn(one)
    assert (found.alpha.n, found.alpha.n_unscored) == (39, 1)
    assert found.drop_from_peak is not None
    assert (found.drop_from_peak.n, found.drop_from_peak.n_unscored) == (39, 1)
    one.gold[:] = np.nan
    nothing = turn(one)
    assert nothing.alpha.value is None
    assert nothing.drop_from_peak is not None
    assert nothing.drop_from_peak.value is None


def test_dpo_gets_both_forms_and_they_share_all_but_the_fit() -> None:
    one = line(KL, curve("rl", 1.0, 0.3, KL))
    rl, bon = overoptimization(one, start_of(one), ("rl", "bon"), np.random.default_rng(0))
    assert (rl.form, bon.form) == ("rl", "bon")
    assert rl.drop_from_peak == bon.drop_from_peak
    assert rl.alpha != bon.alpha
