"""More pairs behind the reward: nested subsets, what the certificate says of them, and the comparison of the turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from lines_example import line
from test_match import PAIRS, matched

from workbench.config import load_config
from workbench.data.records_io import FILTER_FILE
from workbench.data.subset import subset_rows
from workbench.errors import ConfigError, DataError
from workbench.match import certificate
from workbench.match_facts import Side
from workbench.metrics.lines import contenders
from workbench.metrics.pairs_effect import pairs_effect
from workbench.packed import PackedPairs, write_packed_pairs
from workbench.results_curves import PairsEffect

SPLITS = {"train": ["p1", "p2", "p3"], "validation": ["p4"], "test": ["p5", "p6"], "ood": ["p7"]}


@pytest.fixture
def pairs(tmp_path: Path) -> PackedPairs:
    return packed(tmp_path, range(30))


def packed(folder: Path, order: Sequence[int] | range) -> PackedPairs:
    folder.mkdir(exist_ok=True)
    rows = [([i], [i, 1], [i, 2]) for i in order]
    split = {i: "train" if i < 20 else "test" for i in order}
    meta = [{"pair_id": f"pair{i}", "prompt_id": f"p{i}", "split": split[i], "target_margin": None} for i in order]
    write_packed_pairs(folder, rows, meta)
    (folder / FILTER_FILE).write_text("{}")
    return PackedPairs(folder)


def test_subsets_are_nested_of_the_train_split_and_hang_on_the_seed_alone(pairs: PackedPairs, tmp_path: Path) -> None:
    small, large, whole = (set(subset_rows(pairs, count, seed=1)) for count in (5, 12, 20))
    assert len(small) == 5
    assert small < large < whole == set(pairs.split_rows("train"))
    assert set(subset_rows(pairs, 5, seed=2)) != small
    turned = packed(tmp_path / "turned", range(29, -1, -1))
    assert turned.ids_digest(subset_rows(turned, 5, seed=1)) == pairs.ids_digest(sorted(small))
    with pytest.raises(DataError, match="asks for 21 training pairs, the filtered train split has 20"):
        subset_rows(pairs, 21, seed=1)


def test_a_config_that_asks_for_more_pairs_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most the training pairs"):
        load_config(Path("smoke"), ["reward_models.main.pairs=49"])
    assert load_config(Path("smoke"), ["reward_models.main.pairs=48"]).reward_models["main"].pairs == 48


def same_pairs(*sides: Side) -> tuple[object, str]:
    match = certificate(sides, SPLITS, train_pairs=PAIRS)
    (check,) = (check for check in match.checks if check.name == "same_pairs")
    return check.ok, check.detail


def test_the_certificate_states_a_declared_subset_and_fails_on_any_other() -> None:
    from dataclasses import replace

    sides = matched()
    fewer = replace(sides["ppo"], label="ppo-few", pair_rows="9" * 64)
    ok, detail = same_pairs(*sides.values(), fewer)
    assert ok is False
    told = "250 of 2000 training pairs"
    declared = replace(fewer, declared_pairs="9" * 64, declared=told)
    ok, detail = same_pairs(*sides.values(), declared)
    assert ok is True
    assert f"DECLARED to differ: ppo-few on {told}" in detail
    ok, detail = same_pairs(
        *sides.values(), replace(declared, pair_rows=PAIRS)
    )  # all pairs, though fewer were declared
    assert ok is False
    assert "other pairs than the declared subset for ppo-few" in detail
    assert same_pairs(*sides.values(), replace(declared, pair_rows=None))[0] is False
    assert same_pairs(sides["sft"], declared)[0] is True


KL = [0.5, 1.0, 2.0, 4.0, 8.0]


def effect(fewer: Sequence[float], more: Sequence[float], **options: object) -> PairsEffect:
    rng = np.random.default_rng(0)
    lines = [line(KL, gold, rng, arm=name, **options) for name, gold in (("few", fewer), ("many", more))]  # type: ignore[arg-type]
    return pairs_effect(*lines, (250, 4000), "ppo", rng, 300)  # type: ignore[misc, arg-type]


def test_a_smaller_and_later_turn_is_resolved() -> None:
    found = effect([1, 2, 1, 0, -1], [1, 2, 2.5, 3, 2.5], seeds=5)
    assert found.less_fall.value == pytest.approx(2.5, abs=0.15)
    assert (found.less_fall.low or -9) > 0
    assert found.turns_later is True
    assert found.best_kl_fewer == pytest.approx((1.0, 1.0))
    assert found.best_kl_more == pytest.approx((4.0, 4.0))


def test_an_arm_that_has_not_turned_is_open_above() -> None:
    found = effect([1, 2, 1, 0, -1], [1, 2, 3, 4, 5], seeds=5)
    assert found.best_kl_more is not None
    assert found.best_kl_more[1] is None
    assert found.turns_later is True
    assert effect([1, 2, 3, 4, 5], [1, 2, 1, 0, -1], seeds=5).turns_later is False


def test_fewer_than_five_run_seeds_turn_neither_later_nor_earlier() -> None:
    for seeds, later in ((1, None), (4, None), (5, True)):
        found = effect([1, 2, 1, 0, -1], [1, 2, 3, 4, 5], seeds=seeds)
        assert found.turns_later is later
        assert (found.less_fall.low or -9) > 0  # the fall is told of these checkpoints


def test_alike_turns_are_not_resolved_and_too_little_is_refused() -> None:
    same = [1, 2, 2, 1.5, 1]
    found = effect(same, same, noise=1.0)
    assert (found.less_fall.low or -9) < 0 < (found.less_fall.high or 9)
    assert found.turns_later is None
    nothing = effect(same, same, prompts=4)
    assert (nothing.less_fall.value, nothing.turns_later, nothing.best_kl_more) == (None, None, None)
    assert "4 prompts" in nothing.less_fall.method


def test_equal_arms_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(60):
        lines = [line(KL, [1, 2, 1.8, 1.5, 1], rng, arm=name, prompts=40, noise=1.0) for name in ("few", "many")]
        found = pairs_effect(*lines, (1, 2), "ppo", rng, 200)  # type: ignore[misc, arg-type]
        gap = found.less_fall
        wrong += not (gap.low or -9) <= 0 <= (gap.high or 9) or found.turns_later is not None
    assert wrong <= 4


def test_points_that_may_be_the_best() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal([[0.0, 1.0, 1.02, 0.0]], 0.02, size=(400, 4))
    gold = np.concatenate([[[0.0, 1.0, 1.02, 0.0]], draws])[None]
    may, not_overtaken = contenders(gold, 100, rng)
    assert may.tolist() == [1, 2]
    assert not_overtaken.tolist() == [1, 2, 3]
