"""RLOO and GRPO: TRL's trainers against our own formulas, what they sample and score, and exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import grpo, rloo
from tests.ml_helpers import CPU, EOS, PAD, STOPS, Killed, Log, World, build_world, policy_of, ppo_inputs
from workbench import objectives, objectives_groups, online
from workbench.batching import Batch, make_batch
from workbench.config import GRPO, RLOO
from workbench.errors import IntegrityError, StageInterrupted
from workbench.models import load_reward_model, save_model, trunk_digest
from workbench.online import OnlineArm
from workbench.packed import read_packed_prompts, write_packed_prompts
from workbench.policy_set import read_policy_set
from workbench.rollouts import prompt_rows
from workbench.scoring import response_logprobs, reward_scores
from workbench.stage_log import total_cost

ARMS: dict[str, Any] = {"rloo": (rloo, RLOO), "grpo": (grpo, GRPO)}
KINDS = pytest.mark.parametrize("kind", list(ARMS))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    small = {"updates": 4, "batch_size": 16, "generations_per_prompt": 4, "learning_rate": 1e-3}
    block: dict[str, Any] = ARMS[kind][1](**(small | {"checkpoint_every_updates": 1} | changes)).model_dump()
    return block | {"stop_ids": STOPS, "trust_remote_code": False, "max_response_tokens": 8}


def train(world: World, kind: str, log: Log, inputs: dict[str, Path] | None = None, **changes: Any) -> Path:
    out = world.out(kind)
    ARMS[kind][0].run(config_of(kind, **changes), inputs or ppo_inputs(world), out, log)
    return out


class Seen:
    """What passed through the trainer, recomputed apart from it at the moment it passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from workbench.trl_online import _Online

        self.rolled: list[dict[str, Any]] = []
        self.losses: list[dict[str, Any]] = []
        make, loss_of = _Online._generate_and_score_completions, _Online._compute_loss

        def rolled(trainer: Any, inputs: Any) -> dict[str, Any]:
            output = make(trainer, inputs)
            arm: OnlineArm = trainer.arm
            batch = self.batch(output)
            with torch.no_grad():
                old, ref = (
                    response_logprobs(model, batch, arm.config["temperature"]) for model in (arm.policy, arm.reference)
                )
            mask = batch.response_mask
            self.rolled.append({"output": output, "old": old, "ref": ref, "scores": arm.scores, "mask": mask})
            return output

        def losses(trainer: Any, model: Any, inputs: dict[str, Any]) -> Tensor:
            loss = loss_of(trainer, model, inputs)
            batch = self.batch(inputs)
            mask = batch.response_mask
            with torch.no_grad():
                now, ref = (
                    response_logprobs(one, batch, trainer.arm.config["temperature"])
                    for one in (model, trainer.arm.reference)
                )
            old = inputs["sampled_logprobs"][:, : mask.shape[1]]
            self.losses.append(
                {"gain": inputs["advantages"], "old": old, "now": now, "ref": ref, "loss": loss.detach(), "mask": mask}
            )
            return loss

        monkeypatch.setattr(_Online, "_generate_and_score_completions", rolled)
        monkeypatch.setattr(_Online, "_compute_loss", losses)

    @staticmethod
    def batch(tensors: dict[str, Tensor]) -> Batch:
        """The trainer's tensors in our layout."""
        rows = [
            [
                ids[mask.bool()].tolist()
                for ids, mask in zip(tensors[f"{name}_ids"], tensors[f"{name}_mask"], strict=True)
            ]
            for name in ("prompt", "completion")
        ]
        return make_batch(rows[0], rows[1], PAD)


# ------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rloo_is_the_leave_one_out_advantage_and_a_clipped_ratio_of_responses(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl_coef: float, temperature: float
) -> None:
    seen = Seen(monkeypatch)
    changes = {"kl_coef": kl_coef, "temperature": temperature, "updates": 2, "learning_rate": 2e-2, "clip": 0.05}
    train(world, "rloo", Log(tmp_path / "work"), **changes)
    assert (len(seen.rolled), len(seen.losses)) == (2, 4)
    for one in seen.rolled:
        rewards = objectives_groups.penalized_scores(one["scores"], one["old"], one["ref"], one["mask"], kl_coef)
        expected = objectives_groups.leave_one_out_advantages(rewards, 4)
        torch.testing.assert_close(one["output"]["advantages"], expected, atol=1e-5, rtol=1e-5)
        by_hand = [
            float(rewards[i]) - sum(float(rewards[j]) for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i) / 3
            for i in range(16)
        ]
        torch.testing.assert_close(expected, torch.tensor(by_hand))
    for one in seen.losses:
        expected = objectives_groups.rloo_loss(one["now"], one["old"], one["gain"], one["mask"], 0.05)
        torch.testing.assert_close(one["loss"], expected, atol=1e-5, rtol=1e-4)
    log_ratio = (seen.losses[1]["now"] - seen.losses[1]["old"]).sum(1)
    assert float(log_ratio.abs().max()) > 0.05, "the second minibatch was off-policy enough to be clipped"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_coef": 0.0},
        {"loss": "grpo", "advantage_scale": "batch"},
        {"loss": "dr_grpo", "advantage_scale": "none"},
        {"temperature": 0.7, "kl_coef": 1.0},
        {"minibatches": 1},
    ],
    ids=str,
)
def test_grpo_is_the_group_normalized_advantage_and_a_clipped_ratio_of_tokens(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen = Seen(monkeypatch)
    used = {"updates": 2, "learning_rate": 2e-2, "clip": 0.05} | changes
    train(world, "grpo", Log(tmp_path / "work"), **used)
    block = config_of("grpo", **used)
    for one in seen.rolled:
        expected = objectives_groups.group_normalized_advantages(one["scores"], 4, block["advantage_scale"])
        torch.testing.assert_close(one["output"]["advantages"], expected, atol=1e-5, rtol=1e-4)
        first = one["scores"][:4].double()
        if block["advantage_scale"] == "group":
            by_hand = (first - first.mean()) / (first.std(correction=1) + 1e-4)
            torch.testing.assert_close(expected[:4].double(), by_hand, atol=1e-5, rtol=1e-4)
    per_update = block["minibatches"]
    assert len(seen.losses) == 2 * per_update
    for at, one in enumerate(seen.losses):
        expected = objectives_groups.grpo_loss(
            one["now"], one["old"], one["ref"], one["gain"], one["mask"], clip=0.05, kl_coef=block["kl_coef"],
            loss=block["loss"], longest=8, tokens=float(seen.rolled[at // per_update]["mask"].sum()) / per_update,
        )  # fmt: skip
        torch.testing.assert_close(one["loss"], expected, atol=2e-5, rtol=1e-3)


def test_the_formulas_on_numbers_that_fit_in_the_head() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert objectives_groups.leave_one_out_advantages(rewards, 3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    centered = objectives_groups.group_normalized_advantages(rewards, 3, "none")
    assert centered.tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    scaled = objectives_groups.group_normalized_advantages(rewards, 3)
    assert scaled[:3].tolist() == pytest.approx([one / (math.sqrt(7) + 1e-4) for one in (-2, -1, 3)])
    assert scaled[3:].tolist() == [0, 0, 0], "a group without differences teaches nothing"
    mask = torch.tensor([[True, True, False]])
    logprobs, ref = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -1.0, -9.0]])
    found = objectives_groups.penalized_scores(torch.tensor([3.0]), logprobs, ref, mask, 2.0)
    assert found.tolist() == [4.0]  # KL -0.5; what stands in the padding counts for nothing
    old, gain = logprobs - math.log(1.5), torch.tensor([2.0])
    loss = objectives_groups.rloo_loss(logprobs, old, gain, mask, 0.2)
    assert float(loss) == pytest.approx(-2.4)  # the response's ratio is 1.5 ** 2 = 2.25, clipped to 1.2
    loss = objectives_groups.grpo_loss(logprobs, old, ref, -gain, mask, clip=0.2, kl_coef=0.0)
    assert float(loss) == pytest.approx(3.0)  # a token's ratio is 1.5; a bad response is not clipped above


def test_the_kl_term_of_grpo_has_the_gradient_of_the_kl_to_the_reference() -> None:
    """On-policy and in expectation over one token: exact, because every token is enumerated."""
    torch.manual_seed(0)
    ref = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(logits, -1)
    (expected,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits, retain_graph=True)
    column, mask = logprobs.unsqueeze(1), torch.ones(5, 1, dtype=torch.bool)
    gradient = torch.zeros(5, dtype=torch.float64)
    for token in range(5):
        one = slice(token, token + 1)
        loss = objectives_groups.grpo_loss(
            column[one], column[one].detach(), ref[one].unsqueeze(1), torch.zeros(1), mask[one], clip=0.2, kl_coef=1.0
        )
        (part,) = torch.autograd.grad(loss, logits, retain_graph=True)
        gradient += logprobs[token].exp().detach() * part
    torch.testing.assert_close(gradient, expected)


# ------------------------------------------------------------------------------------------- what is drawn and scored


@KINDS
def test_our_prompt_ids_are_sampled_and_the_drawn_ids_are_scored(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    drawn: list[Any] = []
    scored: list[Any] = []
    roll_out, score = OnlineArm.roll_out, OnlineArm.score
    monkeypatch.setattr(
        OnlineArm, "roll_out",
        lambda self, policy, prompts, update: (
            drawn.append((prompts, found := roll_out(self, policy, prompts, update))) or found
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        OnlineArm, "score",
        lambda self, prompts, responses: (
            scored.append((prompts, responses, found := score(self, prompts, responses))) or found
        ),
    )  # fmt: skip
    log = Log(tmp_path / "work", seed=5)
    out = train(world, kind, log, updates=3)
    train_ids = [row["ids"] for row in read_packed_prompts(world.prompts) if row["split"] == "train"]
    reward_model = load_reward_model(world.reward_model / "checkpoints" / "last", CPU)
    for update, ((prompts, responses), (their_prompts, their_responses, scores)) in enumerate(
        zip(drawn, scored, strict=True)
    ):
        rows = prompt_rows(len(train_ids), update, 4, 5)
        assert prompts == [train_ids[row] for row in rows for _ in range(4)]
        assert prompts == [list(one) for one in their_prompts]
        assert responses == [list(one) for one in their_responses]
        assert len({tuple(one) for one in responses[:4]}) > 1, "the responses of a group are drawn apart"
        assert all(one[-1] in STOPS or len(one) == 8 for one in responses)
        assert not any(token in STOPS for one in responses for token in one[:-1])
        expected = [one - 0.25 for one in reward_scores(reward_model, prompts, responses, pad_id=PAD)]
        assert scores == pytest.approx(expected, abs=1e-5)
    assert len(drawn) == 3
    generated = sum(len(one) for _, responses in drawn for one in responses)
    cost = total_cost(tmp_path / "work")
    assert (cost.tokens_generated, cost.reward_queries) == (generated, 48)
    assert cost.tokens_trained == generated + sum(len(one) for prompts, _ in drawn for one in prompts)
    facts, sft = read_policy_set(out).facts, read_policy_set(world.sft).checkpoint().tensors
    assert facts["sft_tensors"] == facts["reference_tensors"] == facts["reward_trunk_start"] == sft
    assert (facts["consumed_pairs"], facts["pairs_filter"]) == ("c", "f")
    assert "critic_tensors" not in facts


@KINDS
def test_the_ratio_is_one_and_the_kl_zero_at_the_first_step(world: World, tmp_path: Path, kind: str) -> None:
    train(world, kind, log := Log(tmp_path / "work"), updates=2, minibatches=1)
    (_, first), (_, second) = log.lines()
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert (first["seq_kl"], first["clip_fraction"]) == (pytest.approx(0, abs=1e-5), 0)
    assert second["seq_kl_k3"] > 1e-5, "the policy moved"
    assert (first["learning_rate"], second["learning_rate"]) == (1e-3, 5e-4)


@KINDS
def test_a_model_that_samples_otherwise_than_it_is_trained_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sampled = OnlineArm.sampled_logprobs
    monkeypatch.setattr(OnlineArm, "sampled_logprobs", lambda self, mask: sampled(self, mask) + 0.01)
    with pytest.raises(IntegrityError, match="off 1"):
        train(world, kind, Log(tmp_path / "work"))


@KINDS
def test_a_trainer_that_hands_back_other_ids_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    roll_out = OnlineArm.roll_out
    monkeypatch.setattr(OnlineArm, "roll_out", lambda self, *args: [[*ids[:-1], EOS] for ids in roll_out(self, *args)])
    with pytest.raises(IntegrityError, match="other response ids"):
        train(world, kind, Log(tmp_path / "work"))


@KINDS
def test_the_eos_rule_reaches_the_score(world: World, tmp_path: Path, kind: str) -> None:
    for rule, penalty in (("none", 3.0), ("replace", 3.0), ("subtract", 3.0)):
        log = Log(tmp_path / rule, seed=2)
        train(world, kind, log, updates=1, eos_rule=rule, eos_penalty=penalty)
    scores = {rule: Log(tmp_path / rule).lines()[0][1] for rule in ("none", "replace", "subtract")}
    cut = 1 - scores["none"]["eos_rate"]
    assert 0 < cut < 1
    assert scores["subtract"]["score"] == pytest.approx(scores["none"]["score"] - 3 * cut, abs=1e-5)
    assert scores["replace"]["score"] < scores["none"]["score"]


# ------------------------------------------------------------------------------------------- metrics

METRICS = {
    "score", "score_sd", "seq_kl", "seq_kl_k3", "seq_kl_se", "kl_coef", "response_tokens", "eos_rate", "episodes",
    "policy_loss", "ratio", "approx_kl", "learning_rate", "grad_norm", "entropy", "clip_fraction", "silent_groups",
}  # fmt: skip


@KINDS
def test_every_update_is_logged_under_documented_names(world: World, tmp_path: Path, kind: str) -> None:
    train(world, kind, log := Log(tmp_path / "work"), epochs=2, learning_rate=2e-2)
    assert [step for step, _ in log.lines()] == [1, 2, 3, 4]
    for step, values in log.lines():
        assert values.keys() == METRICS
        assert values["episodes"] == 16 * step
        assert 1 <= values["response_tokens"] <= 8
        assert values["grad_norm"] > 0
    assert log.lines()[-1][1]["clip_fraction"] > 0, "four steps on one rollout are clipped somewhere"
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    section = text[text.index("### rloo, grpo") :]
    assert [name for name in sorted(METRICS) if f"`{name}`" not in section] == []
    assert ("progress", 4, 4, "") in log.said


# ------------------------------------------------------------------------------------------- divergence


@KINDS
def test_a_kl_over_the_ceiling_keeps_the_last_good_checkpoint(world: World, tmp_path: Path, kind: str) -> None:
    out = train(world, kind, Log(tmp_path / "work"), max_seq_kl=1e-2, learning_rate=2e-2, updates=8)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert "max_seq_kl" in index.diverged["reason"]
    # The policy that was rolled out at the last update is the bad one, so the one before it is the last good one.
    assert index.checkpoint().step == max(index.diverged["step"] - 2, 0)
    again = train(world, kind, Log(tmp_path / "again"), max_seq_kl=1e-9, learning_rate=2e-2)
    assert [one.tensors for one in read_policy_set(again).checkpoints] == [
        read_policy_set(world.sft).checkpoint().tensors
    ]


@KINDS
def test_a_score_that_is_not_finite_stops_in_that_update(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls: list[int] = []
    score = online.last_token_scores

    def spoiled(*args: Any) -> Tensor:
        calls.append(1)
        return score(*args) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(online, "last_token_scores", spoiled)
    out = train(world, kind, log := Log(tmp_path / "work"))
    index = read_policy_set(out)
    assert index.diverged is not None
    assert index.diverged["step"] == 3
    assert "nan" in index.diverged["reason"]
    assert index.checkpoint().step == 1  # step 2 rolled out without a score: not known to be good
    assert [step for step, _ in log.lines()] == [1, 2]


@KINDS
def test_weights_that_leave_the_finite_range_stop_in_that_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also after the very last update, when no later rollout would notice."""
    arms: list[OnlineArm] = []
    start, step = OnlineArm.__init__, torch.optim.AdamW.step
    monkeypatch.setattr(OnlineArm, "__init__", lambda self, *args: arms.append(self) or start(self, *args))

    def spoil(self: Any, *args: Any, **options: Any) -> Any:
        found = step(self, *args, **options)
        if arms[0].update == 3:
            with torch.no_grad():
                arms[0].policy.base_model.norm.weight[0] = math.nan
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    index = read_policy_set(train(world, kind, Log(tmp_path / "work"), minibatches=1))
    assert index.diverged is not None
    assert index.diverged["step"] == 4
    assert index.checkpoint().step == 3
    assert torch.isfinite(policy_of(index.folder()).model.norm.weight).all()


@KINDS
def test_a_constant_reward_model_is_refused_at_the_first_rollout(world: World, tmp_path: Path, kind: str) -> None:
    flat = load_reward_model(world.reward_model / "checkpoints" / "last", CPU)
    with torch.no_grad():
        flat.score.weight.zero_()
    source = world.out("flat")
    save_model(flat, world.tokenizer, source / "checkpoints" / "last")
    (source / "index.json").write_text((world.reward_model / "index.json").read_text())
    out = train(world, kind, Log(tmp_path / "work"), ppo_inputs(world) | {"reward_model": source})
    index = read_policy_set(out)
    assert index.diverged is not None
    assert "one score" in index.diverged["reason"]
    assert index.checkpoint().step == 0


def test_without_training_prompts_there_is_nothing_to_roll_out(world: World, tmp_path: Path) -> None:
    empty = world.out("prompts")
    write_packed_prompts(empty, [row | {"split": "test"} for row in read_packed_prompts(world.prompts)])
    with pytest.raises(IntegrityError, match="no training prompts"):
        train(world, "rloo", Log(tmp_path / "work"), ppo_inputs(world) | {"prompts": empty})


# ------------------------------------------------------------------------------------------- resume

LONG: dict[str, Any] = {"updates": 6, "epochs": 2, "checkpoint_every_updates": 2, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = {}
    for kind in ARMS:
        log = Log(tmp_path_factory.mktemp("whole") / "work")
        found[kind] = (train(world, kind, log, **LONG), log.lines())
    return found


def same(out: Path, expected: Path) -> None:
    names = sorted(str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


@KINDS
def test_resume_is_exact_after_a_kill_at_any_update(world: World, tmp_path: Path, whole: Any, kind: str) -> None:
    """Policy, optimizer, schedule and generators: every file and every metric is the same."""
    torch.manual_seed(17)  # whatever the process drew before
    for at in range(1, 7):  # each attempt resumes from the last one's checkpoint and dies one update later
        with pytest.raises(Killed):
            train(world, kind, Log(tmp_path / "work", kill_at=at), **LONG)
    out = train(world, kind, log := Log(tmp_path / "work"), **LONG)
    same(out, whole[kind][0])
    assert log.lines() == whole[kind][1]
    assert [one.step for one in read_policy_set(out).checkpoints] == [2, 4, 6]


@KINDS
def test_resume_is_exact_after_a_kill_between_two_minibatches(
    world: World, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from workbench.trl_online import _Online

    loss_of, calls = _Online._compute_loss, [0]

    def dying(trainer: Any, model: Any, inputs: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 15:  # the third of four steps of update 4, after the checkpoint of update 2
            raise Killed
        return loss_of(trainer, model, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(_Online, "_compute_loss", dying)
        with pytest.raises(Killed):
            train(world, kind, Log(tmp_path / "work"), **LONG)
    out = train(world, kind, log := Log(tmp_path / "work"), **LONG)
    same(out, whole[kind][0])
    assert log.lines() == whole[kind][1]


@KINDS
@pytest.mark.parametrize("at", [1, 4])
def test_resume_is_exact_after_a_stop(world: World, tmp_path: Path, whole: Any, kind: str, at: int) -> None:
    with pytest.raises(StageInterrupted):
        train(world, kind, stopped := Log(tmp_path / "work", stop_at=at), **LONG)
    assert [step for step, _ in stopped.lines()] == list(range(1, at + 2))
    out = train(world, kind, log := Log(tmp_path / "work"), **LONG)
    same(out, whole[kind][0])
    assert log.lines() == whole[kind][1]


@KINDS
def test_a_stop_at_the_last_update_finishes(world: World, tmp_path: Path, whole: Any, kind: str) -> None:
    same(train(world, kind, Log(tmp_path / "work", stop_at=5), **LONG), whole[kind][0])


@KINDS
def test_a_divergence_is_the_same_after_a_resume(world: World, tmp_path: Path, kind: str) -> None:
    common = LONG | {"max_seq_kl": 5e-3, "checkpoint_every_updates": 1}
    expected = train(world, kind, Log(tmp_path / "whole"), **common)
    assert read_policy_set(expected).diverged is not None
    with pytest.raises(Killed):
        train(world, kind, Log(tmp_path / "work", kill_at=1), **common)
    same(train(world, kind, Log(tmp_path / "work"), **common), expected)


# ------------------------------------------------------------------------------------------- do they do their job?


@KINDS
def test_a_bandit_moves_to_the_known_optimum(tmp_path: Path, kind: str) -> None:
    """Responses of one token: the optimum of E[r] - kl_coef KL is pi_ref exp(r / kl_coef), in closed form."""
    world = build_world(tmp_path, train=1)
    (row,) = [row for row in read_packed_prompts(world.prompts) if row["split"] == "train"]
    vocabulary, coef = len(world.tokenizer), 0.5
    policy = policy_of(world.model)
    reward_model = load_reward_model(world.reward_model / "checkpoints" / "last", CPU)
    prompt = torch.tensor([row["ids"]])
    reference = torch.log_softmax(policy(input_ids=prompt).logits[0, -1].double(), -1)
    scores = reward_scores(reward_model, [row["ids"]] * vocabulary, [[i] for i in range(vocabulary)], pad_id=PAD)
    reward = torch.tensor(scores, dtype=torch.float64)
    best = float(coef * torch.logsumexp(reference + reward / coef, -1))

    own = {} if kind == "rloo" else {"advantage_scale": "none"}  # unscaled, both maximize the same
    config = config_of(
        kind, updates=20, batch_size=256, generations_per_prompt=64, epochs=2, learning_rate=1e-2, kl_coef=coef,
        checkpoint_every_updates=20, **own,
    ) | {"max_response_tokens": 1}  # fmt: skip
    out = world.out(kind)
    ARMS[kind][0].run(config, ppo_inputs(world), out, Log(tmp_path / "work"))
    trained = policy_of(read_policy_set(out).folder())
    found = torch.log_softmax(trained(input_ids=prompt).logits[0, -1].double(), -1)

    def objective(logprobs: Tensor) -> float:
        return float((logprobs.exp() * (reward - coef * (logprobs - reference))).sum())

    gap_before, gap_after = best - objective(reference), best - objective(found)
    assert gap_before > 0.05, "there is something to gain"
    assert 0 <= gap_after < 0.2 * gap_before


@KINDS
def test_the_reward_rises_and_the_kl_penalty_holds_back(world: World, tmp_path: Path, kind: str) -> None:
    """On responses of several tokens, with the defaults of the kind."""
    common = {"updates": 15, "batch_size": 64, "learning_rate": 1e-2, "checkpoint_every_updates": 15}
    last = {}
    for name, coef in (("free", 0.0), ("default", 0.1), ("bound", 20.0)):
        log = Log(tmp_path / name)
        train(world, kind, log, kl_coef=coef, **common)
        last[name] = log.lines()
    for name in ("free", "default"):
        gained = sum(values["score"] for _, values in last[name][-3:]) / 3 - last[name][0][1]["score"]
        assert gained > 0.35 * last[name][0][1]["score_sd"], name
    kl = {name: lines[-1][1]["seq_kl_k3"] for name, lines in last.items()}
    assert kl["bound"] < 0.5 * kl["default"]
    assert kl["bound"] < 0.5 * kl["free"]


def test_a_model_with_learned_positions_is_trained_as_it_samples(tmp_path: Path) -> None:
    """TRL counts left padding as positions; such a model's ratio would be off 1 at once."""
    from transformers import GPT2Config, GPT2LMHeadModel

    world = build_world(tmp_path)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(world.tokenizer), bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, **size)
    )
    save_model(model, world.tokenizer, world.model)
    train(world, "rloo", log := Log(tmp_path / "work"), updates=1, minibatches=1)
    assert log.lines()[0][1]["ratio"] == pytest.approx(1, abs=1e-5)
    assert trunk_digest(policy_of(world.model)) == trunk_digest(model)
    lengths = {len(row["ids"]) for row in read_packed_prompts(world.prompts)}
    assert len(lengths) > 1, "prompts were padded"


@KINDS
def test_adapters_alone_are_trained_where_the_config_has_them(world: World, tmp_path: Path, kind: str) -> None:
    lora = {"lora": {"rank": 2, "alpha": 8.0, "target_modules": ["q_proj", "down_proj"]}}

    def run(log: Log) -> Path:
        out = world.out(kind)
        ARMS[kind][0].run(config_of(kind, learning_rate=2e-2) | lora, ppo_inputs(world), out, log)
        return out

    expected = run(log := Log(tmp_path / "whole"))
    assert log.lines()[0][1]["ratio"] == pytest.approx(1, abs=0.05)
    before, after = (policy_of(folder).state_dict() for folder in (world.model, read_policy_set(expected).folder()))
    assert before.keys() == after.keys(), "whole models, the adapters merged"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"}
    facts = read_policy_set(expected).facts
    assert facts["parametrization"] == "lora rank 2 alpha 8 on down_proj+q_proj"
    assert facts["sft_tensors"] == facts["reference_tensors"] == read_policy_set(world.sft).checkpoint().tensors
    with pytest.raises(Killed):
        run(Log(tmp_path / "work", kill_at=3))
    same(run(Log(tmp_path / "work")), expected)


def test_kl_estimators_agree_with_ppos() -> None:
    logprobs, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    shaped = objectives.shaped_rewards(torch.tensor([3.0]), logprobs, ref, mask, 2.0)
    whole = objectives_groups.penalized_scores(torch.tensor([3.0]), logprobs, ref, mask, 2.0)
    torch.testing.assert_close(shaped.sum(1), whole)
