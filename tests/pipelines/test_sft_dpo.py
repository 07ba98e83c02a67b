"""The SFT and DPO stages, and the reference log-probabilities that DPO stands on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import dpo, sft
from tests.ml_helpers import (
    EOS,
    PAD,
    SIZE,
    Killed,
    Log,
    World,
    build_world,
    dpo_config,
    policy_of,
    sft_config,
)
from workbench import evaluation
from workbench.errors import DataError, IntegrityError, StageInterrupted
from workbench.models import trunk_digest
from workbench.packed import PackedPairs
from workbench.policy_set import read_policy_set
from workbench.scoring import sequence_logprobs
from workbench.tokens import encode_prompt, encode_response


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = world.out("reference")
    log = Log(tmp_path_factory.mktemp("reference") / "work")
    config = {"batch_size": 7, "trust_remote_code": False}
    evaluation.reference_logprobs(config, {"sft": world.sft, "pairs": world.pairs}, out, log)
    return out


def train_dpo(world: World, reference: Path, log: Log, **config: Any) -> Path:
    out = world.out("dpo")
    inputs = {"sft": world.sft, "pairs": world.pairs, "reference_logprobs": reference}
    dpo.run(dpo_config(**config), inputs, out, log)
    return out


def train_sft(world: World, log: Log, source: dict[str, Path] | None = None, **config: Any) -> Path:
    out = world.out("sft")
    block = sft_config(**{name: value for name, value in config.items() if name != "max_length"})
    inputs = {"model": world.model, **(source or {"pairs": world.pairs})}
    sft.run(block | {name: value for name, value in config.items() if name == "max_length"}, inputs, out, log)
    return out


def same(out: Path, expected: Path) -> None:
    names = sorted(str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def train_rows(world: World) -> list[dict[str, Any]]:
    pairs = PackedPairs(world.pairs)
    return [pairs.as_lists(index) for index in pairs.split_rows("train")]


def mean_nll(folder: Path, rows: list[dict[str, Any]]) -> float:
    responses = [row["chosen_ids"] for row in rows]
    logprobs = sequence_logprobs(policy_of(folder), [row["prompt_ids"] for row in rows], responses, pad_id=PAD)
    return -sum(logprobs) / sum(map(len, responses))


# ------------------------------------------------------------------------------------------- SFT


def test_sft_lowers_the_loss_of_responses(world: World, tmp_path: Path) -> None:
    out = train_sft(world, log := Log(tmp_path / "work"), steps=40, learning_rate=1e-2)
    index, rows = read_policy_set(out), train_rows(world)
    assert mean_nll(index.folder(), rows) < mean_nll(world.model, rows) - 1
    assert index.facts["started_from"] == read_policy_set(world.sft).checkpoint().tensors
    assert index.facts["sft_tensors"] == index.checkpoint().tensors == trunk_digest(policy_of(index.folder()))
    assert (index.facts["rows"], index.checkpoint().step, len(log.lines())) == (24, 40, 40)


def test_sft_reads_the_chosen_responses_of_the_train_split_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import trl_adapter

    given: list[Any] = []
    train = trl_adapter.train_sft
    monkeypatch.setattr(trl_adapter, "train_sft", lambda *args: given.append(args[2]) or train(*args))
    train_sft(world, Log(tmp_path / "work"), steps=1)
    expected = [{"prompt_ids": row["prompt_ids"], "response_ids": row["chosen_ids"]} for row in train_rows(world)]
    assert given == [expected]


def test_sft_counts_rows_over_the_length_and_never_cuts_one(world: World, tmp_path: Path) -> None:
    lengths = [len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in train_rows(world)]
    limit = sorted(lengths)[len(lengths) // 2]
    out = train_sft(world, log := Log(tmp_path / "work"), max_length=limit, steps=1)
    kept = sum(length <= limit for length in lengths)
    assert 0 < kept < 24
    assert read_policy_set(out).facts["rows"] == kept
    assert any(f"{24 - kept} of 24 rows" in str(message) for message in log.said)


def test_sft_without_a_row_that_fits_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 24 rows"):
        train_sft(world, Log(tmp_path / "work"), max_length=1)


def test_sft_on_a_corpus_appends_a_stop_id(world: World, tmp_path: Path) -> None:
    row = {"prompt": "felix has a wrong clock ; reply :", "response": "hi felix ,"}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = sft._corpus_rows({"stop_ids": [EOS]}, {"corpus": tmp_path}, world.tokenizer)
    assert found["prompt_ids"] == encode_prompt(world.tokenizer, row["prompt"])
    assert found["response_ids"] == [*world.tokenizer.encode(row["response"]), EOS]
    assert found["response_ids"] == encode_response(world.tokenizer, row["prompt"], row["response"], stop_ids=[EOS])


def test_sft_resumes_exactly(world: World, tmp_path: Path) -> None:
    expected = train_sft(world, whole := Log(tmp_path / "whole"))
    for at in (1, 3, 5):
        with pytest.raises(Killed):
            train_sft(world, Log(tmp_path / "work", kill_at=at))
    with pytest.raises(StageInterrupted):
        train_sft(world, Log(tmp_path / "work", stop_at=5))
    same(train_sft(world, log := Log(tmp_path / "work")), expected)
    assert log.lines() == whole.lines()


# ------------------------------------------------------------------------------------------- new and adopted models


def test_a_new_model_is_its_seed(world: World, tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        out = world.out("new")
        log = Log(tmp_path / f"work{number}", seed=seed)
        sft.new_model({"size": SIZE, "context": 64}, {"tokenizer": world.root / "tokenizer"}, out, log)
        model = policy_of(out)
        digests.append(trunk_digest(model))
        assert (model.config.pad_token_id, model.config.eos_token_id) == (PAD, EOS)
        assert model.config.pad_token_id != model.config.eos_token_id
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("link", [False, True])
def test_adopting_copies_small_models_and_links_large_ones(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    if link:
        monkeypatch.setattr("workbench.model_files.LINK_ABOVE_BYTES", 10)
    out = world.out("adopted")
    sft.adopt({"trust_remote_code": False}, {"model": world.model}, out, Log(tmp_path / "work"))
    index = read_policy_set(out)
    assert index.checkpoint().tensors == index.facts["sft_tensors"] == trunk_digest(policy_of(world.model))
    files = list(index.folder().iterdir())
    assert {file.name for file in files} == {file.name for file in world.model.iterdir()}
    assert {file.is_symlink() for file in files} == {link}
    assert trunk_digest(policy_of(index.folder())) == index.checkpoint().tensors


# ------------------------------------------------------------------------------------------- DPO


def test_reference_logprobs_are_of_every_pair_under_the_sft(world: World, reference: Path) -> None:
    found, pairs = np.load(reference / "logprobs.npz"), PackedPairs(world.pairs)
    policy = policy_of(world.model)
    for index in range(len(pairs)):
        prompt, chosen, rejected = (ids.tolist() for ids in pairs.row(index))
        expected = sequence_logprobs(policy, [prompt] * 2, [chosen, rejected], pad_id=PAD)
        assert [found["chosen"][index], found["rejected"][index]] == pytest.approx(expected, abs=1e-4)
    assert str(found["pairs_digest"]) == pairs.ids_digest()
    assert str(found["reference_tensors"]) == read_policy_set(world.sft).checkpoint().tensors


def test_dpo_starts_at_its_reference(world: World, reference: Path, tmp_path: Path) -> None:
    train_dpo(world, reference, log := Log(tmp_path / "work"))
    _, first = log.lines()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["train_margin"] == pytest.approx(0, abs=1e-4)


def test_dpo_moves_the_implicit_reward_to_the_chosen(world: World, reference: Path, tmp_path: Path) -> None:
    out = train_dpo(world, reference, log := Log(tmp_path / "work"), epochs=8, learning_rate=5e-3)
    assert log.lines()[-1][1]["loss"] < 0.5
    index, refs, rows = read_policy_set(out), np.load(reference / "logprobs.npz"), train_rows(world)
    policy, prompts = policy_of(index.folder()), [row["prompt_ids"] for row in rows]
    margins = np.zeros(24)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        under = sequence_logprobs(policy, prompts, [row[f"{side}_ids"] for row in rows], pad_id=PAD)
        margins += sign * (np.array(under) - refs[side][:24])
    assert np.mean(margins > 0) > 0.9


def test_dpo_facts_are_those_of_the_other_arms(world: World, reference: Path, tmp_path: Path) -> None:
    index = read_policy_set(train_dpo(world, reference, Log(tmp_path / "work")))
    pairs, start = PackedPairs(world.pairs), read_policy_set(world.sft).checkpoint().tensors
    assert index.facts["sft_tensors"] == index.facts["reference_tensors"] == start
    assert index.facts["consumed_pairs"] == pairs.ids_digest(pairs.split_rows("train"))
    assert index.facts["pairs_filter"] == pairs.filter_digest()
    assert [one.step for one in index.checkpoints] == [2, 4, 6]
    for one in index.checkpoints:
        assert trunk_digest(policy_of(index.folder(one.name))) == one.tensors != start


def test_dpo_refuses_reference_logprobs_of_other_pairs(world: World, reference: Path, tmp_path: Path) -> None:
    other = world.out("reference")
    arrays = dict(np.load(reference / "logprobs.npz")) | {"pairs_digest": np.array("0" * 64)}
    np.savez(other / "logprobs.npz", **arrays)
    with pytest.raises(IntegrityError, match="000000000000"):
        train_dpo(world, other, Log(tmp_path / "work"))


def test_dpo_that_diverges_at_once_keeps_the_sft_and_says_so(
    world: World, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = dpo.load_trainee

    def broken(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        model.model.norm.weight.register_hook(lambda grad: grad * math.nan)
        return model

    monkeypatch.setattr(dpo, "load_trainee", broken)
    index = read_policy_set(train_dpo(world, reference, Log(tmp_path / "work")))
    assert index.diverged is not None
    assert index.diverged["step"] == 1
    start = read_policy_set(world.sft).checkpoint().tensors
    assert [(one.step, one.tensors) for one in index.checkpoints] == [(0, start)]
    assert torch.isfinite(policy_of(index.folder()).model.norm.weight).all()


def test_dpo_resumes_exactly_and_its_output_does_not_depend_on_where_it_ran(
    world: World, reference: Path, tmp_path: Path
) -> None:
    kept = {"checkpoint_at_steps": [1, 3, 50]}  # between those of every second step; 50 is never reached
    expected = train_dpo(world, reference, whole := Log(tmp_path / "whole"), **kept)
    assert [one.step for one in read_policy_set(expected).checkpoints] == [1, 2, 3, 4, 6]
    for at in (1, 3, 5):
        with pytest.raises(Killed):
            train_dpo(world, reference, Log(tmp_path / "work", kill_at=at), **kept)
    with pytest.raises(StageInterrupted):
        train_dpo(world, reference, Log(tmp_path / "work", stop_at=5), **kept)
    same(train_dpo(world, reference, log := Log(tmp_path / "work"), **kept), expected)
    assert log.lines() == whole.lines()
