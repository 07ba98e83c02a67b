"""What stands for the truth without gold: an independent judge, the other reward models, or nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from workbench import measure_truth
from workbench.evidence import ArmRun, Responses
from workbench.measure_truth import Truths
from workbench.metrics.win_rate import Wins
from workbench.results_curves import Overoptimization

PROMPTS = [f"p{i}" for i in range(60)]
SAMPLES = 4


def run(label: str, kind: str, rng: np.random.Generator, kl: float, seed: int = 0, **means: float) -> ArmRun:
    """One arm's samples with the given mean scores by each reward model, unit variance."""
    prompts = [prompt for prompt in PROMPTS for _ in range(SAMPLES)]
    columns = {f"proxy/{name}": mean + rng.normal(size=len(prompts)) for name, mean in means.items()}
    columns["seq_kl"] = np.full(len(prompts), kl)
    samples = Responses(prompts=prompts, columns=columns)
    n = 16 if kind == "best_of_n" else None
    return ArmRun(label=label, kind=kind, seed=seed, samples=samples, kl=None if n else samples, n=n)


def truths(
    monkeypatch: pytest.MonkeyPatch,
    arms: dict[str, list[ArmRun]],
    blocks: dict[str, Any],
    rewards: list[str],
    **judge: Any,
) -> Truths:
    """With a judge whose wins and quality are given, or without one."""

    class Verdicts:
        def __init__(self, *given: object) -> None:
            pass

        def quality(self, name: str) -> Any:
            return SimpleNamespace(lineage=judge.get("lineage"), uneven=judge.get("uneven"))

        def over_baseline(self, name: str, label: str, runs: list[ArmRun]) -> Wins:
            seeds = [one.seed for one in runs for _ in PROMPTS]
            return Wins(prompts=tuple(PROMPTS * len(runs)), seeds=tuple(seeds), wins=judge["wins"], n_unscored=0)

    monkeypatch.setattr(measure_truth, "Verdicts", Verdicts)
    names = ["her"] if "wins" in judge else []
    scope = SimpleNamespace(
        artifacts=None, arms=arms, blocks=blocks, rewards=rewards, proxy="main",
        judges=["proxy", *names], judge_kinds=dict.fromkeys(names, "llm"),
    )  # fmt: skip
    return Truths(scope)  # type: ignore[arg-type]


def turn(found: Truths, label: str) -> Overoptimization:
    (row,) = found.turn(label, ("rl",), np.random.default_rng(1))
    return row


def both(rng: np.random.Generator, after: dict[str, float], seeds: int = 1) -> dict[str, list[ArmRun]]:
    start = dict.fromkeys(after, 0.0)
    return {
        "sft": [run("sft", "sft", rng, 0.0, seed, **start) for seed in range(seeds)],
        "ppo": [run("ppo", "ppo", rng, 5.0, seed, **after) for seed in range(seeds)],
    }


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_other_reward_models_are_the_truth_of_an_arm(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    arms = both(np.random.default_rng(0), {"main": 2.0, "second": -1.0, "third": -1.0}, seeds)
    row = turn(truths(monkeypatch, arms, {"ppo": {"reward": "main"}}, ["main", "second", "third"]), "ppo")
    assert (row.truth, row.goodhart, row.proxy, row.points) == ("ensemble", True, "main", 1)
    assert row.drop_from_peak is not None
    assert row.drop_from_peak.value == pytest.approx(1.0, abs=0.1)
    assert row.proxy_since_peak is not None
    assert row.proxy_since_peak.value == pytest.approx(2.0, abs=0.1)
    assert "second, third" in row.drop_from_peak.method
    assert row.gap is not None
    assert (row.gap.value or 0) > 2
    # Three scores at 2, -1, -1 lie further apart than three at 0.
    assert row.disagreement is not None
    assert (row.disagreement.low or 0) > 0
    assert row.alpha.value is None
    assert "refused" in row.alpha.method


def test_an_arm_is_not_judged_by_its_own_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = both(np.random.default_rng(0), {"main": -1.0, "second": 2.0})
    row = turn(truths(monkeypatch, arms, {"ppo": {"reward": "second"}}, ["main", "second"]), "ppo")
    assert row.goodhart is True  # main says so
    row = turn(truths(monkeypatch, arms, {"ppo": {"reward": "main"}}, ["main", "second"]), "ppo")
    assert row.goodhart is False  # second rises, main does not


def test_an_independent_judge_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arms = both(rng, {"main": 2.0, "second": 2.0})
    blocks, rewards = {"ppo": {"reward": "main"}}, ["main", "second"]
    wins = (rng.random(len(PROMPTS)) < 0.2).astype(float)
    row = turn(truths(monkeypatch, arms, blocks, rewards, wins=wins), "ppo")
    assert (row.truth, row.goodhart) == ("judge", True)
    assert row.drop_from_peak is not None
    assert row.drop_from_peak.value == pytest.approx(0.5 - wins.mean())
    assert "win rate by her" in row.drop_from_peak.method
    assert row.gap is None  # a win rate has no standard deviation on the SFT's samples
    assert turn(truths(monkeypatch, arms, blocks, rewards, wins=1 - wins), "ppo").goodhart is False
    related = truths(monkeypatch, arms, blocks, rewards, wins=wins, lineage="from main")
    assert turn(related, "ppo").truth == "ensemble"
    assert turn(truths(monkeypatch, arms, blocks, rewards, wins=wins, uneven="so"), "ppo").truth == "ensemble"


def test_nothing_stands_for_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = both(np.random.default_rng(0), {"main": 2.0})
    found = truths(monkeypatch, arms, {"ppo": {"reward": "main"}}, ["main"])
    assert found.turn("ppo", ("rl",), np.random.default_rng(0)) == []
