"""PPO's options: kinds of critic, passes of a step, the SFT term, reward shaping, floors, the grid of KLs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import ppo
from tests.ml_helpers import (
    CPU,
    PAD,
    Killed,
    Log,
    World,
    build_world,
    policy_of,
    ppo_config,
    ppo_inputs,
    ppo_trainer,
    run_ppo,
)
from workbench import objectives
from workbench.actor_critic import CRITICS
from workbench.batching import make_batch
from workbench.lora import POLICY, adapter_parameters, base_digest
from workbench.lora_files import save_adapter
from workbench.models import Placement, load_policy, load_reward_model, tensors_digest
from workbench.packed import PackedPairs
from workbench.policy_set import read_policy_set
from workbench.scoring import response_logprobs, token_figures

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["all-linear"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = build_world(tmp_path_factory.mktemp("world"))
    _save_reward_adapter(found, found.reward_model)
    return found


def _save_reward_adapter(world: World, folder: Path, dtype: str = "float32") -> None:
    """A reward adapter beside the reward model, as the reward_model stage writes it under model.lora."""
    from workbench.lora import REWARD, Lora, add_adapter

    lora = Lora.from_config(LORA)
    assert lora is not None
    base = load_policy(world.model, Placement(dtype=dtype))
    add_adapter(base, lora, REWARD, 3)
    with torch.no_grad():
        for one in adapter_parameters(base, REWARD):
            one.add_(0.05)
    head = load_reward_model(world.reward_model / "checkpoints" / "last", CPU).score
    save_adapter(base, REWARD, folder / "checkpoints" / "last" / "adapter", head=head)


MODES: list[dict[str, Any]] = [{"critic": one} for one in CRITICS] + [{"critic": one, "lora": LORA} for one in CRITICS]


def mode_config(mode: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`lora` is no field of the arm: the graph adds it."""
    rest = {name: value for name, value in mode.items() if name != "lora"}
    return ppo_config(**rest, **changes) | {name: mode[name] for name in mode if name == "lora"}


def trainer(world: World, tmp_path: Path, mode: dict[str, Any], **changes: Any) -> ppo.Trainer:
    return ppo.Trainer(mode_config(mode, **changes), ppo_inputs(world), Log(tmp_path / "work"))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_in_every_mode_ratio_is_1_and_kl_0_at_step_0_and_the_reference_is_the_sft(
    world: World, tmp_path: Path, mode: dict[str, Any]
) -> None:
    one = trainer(world, tmp_path, mode, critic_warmup_updates=0)
    sft = read_policy_set(world.sft).checkpoint().tensors
    assert one.facts["sft_tensors"] == one.facts["reference_tensors"] == sft
    rollout = one.roll_out()
    found = one.advantages(rollout)
    assert one.report(rollout, found)["seq_kl"] == pytest.approx(0, abs=1e-4)
    stats = one.minibatch(rollout, found, range(16), first=True)
    assert stats["ratio"] == pytest.approx(1, abs=1e-5)
    one.minibatch(rollout, found, range(16), first=False)
    assert base_digest(one.policy) == sft or "lora" not in mode
    expected = response_logprobs(policy_of(world.model), rollout.batch)
    assert torch.allclose(one.models.reference_logprobs(rollout.batch), expected, atol=1e-5), "after a step too"
    assert not torch.allclose(rollout.batch.spread(one.models.figures(rollout.batch, 1.0).logprobs), expected)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_in_every_mode_the_critic_starts_from_the_reward_model(
    world: World, tmp_path: Path, mode: dict[str, Any]
) -> None:
    one = trainer(world, tmp_path, mode)
    reward_head = load_reward_model(world.reward_model / "checkpoints" / "last", CPU).score
    assert torch.equal(one.models.head.weight, reward_head.weight)
    if mode["critic"] != "separate":
        return
    batch = make_batch([[30, 31]], [[32, 33, 34]], PAD)
    after_two = make_batch([[30, 31]], [[32, 33]], PAD)  # the value before the third token is the score after two
    assert float(one.models.values(batch)[0, 2].detach()) == pytest.approx(
        float(one.models.scores(after_two)), abs=1e-5
    )


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_in_every_mode_values_of_the_rollout_are_those_of_a_training_pass(
    world: World, tmp_path: Path, mode: dict[str, Any]
) -> None:
    one = trainer(world, tmp_path, mode)
    rollout = one.roll_out()
    mask = rollout.batch.response_mask
    assert torch.allclose(rollout.old_values[mask], one.models.values(rollout.batch)[mask], atol=1e-5)
    assert float(rollout.old_values[mask].std()) > 0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_in_every_mode_resume_is_exact(world: World, tmp_path: Path, mode: dict[str, Any]) -> None:
    options = {"sft_coef": 0.1, "normalize_reward": True, "checkpoint_at_kl": [1e-4, 1e-3]}
    config = mode_config(mode, updates=4, epochs=2, learning_rate=5e-3, checkpoint_every_updates=2, **options)
    inputs = ppo_inputs(world) | {"pairs": world.pairs}
    whole, parts = world.out("whole"), world.out("parts")
    ppo.run(config, inputs, whole, log := Log(tmp_path / "whole"))
    for at in (1, 2, 3, 4):
        with pytest.raises(Killed):
            ppo.run(config, inputs, world.out("killed"), Log(tmp_path / "parts", kill_at=at))
    ppo.run(config, inputs, parts, again := Log(tmp_path / "parts"))
    assert again.lines() == log.lines()
    for name in sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_detached_head_leaves_the_trunk_alone_and_an_attached_one_does_not(world: World, tmp_path: Path) -> None:
    moved = {}
    for critic in ("head", "detached_head"):
        one = trainer(world, tmp_path, {"critic": critic}, critic_warmup_updates=0)
        batch = one.roll_out().batch
        states = token_figures(one.policy, batch).states
        one.models.values(batch, states).sum().backward()
        norm = one.policy.model.norm.weight.grad
        moved[critic] = norm is not None and bool(norm.abs().sum() > 0)
    assert moved == {"head": True, "detached_head": False}


def test_gradients_of_a_step_do_not_depend_on_how_it_is_cut_into_passes(world: World, tmp_path: Path) -> None:
    gradients = []
    for most in (None, 12, 40):
        one = ppo_trainer(world, tmp_path, critic_warmup_updates=0, microbatch_tokens=most, max_grad_norm=1e9)
        rollout = one.roll_out()
        one.policy_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        one.critic_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        stats = one.minibatch(rollout, one.advantages(rollout), range(16), first=True)
        found = [*one.models.policy_parameters, *one.models.critic_parameters]
        gradients.append((stats, torch.cat([p.grad.flatten() for p in found if p.grad is not None])))
    for stats, gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0][1], rtol=1e-4, atol=1e-6)
        assert stats == pytest.approx(gradients[0][0], rel=1e-4, abs=1e-6)


def test_the_sft_term_is_its_coefficient_times_the_nll_of_chosen_responses(world: World, tmp_path: Path) -> None:
    gradients, losses = [], []
    for coef in (0.0, 0.5):
        config = ppo_config(critic_warmup_updates=0, sft_coef=coef, max_grad_norm=1e9)
        one = ppo.Trainer(config, ppo_inputs(world) | {"pairs": world.pairs}, Log(tmp_path / "work"))
        rollout = one.roll_out()
        one._demonstration_order = ppo.np.random.default_rng(4)
        one.policy_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        stats = one.minibatch(rollout, one.advantages(rollout), range(16), first=True)
        gradients.append(torch.cat([p.grad.flatten() for p in one.models.policy_parameters if p.grad is not None]))
        losses.append(stats.get("sft_loss"))
    pairs = PackedPairs(world.pairs)
    train = pairs.split_rows("train")
    picked = [pairs.as_lists(train[i]) for i in ppo.np.random.default_rng(4).integers(len(train), size=16)]
    batch = make_batch([row["prompt_ids"] for row in picked], [row["chosen_ids"] for row in picked], PAD)
    model = policy_of(world.model).requires_grad_(True)
    nll = -token_figures(model, batch).logprobs.mean()
    nll.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert losses[0] is None
    assert losses[1] == pytest.approx(nll.item(), rel=1e-4)
    assert torch.allclose(gradients[1] - gradients[0], 0.5 * expected, rtol=1e-3, atol=1e-5)


def test_the_running_deviation_divides_the_score_and_the_clip_comes_after(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, normalize_reward=True, reward_clip=1.0)
    generator = torch.Generator().manual_seed(0)
    batches = [3 + 2 * torch.randn(16, generator=generator) for _ in range(5)]
    for scores in batches:
        one.note_scores(scores)
    spread = float(torch.cat(batches).std())
    assert one.score_scale() == pytest.approx(spread, rel=1e-6)
    assert one.shaped_score(torch.tensor([0.5, 9.0, -9.0])).tolist() == pytest.approx([0.5 / spread, 1.0, -1.0])
    rollout = one.roll_out()
    values = one.report(rollout, one.advantages(rollout))
    assert values["score_scale"] == pytest.approx(spread)
    share = float((one.shaped_score(rollout.score).abs() >= 1).float().mean())
    assert values["reward_clip_fraction"] == pytest.approx(share)


def test_off_by_default_and_then_neither_logged_nor_applied(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path)
    rollout = one.roll_out()
    one.note_scores(rollout.score)
    assert torch.equal(one.shaped_score(rollout.score), rollout.score)
    assert not {"score_scale", "reward_clip_fraction"} & one.report(rollout, one.advantages(rollout)).keys()


def test_the_entropy_floor_ends_the_run_and_keeps_the_last_good_checkpoint(world: World, tmp_path: Path) -> None:
    common: dict[str, Any] = {"updates": 3, "epochs": 3, "critic_warmup_updates": 0, "learning_rate": 3e-2}
    common |= {"kl_coef": 0.0, "schedule": "constant"}
    run_ppo(world, log := Log(tmp_path / "free"), **common)
    entropies = [values["entropy"] for _, values in log.lines()]
    floor = (entropies[1] + entropies[2]) / 2
    assert entropies[2] < floor < min(entropies[:2]), "the third update is the first below"
    out = run_ppo(world, told := Log(tmp_path / "floored"), min_entropy=floor, **common)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert "min_entropy" in index.diverged["reason"]
    # The entropy of the third update is that of the policy after two: the one before is the last good one.
    assert index.checkpoint().step == 1
    assert any("the last good checkpoint is kept: update 1" in str(message) for message in told.said)


def test_checkpoints_on_a_grid_of_kl(world: World, tmp_path: Path) -> None:
    common: dict[str, Any] = {"updates": 8, "critic_warmup_updates": 0, "learning_rate": 1e-2, "kl_coef": 0.0}
    run_ppo(world, log := Log(tmp_path / "free"), **common)
    kls = {step - 1: values["seq_kl"] for step, values in log.lines()}  # of the policy after that many updates
    grid = [0.3 * max(kls.values()), 0.8 * max(kls.values())]
    out = run_ppo(
        world, Log(tmp_path / "grid"), checkpoint_at_kl=grid, **(common | {"checkpoint_every_updates": 100})
    )  # fmt: skip
    first = {min(step for step, kl in kls.items() if kl >= one and step > 0) for one in grid}
    assert {one.step for one in read_policy_set(out).checkpoints} == first | {8}
    steps = [one.tensors for one in read_policy_set(run_ppo(world, Log(tmp_path / "all"), **common)).checkpoints]
    found = {one.step: one.tensors for one in read_policy_set(out).checkpoints}
    assert all(steps[step - 1] == tensors for step, tensors in found.items())


def test_an_implicit_reward_is_centered_and_its_critic_starts_at_zero(world: World, tmp_path: Path) -> None:
    """The reward is another policy's log-ratio; here of one whose final norm was stretched."""
    from workbench.models import save_model, trunk_digest
    from workbench.policy_set import Checkpoint, write_policy_set

    other = policy_of(world.model)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.3)
    folder = world.out("dpo")
    save_model(other, world.tokenizer, folder / "checkpoints" / "last")
    facts = {"sft_tensors": read_policy_set(world.sft).checkpoint().tensors, "consumed_pairs": "c", "pairs_filter": "f"}
    listed = [Checkpoint(name="last", path="checkpoints/last", step=1, tensors=trunk_digest(other))]
    write_policy_set(folder, listed, facts=facts)
    chosen = world.out("selected")
    (chosen / "selected.json").write_text('{"checkpoint": "last"}')
    inputs = {name: path for name, path in ppo_inputs(world).items() if name != "reward_model"}
    inputs |= {"implicit": folder, "selected_implicit": chosen}
    drawn = trainer(world, tmp_path, {"critic": "separate"})
    prompts = [drawn.prompts[row] for row in ppo.prompt_rows(len(drawn.prompts), 0, 256, drawn.log.seed + 5)]
    _, batch = drawn._draw(prompts, seed=drawn.log.seed + 11)
    sft = policy_of(world.model)
    center = float((response_logprobs(other, batch) - response_logprobs(sft, batch)).sum(1).mean())
    for mode in ({"critic": "separate"}, {"critic": "head"}):
        config = mode_config(mode, updates=2) | {"implicit_beta": 0.5}
        one = ppo.Trainer(config, inputs, Log(tmp_path / "work"))
        rollout = one.roll_out()
        assert not rollout.old_values.any()
        with torch.no_grad():
            raw = 0.5 * (
                response_logprobs(other, rollout.batch) - response_logprobs(one.models.reference, rollout.batch)
            ).sum(1)
        assert torch.allclose(rollout.score, raw - one.models.center, atol=1e-5)
        assert one.models.center == pytest.approx(0.5 * center, abs=1e-4)
        ppo.run(config, inputs, out := world.out("ppo"), Log(tmp_path / f"run-{mode['critic']}"))
        assert read_policy_set(out).diverged is None


def test_lora_trains_adapters_alone_and_publishes_plain_policies(world: World, tmp_path: Path) -> None:
    out = world.out("ppo")
    log = Log(tmp_path / "work")
    config = mode_config({"critic": "separate", "lora": LORA}, updates=2, critic_warmup_updates=0, learning_rate=1e-2)
    ppo.run(config, ppo_inputs(world), out, log)
    one = ppo.Trainer(config, ppo_inputs(world), Log(tmp_path / "other"))
    trained = {id(p) for p in one.models.policy_parameters}
    assert trained == {id(p) for p in adapter_parameters(one.policy, POLICY)}
    published = policy_of(read_policy_set(out).folder())
    assert {name for name, _ in published.named_parameters()} == {
        name for name, _ in policy_of(world.model).named_parameters()
    }
    assert tensors_digest(published.state_dict()) != tensors_digest(policy_of(world.model).state_dict())


def test_under_lora_the_reward_is_that_of_the_merged_model(world: World, tmp_path: Path) -> None:
    """Neither the score nor the critic could have read another adapter than its own."""
    from workbench.lora import CRITIC, REWARD
    from workbench.lora_files import load_adapter, save_merged

    one = trainer(world, tmp_path, {"critic": "separate", "lora": LORA})
    batch = one.roll_out().batch
    base = policy_of(world.model)
    head = load_adapter(base, REWARD, world.reward_model / "checkpoints" / "last" / "adapter")
    assert head is not None
    save_merged(base, world.tokenizer, tmp_path / "merged", REWARD)
    trunk = policy_of(tmp_path / "merged").base_model
    hidden = trunk(input_ids=batch.input_ids).last_hidden_state.flatten(0, 1)[batch.last]
    assert torch.allclose(one.models.scores(batch), head(hidden).squeeze(-1) - 0.25, atol=1e-5)
    assert one.facts["critic_tensors"] == one.facts["reward_tensors"]
    with torch.no_grad():
        for parameter in adapter_parameters(one.policy, CRITIC):
            parameter.add_(0.1)
    assert torch.allclose(one.models.scores(batch), head(hidden).squeeze(-1) - 0.25, atol=1e-5), "not the critic's"


@pytest.mark.parametrize("critic", ["separate", "head"])
def test_under_lora_in_bfloat16_the_base_stays_and_kl_at_the_start_is_zero(
    world: World, tmp_path: Path, critic: str
) -> None:
    from workbench.stages import Resources

    log = Log(tmp_path / "work")
    log.resources = Resources(dtype="bfloat16")
    half = world.out("half")
    (half / "index.json").write_text((world.reward_model / "index.json").read_text())
    _save_reward_adapter(world, half, "bfloat16")
    config = mode_config({"critic": critic, "lora": LORA}, critic_warmup_updates=0)
    one = ppo.Trainer(config, ppo_inputs(world) | {"reward_model": half}, log)
    rollout = one.roll_out()
    found = one.advantages(rollout)
    assert abs(one.report(rollout, found)["seq_kl"]) < 0.1
    one.minibatch(rollout, found, range(16), first=True)
    assert one.models.reference_tensors() == one.facts["reference_tensors"]


def test_a_step_has_the_gradients_of_the_formulas(world: World, tmp_path: Path) -> None:
    """Every coefficient reaches the place it is meant for: clips, value coefficient, gamma, lambda, gradient norm."""
    own: dict[str, Any] = {
        "clip": 0.05, "value_clip": 0.3, "value_coef": 0.7, "gamma": 0.9, "lam": 0.8, "kl_coef": 0.2,
        "max_grad_norm": 0.01, "critic_warmup_updates": 0,
    }  # fmt: skip
    one = ppo_trainer(world, tmp_path, **own)
    rollout = one.roll_out()
    with torch.no_grad():  # so that ratios leave the clip and the reference differs
        one.policy.model.norm.weight.mul_(1.1)
        one.models.reference.model.norm.weight.mul_(0.9)
        one.models.head.weight.mul_(1.5)
    mask, batch = rollout.batch.response_mask, rollout.batch
    rewards = objectives.shaped_rewards(rollout.score, rollout.old_logprobs, rollout.ref_logprobs, mask, 0.2)
    advantages, returns = objectives.gae(rewards, rollout.old_values, mask, 0.9, 0.8)
    white = objectives.masked_whiten(advantages, mask)
    logprobs = response_logprobs(one.policy, batch)
    policy = objectives.ppo_policy_loss(logprobs, rollout.old_logprobs, white, mask, 0.05)
    value = objectives.ppo_value_loss(one.models.values(batch), rollout.old_values, returns, mask, 0.3)
    assert 0 < float(policy.clip_fraction) < 1
    assert 0 < float(value.clip_fraction) < 1
    found = (one.models.policy_parameters, one.models.critic_parameters)
    losses = (policy.loss, 0.7 * value.loss)
    expected = [torch.autograd.grad(loss, parameters) for loss, parameters in zip(losses, found, strict=True)]
    one.policy_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    one.critic_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    stats = one.minibatch(rollout, one.advantages(rollout), range(16), first=False)
    for parameters, slopes, name in zip(found, expected, ("grad_norm", "critic_grad_norm"), strict=True):
        whole = torch.cat([slope.flatten() for slope in slopes])
        assert stats[name] == pytest.approx(float(whole.norm()), rel=1e-4)
        clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert torch.allclose(clipped, whole * 0.01 / whole.norm(), rtol=1e-3, atol=1e-7)


def test_no_pass_is_larger_than_asked_for(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, microbatch_tokens=30, critic_warmup_updates=0)
    sizes: list[tuple[int, int]] = []
    for model in (one.models.reference, one.models.reward_model, one.models.critic):
        model.base_model.register_forward_pre_hook(
            lambda _, __, given: sizes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
    rollout = one.roll_out()
    one.minibatch(rollout, one.advantages(rollout), range(16), first=True)
    assert len(sizes) > 4
    assert all(rows == 1 or rows * width <= 30 for rows, width in sizes)


def test_costs_count_what_was_trained(world: World, tmp_path: Path) -> None:
    spent: dict[str, dict[str, float]] = {}
    cases = {"plain": {}, "warm": {"critic_warmup_updates": 3}, "sft": {"sft_coef": 0.5}}
    for name, changes in cases.items():
        one = ppo.Trainer(
            ppo_config(**({"critic_warmup_updates": 0} | changes)),
            ppo_inputs(world) | {"pairs": world.pairs},
            Log(tmp_path / name),
        )
        rollout = one.roll_out()
        found = one.advantages(rollout)
        seen: dict[str, float] = {}
        one.log.cost = lambda told=seen, **more: told.update({k: told.get(k, 0) + v for k, v in more.items()})  # type: ignore[method-assign]
        one.optimize(rollout, found)
        spent[name] = seen
    tokens = int(rollout.batch.lengths.sum())
    assert spent["plain"]["tokens_trained"] == spent["warm"]["tokens_trained"] == tokens
    assert spent["sft"]["tokens_trained"] > tokens
    assert spent["warm"]["flops"] < spent["plain"]["flops"] < spent["sft"]["flops"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_passes_give_the_same_values_and_gradients(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under LoRA one compiled trunk serves policy and critic: their adapters must not be mixed up."""
    monkeypatch.setattr(ppo, "PASS_TOKENS", {"cpu": 10**6})  # one pass a step: one shape to compile
    mode, results = {"critic": "separate", "lora": LORA}, []
    for compiled in (False, True):
        one = trainer(world, tmp_path, mode, compile=compiled, critic_warmup_updates=0, max_grad_norm=1e9)
        one.policy_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        one.critic_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        rollout = one.roll_out()
        one.minibatch(rollout, one.advantages(rollout), range(16), first=True)
        parameters = [*one.models.policy_parameters, *one.models.critic_parameters]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        results.append((rollout.old_values, gradient))
    for plain, fast in zip(*results, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-3, atol=1e-5)
