"""Contrasts of crossed cells: they add up, tell interaction from main effects, and miss what cells are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workbench.measure_crossed import _paired
from workbench.metrics.crossed import Design, Weights, decompose, design, effect_weights, gap_weights
from workbench.report import crossed as report
from workbench.results_base import Compared, E
from workbench.results_crossed import Decomposition, Gap

PPO = {"kind": "ppo", "kl_coef": 0.2}
DPO = {"kind": "dpo", "beta": 0.2, "labels": "given"}
BEST = {"kind": "best_of_n", "n": 4}
BLOCKS: dict[str, dict[str, Any]] = {
    "ppo": PPO | {"reward": "main"},
    "ppo-i": PPO | {"reward": "dpo"},
    "bon": BEST | {"reward": "main"},
    "bon-i": BEST | {"reward": "dpo"},
    "dpo": DPO,
    "dpo-e": DPO | {"labels": "main"},
    "dpo-i": DPO | {"labels": "dpo"},
}


def made(*labels: str, **changes: dict[str, Any]) -> Design | None:
    blocks = {label: BLOCKS[label] | changes.get(label, {}) for label in labels or BLOCKS}
    return design(blocks, "main", "dpo" if "dpo" in blocks else None)


def exactly(values: dict[str, float]) -> Any:
    """A contrast of known values, with an interval of no meaning."""

    def contrast(weights: Weights) -> Compared:
        value = sum(weight * values[label] for label, weight in weights.items())
        return Compared(value=value, low=value - 1, high=value + 1, n=9, method="exact")

    def own(label: str) -> E:
        return E(value=values[label], low=None, high=None, n=9, method="exact")

    return contrast, own


def gap_of(values: dict[str, float], *labels: str) -> Gap:
    found = made(*labels)
    assert found is not None
    gap = decompose(found, *exactly(values))[2]
    assert gap is not None
    return gap


def parts(gap: Gap) -> dict[str, tuple[float | None, float | None]]:
    return {split.order: (split.reward.value, split.optimizer.value) for split in gap.splits}


ADDITIVE = {"ppo": 3.0, "ppo-i": 1.0, "bon": 4.0, "bon-i": 2.0, "dpo-e": 3.5, "dpo-i": 1.5, "dpo": 1.5}


def test_without_interaction_both_orders_agree() -> None:
    gap = gap_of(ADDITIVE)
    assert gap.total.value == 1.5
    assert set(parts(gap).values()) == {(2.0, -0.5)}
    assert list(parts(gap)) == ["reward first", "optimizer first", "mean of both"]
    assert gap.relabeling is not None
    assert gap.relabeling.value == 0.0


def test_what_relabeling_does_is_neither_the_rewards_nor_the_optimizers() -> None:
    noisy = ADDITIVE | {"dpo": 2.5}  # labels drawn anew cost 1.0, whatever the reward
    gap = gap_of(noisy)
    assert gap.relabeling is not None
    assert (gap.total.value, gap.relabeling.value) == (0.5, -1.0)
    assert set(parts(gap).values()) == {(2.0, -0.5)}
    # Without the arm that shows it, it is counted somewhere, and the design says so.
    labels = [label for label in BLOCKS if label != "dpo-i"]
    assert parts(gap_of(noisy, *labels))["optimizer first"] == (1.0, -0.5)
    without = made(*labels)
    assert without is not None
    assert "no dpo arm has labels: dpo" in without.caveats[0]


def test_with_interaction_every_split_still_adds_up_and_the_last_is_the_mean() -> None:
    gap = gap_of(ADDITIVE | {"ppo": 5.0})
    assert gap.total.value == pytest.approx(3.5)
    found = parts(gap)
    assert found["reward first"] == (4.0, -0.5)
    assert found["optimizer first"] == (2.0, 1.5)
    assert found["mean of both"] == (3.0, 0.5)
    assert all(sum(split) == pytest.approx(3.5) for split in found.values())  # type: ignore[arg-type]


def test_splits_add_up_where_arms_lack_scores_on_different_prompts() -> None:
    """One set of prompts for every contrast; the rest is counted."""
    found = made()
    assert found is not None
    rng = np.random.default_rng(0)
    tables = {label: {(f"p{row}", 0): float(rng.normal()) for row in range(30)} for label in found.labels}
    for row, label in enumerate(found.labels):
        del tables[label][f"p{row}", 0]
    one = _paired(
        found, tables, [], {"measure": "gold_reward", "at": "selected", "explicit": "main", "implicit": "dpo"}
    )
    assert one.gap is not None
    lost = len(found.labels)
    assert (one.gap.total.n, one.gap.total.n_unscored) == (30 - lost, lost)
    extra = 0.0 if one.gap.relabeling is None else one.gap.relabeling.value or 0.0
    for split in one.gap.splits:
        total = (split.reward.value or 0.0) + (split.optimizer.value or 0.0) + extra
        assert total == pytest.approx(one.gap.total.value)
    values = {cell.arm: cell.value.value or 0.0 for cell in one.cells}
    effect = next(row for row in one.effects if row.name == "explicit over implicit, ppo")
    assert effect.difference.value == pytest.approx(values["ppo"] - values["ppo-i"])


def test_effects_are_what_the_table_says() -> None:
    found = made()
    assert found is not None
    effects = {(row.effect, row.name): row for row in decompose(found, *exactly(ADDITIVE | {"ppo": 5.0}))[1]}
    values = {place: row.difference.value for place, row in effects.items()}
    assert values["reward", "explicit over implicit, ppo"] == 4.0
    assert values["reward", "explicit over implicit, direct"] == 2.0
    assert values["reward", "explicit over implicit, mean"] == pytest.approx((4 + 2 + 2) / 3)
    assert values["optimizer", "ppo over best_of_n, mean"] == pytest.approx((1 - 1) / 2)
    assert values["interaction", "explicit over implicit, ppo over best_of_n"] == 2.0
    assert values["interaction", "explicit over implicit, best_of_n over direct"] == 0.0
    assert all(sum(row.weights.values()) == pytest.approx(0.0) for row in effects.values())


def test_missing_cells_take_their_figures_with_them() -> None:
    plain = made("ppo", "bon", "dpo")
    assert plain is None  # nothing is crossed
    assert design(BLOCKS, "main", None) is None
    half = made("ppo", "dpo", "dpo-e")
    assert half is not None
    total, splits = gap_weights(half)
    assert total == {"ppo": 1.0, "dpo": -1.0}
    assert [split[0] for split in splits] == ["optimizer first"]
    assert [row[:2] for row in effect_weights(half)] == [("optimizer", "ppo over direct, explicit")]
    only = made("bon", "bon-i", "dpo")
    assert only is not None
    assert gap_weights(only) == (None, [])
    assert [row[:2] for row in effect_weights(only)] == [("reward", "explicit over implicit, best_of_n")]
    full = made()
    assert full is not None
    assert full.only({"ppo", "dpo", "bon"}).crossed is False


def test_cells_are_paired_by_their_settings_and_differences_are_told() -> None:
    blocks = {"ppo-0.5": PPO | {"reward": "main", "kl_coef": 0.5}} | BLOCKS
    found = design(blocks, "main", "dpo")
    assert found is not None
    assert found.cells["explicit", "ppo"] == "ppo"  # not the first, but the one that its partner matches
    assert found.caveats == ()
    apart = made(**{"ppo-i": {"kl_coef": 0.1, "updates": 9}})
    assert apart is not None
    assert apart.caveats[0] == "ppo and ppo-i differ in more than the reward: kl_coef, updates"
    assert "kl_coef and beta differ (ppo 0.2, ppo-i 0.1, " in apart.caveats[1]


def test_the_report_tells_table_gap_and_level_of_the_tilts() -> None:
    found = made()
    assert found is not None
    cells, effects, gap = decompose(found, *exactly(ADDITIVE))
    one = Decomposition(
        measure="gold_reward", at="matched_kl", kl=1.5, explicit="main", implicit="dpo", cells=cells, effects=effects,
        gap=gap, caveats=["<b>x</b>"],
    )  # fmt: skip

    def point(reward: str, gain: float | None) -> dict[str, Any]:
        figure = {"value": gain, "low": None, "high": None, "n": 9, "method": ""}
        return {"reward": reward, "beta": 1.0, "seq_kl": figure, "gold_gain": figure, "gold_reward": figure,
                "proxy_reward": figure, "ess": 9.0, "pool": 64}  # fmt: skip

    tilts = [point("main", 0.5), point("main", 0.9), point("gold", 0.7), point("gold", None)]
    results = {"decomposition": [one.model_dump(mode="json")], "tilt": tilts}
    text = report.sections(results)
    assert "| explicit (main) | 3.00 (ppo) | 4.00 (bon) | 3.50 (dpo-e) |" in text
    assert "| reward first | 2.00 [1.00, 3.00] | -0.50 [-1.50, 0.50] | 0.00 [-1.00, 1.00] | 1.50 [0.50, 2.50] |" in text
    assert "&lt;b&gt;" in text
    assert "1 points refused" in text
    assert report.lines(results) == [
        "ppo less dpo in gold at 1.50 nats: 1.50 [0.50, 2.50], of which 2.00 [1.00, 3.00] from the reward, "
        "-0.50 [-1.50, 0.50] from the optimizer and 0.00 [-1.00, 1.00] from relabeling (mean of both).",
        "A perfect optimizer at about 0.50 nats gains in gold: main 0.50, gold 0.70.",
    ]
    ends = [{"reward": "gold", "against": "main", "kl": kl, "gold_gain": {"value": kl, "low": 0.1, "high": 9.0, "n": 9}}
            for kl in (0.5, 0.75)]  # fmt: skip
    more = results | {"tilt_differences": ends}
    assert report.lines(more)[-1].endswith("gold paired by prompt: gold less main 0.75 [0.10, 9.00] at 0.75 nats.")
    assert "| gold less main | 0.50 | 0.50 [0.10, 9.00] | - |" in report.sections(more)
    assert report.sections({}) == ""
    assert report.lines({"tilt": [], "decomposition": []}) == []
