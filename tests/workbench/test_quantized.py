"""Weights in 4 bits: what is snapped packs without loss, computes alike, and takes the gradients of a plain base."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.sources import resolve_origin
from tests.ml_helpers import CPU, PAD, World, build_world, tiny_model
from workbench import quantized
from workbench.config import load_config
from workbench.errors import ConfigError, DivergenceError, IntegrityError, ResourceError
from workbench.lora import Lora, adapter_parameters, base_digest, operations_per_token, parametrization
from workbench.lora_files import load_adapter, load_trainee, save_adapter, save_merged
from workbench.models import Placement, load_policy, parameter_count, save_model, trunk_digest
from workbench.quantized import is_packed, pack, snap, unpacked, unpacked_state
from workbench.store import Store

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "initializer_range": 0.1}
LORA = Lora(rank=4, alpha=8, quantize="nf4")
PLAIN = Lora(rank=4, alpha=8)
PLACES = (CPU, Placement(dtype="bfloat16"))
IDS = torch.randint(2, 100, (6, 11), generator=torch.Generator().manual_seed(0))
# Dettmers et al. 2023, appendix E
VALUES = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"), size=SIZE, snapped=True)


@pytest.fixture(scope="module")
def half(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same size of model, snapped in bfloat16."""
    model = tiny_model(world.tokenizer, **SIZE).to(torch.bfloat16)
    snap(model, torch.bfloat16)
    save_model(model, world.tokenizer, at := tmp_path_factory.mktemp("half"))
    return at


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
        return found


def test_every_weight_becomes_the_nearest_value_of_its_block(world: World) -> None:
    model = tiny_model(world.tokenizer, **SIZE)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    told = snap(model, torch.float32)
    assert (told["scheme"], told["layers"], told["parameters"]) == ("nf4", 14, 2 * (4 * 64 * 64 + 3 * 64 * 128))
    assert 0.05 < told["relative_error"] < 0.12  # a normal weight's is 0.09
    for name, after in model.named_parameters():
        if "_proj" not in name:
            assert torch.equal(after, before[name]), "embeddings and norms stay"
            continue
        blocks = before[name].reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        nearest = VALUES[(blocks / largest).unsqueeze(-1).sub(VALUES).abs().argmin(-1)] * largest
        torch.testing.assert_close(after.detach().reshape(-1, 64), nearest, atol=1e-7, rtol=1e-6)
    assert snap(model, torch.float32)["relative_error"] == 0.0, "what is snapped stays"


@pytest.mark.parametrize("place", PLACES)
def test_packed_weights_are_the_snapped_ones(place: Placement, world: World, half: Path) -> None:
    folder = world.model if place is CPU else half
    plain, packed = load_policy(folder, place), pack(load_policy(folder, place), "cpu")
    layers = [one for one in packed.modules() if is_packed(one)]
    assert len(layers) == 14
    assert all(one.weight.dtype == torch.uint8 and one.weight.numel() * 2 == unpacked(one).numel() for one in layers)
    assert trunk_digest(packed) == trunk_digest(plain)
    assert unpacked_state(packed).keys() == plain.state_dict().keys()
    assert parameter_count(packed) == parameter_count(plain)
    assert torch.equal(logits(packed), logits(plain))
    embedded = packed.get_input_embeddings()(IDS).requires_grad_()
    with torch.enable_grad():
        trained = packed.train(True)(inputs_embeds=embedded, use_cache=False).logits
    assert trained.requires_grad
    assert torch.equal(trained.detach(), logits(packed.eval())), "training and sampling are one function"
    assert trunk_digest(packed) == trunk_digest(plain), "nothing was repacked on the way"


def test_weights_that_were_not_snapped_are_refused(world: World) -> None:
    with pytest.raises(IntegrityError, match=r"q_proj are not those that 4 bits hold"):
        pack(tiny_model(world.tokenizer, **SIZE), "cpu")
    broken = tiny_model(world.tokenizer, **SIZE)
    broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=r"layers\.1\.mlp\.up_proj are not finite"):
        snap(broken, torch.float32)


def test_layers_whose_rows_hold_no_whole_blocks_stay(world: World) -> None:
    model = tiny_model(world.tokenizer, **SIZE | {"intermediate_size": 72})
    before = model.model.layers[0].mlp.down_proj.weight.clone()
    assert snap(model, torch.float32)["layers"] == 12
    packed = pack(model, "cpu")
    down = packed.model.layers[0].mlp.down_proj
    assert not is_packed(down)
    assert torch.equal(down.weight, before)


def test_models_without_such_layers_are_refused(world: World) -> None:
    config = GPT2Config(vocab_size=len(world.tokenizer), n_embd=64, n_layer=1, n_head=2, pad_token_id=PAD)
    for model in (GPT2LMHeadModel(config), tiny_model(world.tokenizer, hidden_size=16, intermediate_size=24)):
        with pytest.raises(ConfigError, match="no linear layers that can be packed") as found:
            snap(model, torch.float32)
        assert (found.value.exit_code, found.value.where) == (2, "model.lora.quantize")


def test_a_kernel_that_rounds_wrongly_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantized._value
    monkeypatch.setattr(quantized, "_value", lambda *given: right(*given).roll(1, 0))
    with pytest.raises(IntegrityError, match="were not rounded to nf4"):
        snap(tiny_model(world.tokenizer, **SIZE), torch.float32)


def test_adapters_on_a_packed_base_get_the_gradients_of_a_plain_one(world: World) -> None:
    grads = []
    for lora in (LORA, PLAIN):
        model = load_trainee(world.model, CPU, lora, 3)
        assert base_digest(model) == trunk_digest(load_policy(world.model, CPU))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for one in adapter_parameters(model, "policy"):
                one.add_(0.1 * torch.randn(one.shape, generator=generator))
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
        grads.append([one.grad for one in adapter_parameters(model, "policy")])
        assert not any(one.requires_grad for name, one in model.named_parameters() if "lora_" not in name)
        assert operations_per_token(model) == operations_per_token(load_trainee(world.model, CPU, PLAIN, 3))
    assert len(grads[0]) == 28
    for packed, plain in zip(*grads, strict=True):
        assert plain is not None
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)


def test_what_is_published_is_the_whole_model_and_its_adapter(world: World, tmp_path: Path) -> None:
    model = load_trainee(world.model, CPU, LORA, 3)
    with torch.no_grad():
        for one in adapter_parameters(model, "policy"):
            one.add_(0.1)
    save_merged(model, world.tokenizer, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged", CPU)
    assert {one.dtype for one in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits(merged), logits(load_policy(world.model, CPU)))
    save_adapter(model, "policy", tmp_path / "adapter")
    again = load_policy(world.model, CPU)
    load_adapter(again, "reward", tmp_path / "adapter")  # of the same base, which is plain here
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    assert parametrization(LORA) == "lora rank 4 alpha 8 on all-linear, base in nf4"
    assert Lora.from_config(LORA.to_json()) == LORA


def test_without_its_kernels_it_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = load_config(Path("smoke"), ["model.lora={quantize: nf4}"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ResourceError, match=r"needs bitsandbytes.*\[qlora\]") as found:
        resolve_origin(comparison, Store.open(tmp_path / "home"))
    assert (found.value.exit_code, found.value.where) == (3, "model.lora.quantize")
    with pytest.raises(ConfigError, match="nf4"):
        load_config(Path("smoke"), ["model.lora={quantize: fp4}"])
