"""How a pair becomes a training label: the numbers, the stage, the two trainers against the loss, the certificate."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.graph import build_graph
from pipelines.graph_labels import asked_labels
from pipelines.sources import resolve_origin
from tests.ml_helpers import CPU, PAD, Log, World, build_world, dpo_config, policy_of, reward_config
from tests.workbench.test_match import matched
from workbench.config import load_config
from workbench.config_label_use import LabelUse
from workbench.data.label_use import run
from workbench.data.stages import file_pairs
from workbench.data.subset import subset_rows
from workbench.errors import ConfigError, DataError, IntegrityError
from workbench.label_targets import (
    expected_digest,
    noisy,
    preferring_share,
    read_targets,
    smoothed,
    write_targets,
)
from workbench.match import certificate
from workbench.match_facts import Side
from workbench.models import load_policy, new_reward_model
from workbench.objectives import bradley_terry_loss, dpo_loss, dpo_nll_loss, nll_loss, preference_loss
from workbench.packed import PackedPairs, write_packed_pairs
from workbench.policy_set import read_policy_set
from workbench.scoring import reward_scores, sequence_logprobs
from workbench.staged import StagedPairs
from workbench.store import Store
from workbench.trl_adapter import TrainSpec, train_dpo, train_reward

SPEC = TrainSpec(
    learning_rate=1e-3, batch_size=8, schedule="linear", warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1.0,
    checkpoint_every_steps=100, seed=0,
)  # fmt: skip


def signed(*votes: tuple[str, bool]) -> list[dict[str, Any]]:
    return [{"annotator": name, "prefers_first": vote} for name, vote in votes]


# -------------------------------------------------------------------------------------------------- the numbers


def test_a_share_counts_annotators_or_their_weights() -> None:
    votes = signed(("anna", True), ("ben", True), ("carl", False))
    assert preferring_share(votes, "majority", {}) == 1.0
    assert preferring_share(votes, "soft", {}) == pytest.approx(2 / 3)
    assert preferring_share(votes, "weighted", {"anna": 1, "ben": 1, "carl": 6}) == pytest.approx(2 / 8)
    assert preferring_share([], "soft", {}) == 1.0  # nobody signed: as given
    with pytest.raises(DataError, match="no weight for carl"):
        preferring_share(votes, "weighted", {"anna": 1.0, "ben": 2.0})
    assert smoothed(np.array([1.0, 0.5, 2 / 3]), 0.1) == pytest.approx([0.9, 0.5, 0.9 * 2 / 3 + 0.1 / 3])


def test_noise_is_nested_in_its_probability_and_blind_to_order() -> None:
    names = [f"pair{i}" for i in range(2000)]
    few, many = noisy(names, 0.1, 7), noisy(names, 0.3, 7)
    assert abs(few.mean() - 0.1) < 0.03
    assert abs(many.mean() - 0.3) < 0.04
    assert (many >= few).all()
    assert (noisy(names[::-1], 0.1, 7)[::-1] == few).all()
    assert (noisy(names, 0.1, 8) != few).any()
    assert not noisy(names, 0.0, 7).any()


def test_the_loss_is_the_cross_entropy_and_smallest_where_it_should_be() -> None:
    difference = torch.tensor([0.3, -1.2], dtype=torch.float64)
    margin, target = torch.tensor([0.5, 0.0]), torch.tensor([0.75, 1.0])
    by_hand = 0.0
    for d, m, p in ((0.3, 0.5, 0.75), (-1.2, 0.0, 1.0)):
        chance = 1 / (1 + math.exp(-(d - m)))
        by_hand -= (p * math.log(chance) + (1 - p) * math.log(1 - chance)) / 2
    assert float(preference_loss(difference, margin, target)) == pytest.approx(by_hand, rel=1e-6)
    best = torch.tensor([0.5 + math.log(3.0), 20.0], requires_grad=True)
    preference_loss(best, margin, target).backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-6
    ones = torch.ones(2)
    assert float(preference_loss(difference)) == float(preference_loss(difference, torch.zeros(2), ones))


# ---------------------------------------------------------------------------------------------------- the stage


def packed(folder: Path, train: int = 12, **changes: Any) -> dict[str, Path]:
    """Pairs with three annotators each and margins, and log-probabilities that name their row and side."""
    pairs = folder / "pairs"
    pairs.mkdir(parents=True)
    splits = ["train"] * train + ["validation"] * 3
    rows = [([40 + i], [50, 40 + i, 1], [51, 40 + i, 1]) for i in range(len(splits))]
    meta = [
        {
            "pair_id": f"pair{i}",
            "prompt_id": f"p{i}",
            "split": split,
            "annotations": signed(("anna", True), ("ben", i % 2 == 0), ("carl", i % 4 == 0)),
            "target_margin": 0.5 * i,
        }
        | changes
        for i, split in enumerate(splits)
    ]
    write_packed_pairs(pairs, rows, meta)
    (pairs / "filter.json").write_text(json.dumps({"rows": len(rows), "kept": len(rows)}))
    reference = folder / "reference"
    reference.mkdir()
    numbers = np.arange(len(rows), dtype=np.float64)
    np.savez(
        reference / "logprobs.npz", chosen=-numbers, rejected=-numbers - 0.5,
        pairs_digest=PackedPairs(pairs).ids_digest(), reference_tensors="r",
    )  # fmt: skip
    return {"pairs": pairs, "reference_logprobs": reference}


def labeled(folder: Path, inputs: dict[str, Path], noise: float = 0.0, seed: int = 0, **labels: Any) -> Path:
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    use = LabelUse(**labels).model_dump(mode="json")
    run({"labels": use, "noise": noise}, inputs, out, Log(folder / "work", seed=seed))
    return out


def test_soft_labels_turn_pairs_whose_annotators_disagree_with_the_data(tmp_path: Path) -> None:
    inputs = packed(tmp_path)
    out = labeled(tmp_path, inputs, rule="soft", smoothing=0.1, margins=True, margin_scale=2.0)
    before, after = PackedPairs(inputs["pairs"]), PackedPairs(out)
    values = read_targets(out, len(after))
    logprobs = np.load(out / "logprobs.npz")
    assert str(logprobs["pairs_digest"]) == after.ids_digest()
    for row in range(12):
        share = (1 + (row % 2 == 0) + (row % 4 == 0)) / 3
        turned = share < 0.5
        old, new = before.as_lists(row), after.as_lists(row)
        assert new["chosen_ids"] == old["rejected_ids" if turned else "chosen_ids"]
        assert values["target"][row] == pytest.approx(0.8 * max(share, 1 - share) + 0.1)
        assert values["margin"][row] == pytest.approx(0.0 if turned else 2.0 * 0.5 * row)
        assert logprobs["chosen"][row] == -row - 0.5 * turned
        agree = [one["prefers_first"] for one in after.meta(row)["annotations"]]
        assert sum(agree) / 3 == pytest.approx(max(share, 1 - share))
    for row in range(12, 15):  # held-out pairs stay as they came
        assert after.as_lists(row) == before.as_lists(row)
        assert (values["target"][row], values["margin"][row]) == (1.0, 0.0)


def test_noise_alone_keeps_labels_hard_and_turns_its_share(tmp_path: Path) -> None:
    inputs = packed(tmp_path, train=200)
    out = labeled(tmp_path, inputs, noise=0.25, seed=3)
    told = json.loads((out / "labels.json").read_text())
    assert read_targets(out, 203) == {}
    flips = np.load(out / "flips.npy")
    assert told["turned"] == told["noisy"] == flips.sum() == noisy([f"pair{i}" for i in range(200)], 0.25, 3).sum()
    assert not flips[200:].any()
    assert told["told"] == "majority labels, noise 0.25"
    # A subset is the same pairs, whatever was turned.
    assert subset_rows(PackedPairs(out), 50, 1) == subset_rows(PackedPairs(inputs["pairs"]), 50, 1)
    assert 0 < flips[subset_rows(PackedPairs(out), 50, 1)].sum() < 50


def test_weights_decide_and_unknown_annotators_are_named(tmp_path: Path) -> None:
    inputs = packed(tmp_path)
    out = labeled(tmp_path, inputs, rule="weighted", weights={"anna": 8.0, "ben": 1.0, "carl": 1.0})
    assert not np.load(out / "flips.npy").any()  # anna always agrees
    assert read_targets(out, 15)["target"][1] == pytest.approx(0.8)
    with pytest.raises(DataError, match="no weight for carl"):
        labeled(tmp_path, inputs, rule="weighted", weights={"anna": 1.0, "ben": 1.0})


def test_a_margin_needs_a_majority_behind_it(tmp_path: Path) -> None:
    even = packed(tmp_path, annotations=signed(("anna", True), ("ben", False)), target_margin=3.0)
    values = read_targets(labeled(tmp_path, even, rule="soft", margins=True), 15)
    assert values["target"][:12] == pytest.approx(0.5)
    assert values["margin"].tolist() == [0.0] * 15  # a difference of log 1 is asked for, not the data's 3
    values = read_targets(labeled(tmp_path, even, margins=True), 15)
    assert values["margin"].tolist() == [3.0] * 12 + [0.0] * 3  # the majority's label is the data's


def test_what_the_data_does_not_have_is_refused(tmp_path: Path) -> None:
    bare = packed(tmp_path / "bare", annotations=[], target_margin=None)
    with pytest.raises(DataError, match="none of 12 training pairs has annotations"):
        labeled(tmp_path, bare, rule="soft")
    with pytest.raises(DataError, match="12 of 12 training pairs have no target_margin, first pair0"):
        labeled(tmp_path, bare, margins=True)
    write_targets(bare["pairs"], np.full(15, 1.5), np.zeros(15))
    with pytest.raises(IntegrityError, match="probability"):
        read_targets(bare["pairs"], 15)


def test_labels_are_looked_for_when_the_pairs_are_read(tmp_path: Path) -> None:
    votes = {"annotations": signed(("anna", True), ("ben", False)), "split": "train"}
    rows = [{"prompt": f"q{at}", "chosen": "yes", "rejected": "no", **votes} for at in range(3)]
    rows += [{"prompt": f"held {split}", "chosen": "yes", "rejected": "no", "split": split}
             for split in ("validation", "test")]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(**labels: Any) -> None:
        (out := tmp_path / f"out{len(list(tmp_path.iterdir()))}").mkdir()
        file_pairs(asked_labels(LabelUse(**labels)), {"source": path}, out, Log(tmp_path / "work"))

    assert asked_labels(LabelUse(smoothing=0.1)) == {}  # the key of what asks for nothing stays as it was
    for fine in ({}, {"rule": "soft"}, {"rule": "weighted", "weights": {"anna": 1.0, "ben": 2.0}}):
        read(**fine)
    with pytest.raises(DataError, match="no weight for ben, who labeled"):
        read(rule="weighted", weights={"anna": 1.0})
    with pytest.raises(DataError, match=r"3 of 3 training pairs have no target_margin, first [0-9a-f]{16}"):
        read(margins=True)
    path.write_text("".join(json.dumps(row | {"annotations": []}) + "\n" for row in rows))
    with pytest.raises(DataError, match="none of 3 training pairs has annotations"):
        read(rule="soft")


# ------------------------------------------------------------------------------------------------- the trainers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def labels(world: World) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    count = len(PackedPairs(world.pairs))
    return {"target": rng.uniform(0.5, 1.0, count), "margin": rng.normal(size=count)}


def sides(world: World, rows: list[int]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    found = [PackedPairs(world.pairs).as_lists(row) for row in rows]
    prompt, chosen, rejected = ([one[f"{name}_ids"] for one in found] for name in ("prompt", "chosen", "rejected"))
    return prompt, chosen, rejected


def test_the_reward_trainer_takes_targets_and_margins(
    world: World, labels: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    rows = [3, 1, 4, 15, 9, 2, 6, 5]
    model = new_reward_model(world.model, CPU, 1, pad_id=PAD)
    prompt, chosen, rejected = sides(world, rows)
    scores = [torch.tensor(reward_scores(model, prompt, ids, pad_id=PAD)) for ids in (chosen, rejected)]
    given = [torch.tensor(labels[name][rows], dtype=torch.float32) for name in ("margin", "target")]
    pairs = StagedPairs(PackedPairs(world.pairs), values=labels)
    trained = train_reward(model, world.tokenizer, pairs, rows, SPEC, log := Log(tmp_path / "work"))
    ((_, values),) = log.lines()
    assert values["loss"] == pytest.approx(float(bradley_terry_loss(*scores, *given)), abs=1e-5)
    assert abs(values["loss"] - float(bradley_terry_loss(*scores))) > 1e-2
    write_targets(world.root / "pairs", labels["target"], labels["margin"])
    assert trained.consumed_labels == expected_digest(world.pairs, rows)
    assert trained.consumed_labels != expected_digest(world.pairs, rows[:-1])
    (world.pairs / "targets.npz").unlink()
    assert trained.consumed_labels != expected_digest(world.pairs, rows)  # hard labels are others


@pytest.mark.parametrize("nll_coef", [0.0, 0.5])
def test_the_dpo_trainer_takes_targets_and_margins(
    world: World, labels: dict[str, np.ndarray[Any, Any]], tmp_path: Path, nll_coef: float
) -> None:
    rows = [3, 1, 4, 15, 9, 2, 6, 5]
    model = load_policy(world.model, CPU, trainable=True)
    prompt, chosen, rejected = sides(world, rows)
    own = [torch.tensor(sequence_logprobs(model, prompt, ids, pad_id=PAD)) for ids in (chosen, rejected)]
    rng = np.random.default_rng(0)
    reference = {f"ref_{side}_logps": rng.normal(-20, 3, len(labels["target"])) for side in ("chosen", "rejected")}
    refs = [torch.tensor(one[rows]) for one in reference.values()]
    given = [torch.tensor(labels[name][rows]) for name in ("margin", "target")]
    pairs = StagedPairs(PackedPairs(world.pairs), values=reference | labels)
    log = Log(tmp_path / "work")
    train_dpo(
        model, world.tokenizer, pairs, rows, SPEC, log, beta=0.3, keep=tmp_path / "kept", nll_coef=nll_coef
    )  # fmt: skip
    ((_, values),) = log.lines()
    expected = float(dpo_loss(*own, *refs, 0.3, *given))
    if nll_coef:
        expected += nll_coef * -float(own[0].sum()) / sum(map(len, chosen))
    assert values["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(values["loss"] - float(dpo_loss(*own, *refs, 0.3))) > 1e-2


def test_dpo_with_a_likelihood_term_is_specified_as_the_sum_of_both() -> None:
    rng = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(4, 5, generator=rng)
    mask = torch.ones(4, 5, dtype=torch.bool)
    others = [-3 * torch.rand(4, generator=rng) for _ in range(3)]
    margin, target = torch.rand(4, generator=rng), torch.tensor([0.6, 0.7, 0.9, 1.0])
    both = dpo_nll_loss(logprobs, mask, *others, 0.3, 0.5, margin, target)
    alone = dpo_loss(logprobs.sum(1), *others, 0.3, margin, target)
    assert float(both) == pytest.approx(float(alone + 0.5 * nll_loss(logprobs, mask)))


def test_arms_on_fewer_pairs_see_those_of_a_reward_model_of_that_size(world: World, tmp_path: Path) -> None:
    from pipelines import dpo, reward_model

    reference = tmp_path / "reference"
    reference.mkdir()
    pairs, policy = PackedPairs(world.pairs), policy_of(world.model)
    rows = list(range(len(pairs)))
    prompt, chosen, rejected = sides(world, rows)
    columns = {
        side: np.array(sequence_logprobs(policy, prompt, ids, pad_id=PAD))
        for side, ids in (("chosen", chosen), ("rejected", rejected))
    }
    np.savez(reference / "logprobs.npz", **columns, pairs_digest=pairs.ids_digest(), reference_tensors="r")
    asked = {"pairs": 16, "pairs_seed": 5}
    one, other = world.out("dpo"), world.out("reward_model")
    dpo.run(
        dpo_config(epochs=1) | asked,
        {"sft": world.sft, "pairs": world.pairs, "reference_logprobs": reference}, one, Log(tmp_path / "dpo"),
    )  # fmt: skip
    reward_model.run(
        reward_config(epochs=1) | asked,
        {"sft": world.sft, "pairs": world.pairs, "prompts": world.prompts}, other, Log(tmp_path / "reward"),
    )  # fmt: skip
    facts = [read_policy_set(folder).facts for folder in (one, other)]
    expected = subset_rows(pairs, 16, 5)
    assert facts[0]["consumed_pairs"] == facts[1]["consumed_pairs"] == pairs.ids_digest(expected)
    assert facts[0]["consumed_labels"] == facts[1]["consumed_labels"] == expected_digest(world.pairs, expected)


# ------------------------------------------------------------------------------------- certificate, config, graph


def same_labels(*all_sides: Side) -> tuple[object, str]:
    match = certificate(all_sides, None, train_pairs=None)
    (check,) = (check for check in match.checks if check.name == "same_labels")
    return check.ok, check.detail


def test_the_certificate_compares_labels_as_they_were_consumed() -> None:
    told = {"label_use": "soft labels, smoothing 0.1", "consumed_labels": "1" * 64, "expected_labels": "1" * 64}
    given = [side if side.kind == "sft" else replace(side, **told) for side in matched().values()]
    assert same_labels(*given) == (True, "soft labels, smoothing 0.1 for ppo, dpo, best_of_n")
    other = replace(given[1], label="ppo-2", consumed_labels="2" * 64)
    assert same_labels(*given, other)[0] is False
    assert "other labels than these for ppo-2" in same_labels(*given, other)[1]
    assert same_labels(*given, replace(other, consumed_labels=None, expected_labels=None))[0] is False
    assert same_labels(*given, replace(given[2], label="dpo-2", label_use="majority labels"))[0] is False
    relabeled = replace(given[2], label="dpo-3", label_use="majority labels", labels="main by soft, 3 of 9 turned")
    ok, detail = same_labels(*given, relabeled)
    assert ok is True
    assert "DECLARED to differ: dpo-3 on labels of main by soft" in detail
    assert same_labels(given[0]) == ("not_applicable", "no arm was trained on labels")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.labels={rule: soft}", "needs data.labels_per_pair above 1"),
        ("data.labels={rule: weighted}", "expected a weight above 0 for each annotator"),
        ("data.labels={weights: {careful: 2}}", "has no effect with rule majority"),
        ("data.labels={margins: true}", "simulated annotators give no margins"),
        ("data.labels={smoothing: 0.5}", "less than 0.5"),
        ("data.label_noise=0.6", "expected at most 0.5"),
        ("arms.dpo.pairs=49", "expected at most the training pairs that there are"),
    ],
)
def test_a_config_that_cannot_work_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Path("smoke"), [override])
    weights = "data={world: helpdesk, labels_per_pair: 3, labels: {rule: weighted, weights: {careful: 2, anna: 1}}}"
    with pytest.raises(ConfigError, match="expected each annotator once"):
        load_config(Path("smoke"), [weights])


def test_labels_are_a_stage_of_their_own_only_where_asked_for(tmp_path: Path) -> None:
    def graph(*overrides: str) -> Any:
        comparison = load_config(Path("smoke"), overrides)
        return build_graph(comparison, resolve_origin(comparison, Store.open(tmp_path / "home")))

    plain, noised = graph(), graph("data.label_noise=0.2")
    assert "labels" not in plain.stages
    assert noised.stages["labels"].config["noise"] == 0.2
    for name in ("reward_model[main,seed=0]", "dpo[dpo,seed=0]", "measure"):
        assert plain.stages[name].inputs["pairs"] == "packed_pairs"
        assert noised.stages[name].inputs["pairs"] == "labels"
        if name != "measure":
            assert plain.stages[name].config == noised.stages[name].config
    fewer = graph("arms.dpo-few={kind: dpo, pairs: 16}", "reward_models.few={pairs: 16}")
    small, few = fewer.stages["dpo[dpo-few,seed=0]"].config, fewer.stages["reward_model[few,seed=0]"].config
    assert (small["pairs"], small["pairs_seed"]) == (few["pairs"], few["pairs_seed"])
    assert fewer.stages["dpo[dpo,seed=0]"].config == plain.stages["dpo[dpo,seed=0]"].config
    assert fewer.stages["generations[dpo,test,seed=0]"].seed == plain.stages["generations[dpo,test,seed=0]"].seed
    assert set(fewer.stages["measure"].config["reward_pairs"]) == {"few", "dpo-few"}
