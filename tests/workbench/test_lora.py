"""LoRA: adapters on one base answer as separate models do; off, the base answers; files reproduce bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.ml_helpers import CPU, PAD, World, build_world, tiny_model
from workbench.errors import ConfigError, IntegrityError
from workbench.lora import (
    Lora,
    active_adapter,
    adapter_parameters,
    adapter_state,
    adapters,
    adapters_off,
    add_adapter,
    base_digest,
    copy_adapter,
    float32_head,
    operations_per_token,
    parametrization,
    set_active,
    target_names,
    using,
)
from workbench.lora_files import load_adapter, save_adapter, save_merged
from workbench.models import (
    Placement,
    load_policy,
    load_reward_model,
    new_reward_model,
    parameter_count,
    save_model,
    trunk_digest,
)

LORA = Lora(rank=4, alpha=8)
HALF = Placement(dtype="bfloat16")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT, with plain linear layers and with GPT-2's transposed ones."""
    if request.param == "llama":
        return world.model
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(world.tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=PAD
    )
    save_model(GPT2LMHeadModel(config), world.tokenizer, at := tmp_path_factory.mktemp("gpt2"))
    return at


IDS = torch.randint(2, 100, (6, 11), generator=torch.Generator().manual_seed(0))


def forward(model: Any) -> Tensor:
    answer: Tensor = model(input_ids=IDS, use_cache=False).logits
    return answer


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return forward(model)


def head_scores(model: Any, head: nn.Linear) -> Tensor:
    """(6, 11): a scalar head's output at every position."""
    hidden = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    found: Tensor = head(hidden).squeeze(-1)
    return found


def train(model: Any, name: str, seed: int) -> None:
    """Gives an adapter weights as training would leave them: B no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def with_adapters(folder: Path, *names: str, placement: Placement = CPU) -> Any:
    """The SFT with trained adapters; each is drawn and trained from its name's own seed, whatever stands beside it."""
    model = load_policy(folder, placement)
    for name in names:
        seed = sum(name.encode())
        add_adapter(model, LORA, name, seed)
        train(model, name, seed + 1)
    return model


# ------------------------------------------------------------------------------------------- adding


def test_a_new_adapter_changes_nothing_and_draws_from_no_global_state(folder: Path) -> None:
    plain, model = load_policy(folder, CPU), load_policy(folder, CPU)
    before = torch.get_rng_state()
    assert add_adapter(model, LORA, "policy", 3) is model
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(model), logits(plain))
    assert adapters(model) == {"policy": LORA}
    assert active_adapter(model) == "policy"


def test_the_draw_is_the_seeds(folder: Path) -> None:
    states = []
    for seed in (1, 1, 2):
        model = load_policy(folder, CPU)
        torch.manual_seed(seed * 100 + len(states))
        states.append(adapter_state(add_adapter(model, LORA, "policy", seed), "policy"))
    first, again, other = states
    assert all(torch.equal(first[at], again[at]) for at in first)
    assert not any(torch.equal(first[at], other[at]) for at in first if "lora_A" in at)
    for at, one in first.items():
        if "lora_B" in at:
            assert not one.any()
        else:
            assert 0.5 * one.shape[1] ** -0.5 < float(one.detach().abs().max()) <= one.shape[1] ** -0.5


def test_every_linear_layer_of_the_trunk_and_no_head_is_adapted(world: World) -> None:
    trunk = [f"layers.0.self_attn.{at}_proj" for at in "koqv"] + [
        f"layers.0.mlp.{at}_proj" for at in ("down", "gate", "up")
    ]
    for model in (tiny_model(world.tokenizer), new_reward_model(world.model, CPU, 0, pad_id=PAD)):
        assert sorted(target_names(model, LORA)) == sorted(trunk)
        add_adapter(model, LORA, "policy", 0)
        assert sorted(target_names(model, LORA)) == sorted(trunk), "the same for a second adapter"
    some = Lora(rank=2, alpha=4, target_modules=("q_proj", "self_attn.v_proj"))
    assert target_names(tiny_model(world.tokenizer), some) == [trunk[2], trunk[3]]


@pytest.mark.parametrize("names", [("q_proj", "qq_proj"), ("embed_tokens",), ("lm_head",), ("roj",)])
def test_a_module_that_is_not_there_is_named(world: World, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"got {names[-1]}.*q_proj") as found:
        add_adapter(tiny_model(world.tokenizer), Lora(rank=2, alpha=4, target_modules=names), "policy", 0)
    assert found.value.exit_code == 2


def test_an_adapters_name_is_new_and_plain(world: World) -> None:
    model = add_adapter(tiny_model(world.tokenizer), LORA, "policy", 0)
    for name in ("policy", "a.b", ""):
        with pytest.raises(ValueError, match="adapter name"):
            add_adapter(model, LORA, name, 0)
    with pytest.raises(ValueError, match="critic"):
        set_active(model, "critic")


def test_settings_read_back_and_say_what_is_trained() -> None:
    some = Lora(rank=2, alpha=4, target_modules=("v_proj", "q_proj"))
    for lora in (LORA, some):
        assert Lora.from_config(json.loads(json.dumps(lora.to_json()))) == lora
    assert Lora.from_config(None) is None
    assert [parametrization(one) for one in (None, LORA, some)] == [
        "full", "lora rank 4 alpha 8 on all-linear", "lora rank 2 alpha 4 on q_proj+v_proj",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- several on one base


@pytest.mark.parametrize("placement", [CPU, HALF], ids=["float32", "bfloat16"])
def test_adapters_on_one_base_answer_as_separate_models_bit_for_bit(folder: Path, placement: Placement) -> None:
    names = ("policy", "reward", "critic")
    shared = with_adapters(folder, *names, placement=placement)
    plain = logits(load_policy(folder, placement))
    for name in ("reward", None, "policy", "critic", "policy", None):
        set_active(shared, name)
        expected = plain if name is None else logits(with_adapters(folder, name, placement=placement))
        assert torch.equal(logits(shared), expected), name
    different = [logits(with_adapters(folder, name)) for name in names]
    assert not torch.equal(different[0], different[1])
    assert not torch.equal(different[0], different[2])


def test_off_is_the_base_and_on_again_is_the_adapter(folder: Path) -> None:
    model, plain = with_adapters(folder, "policy", "reward"), logits(load_policy(folder, CPU))
    answers = {"reward": logits(model)}
    before = torch.get_rng_state()
    with adapters_off(model):
        assert active_adapter(model) is None
        assert torch.equal(logits(model), plain)
        with using(model, "policy"):
            answers["policy"] = logits(model)
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), answers["reward"])
    with pytest.raises(KeyError), using(model, "policy"):
        raise KeyError
    assert active_adapter(model) == "reward"
    assert not torch.equal(answers["reward"], answers["policy"])
    assert torch.equal(torch.get_rng_state(), before)
    untouched = load_policy(folder, CPU)
    with adapters_off(untouched):
        assert torch.equal(logits(untouched), plain)


# ------------------------------------------------------------------------------------------- gradients


def gradients(model: Any) -> set[str]:
    return {name for name, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())}


def test_gradient_reaches_the_active_adapter_alone(folder: Path) -> None:
    model = with_adapters(folder, "policy", "critic")
    own = {name: {id(one) for one in adapter_parameters(model, name)} for name in ("policy", "critic")}
    wanted = {id(one) for one in model.parameters() if one.requires_grad}
    assert wanted == own["policy"] | own["critic"], "the base is frozen, both adapters are trained"
    for name in ("policy", "critic", "policy"):
        model.zero_grad(set_to_none=True)
        set_active(model, name)
        forward(model).float().square().mean().backward()
        touched = {id(one) for one in model.parameters() if one.grad is not None}
        assert touched == own[name]
        assert gradients(model)
        assert {id(one) for one in model.parameters() if one.requires_grad} == wanted, "switching freezes nothing"
    with adapters_off(model):
        assert not forward(model).requires_grad


def test_a_frozen_adapter_stays_frozen_and_passes_no_gradient(folder: Path) -> None:
    model = load_policy(folder, CPU)
    add_adapter(model, LORA, "reward", 0, trainable=False)
    add_adapter(model, LORA, "policy", 1)
    train(model, "reward", 5)
    for name in ("reward", None, "policy", "reward"):
        set_active(model, name)
        assert not any(one.requires_grad for one in adapter_parameters(model, "reward"))
        assert all(one.requires_grad for one in adapter_parameters(model, "policy"))
    assert not forward(model).requires_grad


def test_a_step_moves_one_adapter_and_leaves_base_and_others(folder: Path) -> None:
    model = with_adapters(folder, "policy", "reward")
    sft = trunk_digest(load_policy(folder, CPU))
    assert base_digest(model) == sft
    set_active(model, "policy")
    kept = {at: one.clone() for at, one in adapter_state(model, "reward").items()}
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.1)
    before = logits(model)
    for _ in range(3):
        optimizer.zero_grad()
        forward(model).float().square().mean().backward()
        assert base_digest(model) == sft, "during training as well"
        optimizer.step()
    assert not torch.equal(logits(model), before)
    assert all(torch.equal(one, kept[at]) for at, one in adapter_state(model, "reward").items())
    assert base_digest(model) == sft
    with adapters_off(model):
        assert torch.equal(logits(model), logits(load_policy(folder, CPU)))
        assert base_digest(model) == sft


def test_a_critic_starts_where_the_reward_model_is(folder: Path) -> None:
    model = with_adapters(folder, "reward")
    expected = logits(model)
    add_adapter(model, LORA, "critic", 9)
    assert not torch.equal(logits(model), expected)
    copy_adapter(model, "reward", "critic")
    assert torch.equal(logits(model), expected)
    train(model, "critic", 1)
    set_active(model, "reward")
    assert torch.equal(logits(model), expected), "a copy, not the same tensors"
    add_adapter(model, Lora(rank=2, alpha=4), "other", 0)
    with pytest.raises(ValueError, match="rank or layers"):
        copy_adapter(model, "reward", "other")


def test_adapters_and_heads_are_trained_in_float32_on_a_bfloat16_base(world: World) -> None:
    model = new_reward_model(world.model, CPU, 3, pad_id=PAD)
    model.base_model.to(torch.bfloat16)
    add_adapter(model, LORA, "reward", 0)
    assert not model.score.weight.requires_grad, "the first adapter freezes all that was there"
    float32_head(model.score)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert len(trained) == 1 + 14
    assert {one.dtype for one in trained} == {torch.float32}
    assert {one.dtype for one in model.parameters() if not one.requires_grad} == {torch.bfloat16}
    head_scores(model, model.score).sum().backward()
    assert model.score.weight.grad is not None
    assert model.score.weight.grad.dtype == torch.float32
    assert base_digest(model) == trunk_digest(load_policy(world.model, HALF))


def test_operations_count_frozen_weights_without_their_gradient(world: World) -> None:
    model = tiny_model(world.tokenizer).requires_grad_(True)
    full = parameter_count(model)
    assert operations_per_token(model) == 6 * full
    add_adapter(model, LORA, "policy", 0)
    assert operations_per_token(model) == 4 * full + 6 * sum(one.numel() for one in adapter_parameters(model, "policy"))


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("placement", [CPU, HALF], ids=["float32", "bfloat16"])
def test_a_merged_folder_is_a_plain_model(folder: Path, world: World, tmp_path: Path, placement: Placement) -> None:
    model = with_adapters(folder, "policy", "reward", placement=placement)
    before = base_digest(model)
    save_merged(model, world.tokenizer, tmp_path / "reward")
    save_merged(model, world.tokenizer, tmp_path / "policy", "policy")
    assert base_digest(model) == before
    for name in ("policy", "reward"):
        read = load_policy(tmp_path / name, placement)
        set_active(model, name)
        difference = (logits(read).float() - logits(model).float()).abs().mean()
        assert difference < (1e-4 if placement is CPU else 0.05)
        assert {one.suffix for one in (tmp_path / name).iterdir()} <= {".json", ".safetensors", ".jinja"}
        assert not any("lora" in key for key in read.state_dict())
        exact = load_policy(tmp_path / name, CPU)
        whole = with_adapters(folder, name, placement=placement).float()
        assert torch.allclose(logits(exact), logits(whole), atol=1e-4), "saved in float32: nothing is rounded away"


def test_a_plain_model_is_saved_as_ever(world: World, tmp_path: Path) -> None:
    model = tiny_model(world.tokenizer)
    save_model(model, world.tokenizer, tmp_path / "a")
    save_merged(model, world.tokenizer, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_merged_reward_model_scores_as_before(world: World, tmp_path: Path) -> None:
    model = new_reward_model(world.model, CPU, 3, pad_id=PAD)
    add_adapter(model, LORA, "reward", 0)
    train(model, "reward", 1)
    save_merged(model, world.tokenizer, tmp_path)
    read = load_reward_model(tmp_path, CPU)
    assert torch.allclose(head_scores(read, read.score), head_scores(model, model.score), atol=1e-4)


@pytest.mark.parametrize("placement", [CPU, HALF], ids=["float32", "bfloat16"])
def test_a_saved_adapter_reproduces_bit_for_bit(folder: Path, tmp_path: Path, placement: Placement) -> None:
    model = with_adapters(folder, "policy", "reward", placement=placement)
    torch.manual_seed(1)
    head = nn.Linear(16, 1)
    save_adapter(model, "reward", tmp_path / "adapter", head=head)
    save_adapter(model, "policy", tmp_path / "policy")
    assert sorted(one.name for one in (tmp_path / "adapter").iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert str(tmp_path) not in (tmp_path / "adapter/adapter.json").read_text()
    again = load_policy(folder, placement)
    before = torch.get_rng_state()
    read = load_adapter(again, "r", tmp_path / "adapter")
    assert load_adapter(again, "p", tmp_path / "policy", trainable=True, base=base_digest(model)) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert read is not None
    assert torch.equal(read.weight, head.weight)
    assert torch.equal(read.bias, head.bias)
    assert not read.weight.requires_grad
    for name, own in (("r", "reward"), ("p", "policy")):
        set_active(model, own)
        set_active(again, name)
        assert torch.equal(logits(again), logits(model))
        assert all(one.requires_grad is (name == "p") for one in adapter_parameters(again, name))


def test_an_adapter_of_a_reward_model_mounts_on_the_policy(world: World, tmp_path: Path) -> None:
    """What shared-trunk PPO stands on: one base, the reward model's adapter and head beside the policy's."""
    reward = new_reward_model(world.model, CPU, 3, pad_id=PAD)
    add_adapter(reward, LORA, "reward", 0)
    train(reward, "reward", 1)
    save_adapter(reward, "reward", tmp_path, head=reward.score)
    policy = load_policy(world.model, CPU)
    add_adapter(policy, LORA, "policy", 4)
    head = load_adapter(policy, "reward", tmp_path)
    assert head is not None
    with torch.no_grad(), using(policy, "reward"):
        found, expected = head_scores(policy, head), head_scores(reward, reward.score)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("damage", ["weights", "json", "missing", "format", "swapped"])
def test_damaged_files_are_refused(world: World, tmp_path: Path, damage: str) -> None:
    model = with_adapters(world.model, "policy", "reward")
    save_adapter(model, "policy", tmp_path / "a")
    save_adapter(model, "reward", tmp_path / "b")
    tensors, index = tmp_path / "a/adapter.safetensors", tmp_path / "a/adapter.json"
    if damage == "weights":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")
    elif damage == "json":
        index.write_text("{")
    elif damage == "missing":
        tensors.unlink()
    elif damage == "format":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 2}))
    else:
        tensors.write_bytes((tmp_path / "b/adapter.safetensors").read_bytes())
    with pytest.raises(IntegrityError):
        load_adapter(load_policy(world.model, CPU), "policy", tmp_path / "a")


def test_an_adapter_of_another_base_or_shape_is_refused(world: World, tmp_path: Path) -> None:
    save_adapter(with_adapters(world.model, "policy"), "policy", tmp_path)
    with pytest.raises(IntegrityError, match="belongs to base"):
        load_adapter(tiny_model(world.tokenizer, seed=9), "policy", tmp_path)
    wide = tiny_model(world.tokenizer, intermediate_size=32)
    with pytest.raises(IntegrityError, match="do not fit"):
        load_adapter(wide, "policy", tmp_path, base=json.loads((tmp_path / "adapter.json").read_text())["base_tensors"])
