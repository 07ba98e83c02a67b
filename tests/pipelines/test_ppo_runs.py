"""PPO over whole runs: adaptive KL, stops and divergence, exact resume, and a bandit with a known optimum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import ppo
from tests.ml_helpers import (
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
from workbench import actor_critic, objectives
from workbench.errors import DivergenceError, IntegrityError, StageInterrupted
from workbench.models import load_reward_model, save_model, trunk_digest
from workbench.policy_set import read_policy_set
from workbench.rollouts import check_kl_sign


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


# ------------------------------------------------------------------------------------------- adaptive KL, stops


def test_the_adaptive_coefficient_follows_the_controller_after_the_warm_up(world: World, tmp_path: Path) -> None:
    control = {"target": 0.05, "horizon": 100, "clip": 0.2}
    run_ppo(
        world,
        log := Log(tmp_path / "work"),
        updates=5,
        critic_warmup_updates=2,
        learning_rate=2e-2,
        adaptive_kl=control,
    )
    coefs, kls = ([values[name] for _, values in log.lines()] for name in ("kl_coef", "seq_kl"))
    assert coefs[:3] == [0.1] * 3
    for now, then, kl in zip(coefs[2:], coefs[3:], kls[2:], strict=False):
        error = min(max(kl / 0.05 - 1, -0.2), 0.2)
        assert then == pytest.approx(now * (1 + error * 16 / 100))
    assert coefs[3] != coefs[4]


def test_a_fixed_coefficient_stays(world: World, tmp_path: Path) -> None:
    run_ppo(world, log := Log(tmp_path / "work"), kl_coef=0.3)
    assert {values["kl_coef"] for _, values in log.lines()} == {0.3}


def test_an_update_stops_early_on_approx_kl(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    step = ppo.Trainer.minibatch
    monkeypatch.setattr(ppo.Trainer, "minibatch", lambda *a, **k: calls.append(a[0].state.update) or step(*a, **k))
    common: dict[str, Any] = {"critic_warmup_updates": 0, "minibatches": 4, "epochs": 2, "learning_rate": 1e-2}
    run_ppo(world, log := Log(tmp_path / "work"), updates=2, target_approx_kl=1e-6, **common)
    assert [calls.count(update) for update in (0, 1)] == [2, 2]
    assert [values["stopped_early"] for _, values in log.lines()] == [1, 1]
    calls.clear()
    run_ppo(world, log := Log(tmp_path / "other"), updates=2, target_approx_kl=1e6, **common)
    assert [calls.count(update) for update in (0, 1)] == [8, 8]
    assert not any("stopped_early" in values for _, values in log.lines())


def test_the_kl_ceiling_keeps_the_last_good_checkpoint_and_records_the_divergence(world: World, tmp_path: Path) -> None:
    common: dict[str, Any] = {"updates": 6, "critic_warmup_updates": 0, "learning_rate": 1e-2, "schedule": "constant"}
    run_ppo(world, log := Log(tmp_path / "free"), **common)
    kls = [values["seq_kl"] for _, values in log.lines()]
    over = next(i for i in range(2, 6) if kls[i] > max(kls[:i]))
    ceiling = (kls[over] + max(kls[:over])) / 2
    out = run_ppo(world, log := Log(tmp_path / "capped"), max_seq_kl=ceiling, **common)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert index.diverged["step"] == over + 1
    assert "max_seq_kl" in index.diverged["reason"]
    # The policy after `over` updates was found to be over the ceiling: the one before it is the last good one.
    assert index.checkpoint().step == over - 1
    assert [step for step, _ in log.lines()] == list(range(1, over + 1))
    assert trunk_digest(policy_of(index.folder())) == index.checkpoint().tensors
    assert any("last good checkpoint" in str(message) for message in log.said)


def test_diverged_at_once_the_last_good_checkpoint_is_the_sft(world: World, tmp_path: Path) -> None:
    out = run_ppo(world, Log(tmp_path / "work"), max_seq_kl=1e-9, critic_warmup_updates=0, learning_rate=1e-2)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert [(one.step, one.tensors) for one in index.checkpoints] == [
        (0, read_policy_set(world.sft).checkpoint().tensors)
    ]


class Spoiled:
    """Makes a function return a NaN at its n-th call."""

    def __init__(self, function: Any, at: int) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        found = self.function(*args, **options)
        if self.calls != self.at:
            return found
        return found._replace(loss=found.loss * math.nan) if hasattr(found, "loss") else found * math.nan


@pytest.mark.parametrize(
    ("where", "name", "last"),
    [
        (objectives, "ppo_policy_loss", 2),
        (objectives, "ppo_value_loss", 2),
        (actor_critic, "last_token_scores", 1),  # not known to be good: what rolled out had no score
    ],
    ids=lambda one: str(getattr(one, "__name__", one)),
)
def test_a_number_that_is_not_finite_stops_in_that_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, last: int
) -> None:
    monkeypatch.setattr(where, name, Spoiled(getattr(where, name), 3))
    out = run_ppo(world, log := Log(tmp_path / "work"), critic_warmup_updates=0, minibatches=1)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert index.diverged["step"] == 3
    assert "nan" in index.diverged["reason"]
    assert index.checkpoint().step == last
    assert [step for step, _ in log.lines()] == [1, 2]


@pytest.mark.parametrize("which", ["policy", "critic"])
def test_weights_that_leave_the_finite_range_stop_in_that_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Also after the very last update, when no later rollout would notice."""
    step = torch.optim.Adam.step
    made: list[ppo.Trainer] = []
    start = ppo.Trainer.__init__
    monkeypatch.setattr(ppo.Trainer, "__init__", lambda self, *args: made.append(self) or start(self, *args))

    def spoil(self: Any, *args: Any) -> None:
        step(self, *args)
        if made[0].state.update == 3 and self is getattr(made[0], f"{which}_optimizer"):
            with torch.no_grad():
                {"policy": made[0].policy, "critic": made[0].models.critic}[which].base_model.norm.weight[0] = math.nan

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    out = run_ppo(world, Log(tmp_path / "work"), critic_warmup_updates=0, minibatches=1)
    index = read_policy_set(out)
    assert index.diverged is not None
    assert index.diverged["step"] == 4
    assert index.checkpoint().step == 3
    assert torch.isfinite(policy_of(index.folder()).model.norm.weight).all()


def test_a_constant_reward_model_is_refused_at_the_first_rollout(world: World, tmp_path: Path) -> None:
    flat = load_reward_model(world.reward_model / "checkpoints" / "last", ppo.Placement())
    with torch.no_grad():
        flat.score.weight.zero_()
    source = world.out("flat")
    save_model(flat, world.tokenizer, source / "checkpoints" / "last")
    (source / "index.json").write_text((world.reward_model / "index.json").read_text())
    out = world.out("ppo")
    ppo.run(ppo_config(), ppo_inputs(world) | {"reward_model": source}, out, Log(tmp_path / "work"))
    index = read_policy_set(out)
    assert index.diverged is not None
    assert "one score" in index.diverged["reason"]
    assert index.checkpoint().step == 0
    with pytest.raises(DivergenceError):
        ppo.check_reward_varies(torch.tensor([1.0, math.nan]))


def test_a_kl_below_zero_beyond_noise_is_refused() -> None:
    check_kl_sign({"seq_kl": -0.3, "seq_kl_se": 0.1}, 1)
    with pytest.raises(DivergenceError, match="standard errors below 0"):
        check_kl_sign({"seq_kl": -0.5, "seq_kl_se": 0.1}, 1)


# ------------------------------------------------------------------------------------------- resume

LONG: dict[str, Any] = {
    "updates": 6, "epochs": 2, "checkpoint_every_updates": 2, "learning_rate": 5e-3,
    "adaptive_kl": {"target": 0.05, "horizon": 100, "clip": 0.2},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, dict[str, float]]]]:
    log = Log(tmp_path_factory.mktemp("whole") / "work")
    return run_ppo(world, log, **LONG), log.lines()


def same(out: Path, expected: Path) -> None:
    names = sorted(str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def test_resume_is_exact_after_a_kill_at_any_update(world: World, tmp_path: Path, whole: Any) -> None:
    """Policy, critic, both optimizers and the coefficient: every file and every metric is the same."""
    for at in range(1, 7):  # each attempt resumes from the last one's checkpoint and dies one update later
        with pytest.raises(Killed):
            run_ppo(world, Log(tmp_path / "work", kill_at=at), **LONG)
    out = run_ppo(world, log := Log(tmp_path / "work"), **LONG)
    same(out, whole[0])
    assert log.lines() == whole[1]


@pytest.mark.parametrize("at", [1, 2, 5])
def test_resume_is_exact_after_a_stop(world: World, tmp_path: Path, whole: Any, at: int) -> None:
    with pytest.raises(StageInterrupted):
        run_ppo(world, Log(tmp_path / "work", stop_at=at), **LONG)
    assert (tmp_path / "work" / "checkpoints" / f"step-{at:010d}").is_dir()
    out = run_ppo(world, log := Log(tmp_path / "work"), **LONG)
    same(out, whole[0])
    assert log.lines() == whole[1]


def test_a_stop_at_the_last_update_finishes(world: World, tmp_path: Path, whole: Any) -> None:
    same(run_ppo(world, Log(tmp_path / "work", stop_at=6), **LONG), whole[0])


def test_a_divergence_is_the_same_after_a_resume(world: World, tmp_path: Path) -> None:
    common: dict[str, Any] = LONG | {"max_seq_kl": 1e-3, "checkpoint_every_updates": 1}
    expected = run_ppo(world, Log(tmp_path / "whole"), **common)
    assert read_policy_set(expected).diverged is not None
    with pytest.raises(Killed):
        run_ppo(world, Log(tmp_path / "work", kill_at=1), **common)
    same(run_ppo(world, Log(tmp_path / "work"), **common), expected)


def test_a_checkpoint_of_another_model_is_refused(world: World, tmp_path: Path) -> None:
    one = ppo_trainer(world, tmp_path)
    (folder := tmp_path / "saved").mkdir()
    one.save(folder)
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "trained.safetensors")
    state.popitem()
    save_file(state, folder / "trained.safetensors")
    with pytest.raises(IntegrityError, match="another kind of critic"):
        one.load(folder)
