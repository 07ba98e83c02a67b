"""Loading, dropout, digests, and the index of checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.ml_helpers import CPU, PAD, World, build_world, tiny_model, token_scores
from workbench.errors import DivergenceError, IntegrityError
from workbench.models import (
    check_finite,
    disable_dropout,
    load_policy,
    load_reward_model,
    new_reward_model,
    new_small_llama,
    parameter_count,
    save_model,
    tensors_digest,
    trunk_digest,
)
from workbench.policy_set import (
    Checkpoint,
    forget_checkpoint,
    keep_checkpoint,
    kept_checkpoints,
    publish_checkpoints,
    read_policy_set,
    read_selected,
    write_policy_set,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


# ------------------------------------------------------------------------------------------- dropout


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def dropping(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose config asks for dropout."""
    vocabulary, folder = len(world.tokenizer), tmp_path_factory.mktemp(request.param)
    model: Any
    if request.param == "llama":
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            attention_dropout=0.5,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, **drops))
    save_model(model, world.tokenizer, folder)
    return folder


def test_dropout_is_off_in_policy_reference_reward_model_and_critic(dropping: Path) -> None:
    ids = torch.arange(30, 40)[None]
    mask, positions = torch.ones_like(ids), torch.arange(10)[None]
    for model in (load_policy(dropping, CPU, trainable=True), load_policy(dropping, CPU)):
        model.train()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    reward = new_reward_model(dropping, CPU, 0, pad_id=PAD)
    for trainable in (True, False):
        model = load_reward_model(dropping, CPU, trainable=trainable)
        model.load_state_dict(reward.state_dict())
        model.train()
        first, second = (token_scores(model, ids, mask, positions) for _ in range(2))
        assert torch.equal(first, second)


def test_dropout_would_have_been_on(dropping: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, ids = AutoModelForCausalLM.from_pretrained(dropping).train(), torch.arange(30, 40)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_dropout_kept_as_a_plain_number_is_turned_off_whatever_its_name() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.layerdrop, self.scale = 0.1, 0.2, 0.5
            self.inner = nn.Dropout2d(0.3)

    layer = Layer()
    disable_dropout(layer)
    assert (layer.dropout, layer.layerdrop, layer.inner.p, layer.scale) == (0.0, 0.0, 0.0, 0.5)


# ------------------------------------------------------------------------------------------- loading


def test_only_what_is_trained_has_gradients(world: World) -> None:
    frozen, trained = load_policy(world.model, CPU), load_policy(world.model, CPU, trainable=True)
    assert not any(one.requires_grad for one in frozen.parameters())
    assert not frozen.training
    assert all(one.requires_grad for one in trained.parameters())


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="safetensors"):
        load_policy(tmp_path, CPU)


def test_the_new_head_is_normal_with_deviation_one_over_root_d_plus_one(world: World) -> None:
    heads = torch.cat([new_reward_model(world.model, CPU, seed, pad_id=PAD).score.weight for seed in range(20)])
    assert heads.shape == (20, 16)
    assert float(heads.detach().mean()) == pytest.approx(0, abs=0.05)
    assert float(heads.detach().std()) == pytest.approx(1 / math.sqrt(17), rel=0.15)
    assert torch.equal(heads[3], new_reward_model(world.model, CPU, 3, pad_id=PAD).score.weight[0])
    assert new_reward_model(world.model, CPU, 0, pad_id=PAD).config.pad_token_id == PAD


def test_a_new_small_llama_is_its_seed_and_leaves_the_global_generator_alone(world: World) -> None:
    before = torch.get_rng_state()
    digests = [tensors_digest(tiny_model(world.tokenizer, seed).state_dict()) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_parameters_count_once() -> None:
    size = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 10, "initializer_range": 0.1}
    model = new_small_llama(size, vocab_size=20, special={"pad": 0, "eos": 1}, context=16, seed=0)
    assert parameter_count(model) == 20 * 8 + 4 * 8 * 8 + 3 * 8 * 10 + 3 * 8


# ------------------------------------------------------------------------------------------- digests


def test_sft_reward_model_trunk_and_critic_share_one_digest(world: World) -> None:
    sft = trunk_digest(load_policy(world.model, CPU))
    assert trunk_digest(new_reward_model(world.model, CPU, 7, pad_id=PAD)) == sft
    critic = load_reward_model(world.reward_model / "checkpoints" / "last", CPU, trainable=True)
    assert trunk_digest(critic) == sft, "this reward model was never trained"
    with torch.no_grad():
        next(critic.base_model.parameters()).view(-1)[0].add_(1e-6)
    assert trunk_digest(critic) != sft


def test_a_digest_is_of_weights_not_of_files(world: World, tmp_path: Path) -> None:
    model = load_policy(world.model, CPU)
    save_model(model, world.tokenizer, tmp_path / "again")
    assert trunk_digest(load_policy(tmp_path / "again", CPU)) == trunk_digest(model)
    state = model.state_dict()
    assert tensors_digest(dict(reversed(state.items()))) == tensors_digest(state)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {"a": torch.tensor([[0, 0, 0], [0, 0, -0.0]])},
    ],
)
def test_name_shape_type_and_bits_all_enter_the_digest(other: dict[str, torch.Tensor]) -> None:
    assert tensors_digest(other) != tensors_digest({"a": torch.zeros(2, 3)})


def test_scalars_and_bfloat16_have_digests() -> None:
    one = tensors_digest({"a": torch.tensor(1.0), "b": torch.ones(3, dtype=torch.bfloat16)})
    assert one != tensors_digest({"a": torch.tensor(2.0), "b": torch.ones(3, dtype=torch.bfloat16)})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(world: World, bad: float) -> None:
    model = tiny_model(world.tokenizer)
    check_finite(model, "after step 1")
    model.model.norm.weight[0] = bad
    with pytest.raises(DivergenceError, match=r"model\.norm\.weight are not finite after step 3"):
        check_finite(model, "after step 3")


# ------------------------------------------------------------------------------------------- policy sets


def test_a_policy_set_reads_back(tmp_path: Path) -> None:
    checkpoints = [Checkpoint(name=f"step-{n}", path=f"checkpoints/step-{n}", step=n, tensors=f"t{n}") for n in (2, 4)]
    write_policy_set(tmp_path, checkpoints, facts={"beta": 0.1}, diverged={"reason": "r", "step": 5})
    found = read_policy_set(tmp_path)
    assert found.checkpoints == tuple(checkpoints)
    assert (found.last, found.diverged, found.facts) == ("step-4", {"reason": "r", "step": 5}, {"beta": 0.1})
    assert found.folder() == tmp_path / "checkpoints/step-4"
    assert found.folder("step-2") == tmp_path / "checkpoints/step-2"
    with pytest.raises(IntegrityError, match="step-9"):
        found.checkpoint("step-9")


def test_kept_checkpoints_are_whole_ordered_and_written_once(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError

    with pytest.raises(OSError):
        keep_checkpoint(tmp_path, 3, fail)
    assert kept_checkpoints(tmp_path) == []
    for step in (10, 3):
        keep_checkpoint(tmp_path, step, lambda folder: (folder / "whole").write_text("first") and None)
    keep_checkpoint(tmp_path, 3, lambda folder: (folder / "whole").write_text("second") and None)
    assert [step for step, _ in kept_checkpoints(tmp_path)] == [3, 10]
    assert sorted(file.name for file in (tmp_path / "step-000003").iterdir()) == ["whole"]
    assert (tmp_path / "step-000003" / "whole").read_text() == "first"
    forget_checkpoint(tmp_path, 10)
    forget_checkpoint(tmp_path, 11)
    assert [step for step, _ in kept_checkpoints(tmp_path)] == [3]


def test_published_checkpoints_carry_the_digest_of_what_reads_back(world: World, tmp_path: Path) -> None:
    model = tiny_model(world.tokenizer, seed=8)
    keep_checkpoint(tmp_path / "kept", 2, lambda folder: save_model(model, world.tokenizer, folder))
    (listed,) = publish_checkpoints(tmp_path / "kept", tmp_path / "out", CPU, False)
    assert (listed.name, listed.step, listed.tensors) == ("step-000002", 2, trunk_digest(model))
    assert trunk_digest(load_policy(tmp_path / "out" / listed.path, CPU)) == listed.tensors


def test_the_selected_checkpoint_reads_back(tmp_path: Path) -> None:
    (tmp_path / "selected.json").write_text(json.dumps({"checkpoint": "step-000004"}))
    assert read_selected(tmp_path) == "step-000004"
