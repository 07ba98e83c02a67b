"""A reward model on fewer pairs beside one on all: the command, its certificate, and what it says of the turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import UNTRACKED, compare, copy_home, rows, workbench

# Two arms more than smoke has, in one command: slow where other processes want the cores.
pytestmark = pytest.mark.timeout(1500)

FEW = "reward_models.few={pairs: 16, epochs: 2, batch_size: 16, center_samples: 16}"
ARMS = (
    "arms.best_of_n-few={kind: best_of_n, n: 2, pool: 8, reward: few}",
    "arms.ppo-few={kind: ppo, reward: few, updates: 3, batch_size: 16, critic_warmup_updates: 1, "
    "checkpoint_every_updates: 2}",
)


@pytest.fixture(scope="module")
def found(smoke_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = copy_home(smoke_home, tmp_path_factory.mktemp("pairs") / "home")
    settings = [word for one in (FEW, *ARMS) for word in ("--set", one)]
    results: dict[str, Any] = compare("smoke", home, *settings, *UNTRACKED, timeout_s=1200.0)
    return results


def test_the_certificate_holds_and_declares_the_difference(found: dict[str, Any]) -> None:
    assert found["match"]["ok"], found["match"]
    (check,) = (check for check in found["match"]["checks"] if check["name"] == "same_pairs")
    assert "DECLARED to differ: best_of_n-few, ppo-few on 16 of" in check["detail"]


def test_arms_that_differ_in_pairs_alone_are_compared(found: dict[str, Any]) -> None:
    compared = {(row["fewer"], row["more"]) for row in found["pairs_effect"]}
    assert compared == {("best_of_n-few", "best_of_n"), ("ppo-few", "ppo")}
    assert all(row["pairs_fewer"] == 16 < row["pairs_more"] for row in found["pairs_effect"])


def test_over_optimization_is_about_the_reward_that_an_arm_optimized(found: dict[str, Any]) -> None:
    own = {row["arm"]: row["proxy"] for row in found["overoptimization"] if row["selector"] == "own"}
    assert (own["ppo"], own["ppo-few"], own["best_of_n-few"], own["dpo"]) == ("main", "few", "few", "main")
    stages = rows(found)
    assert "trajectory[ppo-few,own,seed=0]" in stages
    assert "trajectory[ppo,own,seed=0]" not in stages


def test_more_pairs_than_there_are_is_refused_before_anything_runs(tmp_path: Path) -> None:
    ran = workbench("compare", "smoke", "--home", tmp_path / "home", "--set", "reward_models.main.pairs=4000")
    assert ran.code == 2
    assert "expected at most the training pairs that there are (48)" in " ".join(ran.stderr.split())
