"""Relabeled pairs: the same pairs, labels as the reward's model of preferences says, and what the certificate reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tests.ml_helpers import Log, World, build_world
from workbench.data.relabel import run, train_digests, turned
from workbench.errors import DivergenceError, IntegrityError
from workbench.packed import PackedPairs


@pytest.fixture
def world(tmp_path: Path) -> World:
    return build_world(tmp_path)


def inputs_of(world: World, margins: list[float]) -> dict[str, Path]:
    """Margins of the training pairs and reference log-probabilities that name their pair and side."""
    pairs = PackedPairs(world.pairs)
    train = pairs.split_rows("train")
    told = world.root / "margins"
    told.mkdir(exist_ok=True)
    columns = {
        "pair_id": [pairs.meta(row)["pair_id"] for row in train],
        "split": ["train"] * len(train),
        "proxy/main": margins,
    }
    (told / "margins.json").write_text(json.dumps(columns))
    reference = world.root / "reference"
    reference.mkdir(exist_ok=True)
    rows = np.arange(len(pairs), dtype=np.float64)
    np.savez(
        reference / "logprobs.npz", chosen=-rows, rejected=-rows - 0.5, pairs_digest=pairs.ids_digest(),
        reference_tensors="r",
    )  # fmt: skip
    return {"pairs": world.pairs, "margins": told, "reference_logprobs": reference}


def relabeled(world: World, margins: list[float], rule: str = "argmax", seed: int = 0) -> Path:
    out = world.out("relabeled")
    run({"column": "proxy/main", "rule": rule}, inputs_of(world, margins), out, Log(world.root / "work", seed=seed))
    return out


def test_a_turned_pair_swaps_responses_and_log_probabilities_and_nothing_else_moves(world: World) -> None:
    margins = [1.0 if row % 3 else -1.0 for row in range(24)]
    out = relabeled(world, margins)
    before, after = PackedPairs(world.pairs), PackedPairs(out)
    logprobs = np.load(out / "logprobs.npz")
    assert len(after) == len(before)
    for row in range(len(before)):
        flip = row < 24 and row % 3 == 0
        old, new = before.as_lists(row), after.as_lists(row)
        sides = ("rejected", "chosen") if flip else ("chosen", "rejected")
        assert new["prompt_ids"] == old["prompt_ids"]
        assert (new["chosen_ids"], new["rejected_ids"]) == tuple(old[f"{side}_ids"] for side in sides)
        assert (logprobs["chosen"][row], logprobs["rejected"][row]) == (
            (-row - 0.5, -row) if flip else (-row, -row - 0.5)
        )
        assert after.meta(row)["pair_id"] == before.meta(row)["pair_id"]
    assert str(logprobs["pairs_digest"]) == after.ids_digest()
    assert after.filter_digest() == before.filter_digest()
    facts = json.loads((out / "facts.json").read_text())
    assert (facts["turned"], facts["pairs"]) == (8, 24)


def test_undoing_the_turns_gives_the_original_set_and_the_turned_one_is_another(world: World) -> None:
    out = relabeled(world, [(-1.0) ** row for row in range(24)])
    pairs = PackedPairs(world.pairs)
    original = pairs.ids_digest(pairs.split_rows("train"))
    made, restored = train_digests(out)
    assert restored == original
    assert made != original
    # A flip that is not what was written gives another set: the digests are of ids, not of what facts claim.
    flips = np.load(out / "flips.npy")
    flips[0] = ~flips[0]
    np.save(out / "flips.npy", flips)
    assert train_digests(out)[1] != original


def test_one_side_of_the_margin_keeps_every_label(world: World) -> None:
    out = relabeled(world, [50.0] * 24, "sample")
    assert train_digests(out)[0] == train_digests(out)[1]


def test_labels_are_drawn_with_the_probability_that_the_margin_says() -> None:
    for margin in (-2.0, -0.3, 0.0, 1.5):
        share = turned(np.full(40_000, margin), "sample", np.random.default_rng(0)).mean()
        assert share == pytest.approx(1 / (1 + np.exp(margin)), abs=0.01)
    assert turned(np.array([-1e9, 1e9]), "sample", np.random.default_rng(0)).tolist() == [True, False]
    assert turned(np.array([-0.1, 0.0, 0.1]), "argmax", np.random.default_rng(0)).tolist() == [True, False, False]


def test_two_rewards_that_agree_turn_the_same_pairs() -> None:
    margins = np.random.default_rng(1).normal(size=2000)
    near = margins + 0.01
    one, other = (turned(values, "sample", np.random.default_rng(7)) for values in (margins, near))
    assert np.mean(one != other) < 0.01
    assert 0.2 < one.mean() < 0.8


def test_sampled_labels_keep_the_rewards_strength_and_signs_lose_it() -> None:
    """The Bradley-Terry maximum of sampled labels is at the reward itself; that of signs runs away."""
    margins = np.random.default_rng(2).normal(size=20_000)

    def fitted(rule: str) -> float:
        label = np.where(turned(margins, rule, np.random.default_rng(3)), -1.0, 1.0)
        loss = minimize_scalar(
            lambda scale: np.logaddexp(0, -scale * label * margins).mean(), bounds=(0, 50), method="bounded"
        )
        return float(loss.x)

    assert fitted("sample") == pytest.approx(1.0, abs=0.1)
    assert fitted("argmax") > 20


def test_margins_of_other_pairs_and_of_a_diverged_reward_are_refused(world: World) -> None:
    with pytest.raises(DivergenceError, match="1 of 24 margins are not finite"):
        relabeled(world, [float("nan"), *[1.0] * 23])
    inputs = inputs_of(world, [1.0] * 24)
    path = inputs["margins"] / "margins.json"
    columns = json.loads(path.read_text())
    columns["pair_id"].reverse()
    path.write_text(json.dumps(columns))
    with pytest.raises(IntegrityError, match="in their order"):
        run({"column": "proxy/main", "rule": "sample"}, inputs, world.out("x"), Log(world.root / "work"))
