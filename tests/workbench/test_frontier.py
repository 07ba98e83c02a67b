"""Frontier points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.metrics.best_of_n import bound_kl
from workbench.metrics.frontier import best_of_n_point, bound_estimate, checkpoint_point, kl_fault
from workbench.metrics.win_rate import Judged
from workbench.types import Estimate


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


def test_a_negative_kl_is_noise_until_four_standard_errors() -> None:
    def made(value: float, half: float) -> Estimate:
        return Estimate(value=value, low=None, high=None, n=9, method="test", prompt_se=half / 2)

    assert kl_fault(made(-0.1, 0.2)) is None
    assert kl_fault(made(5.0, 0.2)) is None
    assert kl_fault(bound_estimate(1, 9)) is None
    assert "below 0" in (kl_fault(made(-1.0, 0.2)) or "")
