"""Evaluation stages: one way to measure KL, rewards and margins for every arm, and the choice of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ml_helpers import CPU, PAD, STOPS, Log, World, build_world, policy_of, tiny_model
from workbench import evaluation, generations
from workbench.data.records_io import read_jsonl
from workbench.errors import StageInterrupted
from workbench.models import load_reward_model, save_model, trunk_digest
from workbench.packed import PackedPairs, read_packed_prompts
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.scoring import reward_scores, sequence_logprobs
from workbench.stage_log import total_cost

GENERATE: dict[str, Any] = {
    "split": "validation", "prompts": 6, "samples_per_prompt": 2, "temperature": 1.0, "top_p": 1.0,
    "max_response_tokens": 8, "stop_ids": STOPS, "batch_size": 5, "trust_remote_code": False,
}  # fmt: skip
SCORE: dict[str, Any] = {"gold": None, "implicit": {"dpo": 0.5}, "batch_size": 5, "trust_remote_code": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With a policy set of two checkpoints, the second one selected, and reference log-probabilities."""
    world = build_world(tmp_path_factory.mktemp("world"))
    listed = []
    for step in (1, 2):
        model, path = tiny_model(world.tokenizer, seed=step), f"checkpoints/step-{step}"
        save_model(model, world.tokenizer, world.root / "policy" / path)
        listed.append(Checkpoint(name=f"step-{step}", path=path, step=step, tensors=trunk_digest(model)))
    write_policy_set(world.root / "policy", listed, facts={})
    (world.root / "selected").mkdir()
    (world.root / "selected" / "selected.json").write_text(json.dumps({"checkpoint": "step-2"}))
    return world


def stage(world: World, function: Any, config: dict[str, Any], tmp_path: Path, **inputs: Path) -> tuple[Path, Log]:
    out = world.out(function.__name__)
    log = Log(tmp_path / f"work-{out.name}")
    function(config, inputs, out, log)
    return out, log


def generate(
    world: World, tmp_path: Path, *, own: bool = True, **config: Any
) -> tuple[Path, list[dict[str, Any]], Log]:
    inputs = {"prompts": world.prompts, "sft": world.sft}
    if own:
        inputs |= {"policy": world.root / "policy", "selected": world.root / "selected"}
    out, log = stage(world, generations.generate, GENERATE | config, tmp_path, **inputs)
    return out, list(read_jsonl(out / "generations.jsonl")), log


def test_kl_is_on_own_samples_at_temperature_1_whatever_the_sampling_temperature(world: World, tmp_path: Path) -> None:
    _, rows, log = generate(world, tmp_path, temperature=0.7)
    prompts = {row["prompt_id"]: row["ids"] for row in read_packed_prompts(world.prompts)}
    ids = [prompts[row["prompt_id"]] for row in rows], [row["response_ids"] for row in rows]
    for name, folder in (("seq_logprob", world.root / "policy/checkpoints/step-2"), ("ref_seq_logprob", world.model)):
        expected = sequence_logprobs(policy_of(folder), *ids, pad_id=PAD)
        assert [row[name] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert total_cost(log.work).tokens_generated == sum(map(len, ids[1]))


def test_every_prompt_of_the_split_is_sampled_in_order(world: World, tmp_path: Path) -> None:
    _, rows, _ = generate(world, tmp_path)
    wanted = [row["prompt_id"] for row in read_packed_prompts(world.prompts) if row["split"] == "validation"][:6]
    assert [row["generation_id"] for row in rows] == [f"{name}/{k}" for name in wanted for k in range(2)]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all((row["response_ids"][-1] in STOPS) == (row["finish_reason"] == "stop") for row in rows)


def test_the_sft_itself_has_no_kl_at_all(world: World, tmp_path: Path) -> None:
    out, rows, _ = generate(world, tmp_path, own=False)
    assert all(row["seq_logprob"] == row["ref_seq_logprob"] for row in rows)
    facts = json.loads((out / "facts.json").read_text())
    assert facts["policy_tensors"] == facts["reference_tensors"] == trunk_digest(policy_of(world.model))


def test_enough_samples_are_drawn_for_the_pairs_of_each_split(world: World, tmp_path: Path) -> None:
    pairs = {"train": 30, "validation": 4}
    config = {"split": ["train", "validation"], "prompts": None, "pairs": pairs}
    _, rows, _ = generate(world, tmp_path, own=False, **config)
    splits = {row["prompt_id"]: row["split"] for row in read_packed_prompts(world.prompts)}
    counts = [splits[row["prompt_id"]] for row in rows]
    assert (counts.count("train"), counts.count("validation")) == (24 * 4, 8 * 2)  # 2 ceil(30 / 24), 2 ceil(4 / 8)


def test_scores_are_centered_and_the_implicit_reward_is_beta_times_the_log_ratio(world: World, tmp_path: Path) -> None:
    folder, rows, _ = generate(world, tmp_path, own=False)
    out, log = stage(
        world, evaluation.score, SCORE, tmp_path, **{
            "generations": folder, "prompts": world.prompts, "reward:main": world.reward_model,
            "policy:dpo": world.root / "policy", "selected:dpo": world.root / "selected",
        },
    )  # fmt: skip
    columns = json.loads((out / "scores.json").read_text())
    prompts = {row["prompt_id"]: row["ids"] for row in read_packed_prompts(world.prompts)}
    ids = [prompts[row["prompt_id"]] for row in rows], [row["response_ids"] for row in rows]
    raw = reward_scores(load_reward_model(world.reward_model / "checkpoints/last", CPU), *ids, pad_id=PAD)
    assert columns["proxy/main"] == pytest.approx([value - 0.25 for value in raw], abs=1e-5)
    under = sequence_logprobs(policy_of(world.root / "policy/checkpoints/step-2"), *ids, pad_id=PAD)
    expected = [0.5 * (a - row["ref_seq_logprob"]) for a, row in zip(under, rows, strict=True)]
    assert columns["dpo"] == pytest.approx(expected, abs=1e-4)
    assert columns["generation_id"] == [row["generation_id"] for row in rows]
    assert total_cost(log.work).reward_queries == 2 * len(rows)  # the implicit reward is a query too


def test_margins_of_pairs_are_chosen_minus_rejected(world: World, tmp_path: Path) -> None:
    common = {"batch_size": 5, "trust_remote_code": False}
    reference, _ = stage(world, evaluation.reference_logprobs, common, tmp_path, sft=world.sft, pairs=world.pairs)
    config = common | {"splits": ["validation"], "implicit": {"dpo": 0.5}}
    out, _ = stage(
        world, evaluation.score_pairs, config, tmp_path, **{
            "pairs": world.pairs, "reference_logprobs": reference, "reward:main": world.reward_model,
            "policy:dpo": world.root / "policy", "selected:dpo": world.root / "selected",
        },
    )  # fmt: skip
    columns, pairs = json.loads((out / "margins.json").read_text()), PackedPairs(world.pairs)
    rows = [pairs.as_lists(index) for index in pairs.split_rows("validation")]
    prompts = [row["prompt_ids"] for row in rows]
    model, policy = (
        load_reward_model(world.reward_model / "checkpoints/last", CPU),
        policy_of(world.root / "policy/checkpoints/step-2"),
    )
    explicit, implicit = np.zeros(8), np.zeros(8)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        ids = [row[f"{side}_ids"] for row in rows]
        explicit += sign * np.array(reward_scores(model, prompts, ids, pad_id=PAD))
        ratio = np.array(sequence_logprobs(policy, prompts, ids, pad_id=PAD)) - sequence_logprobs(
            policy_of(world.model), prompts, ids, pad_id=PAD
        )
        implicit += sign * 0.5 * ratio
    assert columns["proxy/main"] == pytest.approx(explicit.tolist(), abs=1e-4)
    assert columns["dpo"] == pytest.approx(implicit.tolist(), abs=1e-4)
    assert columns["pair_id"] == [f"pair{index}" for index in pairs.split_rows("validation")]


def test_a_trajectory_starts_at_the_sft_and_visits_every_checkpoint(world: World, tmp_path: Path) -> None:
    out, _ = stage(
        world, generations.trajectory, GENERATE | {"gold": None}, tmp_path,
        prompts=world.prompts, sft=world.sft, policy=world.root / "policy", reward_model=world.reward_model,
    )  # fmt: skip
    found = json.loads((out / "trajectory.json").read_text())
    assert [(point["name"], point["step"]) for point in found["points"]] == [("sft", 0), ("step-1", 1), ("step-2", 2)]
    assert found["points"][0]["seq_kl"] == pytest.approx([0.0] * 12, abs=1e-5)
    assert np.mean(found["points"][2]["seq_kl"]) > 0.5
    for point in found["points"]:
        assert {len(point[name]) for name in ("seq_kl", "proxy", "response_tokens", "finished")} == {12}


def test_a_stop_interrupts_between_batches(world: World, tmp_path: Path) -> None:
    log = Log(tmp_path / "work", stop_at=0)
    with pytest.raises(StageInterrupted):
        generations.generate(GENERATE, {"prompts": world.prompts, "sft": world.sft}, world.out("stop"), log)


@pytest.mark.parametrize(
    ("rule", "metric", "expected", "value"),
    [
        ("last", "proxy_reward", "step-3", None),
        ("best", "proxy_reward", "step-2", 5.0),
        ("best", "gold_reward", "step-1", 7.0),
    ],
)
def test_the_one_rule_chooses_the_checkpoint(
    tmp_path: Path, rule: str, metric: str, expected: str, value: float | None
) -> None:
    """Best is by the validation mean; the SFT is no candidate, and of equals the earlier one is taken."""
    proxy, gold = {0: 99.0, 1: 1.0, 2: 5.0, 3: 5.0}, {0: 99.0, 1: 7.0, 2: 2.0, 3: 1.0}
    points = [
        {"name": f"step-{step}", "step": step, "proxy": [proxy[step] - 1, proxy[step] + 1], "gold": [gold[step]] * 2}
        for step in range(4)
    ]
    for name in ("policy", "trajectory", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "policy" / "index.json").write_text(json.dumps({"last": "step-3"}))
    (tmp_path / "trajectory" / "trajectory.json").write_text(json.dumps({"points": points}))
    inputs = {name: tmp_path / name for name in ("policy", "trajectory")}
    evaluation.select({"rule": rule, "metric": metric}, inputs, tmp_path / "out", Log(tmp_path / "work"))
    found = json.loads((tmp_path / "out" / "selected.json").read_text())
    assert (found["checkpoint"], found["value"], found["rule"]) == (expected, value, rule)
