"""The curves of the measure stage: which arms differ in their pairs alone, from where they start, whose proxy it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from lines_example import line

from workbench.measure_curves import Curves
from workbench.measure_lines import aligned, told
from workbench.measure_scope import Figure, Scope
from workbench.metrics.lines import Line
from workbench.results_base import E
from workbench.results_curves import Overoptimization

KL = [0.0, 1.0, 2.0, 4.0]
GOLD = {"ppo-few": [0.0, -1.0, -1.0, -1.0], "ppo": [0.0, 1.0, 2.0, 3.0]}
BLOCKS: dict[str, Any] = {
    "ppo-few": {"kind": "ppo", "reward": "few", "kl_coef": 0.1},
    "ppo": {"kind": "ppo", "reward": "main", "kl_coef": 0.1},
    "dpo": {"kind": "dpo"},
    "best_of_n": {"kind": "best_of_n", "reward": "dpo"},
}


def curves(**settings: dict[str, Any]) -> Curves:
    """Two PPO arms of five run seeds on 16 and 100 pairs; `settings` of their reward models."""
    scope = SimpleNamespace(
        has_gold=True, reward_pairs={"few": {"pairs": 16}}, reward_settings=settings, train_pairs=100, proxy="main",
        rewards=["few", "main"], blocks=BLOCKS, rng=lambda *_: np.random.default_rng(0),
        arms={label: [SimpleNamespace(kind=block["kind"])] for label, block in BLOCKS.items()},
    )  # fmt: skip
    made = Curves.__new__(Curves)
    made.scope = scope  # type: ignore[assignment]

    def trajectory(label: str) -> tuple[Line, tuple[int, ...]]:
        return line(KL, GOLD[label], arm=label, seeds=5, between=0.0), (0, 1, 2, 3)

    made.lines = SimpleNamespace(trajectory=trajectory)  # type: ignore[assignment]
    return made


def test_checkpoints_on_a_grid_of_kl_are_put_together_in_order() -> None:
    seeds = [[0, 7, 9, 13, 14, 55], [0, 7, 8, 12, 14, 55], [0, 7, 10, 11, 14, 55]]
    steps = aligned(seeds)
    assert steps == ((0, 0, 0), (7, 7, 7), (9, 8, 10), (13, 12, 11), (14, 14, 14), (55, 55, 55))
    assert [told(one) for one in steps[1:3]] == ["step 7", "step 8 to 10"]
    one_short = [[0, 7, 9, 14, 21], [0, 7, 14]]  # the second has nothing to hold beside step 9, and nothing at 21
    assert aligned(one_short) == ((0, 0), (7, 7), (14, 14))


def test_arms_are_compared_where_their_rewards_differ_in_pairs_alone() -> None:
    alike = {"epochs": 4, "learning_rate": 1e-3}
    (row,) = curves(few=alike, main=alike).pairs_effect()
    assert (row["fewer"], row["more"], row["pairs_fewer"], row["pairs_more"]) == ("ppo-few", "ppo", 16, 100)
    assert curves(few=alike, main=alike | {"epochs": 2}).pairs_effect() == []


def test_an_arm_whose_every_checkpoint_is_worse_than_the_sft_has_turned_at_the_start() -> None:
    (row,) = curves(few={"epochs": 4}, main={"epochs": 4}).pairs_effect()
    assert 0.8 < row["less_fall"]["value"] < 1.2
    assert row["best_kl_fewer"] == [0.0, 0.0]
    assert row["turns_later"] is True


def test_a_rows_proxy_is_the_arms_own_the_shared_one_or_both() -> None:
    none = E(value=None, low=None, high=None, n=0, method="")
    row = Overoptimization(arm="ppo", form="rl", alpha=none, beta=none, peak_kl=none, drop_from_peak=none)
    given = [("ppo", "main"), ("ppo-few", "few"), ("ppo-few", "main"), ("dpo", "main"), ("best_of_n", "main")]
    roles = [curves()._role(row.model_copy(update={"arm": arm, "proxy": proxy})) for arm, proxy in given]
    assert roles == ["both", "own", "shared", "shared", "shared"]
    assert curves()._role(row.model_copy(update={"proxy": "main", "selector": "gold"})) == "shared"
    assert curves()._role(row) is None


def test_no_two_figures_draw_the_same_numbers() -> None:
    scope = Scope.__new__(Scope)
    scope.seed = 7
    names = [(one, *more) for one in Figure for more in ((), (0,), (1,), (0, 0))]
    drawn = {scope.rng(*name).integers(2**63) for name in names}
    assert len(drawn) == len(names)  # numpy alone takes [7, 10] and [7, 10, 0] for the same seed


def test_arms_that_differ_in_pairs_alone_make_a_curve() -> None:
    alike = {"epochs": 4}
    made = curves(few=alike, main=alike)
    made.scope.reward_pairs["dpo-few"] = {"pairs": 16}
    made.scope.blocks = BLOCKS | {
        "dpo": {"kind": "dpo", "beta": 0.3, "pairs": None},
        "dpo-few": {"kind": "dpo", "beta": 0.3, "pairs": 16},
        "dpo-other": {"kind": "dpo", "beta": 0.1, "pairs": None},
        "dpo-taught": {"kind": "dpo", "beta": 0.3, "pairs": None, "labels": "main"},
    }
    assert made.by_pairs() == [[(16, "ppo-few"), (100, "ppo")], [(16, "dpo-few"), (100, "dpo")]]
