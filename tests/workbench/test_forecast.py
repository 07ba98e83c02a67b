"""`workbench doctor CONFIG`: counts against autograd's own, against measured peaks, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines import dpo as dpo_stage
from pipelines.forecast import forecast, lengths_of
from pipelines.sources import resolve_origin
from tests.ml_helpers import CPU, PAD, Log, World, build_world, dpo_config, policy_of, ppo_config, run_ppo
from workbench.actor_critic import ActorCritic
from workbench.batching import make_batch
from workbench.cli import main
from workbench.config import load_config
from workbench.errors import ConfigError
from workbench.estimate import Setting, Size, size_of, small_llama
from workbench.estimate_stages import Lengths, Needs
from workbench.forecast import Forecast, Machine, verdict
from workbench.models import parameter_count
from workbench.packed import PackedPairs
from workbench.policy_set import read_policy_set
from workbench.quantized import is_packed, pack, unpacked
from workbench.scoring import response_logprobs, sequence_logprobs
from workbench.store import Store

ROWS, PROMPT, RESPONSE = 4, 24, 48


def saved_bytes(model: Any) -> int:
    """Bytes that autograd keeps for the backward pass of a batch, weights left out, each storage once."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    found: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    batch = make_batch([[5] * PROMPT] * ROWS, [[6] * RESPONSE] * ROWS, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        response_logprobs(model, batch).sum()
    return sum(found.values())


@pytest.mark.parametrize(
    ("hidden", "layers", "intermediate", "heads", "kv"), [(128, 6, 344, 4, 4), (64, 5, 172, 8, 4), (256, 3, 512, 8, 2)]
)
def test_activations_are_those_that_autograd_keeps(
    tmp_path: Path, hidden: int, layers: int, intermediate: int, heads: int, kv: int
) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=intermediate,
            num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=96, bos_token_id=1,
            eos_token_id=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size.parameters == parameter_count(model)
    assert (size.hidden, size.layers, size.intermediate) == (hidden, layers, intermediate)
    assert size.key_value == hidden // heads * kv
    tokens = ROWS * (PROMPT + RESPONSE)
    plain, again = (Setting(device="cpu", dtype="float32", checkpointing=flag) for flag in (False, True))
    assert plain.activations(size, tokens) == pytest.approx(saved_bytes(model), rel=0.05)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    one_layer = 4 * tokens * size.per_layer  # computed again, one at a time
    assert again.activations(size, tokens) - one_layer == pytest.approx(saved_bytes(model), rel=0.1)


# Peaks above imports in MB, as benchmarks/memory.py --size 10m measured them (docs/ppo.md).
PEAKS = {
    ("dpo", None, ""): 1424, ("dpo", 16, ""): 1266, ("ppo", None, "separate"): 1592, ("ppo", None, "head"): 1435,
    ("ppo", 16, "separate"): 1227, ("ppo", 16, "head"): 1210,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "rank", "critic"), PEAKS)
def test_stages_are_within_a_tenth_of_measured_peaks(kind: str, rank: int | None, critic: str) -> None:
    block = {"hidden_size": 256, "num_layers": 12, "num_heads": 8, "intermediate_size": 688}
    arms = {
        "dpo": "arms={dpo: {epochs: 1, batch_size: 32}}",
        "ppo": f"arms={{ppo: {{updates: 9, batch_size: 64, minibatches: 1, critic: {critic or 'separate'}}}}}",
    }
    comparison = load_config(Path("smoke"), [arms[kind], "evaluation.max_response_tokens=48"])
    size = small_llama(comparison.model.size.model_copy(update=block), 512, 72)
    setting = Setting(device="cpu", dtype="float32", rank=rank)
    lengths = Lengths(prompt=24, response=48, mean_prompt=24, mean_response=48, pairs=96)
    needs = {need.stage.split()[0]: need for need in Needs(comparison, setting, size, {"main": size}, lengths).all()}
    above = (needs[kind].bytes - 400e6) / 1e6
    assert above == pytest.approx(PEAKS[kind, rank, critic], rel=0.12)


def test_a_packed_base_takes_the_bytes_of_its_codes(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world", size={"hidden_size": 64, "intermediate_size": 128}, snapped=True)
    plain, packed = policy_of(world.model), pack(policy_of(world.model), "cpu")
    held = sum(one.numel() * one.element_size() for one in packed.parameters())
    held += sum(4 * unpacked(one).numel() // 64 for one in packed.modules() if is_packed(one))
    size = size_of(world.model)
    assert size.linear_parameters == sum(unpacked(one).numel() for one in packed.modules() if is_packed(one))
    setting = Setting(device="cpu", dtype="float32", rank=4, packed=True)
    assert setting.base(size) == held + 4 * 64 * 128  # and the largest layer, unpacked
    assert Setting(device="cpu", dtype="float32", rank=4).base(size) == 4 * parameter_count(plain)
    adapters = Setting(device="cuda", dtype="bfloat16", rank=16)
    assert replace(adapters, packed=True).base(GIANT) < 0.45 * adapters.base(GIANT)


GIANT = Size(
    parameters=7 * 10**9, hidden=4096, layers=32, key_value=1024, intermediate=11008, vocabulary=32000, context=4096
)


def of_giant(memory: float, rank: int | None = None) -> Forecast:
    comparison = load_config(Path("smoke"))
    setting = Setting(device="cuda", dtype="bfloat16", rank=rank)
    lengths = Lengths(prompt=512, response=256, mean_prompt=200, mean_response=200, pairs=10_000)
    needs = Needs(comparison, setting, GIANT, {"main": GIANT}, lengths).all()
    return Forecast(needs=needs, machine=Machine(device="cuda", memory=memory, rate=1e14, workers=1), lengths=lengths)


def test_what_does_not_fit_is_named_with_what_would_help() -> None:
    full = of_giant(80e9)
    fits, told = verdict(full)
    assert not fits
    assert "ppo ppo needs" in told
    assert "model.lora" in told
    by_name = {need.stage: need for need in full.needs}
    assert 240e9 < by_name["ppo ppo"].bytes < 400e9  # two trained networks of 7B: 224 GB before anything else
    adapted = {need.stage: need for need in of_giant(80e9, rank=16).needs}
    assert adapted["ppo ppo"].bytes < 60e9
    assert verdict(of_giant(1e13))[0]


def test_passes_and_processes_make_a_step_smaller() -> None:
    """A GPU of several holds its share of a step; main memory holds all processes."""

    def bytes_of(kind: str, device: str, *overrides: str) -> float:
        comparison = load_config(Path("smoke"), overrides)
        setting = Setting(device=device, dtype="float32")
        lengths = Lengths(prompt=512, response=256, mean_prompt=200, mean_response=200, pairs=1000)
        needs = Needs(comparison, setting, GIANT, {"main": GIANT}, lengths).all()
        return next(need.bytes for need in needs if need.stage.startswith(kind))

    together = "resources.processes=4"
    for kind, smaller in (("sft", "sft.microbatch_size=4"), ("dpo", "arms.dpo.microbatch_size=4")):
        assert bytes_of(kind, "cuda", smaller) == bytes_of(kind, "cuda", together) < bytes_of(kind, "cuda")
        assert bytes_of(kind, "cpu", together) > bytes_of(kind, "cpu")
    assert bytes_of("ppo", "cuda", together) < bytes_of("ppo", "cuda")


def test_the_command_says_what_a_config_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CliRunner()
    done = call.invoke(main, ["doctor", "smoke", "--home", str(tmp_path / "home"), "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["ok"]) == (0, True)
    stages = {one["stage"] for one in found["forecast"]["stages"]}
    assert {"sft", "reward_model main", "dpo dpo", "ppo ppo", "candidates of best_of_n", "evaluation"} <= stages
    assert found["forecast"]["memory_needed_bytes"] > 0
    monkeypatch.setattr("pipelines.forecast.free_memory", lambda device: 3e8)
    done = call.invoke(main, ["doctor", "smoke", "--home", str(tmp_path / "home")])
    assert done.exit_code == 3
    assert "DOES NOT FIT; try" in done.stdout
    done = call.invoke(main, ["doctor", "smoke", "--home", str(tmp_path / "home"), "--set", "model.nonsense=1"])
    assert done.exit_code == 2


def test_a_files_lengths_are_read_from_its_rows(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a" * 70, "chosen": "b" * 35, "rejected": "c" * 7} for _ in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.yaml").write_text(
        f"name: x\nmodel: {{policy: {model_folder}}}\ndata: {{preferences: pairs.jsonl}}\narms: {{dpo: {{}}}}\n"
        "evaluation: {max_response_tokens: 8, judges: [proxy]}\n"
    )
    comparison = load_config(tmp_path / "c.yaml")
    found, checks = forecast(comparison, tmp_path / "home", seconds=0.01)
    assert (found.lengths.pairs, found.lengths.mean_prompt, found.lengths.mean_response) == (8, 20.0, 6.0)
    assert (found.lengths.prompt, found.lengths.response) == (96 - 8, 8)
    assert [check.name for check in checks] == ["config", "fits"]
    assert lengths_of(comparison, resolve_origin(comparison, Store.open(tmp_path / "home"))) == found.lengths


# ------------------------------------------------------------------------------------------ gradient checkpointing


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def test_dpo_learns_the_same_weights_with_gradient_checkpointing(world: World, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    pairs, policy = PackedPairs(world.pairs), policy_of(world.model)
    import numpy as np

    rows = [pairs.as_lists(row) for row in range(len(pairs))]
    columns = {
        side: np.array(
            sequence_logprobs(
                policy, [row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows], pad_id=PAD
            )
        )
        for side in ("chosen", "rejected")
    }
    np.savez(reference / "logprobs.npz", **columns, pairs_digest=pairs.ids_digest(), reference_tensors="r")
    found = []
    for again in (False, True):
        out = world.out("dpo")
        inputs = {"sft": world.sft, "pairs": world.pairs, "reference_logprobs": reference}
        config = dpo_config(epochs=1) | ({"gradient_checkpointing": True} if again else {})
        dpo_stage.run(config, inputs, out, Log(tmp_path / f"work{again}"))
        found.append(read_policy_set(out).checkpoints[-1].tensors)
    assert found[0] == found[1]


@pytest.mark.parametrize("critic", ["separate", "head"])
def test_ppo_learns_the_same_weights_with_gradient_checkpointing(world: World, tmp_path: Path, critic: str) -> None:
    import pipelines.ppo as ppo

    expected = run_ppo(world, Log(tmp_path / "plain"), updates=2, critic=critic)
    out = world.out("ppo")
    config = ppo_config(updates=2, critic=critic) | {"gradient_checkpointing": True}
    inputs = {"sft": world.sft, "reward_model": world.reward_model, "prompts": world.prompts}
    ppo.run(config, inputs, out, Log(tmp_path / "again"))
    digests = [read_policy_set(folder).checkpoints[-1].tensors for folder in (expected, out)]
    assert digests[0] == digests[1]


def test_ppos_passes_keep_less_with_gradient_checkpointing(world: World) -> None:
    inputs = {"sft": world.sft, "reward_model": world.reward_model}
    batch = make_batch([[40] * 20] * 4, [[50] * 20] * 4, PAD)

    def kept(config: dict[str, Any]) -> int:
        models = ActorCritic(ppo_config() | config, inputs, CPU, seed=0)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            models.figures(batch, 1.0).logprobs.sum()
        return sum(sizes)

    assert kept({"gradient_checkpointing": True}) < 0.6 * kept({})


def test_a_context_that_is_too_short_is_refused_before_anything_runs(
    world: World, model_folder: Path, tmp_path: Path
) -> None:
    """The reward model of the small world reads 64 positions with the tokenizer of the policy, which reads 96."""
    path = world.reward_model / "checkpoints" / "last"
    override = f"reward_models.main={{path: {path}}}"
    comparison = load_config(Path("smoke"), [override, "evaluation.max_response_tokens=64"])
    with pytest.raises(ConfigError, match="reads 64 tokens, but a response alone may have 64"):
        resolve_origin(comparison, Store.open(tmp_path / "home"))
    gold = f"gold={{reward_model: {path}}}"
    comparison = load_config(Path("smoke"), [gold, f"model={{policy: {model_folder}}}", "sft=none"])
    with pytest.raises(ConfigError, match="reads 64 tokens, but prompt and response may have 96") as failed:
        resolve_origin(comparison, Store.open(tmp_path / "home"))
    assert failed.value.where == "gold.reward_model"
    fitting = load_config(Path("smoke"), [gold, f"model={{policy: {model_folder}, max_length: 64}}", "sft=none"])
    assert resolve_origin(fitting, Store.open(tmp_path / "home")).max_length == 64
