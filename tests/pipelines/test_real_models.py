"""What a real model needs of every arm: adapters on a bfloat16 base, recomputed activations, accumulated gradients."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from pipelines import dpo, grpo, ppo, reward_model, rloo, sft
from tests.ml_helpers import Log, World, build_world, dpo_config, policy_of, ppo_config, reward_config, sft_config
from tests.pipelines.process_stages import LORA, grpo_config, rloo_config
from workbench import evaluation
from workbench.config_comparison import Comparison
from workbench.device import check_processes, visible_gpus
from workbench.errors import ConfigError, ResourceError
from workbench.models import Placement, load_policy, trunk_digest
from workbench.policy_set import read_policy_set
from workbench.trl_adapter import TrainSpec, train_sft

ARMS: dict[str, Any] = {
    "reward_model": (reward_model, reward_config(batch_size=8, epochs=1)),
    "dpo": (dpo, dpo_config(batch_size=8, epochs=1)),
    "ppo": (ppo, ppo_config(updates=2)),
    "ppo-head": (ppo, ppo_config(updates=2, critic="head", sft_coef=0.1)),
    "rloo": (rloo, rloo_config()),
    "grpo": (grpo, grpo_config()),
}
STEPS: dict[str, Any] = {
    "sft": (sft, sft_config(steps=3, batch_size=7)),
    "reward_model": (reward_model, reward_config(batch_size=7, epochs=1)),
    "dpo": (dpo, dpo_config(batch_size=7, epochs=1, nll_coef=0.5)),
    "rloo": (rloo, rloo_config(epochs=2, clip=0.01)),
    "grpo": (grpo, grpo_config(epochs=2, clip=0.01)),
    "grpo-by-response": (grpo, grpo_config(loss="grpo")),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def inputs_of(world: World, work: Path, log: Log) -> dict[str, Path]:
    """What all stages read; the reference's log-probabilities in the log's precision."""
    work.mkdir()
    inputs = {"sft": world.sft, "pairs": world.pairs, "prompts": world.prompts, "model": world.model}
    evaluation.reference_logprobs({"batch_size": 7, "trust_remote_code": False}, inputs, work, log)
    return inputs | {"reference_logprobs": work, "reward_model": world.reward_model}


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return inputs_of(world, root / "reference", Log(root / "work"))


@pytest.fixture(scope="module")
def half(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in bfloat16, with an adapter as reward model."""
    root = tmp_path_factory.mktemp("half")
    inputs = inputs_of(world, root / "reference", in_half(Log(root / "work")))
    reward_model.run(reward_config() | LORA, inputs, out := world.out("reward"), in_half(Log(root / "reward")))
    return inputs | {"reward_model": out}


def in_half(log: Log) -> Log:
    log.resources = replace(log.resources, dtype="bfloat16")
    return log


def tensors(folder: Path) -> dict[str, Any]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{one.relative_to(folder)}:{name}": value for one in files for name, value in load_file(one).items()}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_adapters_on_a_bfloat16_base(
    arm: str, world: World, half: dict[str, Path], tmp_path: Path
) -> None:
    module, config = ARMS[arm]
    small = {"microbatch_tokens": 60} if module is ppo else {"microbatch_size": 3}
    module.run(config | LORA | small, half, out := world.out(arm), log := in_half(Log(tmp_path / "work")))
    index, base = read_policy_set(out), load_policy(world.model, Placement(dtype="bfloat16"))
    assert index.diverged is None
    assert index.facts["numerics"]["dtype"] == "bfloat16"
    assert index.facts["sft_tensors"] == trunk_digest(base), "the base is the SFT as it was read, and was not trained"
    assert index.facts["parametrization"] == "lora rank 4 alpha 8 on all-linear"
    assert index.checkpoint().tensors not in (trunk_digest(base), trunk_digest(policy_of(world.model)))
    assert {value.dtype.name for value in tensors(index.folder()).values()} == {"float32"}
    assert all(math.isfinite(value) for _, values in log.lines() for value in values.values())


@pytest.mark.parametrize("kind", STEPS)
def test_passes_of_a_few_rows_add_up_to_the_step(
    kind: str, world: World, whole: dict[str, Path], tmp_path: Path
) -> None:
    module, config = STEPS[kind]
    outs, lines = [], []
    for size in (None, 3):
        log = Log(tmp_path / f"work{size}")
        module.run(config | {"microbatch_size": size}, whole, out := world.out(kind), log)
        outs.append(tensors(out))
        lines.append(log.lines())
    for name, value in outs[0].items():
        np.testing.assert_allclose(outs[1][name], value, atol=2e-5, err_msg=name)
    for (step, values), (other, others) in zip(*lines, strict=True):
        assert step == other
        assert others == pytest.approx(values, rel=1e-3, abs=1e-4)
    if kind in ("rloo", "grpo"):
        assert lines[0][-1][1]["clip_fraction"] > 0, "else nobody would see how it is weighed"


def test_a_mixture_of_experts_is_not_taken_in_parts(world: World, tmp_path: Path) -> None:
    """Its load-balancing loss is of a whole pass; RLOO and GRPO, like PPO, train without it."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=len(world.tokenizer), num_key_value_heads=2, num_local_experts=2, **sizes)
    rows = [{"prompt_ids": [40, 41], "response_ids": [50, 1]}] * 4
    spec = TrainSpec.from_config(sft_config(steps=1, batch_size=4, microbatch_size=2), 0)
    with pytest.raises(ConfigError, match="load-balancing loss"):
        train_sft(MixtralForCausalLM(config), world.tokenizer, rows, [0, 1, 2, 3], spec, Log(tmp_path / "work"))


@pytest.mark.parametrize("critic", ["separate", "head"])
def test_ppos_adapters_learn_the_same_with_gradient_checkpointing(
    critic: str, world: World, half: dict[str, Path], tmp_path: Path
) -> None:
    """A layer is computed again while another adapter is active, or none: it must be the one that made the pass."""
    digests = []
    for again in (False, True):
        config = ppo_config(updates=2, critic=critic, sft_coef=0.1, learning_rate=1e-2, critic_warmup_updates=0) | LORA
        config |= {"gradient_checkpointing": again}
        ppo.run(config, half, out := world.out("ppo"), in_half(Log(tmp_path / f"work{again}")))
        digests.append(read_policy_set(out).checkpoints[-1].tensors)
    assert digests[0] == digests[1]


# ------------------------------------------------------------------------------------------- config


def comparison(**resources: Any) -> Comparison:
    return Comparison.model_validate(
        {
            "name": "a", "model": {"world": "helpdesk"}, "data": {"world": "helpdesk"},
            "arms": {"ppo": {"batch_size": 32, "minibatches": 8}, "dpo": {}}, "resources": resources,
        }
    )  # fmt: skip


def test_more_processes_than_rows_of_a_step_are_refused() -> None:
    assert comparison(processes=4).resources.processes == 4
    with pytest.raises(ValueError, match=r"got 5, expected at most 4, the rows of a step of arms\.ppo"):
        comparison(processes=5)


def test_every_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2")
    assert visible_gpus() == ["0", "2"]
    check_processes(2, "cuda")
    check_processes(8, "cpu")
    with pytest.raises(ResourceError, match="got 3 processes and 2 visible GPUs"):
        check_processes(3, "cuda")


def test_a_field_that_moves_memory_alone_is_in_no_dump_unless_it_is_given() -> None:
    plain = json.dumps(comparison().model_dump(mode="json"))
    assert "microbatch_size" not in plain
