"""Adapters on a base in 4 bits through the stages: they train as on the same base unpacked, resume exactly, and a whole
comparison passes its certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines import dpo, ppo, reward_model, rloo, sft
from tests import bench
from tests.ml_helpers import (
    CPU,
    Killed,
    Log,
    World,
    build_world,
    dpo_config,
    policy_of,
    ppo_config,
    reward_config,
    sft_config,
    tiny_model,
)
from tests.pipelines.process_stages import rloo_config
from workbench import evaluation
from workbench.models import Placement, load_policy, save_model, trunk_digest
from workbench.policy_set import read_policy_set
from workbench.quantized import pack

SIZE = {"hidden_size": 64, "intermediate_size": 128}
LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]}
STATED = "lora rank 4 alpha 8 on all-linear, base in nf4"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An SFT of rounded weights; its reward model is trained with adapters, as PPO's must be."""
    world = build_world(tmp_path_factory.mktemp("world"), size=SIZE, snapped=True)
    log = Log(tmp_path_factory.mktemp("reference") / "work")
    (world.root / "reference").mkdir()
    told = {"batch_size": 7, "trust_remote_code": False}
    evaluation.reference_logprobs(told, {"sft": world.sft, "pairs": world.pairs}, world.root / "reference", log)
    return world


CASES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "dpo": (dpo.run, dpo_config(learning_rate=1e-3)),
    "reward_model": (reward_model.run, reward_config(learning_rate=1e-3)),
    "ppo": (ppo.run, ppo_config(updates=2)),
    "ppo-head": (ppo.run, ppo_config(updates=2, critic="head") | {"gradient_checkpointing": True}),
    "rloo": (rloo.run, rloo_config(microbatch_size=3)),
}


def train(world: World, case: str, log: Log, *, packed: bool = True, reward: Path | None = None) -> Path:
    function, block = CASES[case]
    out = world.out(case)
    lora = LORA | ({"quantize": "nf4"} if packed else {})
    inputs = {"sft": world.sft, "pairs": world.pairs, "prompts": world.prompts}
    inputs |= {"reference_logprobs": world.root / "reference"} if case == "dpo" else {}
    if case.startswith(("ppo", "rloo")):
        inputs["reward_model"] = reward or train(world, "reward_model", Log(log.work.parent / "reward"), packed=packed)
    function(block | {"lora": lora}, inputs, out, log)
    return out


@pytest.mark.parametrize("case", CASES)
def test_training_on_a_packed_base_is_training_on_the_same_base_unpacked(
    case: str, world: World, tmp_path: Path
) -> None:
    outs, rows = [], []
    for packed in (True, False):
        outs.append(train(world, case, log := Log(tmp_path / str(packed) / "work", seed=3), packed=packed))
        rows.append(log.lines())
    index, plain = map(read_policy_set, outs)
    own = read_policy_set(world.sft).checkpoint().tensors
    assert index.facts["sft_tensors"] == own == trunk_digest(policy_of(world.model))
    assert index.facts.get("reference_tensors", own) == own
    assert (index.facts["parametrization"], plain.facts["parametrization"]) == (STATED, STATED.partition(",")[0])
    assert index.checkpoint().tensors != own, "something was learned"
    ours, theirs = (load_file(one.folder() / "model.safetensors") for one in (index, plain))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-5, err_msg=name)
    assert [step for step, _ in rows[0]] == [step for step, _ in rows[1]]


@pytest.mark.parametrize("case", ["dpo", "reward_model", "ppo"])
def test_a_stage_on_a_packed_base_resumes_exactly(case: str, world: World, tmp_path: Path) -> None:
    reward = train(world, "reward_model", Log(tmp_path / "reward")) if case == "ppo" else None
    expected = train(world, case, whole := Log(tmp_path / "whole", seed=3), reward=reward)
    for at in (1, 2):
        with pytest.raises(Killed):
            train(world, case, Log(tmp_path / "work", seed=3, kill_at=at), reward=reward)
    out = train(world, case, log := Log(tmp_path / "work", seed=3), reward=reward)
    assert read_policy_set(out).checkpoint().tensors == read_policy_set(expected).checkpoint().tensors
    assert log.lines() == whole.lines()


def test_a_reward_model_s_own_base_is_rounded_and_says_so(world: World, tmp_path: Path) -> None:
    save_model(other := tiny_model(world.tokenizer, seed=9, **SIZE), world.tokenizer, tmp_path / "base")
    inputs = {"sft": world.sft, "pairs": world.pairs, "prompts": world.prompts, "base": tmp_path / "base"}
    told = {"lora": LORA | {"quantize": "nf4"}, "template": "text", "max_length": 64}
    reward_model.run(reward_config() | told, inputs, out := world.out("reward_model"), Log(tmp_path / "work"))
    facts = read_policy_set(out).facts
    assert facts["quantized"]["layers"] == 7
    assert facts["sft_tensors"] != trunk_digest(other), "of what training started from"
    assert facts["parametrization"] == STATED


def test_a_given_model_is_rounded_and_left_as_it_was(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world", size=SIZE)
    before = {file.name: file.read_bytes() for file in world.model.iterdir()}
    for dtype in ("float32", "bfloat16"):
        log, out = Log(tmp_path / dtype), tmp_path / f"{dtype}-out"
        log.resources = replace(log.resources, dtype=dtype)
        out.mkdir()
        sft.adopt({"trust_remote_code": False, "quantize": "nf4"}, {"model": world.model}, out, log)
        index = read_policy_set(out)
        told = index.facts["quantized"]
        assert (told["scheme"], told["layers"]) == ("nf4", 7)
        assert 0.05 < told["relative_error"] < 0.12
        assert index.facts["adopted"] is True
        assert index.checkpoint().tensors == index.facts["sft_tensors"] != trunk_digest(policy_of(world.model))
        packed = pack(load_policy(index.folder(), Placement(dtype=dtype)), "cpu")  # refuses what is not exact
        assert trunk_digest(packed) == index.facts["sft_tensors"]
        assert sorted(file.name for file in index.folder().iterdir()) == sorted(before)
    assert {file.name: file.read_bytes() for file in world.model.iterdir()} == before


def test_a_trained_sft_is_rounded_after_training(world: World, tmp_path: Path) -> None:
    found = []
    for extra in ({}, {"quantize": "nf4"}):
        out = world.out("sft")
        sft.run(sft_config() | extra, {"model": world.model, "pairs": world.pairs}, out, Log(world.out("work")))
        found.append(read_policy_set(out))
    plain, rounded = found
    assert "quantized" not in plain.facts
    assert rounded.checkpoint().tensors == rounded.facts["sft_tensors"] != plain.checkpoint().tensors
    assert trunk_digest(pack(load_policy(rounded.folder(), CPU), "cpu")) == rounded.checkpoint().tensors
    with pytest.raises(Exception, match="not those that 4 bits hold"):
        pack(load_policy(plain.folder(), CPU), "cpu")


@pytest.mark.slow
def test_a_comparison_on_a_packed_base_passes_its_certificate(tmp_path: Path) -> None:
    arms = (
        "{ppo: {updates: 2, batch_size: 16, critic_warmup_updates: 1}, dpo: {epochs: 4, batch_size: 16, "
        "learning_rate: 2e-2}, rloo: {updates: 2, batch_size: 16}, best_of_n: {n: 2, pool: 8}}"
    )
    found = bench.compare(
        "smoke", tmp_path / "home", "--set", "model.lora={rank: 4, quantize: nf4}", "--set", f"arms={arms}",
        "--set", "model.size={hidden_size: 64, num_layers: 1, num_heads: 2, intermediate_size: 64}", *bench.UNTRACKED,
    )  # fmt: skip
    checks = {one["name"]: one for one in found["match"]["checks"]}
    assert found["match"]["ok"]
    assert "lora rank 4 alpha 32 on all-linear, base in nf4 for all" in checks["same_parametrization"]["detail"]
    assert checks["one_sft"]["ok"] is checks["same_reference"]["ok"] is checks["reward_lineage"]["ok"] is True
    (told,) = [line for line in found["warnings"] if "4 bits" in line]
    assert "nf4" in told
    (key,) = (one["key"] for one in found["stages"] if one["name"] == "sft")
    facts = json.loads((tmp_path / "home" / "store" / key / "out" / "index.json").read_text())["facts"]
    assert facts["quantized"]["layers"] == 7
    assert f"{facts['quantized']['relative_error']:.1%}" in told
    manifest = json.loads((tmp_path / "home" / "store" / key / "manifest.json").read_text())
    assert "bitsandbytes" in json.dumps(manifest)
