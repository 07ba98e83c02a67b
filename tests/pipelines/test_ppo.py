"""PPO's requirements, one test each: what is loaded, what the rollout holds, what the update does and logs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import ppo
from tests.ml_helpers import EOS, PAD, STOPS, Log, World, build_world, ppo_config, ppo_inputs, ppo_trainer, run_ppo
from workbench import actor_critic
from workbench.config_arms import PPO
from workbench.data.packing import pack_pairs, pack_prompts
from workbench.errors import IntegrityError
from workbench.models import tensors_digest
from workbench.packed import PackedPairs, read_packed_prompts
from workbench.policy_set import read_policy_set
from workbench.sampling import Sample
from workbench.scoring import response_logprobs, reward_scores
from workbench.staged import RewardBatches, StagedPairs
from workbench.types import PreferencePair, Prompt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


# ------------------------------------------------------------------------------------------- defaults, what is loaded


def test_defaults() -> None:
    wanted = {
        "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "gamma": 1.0, "lam": 0.95, "adam_eps": 1e-5,
        "whiten_advantages": True, "eos_rule": "none", "schedule": "linear", "adaptive_kl": None,
    }  # fmt: skip
    assert {name: getattr(PPO(), name) for name in wanted} == wanted
    adaptive = PPO(adaptive_kl={}).adaptive_kl  # type: ignore[arg-type]
    assert adaptive is not None
    assert (adaptive.target, adaptive.horizon, adaptive.clip) == (6.0, 10000, 0.2)


def test_critic_starts_from_the_reward_model_whose_trunk_is_the_sfts(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path)
    sft = read_policy_set(world.sft).checkpoint().tensors
    assert one.facts["sft_tensors"] == one.facts["reference_tensors"] == one.facts["reward_trunk_start"] == sft
    assert one.facts["critic_tensors"] == one.facts["reward_tensors"]
    assert torch.equal(one.models.head.weight, one.models.reward_model.score.weight)
    trained = {id(p) for found in (one.models.policy_parameters, one.models.critic_parameters) for p in found}
    frozen = {id(p) for model in (one.models.reference, one.models.reward_model) for p in model.parameters()}
    assert trained
    assert not trained & frozen
    assert not any(
        p.requires_grad for model in (one.models.reference, one.models.reward_model) for p in model.parameters()
    )


def test_adam_eps_and_rates(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, learning_rate=1e-3, critic_learning_rate=5e-3)
    groups = [optimizer.param_groups for optimizer in (one.policy_optimizer, one.critic_optimizer)]
    assert [len(group) for group in groups] == [1, 1]
    assert [(group[0]["lr"], group[0]["eps"]) for group in groups] == [(1e-3, 1e-5), (5e-3, 1e-5)]
    assert ppo_trainer(world, tmp_path).critic_optimizer.param_groups[0]["lr"] == 1e-3


# ------------------------------------------------------------------------------------------- the rollout


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratio_is_1_and_kl_0_at_step_0(world: World, tmp_path: Path, temperature: float) -> None:
    one = ppo_trainer(world, tmp_path, temperature=temperature, critic_warmup_updates=0)
    rollout = one.roll_out()
    found = one.advantages(rollout)
    seen = one.report(rollout, found)
    assert seen["seq_kl"] == pytest.approx(0, abs=1e-4)
    assert seen["seq_kl_k3"] == pytest.approx(0, abs=1e-6)
    stats = one.minibatch(rollout, found, range(16), first=True)
    assert stats["ratio"] == pytest.approx(1, abs=1e-5)
    assert stats["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert stats["clip_fraction"] == 0
    assert {one.finish_reason for one in _samples(rollout)} == {"stop", "length"}


def _samples(rollout: ppo.Rollout) -> list[Any]:
    lengths, finished = rollout.batch.response_mask.sum(1).tolist(), rollout.finished.tolist()
    rows = zip(rollout.batch.response_ids.tolist(), lengths, finished, strict=True)
    return [
        Sample(ids=ids[:length], logprobs=[], finish_reason="stop" if end else "length") for ids, length, end in rows
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_reference_and_new_logits_are_divided_by_the_temperature(
    world: World, tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ppo_trainer(world, tmp_path, temperature=temperature)
    with torch.no_grad():  # so that the reference differs
        one.models.reference.model.norm.weight.mul_(1.1)
    rollout = one.roll_out()
    mask = rollout.batch.response_mask
    for model, found in ((one.policy, rollout.old_logprobs), (one.models.reference, rollout.ref_logprobs)):
        expected = response_logprobs(model, rollout.batch, temperature)
        assert torch.allclose(found[mask], expected[mask], atol=1e-4)
    new: list[bool] = []
    figures = one.models.figures

    def spy(batch: Any, at: float) -> Any:
        found = figures(batch, at)
        expected = response_logprobs(one.policy, batch, temperature)
        new.append(torch.allclose(batch.spread(found.logprobs), expected, atol=1e-6))
        return found

    monkeypatch.setattr(one.models, "figures", spy)
    one.minibatch(rollout, one.advantages(rollout), range(16), first=True)
    assert new
    assert all(new)


def test_top_p_is_off_in_rollouts(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, temperature=0.7)
    assert (one.decoding.top_p, one.decoding.temperature) == (1.0, 0.7)
    assert one.decoding.stop_ids == tuple(STOPS)


def test_rollouts_are_on_training_prompts(world: World, tmp_path: Path) -> None:
    rollout = ppo_trainer(world, tmp_path).roll_out()
    train = {tuple(row["ids"]) for row in read_packed_prompts(world.prompts) if row["split"] == "train"}
    for ids, size in zip(rollout.batch.input_ids, rollout.batch.prompt_sizes, strict=True):
        assert tuple(ids[:size].tolist()) in train


def test_truncated_at_the_first_stop_id_and_the_truncated_text_is_scored(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EOS is kept apart from padding: the reward model reads it, and reads nothing behind it."""
    one = ppo_trainer(world, tmp_path)
    read: set[tuple[int, ...]] = set()
    score = actor_critic.last_token_scores

    def spy(model: Any, part: Any) -> Any:
        read.update(tuple(ids[: int(size)].tolist()) for ids, size in zip(part.input_ids, part.lengths, strict=True))
        return score(model, part)

    monkeypatch.setattr(actor_critic, "last_token_scores", spy)
    rollout = one.roll_out()
    batch = rollout.batch
    prompts, responses = [], []
    for ids, mask, keep in zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True):
        real, length = ids[mask.bool()].tolist(), int(keep.sum())
        prompts.append(real[:-length])
        responses.append(real[-length:])
    assert read == {(*prompt, *response) for prompt, response in zip(prompts, responses, strict=True)}
    for response, finished in zip(responses, rollout.finished.tolist(), strict=True):
        assert not set(response[:-1]) & set(STOPS)
        assert (response[-1] in STOPS) == finished
        assert finished or len(response) == 8
    alone = reward_scores(one.models.reward_model, prompts, responses, pad_id=77, batch_size=1)
    assert rollout.score.tolist() == pytest.approx([value - 0.25 for value in alone], abs=1e-5)  # centered


def test_values_are_of_the_state_before_each_token(world: World, tmp_path: Path) -> None:
    rollout = (one := ppo_trainer(world, tmp_path)).roll_out()
    for row in range(3):
        keep, mask = rollout.batch.attention_mask[row].bool(), rollout.batch.response_mask[row]
        ids, length = rollout.batch.input_ids[row][keep], int(mask.sum())
        hidden = one.models.critic.base_model(input_ids=ids[None]).last_hidden_state
        values = one.models.head(hidden)[0, :, 0] - 0.25  # centered as the score is
        assert rollout.old_values[row][mask].tolist() == pytest.approx(values[-length - 1 : -1].tolist(), abs=1e-5)


def test_the_reward_model_reads_the_same_ids_in_training_and_in_ppo(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one text: packed for the trainer on one side, sampled by the policy on the other."""
    prompt = "felix has a wrong clock ; tell label and repair ; tone formal ; length long ; reply :"
    chosen, rejected = "dear felix , we offer a free repair .", "hi felix ,"
    pair = PreferencePair(
        pair_id="a", prompt_id="p", prompt=prompt, chosen=chosen, rejected=rejected, source="s", split="train"
    )
    for name in ("pairs", "prompts"):
        (tmp_path / name).mkdir()
    pack_pairs([pair], world.model, {}, tmp_path / "pairs")
    pack_prompts([Prompt(prompt_id="p", prompt=prompt, split="train")], world.model, {}, tmp_path / "prompts")

    def digest(ids: list[int]) -> str:
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    batch = RewardBatches(StagedPairs(PackedPairs(tmp_path / "pairs")), PAD)([{"row": 0}])
    kept = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    trained = {digest(ids[mask.bool()].tolist()) for ids, mask in kept}

    texts = [chosen, rejected] * 8
    ids = [[*world.tokenizer.encode(text, add_special_tokens=False), EOS] for text in texts]
    monkeypatch.setattr(
        ppo, "sample",
        lambda *_, **__: [Sample(ids=one, logprobs=[0.0] * len(one), finish_reason="stop") for one in ids],
    )  # fmt: skip
    read: list[Any] = []
    score = actor_critic.last_token_scores
    monkeypatch.setattr(actor_critic, "last_token_scores", lambda model, one: read.append(one) or score(model, one))
    log = Log(tmp_path / "work")
    ppo.Trainer(ppo_config(), ppo_inputs(world) | {"prompts": tmp_path / "prompts"}, log).roll_out()
    scored = zip(read[0].input_ids, read[0].attention_mask, strict=True)
    assert {digest(ids[mask.bool()].tolist()) for ids, mask in scored} == trained


@pytest.mark.parametrize(
    ("rule", "expected"), [("none", [3.0, 1.0]), ("replace", [3.0, -2.0]), ("subtract", [3.0, -1.0])]
)
def test_rule_for_responses_without_a_stop_id(rule: str, expected: list[float]) -> None:
    score, finished = torch.tensor([3.0, 1.0]), torch.tensor([True, False])
    assert ppo.apply_eos_rule(score, finished, rule, 2.0).tolist() == expected


@pytest.mark.parametrize("rule", ["replace", "subtract"])
def test_the_eos_rule_fires_in_rollouts(world: World, tmp_path: Path, rule: str) -> None:
    plain, ruled = (ppo_trainer(world, tmp_path, eos_rule=one, eos_penalty=7.0).roll_out() for one in ("none", rule))
    cut = ~plain.finished
    assert 0 < int(cut.sum()) < 16
    assert torch.equal(ruled.score[~cut], plain.score[~cut])
    expected = torch.full_like(plain.score, -7.0) if rule == "replace" else plain.score - 7.0
    assert torch.allclose(ruled.score[cut], expected[cut])


def test_prompts_come_in_seeded_permutations_that_resuming_needs_no_state_for() -> None:
    rows = [ppo.prompt_rows(10, update, 4, seed=1) for update in range(5)]
    flat = [row for update in rows for row in update]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert ppo.prompt_rows(10, 3, 4, seed=1) == rows[3]
    assert ppo.prompt_rows(10, 0, 4, seed=2) != rows[0]
    assert sorted(ppo.prompt_rows(3, 0, 9, seed=0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


# ------------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e9])
def test_padding_never_reaches_an_update(world: World, tmp_path: Path, garbage: float) -> None:
    results = []
    for soil in (False, True):
        one = ppo_trainer(world, tmp_path, critic_warmup_updates=0)
        rollout = one.roll_out()
        if soil:
            empty = ~rollout.batch.response_mask
            for tensor in (rollout.old_logprobs, rollout.ref_logprobs, rollout.old_values):
                tensor[empty] = garbage
        found = one.advantages(rollout)
        values = one.report(rollout, found) | one.optimize(rollout, found)
        states = tensors_digest(one.models.state())
        results.append((values, states))
    assert results[0] == results[1]


def test_advantages_are_whitened_per_batch_and_returns_are_not(world: World, tmp_path: Path) -> None:
    rollout = (one := ppo_trainer(world, tmp_path)).roll_out()
    mask = rollout.batch.response_mask
    white = one.advantages(rollout)
    assert float(white.advantages[mask].mean()) == pytest.approx(0, abs=1e-5)
    assert float(white.advantages[mask].std()) == pytest.approx(1, abs=1e-4)
    one.config = dict(one.config) | {"whiten_advantages": False}
    raw = one.advantages(rollout)
    assert torch.equal(raw.returns, white.returns)
    assert torch.allclose((raw.advantages + rollout.old_values)[mask], raw.returns[mask])


def test_k1_per_token_and_the_score_are_in_the_returns(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, lam=1.0, kl_coef=0.5)
    with torch.no_grad():
        one.models.reference.model.norm.weight.mul_(1.2)
    rollout = one.roll_out()
    returns = one.advantages(rollout).returns
    k1 = rollout.old_logprobs - rollout.ref_logprobs
    for row in range(16):
        length = int(rollout.batch.response_mask[row].sum())
        for t in range(length):
            expected = float(rollout.score[row] - 0.5 * k1[row, t:length].sum())
            assert float(returns[row, t]) == pytest.approx(expected, abs=1e-4)


def test_gradients_are_clipped_and_their_norm_before_that_is_reported(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path, max_grad_norm=0.01)
    batch = one.roll_out().batch
    (100 * response_logprobs(one.policy, batch).sum()).backward()
    norm = one._clip(one.models.policy_parameters)
    after = math.sqrt(sum(float(p.grad.square().sum()) for p in one.policy.parameters() if p.grad is not None))
    assert norm > 1
    assert after == pytest.approx(0.01, rel=1e-3)


def test_the_critic_warms_up_alone(world: World, tmp_path: Path) -> None:
    out = run_ppo(world, log := Log(tmp_path / "work"), updates=4, critic_warmup_updates=2)
    index = read_policy_set(out)
    start = read_policy_set(world.sft).checkpoint().tensors
    assert [one.tensors == start for one in index.checkpoints] == [True, True, False, False]
    norms = [values["grad_norm"] for _, values in log.lines()]
    assert [norm == 0 for norm in norms] == [True, True, False, False]
    assert all(values["critic_grad_norm"] > 0 for _, values in log.lines())


def test_the_critic_learns_the_returns(world: World, tmp_path: Path) -> None:
    run_ppo(world, log := Log(tmp_path / "work"), updates=15, critic_warmup_updates=14, batch_size=32,
        learning_rate=1e-2, epochs=2, checkpoint_every_updates=15, schedule="constant")  # fmt: skip
    losses = [values["value_loss"] for _, values in log.lines()]
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4)]),
    ],
)
def test_schedules(world: World, tmp_path: Path, schedule: str, factors: list[float]) -> None:
    run_ppo(world, log := Log(tmp_path / "work"), schedule=schedule)
    assert [values["learning_rate"] for _, values in log.lines()] == pytest.approx([1e-3 * one for one in factors])


def test_epochs_times_minibatches_steps_see_every_row_once_per_epoch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ppo_trainer(world, tmp_path, epochs=3, minibatches=4, critic_warmup_updates=0)
    rows: list[int] = []
    step = ppo.Trainer.minibatch

    def spy(self: ppo.Trainer, rollout: Any, found: Any, index: Any, *, first: bool) -> dict[str, float]:
        assert first == (not rows)
        rows.extend(index)
        return step(self, rollout, found, index, first=first)

    monkeypatch.setattr(ppo.Trainer, "minibatch", spy)
    rollout = one.roll_out()
    one.optimize(rollout, one.advantages(rollout))
    assert len(rows) == 48
    for epoch in range(3):
        assert sorted(rows[16 * epoch : 16 * (epoch + 1)]) == list(range(16))
    assert rows[:16] != rows[16:32]


def test_log_probabilities_that_do_not_belong_to_the_policy_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = ppo.sample

    def shifted(*args: Any, **options: Any) -> list[Sample]:
        return [
            Sample(ids=one.ids, logprobs=[x - 0.01 for x in one.logprobs], finish_reason=one.finish_reason)
            for one in draw(*args, **options)
        ]

    monkeypatch.setattr(ppo, "sample", shifted)
    with pytest.raises(IntegrityError, match="ratio of the first minibatch"):
        run_ppo(world, Log(tmp_path / "work"))


# ------------------------------------------------------------------------------------------- metrics

METRICS = {
    "score", "score_sd", "seq_kl", "seq_kl_k3", "seq_kl_se", "kl_coef", "learning_rate", "response_tokens", "eos_rate",
    "episodes", "explained_variance", "policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "ratio",
    "approx_kl", "entropy", "grad_norm", "critic_grad_norm",
}  # fmt: skip


def test_all_metrics_are_logged_at_every_step(world: World, tmp_path: Path) -> None:
    run_ppo(world, log := Log(tmp_path / "work"), critic_warmup_updates=0, learning_rate=5e-3)
    assert [step for step, _ in log.lines()] == [1, 2, 3, 4]
    for step, values in log.lines():
        assert values.keys() == METRICS
        assert values["episodes"] == 16 * step
        assert 0 < values["eos_rate"] <= 1
        assert 1 <= values["response_tokens"] <= 8
        assert values["seq_kl_k3"] >= -1e-6
    assert log.lines()[-1][1]["seq_kl_k3"] > 1e-4, "the policy moved"


def test_metrics_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [
        name
        for name in sorted(METRICS | {"stopped_early", "sft_loss", "score_scale", "reward_clip_fraction"})
        if f"`{name}`" not in text
    ] == []
