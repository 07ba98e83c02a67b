"""LoRA through the stages: what is published, that it resumes exactly, and a whole comparison with its certificate."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import dpo, reward_model
from pipelines.graph import build_graph
from pipelines.sources import resolve_origin
from tests import bench
from tests.ml_helpers import CPU, PAD, Killed, Log, World, build_world, dpo_config, policy_of, reward_config
from workbench import evaluation
from workbench.config import load_config
from workbench.errors import ConfigError, IntegrityError, StageInterrupted
from workbench.lora import adapter_parameters, adapters_off, base_digest
from workbench.lora_files import load_adapter
from workbench.lora_targets import folder_layers, small_llama_layers
from workbench.models import Placement, load_policy, load_reward_model, parameter_count, trunk_digest
from workbench.packed import PackedPairs
from workbench.policy_set import read_policy_set
from workbench.scoring import reward_scores, sequence_logprobs
from workbench.stage_log import total_cost
from workbench.store import Store

LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]}
STATED = "lora rank 4 alpha 8 on all-linear"


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


class Stages:
    """The reward model and DPO stages on a world, with adapters."""

    def __init__(self, world: World, reference: Path) -> None:
        self.world, self.reference = world, reference

    def run(self, kind: str, log: Log, **config: Any) -> Path:
        world, out = self.world, self.world.out(kind)
        if kind == "dpo":
            inputs = {"sft": world.sft, "pairs": world.pairs, "reference_logprobs": self.reference}
            dpo.run(dpo_config(**config) | {"lora": LORA}, inputs, out, log)
        else:
            inputs = {"sft": world.sft, "pairs": world.pairs, "prompts": world.prompts}
            reward_model.run(reward_config(**config) | {"lora": LORA}, inputs, out, log)
        return out


@pytest.fixture(scope="module")
def stages(world: World, reference: Path) -> Stages:
    return Stages(world, reference)


def files_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def training_rows(world: World) -> list[dict[str, Any]]:
    pairs = PackedPairs(world.pairs)
    return [pairs.as_lists(index) for index in pairs.split_rows("train")]


# ------------------------------------------------------------------------------------------- what the stages publish


def test_dpo_publishes_merged_policies_that_start_at_the_sft(world: World, stages: Stages, tmp_path: Path) -> None:
    out = stages.run("dpo", log := Log(tmp_path / "work"), epochs=8, learning_rate=1e-2)
    index, sft = read_policy_set(out), read_policy_set(world.sft).checkpoint().tensors
    assert index.facts["sft_tensors"] == index.facts["reference_tensors"] == sft
    assert index.facts["parametrization"] == STATED
    for one in index.checkpoints:
        read = policy_of(index.folder(one.name))
        assert trunk_digest(read) == one.tensors != sft
        assert parameter_count(read) == parameter_count(policy_of(world.model))
        assert {file.suffix for file in index.folder(one.name).iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert log.lines()[0][1]["loss"] == pytest.approx(np.log(2), abs=1e-5), "an untrained adapter is the reference"
    assert log.lines()[-1][1]["loss"] < 0.5
    rows, refs = training_rows(world), np.load(stages.reference / "logprobs.npz")
    policy, prompts, margins = policy_of(index.folder()), [row["prompt_ids"] for row in rows], np.zeros(24)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        under = sequence_logprobs(policy, prompts, [row[f"{side}_ids"] for row in rows], pad_id=PAD)
        margins += sign * (np.array(under) - refs[side][:24])
    assert np.mean(margins > 0) > 0.9, "what was learned is in the folder that everybody loads"


def test_a_reward_model_publishes_the_merged_model_and_its_adapter(
    world: World, stages: Stages, tmp_path: Path
) -> None:
    out = stages.run("reward_model", log := Log(tmp_path / "work"), epochs=15, learning_rate=2e-2)
    index = read_policy_set(out)
    sft = read_policy_set(world.sft).checkpoint().tensors
    assert (index.facts["sft_tensors"], index.facts["parametrization"]) == (sft, STATED)
    whole = load_reward_model(index.folder(), CPU)
    assert trunk_digest(whole) == index.checkpoint().tensors != sft
    rows = training_rows(world)
    prompts, chosen, rejected = ([row[f"{name}_ids"] for row in rows] for name in ("prompt", "chosen", "rejected"))
    scores = [np.array(reward_scores(whole, prompts, ids, pad_id=PAD)) for ids in (chosen, rejected)]
    assert np.mean(scores[0] > scores[1]) > 0.9
    assert index.facts["sft_score_sd"] > 0
    assert log.lines()[-2][1]["loss"] < 0.3

    # Mounted on the shared base, adapter and head score the same.
    policy = load_policy(world.model, CPU)
    head = load_adapter(policy, "reward", index.folder() / "adapter")
    assert head is not None
    ids = torch.tensor([prompts[0] + chosen[0]])
    with torch.no_grad():
        found = head(policy.base_model(input_ids=ids, use_cache=False).last_hidden_state)[0, -1, 0]
    assert float(found) == pytest.approx(scores[0][0], abs=1e-4)
    assert not any(one.requires_grad for one in adapter_parameters(policy, "reward"))
    with adapters_off(policy):
        assert base_digest(policy) == sft


def test_training_operations_leave_out_the_gradient_of_frozen_weights(
    world: World, stages: Stages, tmp_path: Path
) -> None:
    stages.run("dpo", log := Log(tmp_path / "work"))
    cost, parameters = total_cost(log.work), parameter_count(policy_of(world.model))
    adapter = 4 * (4 * (16 + 16) + 3 * (16 + 24))  # rank times (in + out) of each linear layer
    assert cost.flops == pytest.approx(cost.tokens_trained * (4 * parameters + 6 * adapter))


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_a_stage_with_adapters_resumes_exactly(kind: str, stages: Stages, tmp_path: Path) -> None:
    expected = stages.run(kind, whole := Log(tmp_path / "whole", seed=3))
    for at in (1, 3, 5):
        with pytest.raises(Killed):
            stages.run(kind, Log(tmp_path / "work", seed=3, kill_at=at))
    with pytest.raises(StageInterrupted):
        stages.run(kind, Log(tmp_path / "work", seed=3, stop_at=5))
    out = stages.run(kind, log := Log(tmp_path / "work", seed=3))
    assert files_of(out) == files_of(expected)
    assert log.lines() == whole.lines()
    other = stages.run(kind, Log(tmp_path / "other", seed=4))
    assert read_policy_set(other).checkpoint().tensors != read_policy_set(out).checkpoint().tensors


def test_dpo_that_diverges_at_once_keeps_the_sft(
    world: World, stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = dpo.load_trainee

    def broken(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        adapter_parameters(model, "policy")[0].register_hook(lambda grad: grad * np.nan)
        return model

    monkeypatch.setattr(dpo, "load_trainee", broken)
    index = read_policy_set(stages.run("dpo", Log(tmp_path / "work")))
    assert index.diverged is not None
    assert [(one.step, one.tensors) for one in index.checkpoints] == [(0, index.facts["sft_tensors"])]


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_half_precision_keeps_the_base_and_trains_in_float32(
    kind: str, world: World, stages: Stages, tmp_path: Path
) -> None:
    """On a bfloat16 base: adapters and head learn, and are kept, in float32."""
    log = Log(tmp_path / "work")
    log.resources = replace(log.resources, dtype="bfloat16")
    index = read_policy_set(stages.run(kind, log, epochs=15, learning_rate=2e-2))
    assert index.facts["sft_tensors"] == trunk_digest(load_policy(world.model, Placement(dtype="bfloat16")))
    losses = [values["loss"] for _, values in log.lines() if "loss" in values]
    assert losses[-1] < losses[0] / 2
    file = index.folder() / ("adapter/adapter.safetensors" if kind == "reward_model" else "model.safetensors")
    assert {entry["dtype"] for entry in folder_header(file).values()} == {"F32"}


# ------------------------------------------------------------------------------------------- config


def folder_header(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_layers_are_known_without_loading_a_model(world: World) -> None:
    model = policy_of(world.model)
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)} - {"lm_head"}
    assert set(folder_layers(world.model)) == linear
    assert {f"model.{name}" for name in small_llama_layers(1)} == linear
    (world.root / "broken").mkdir()
    (world.root / "broken" / "config.json").write_text("{}")
    (world.root / "broken" / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(IntegrityError, match="safetensors"):
        folder_layers(world.root / "broken")


@pytest.mark.parametrize(
    "override", ["model.lora={target_modules: [q_proj, c_attn]}", "model.lora={target_modules: embed_tokens}"]
)
def test_targets_that_the_model_does_not_have_are_refused_before_anything_runs(tmp_path: Path, override: str) -> None:
    comparison = load_config(Path("smoke"), [override])
    with pytest.raises(ConfigError, match=r"got (c_attn|embed_tokens), expected all-linear.*q_proj") as found:
        resolve_origin(comparison, Store.open(tmp_path / "home"))
    assert (found.value.exit_code, found.value.where) == (2, "model.lora.target_modules")


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("{rank: 0}", "at least 1"),
        ("{alpha: 0}", "more than 0"),
        ("{target_modules: [a-b]}", "end of a layer's name"),
        ("{target_modules: [all-linear, q_proj]}", "alone"),
        ("{target_modules: []}", "at least 1"),
        ("{dropout: 0.1}", "unknown field"),
    ],
)
def test_bad_settings_are_refused(block: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as found:
        load_config(Path("smoke"), [f"model.lora={block}"])
    assert found.value.exit_code == 2


def test_settings_reach_the_stages_that_train_from_the_sft_and_no_others(tmp_path: Path) -> None:
    def stages(*overrides: str) -> dict[str, Any]:
        comparison = load_config(Path("smoke"), overrides)
        return dict(build_graph(comparison, resolve_origin(comparison, Store.open(tmp_path / "home"))).stages)

    plain, adapted = stages(), stages("model.lora={rank: 4, target_modules: all-linear}")
    assert plain.keys() == adapted.keys()
    trained = {"reward_model", "dpo", "ppo", "rloo", "grpo"}
    for instance, stage in adapted.items():
        if stage.name in trained:
            assert stage.config["lora"] == {"rank": 4, "alpha": 32.0, "target_modules": ["all-linear"]}
            assert {name for name in stage.config if name != "lora"} == set(plain[instance].config)
            assert set(stage.packages) - set(plain[instance].packages) == {"peft"}
        else:
            assert stage.config == plain[instance].config, instance
            assert "peft" not in stage.packages
    assert {stage.name for stage in adapted.values()} & trained == {"reward_model", "dpo", "ppo"}


# ------------------------------------------------------------------------------------------- a whole comparison


@pytest.mark.slow
def test_a_comparison_with_adapters_passes_its_certificate(tmp_path: Path) -> None:
    arms = "{dpo: {epochs: 4, batch_size: 16, learning_rate: 2e-2, nll_coef: 0.2}, best_of_n: {n: 2, pool: 8}}"
    found = bench.compare(
        "smoke", tmp_path / "home", "--set", "model.lora={rank: 4}", "--set", f"arms={arms}", *bench.UNTRACKED
    )
    checks = {one["name"]: one for one in found["match"]["checks"]}
    assert found["match"]["ok"]
    assert checks["same_parametrization"]["ok"] is True
    assert "lora rank 4 alpha 32 on all-linear for all 2 sides" in checks["same_parametrization"]["detail"]
    assert found["arms"]["dpo"]["seq_kl"]["value"] > 0.1
    assert found["arms"]["best_of_n"]["gold_reward"]["value"] is not None
    (reward,) = (one["key"] for one in found["stages"] if one["name"] == "reward_model")
    adapter = tmp_path / "home" / "store" / reward / "out" / "checkpoints" / "last" / "adapter"
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter.json", "adapter.safetensors"]
