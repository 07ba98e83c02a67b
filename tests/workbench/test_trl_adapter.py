"""TRL's trainers through the adapter: our ids, our order, our reference, our losses; stops at the first NaN."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ml_helpers import CPU, PAD, Killed, Log, World, build_world, policy_of
from workbench import trl_adapter
from workbench.errors import DivergenceError, IntegrityError, StageInterrupted
from workbench.lora import Lora, adapter_state, adapters_off, add_adapter, base_digest, float32_head
from workbench.lora_files import load_trained, merged_state, save_trained
from workbench.models import load_policy, new_reward_model, tensors_digest, trunk_digest
from workbench.objectives import bradley_terry_loss, dpo_loss, dpo_nll_loss, nll_loss, token_logprobs
from workbench.packed import PackedPairs, row_hash, rows_digest, write_packed_pairs
from workbench.scoring import reward_scores, sequence_logprobs
from workbench.staged import Batches, RewardBatches, StagedPairs
from workbench.stages import Resources
from workbench.trl_adapter import TrainSpec, train_dpo, train_reward, train_sft, training_order

SPEC = TrainSpec(
    learning_rate=1e-3, batch_size=8, schedule="linear", warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1.0,
    checkpoint_every_steps=2, seed=0,
)  # fmt: skip
BETA = 0.3
LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict[str, Any]]:
    """Train rows; the reference differs from the policy, so that losses are not log 2."""
    pairs, policy = PackedPairs(world.pairs), policy_of(world.model)
    found = [pairs.as_lists(index) for index in pairs.split_rows("train")]
    noise = np.random.default_rng(0).normal(size=(2, len(found)))
    for number, side in enumerate(("chosen", "rejected")):
        own = sequence_logprobs(policy, *columns(found, "prompt", side), pad_id=PAD)
        for row, value, shift in zip(found, own, noise[number], strict=True):
            row[f"ref_{side}_logps"] = value + shift
    return found


def columns(rows: list[dict[str, Any]], *names: str) -> list[list[list[int]]]:
    return [[row[f"{name}_ids"] for row in rows] for name in names]


def texts(rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    return [{"prompt_ids": row["prompt_ids"], "response_ids": row["chosen_ids"]} for row in rows]


def stage(folder: Path, rows: list[dict[str, Any]]) -> StagedPairs:
    """The rows as a packed set of their own, with whatever numbers they bring."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    ids = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]
    meta = [{"pair_id": str(i), "split": "train", "target_margin": None} for i in range(len(rows))]
    write_packed_pairs(folder, ids, meta)
    names = [name for name in ("ref_chosen_logps", "ref_rejected_logps", "margin") if rows[0].get(name) is not None]
    return StagedPairs(PackedPairs(folder), values={name: np.array([row[name] for row in rows]) for name in names})


class Run:
    """One training run of one of the three trainers; `KIND+lora`: with an adapter (and a reward model's head) alone."""

    def __init__(
        self,
        kind: str,
        world: World,
        rows: list[dict[str, Any]],
        order: list[int],
        log: Log,
        *,
        nll_coef: float = 0.0,
        **spec: Any,
    ):
        settings = replace(SPEC, **spec)
        pairs = stage(log.work.parent, rows)
        kind, _, lora = kind.partition("+")
        if kind == "reward":
            self.model = new_reward_model(world.model, CPU, 1, pad_id=PAD)
            if lora:
                add_adapter(self.model, LORA, "reward", 2)
                float32_head(self.model.score)
            self.call = lambda: train_reward(self.model, world.tokenizer, pairs, order, settings, log)
        else:
            self.model = load_policy(world.model, CPU, trainable=not lora)
            if lora:
                add_adapter(self.model, LORA, "policy", 2)
            if kind == "dpo":
                kept = log.work / "policies"
                self.call = lambda: train_dpo(
                    self.model, world.tokenizer, pairs, order, settings, log, beta=BETA, keep=kept, nll_coef=nll_coef
                )
            else:
                self.call = lambda: train_sft(self.model, world.tokenizer, texts(rows), order, settings, log)

    def digest(self) -> str:
        return tensors_digest(self.model.state_dict())


KINDS = ["sft", "reward", "dpo"]
ADAPTED = ["reward+lora", "dpo+lora"]  # SFT trains all weights, always


# ------------------------------------------------------------------------------------------- parity with our losses


@pytest.mark.parametrize("kind", KINDS + ADAPTED)
def test_the_trainers_loss_is_ours(kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    order = training_order(len(rows), 8 / len(rows), 3)
    picked = [rows[i] for i in order]
    prompts, chosen, rejected = columns(picked, "prompt", "chosen", "rejected")
    log = Log(tmp_path / "work")
    run = Run(kind, world, rows, order, log)
    kind = kind.partition("+")[0]
    if kind == "reward":
        scores = [torch.tensor(reward_scores(run.model, prompts, ids, pad_id=PAD)) for ids in (chosen, rejected)]
        expected = bradley_terry_loss(*scores)
    else:
        logprobs = [
            torch.tensor(sequence_logprobs(run.model, prompts, ids, pad_id=PAD), dtype=torch.float64)
            for ids in (chosen, rejected)
        ]
        expected = -logprobs[0].sum() / sum(map(len, chosen))
        if kind == "dpo":
            refs = [torch.tensor([row[f"ref_{side}_logps"] for row in picked]) for side in ("chosen", "rejected")]
            expected = dpo_loss(*logprobs, *refs, BETA)
    run.call()
    ((step, values),) = log.lines()
    assert step == 1
    assert values["loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("nll_coef", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["dpo", "dpo+lora"])
def test_the_likelihood_term_of_dpo_is_ours(
    kind: str, nll_coef: float, world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The mean over all chosen tokens of the batch, and logged; without a coefficient neither is there."""
    log = Log(tmp_path / "work")
    run = Run(kind, world, rows[:8], list(range(8)), log, nll_coef=nll_coef)
    prompts, chosen, rejected = columns(rows[:8], "prompt", "chosen", "rejected")
    own = torch.zeros(8, max(map(len, chosen)))
    mask = torch.zeros(own.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, chosen, strict=True)):
        with torch.no_grad():
            logits = run.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        own[row, : len(response)] = token_logprobs(logits, torch.tensor(response))
        mask[row, : len(response)] = True
    sums = torch.tensor(sequence_logprobs(run.model, prompts, rejected, pad_id=PAD))
    refs = [torch.tensor([row[f"ref_{side}_logps"] for row in rows[:8]]) for side in ("chosen", "rejected")]
    run.call()
    ((_, values),) = log.lines()
    expected = dpo_nll_loss(own, mask, sums, *refs, BETA, nll_coef)
    assert values["loss"] == pytest.approx(float(expected), abs=1e-5)
    if nll_coef:
        assert values["nll_chosen"] == pytest.approx(float(nll_loss(own, mask)), abs=1e-5)
        lengths = {len(ids) for ids in chosen}
        by_pair = float(torch.stack([nll_loss(own[i : i + 1], mask[i : i + 1]) for i in range(8)]).mean())
        assert len(lengths) > 1
        assert by_pair != pytest.approx(values["nll_chosen"], abs=1e-3), "by tokens, not by pairs as in the paper"
    else:
        assert "nll_chosen" not in values


def test_a_margin_of_a_row_is_an_offset_in_the_reward_loss(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    picked = [row | {"margin": 0.5 * i} for i, row in enumerate(rows[:8])]
    log = Log(tmp_path / "work")
    run = Run("reward", world, picked, list(range(8)), log)
    prompts, chosen, rejected = columns(picked, "prompt", "chosen", "rejected")
    scores = [torch.tensor(reward_scores(run.model, prompts, ids, pad_id=PAD)) for ids in (chosen, rejected)]
    run.call()
    expected = bradley_terry_loss(*scores, 0.5 * torch.arange(8))
    assert log.lines()[0][1]["loss"] == pytest.approx(float(expected), abs=1e-5)


# ------------------------------------------------------------------------------------------- rows and order


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_trainers_consume_exactly_our_rows_in_our_order(
    kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    collate = Batches.__call__

    def spy(self: Batches, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(self, examples)
        mask = batch["attention_mask"].bool()
        seen.extend(str(ids[kept].tolist()) for ids, kept in zip(batch["input_ids"], mask, strict=True))
        return batch

    monkeypatch.setattr(Batches, "__call__", spy)
    order = training_order(len(rows), 2, 5)
    trained = Run(kind, world, rows, order, Log(tmp_path / "work")).call()
    expected = []
    for start in range(0, len(order), SPEC.batch_size):
        batch = [rows[i] for i in order[start : start + SPEC.batch_size]]
        expected += [str(row["prompt_ids"] + row["chosen_ids"]) for row in batch]
        expected += [str(row["prompt_ids"] + row["rejected_ids"]) for row in batch]
    assert seen == expected
    assert trained.steps == 6
    pairs = PackedPairs(world.pairs)
    assert trained.consumed == pairs.ids_digest(pairs.split_rows("train"))


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_nothing_is_cut_or_dropped_however_long(
    kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    long = rows[0] | {"prompt_ids": [40] * 20, "chosen_ids": [41] * 30 + [1], "rejected_ids": [42] * 25 + [1]}
    trained = Run(kind, world, [long, rows[1]], [0, 1], Log(tmp_path / "work")).call()
    hashes = [row_hash(*(row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))) for row in (long, rows[1])]
    assert trained.consumed == rows_digest(hashes)


def test_the_collator_sees_what_the_reward_model_scores_later(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Right-padded in training, left-padded prompts in PPO: the same ids give the same score."""
    model = new_reward_model(world.model, CPU, 1, pad_id=PAD).eval()
    batch = RewardBatches(stage(tmp_path, rows), PAD)([{"row": i} for i in range(6)])
    trained = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:6, 0]
    assert reward_scores(model, *columns(rows[:6], "prompt", "chosen"), pad_id=PAD) == pytest.approx(
        trained.tolist(), abs=1e-5
    )


def test_an_order_is_one_permutation_per_epoch() -> None:
    order = training_order(10, 2.5, 1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(order) == 25
    assert len(set(order[20:])) == 5
    assert training_order(10, 2.5, 1) == order != training_order(10, 2.5, 2)


# ------------------------------------------------------------------------------------------- schedule, metrics


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1.0] * 6),
        ("constant", 0.5, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("linear", 0.0, [1 - i / 6 for i in range(6)]),
        ("cosine", 0.0, [0.5 + 0.5 * math.cos(math.pi * i / 6) for i in range(6)]),
    ],
)
def test_schedules(
    schedule: str, warmup: float, expected: list[float], world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    log = Log(tmp_path / "work")
    order = training_order(len(rows), 2, 0)
    Run("sft", world, rows, order, log, schedule=schedule, warmup_fraction=warmup).call()
    rates = [values["learning_rate"] / SPEC.learning_rate for _, values in log.lines()]
    assert rates == pytest.approx(expected, abs=1e-6)


WANTED = {
    "sft": {"loss", "grad_norm", "learning_rate", "entropy", "token_accuracy"},
    "reward": {"loss", "grad_norm", "learning_rate", "train_accuracy", "train_margin", "train_score"},
    "dpo": {
        "loss", "grad_norm", "learning_rate", "implicit_reward_chosen", "implicit_reward_rejected", "train_accuracy",
        "train_margin", "seq_logprob_chosen", "seq_logprob_rejected",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_all_metrics_of_every_step_are_logged_once(
    kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    log = Log(tmp_path / "work")
    Run(kind, world, rows, training_order(len(rows), 1, 0), log).call()
    assert [step for step, _ in log.lines()] == [1, 2, 3]
    for _, values in log.lines():
        assert values.keys() >= WANTED[kind]
        assert all(map(math.isfinite, values.values()))


def test_trainers_neither_hide_a_nan_nor_change_precision_nor_save_by_themselves(tmp_path: Path) -> None:
    told = trl_adapter._common(SPEC, Log(tmp_path / "work"), 24)
    wanted = {"logging_nan_inf_filter": False, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}
    assert {name: told[name] for name in wanted} == wanted


def test_batches_that_are_on_the_gpu_already_are_not_pinned(tmp_path: Path) -> None:
    log = Log(tmp_path / "work")
    log.resources = Resources(device="cuda")
    pinned = [trl_adapter._common(SPEC, log, 24, staged=staged)["dataloader_pin_memory"] for staged in (False, True)]
    assert pinned == [True, False]


def test_what_is_kept_of_a_policy_is_no_pickle_and_names_no_path(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    log = Log(tmp_path / "work")
    trained = Run("dpo", world, rows, training_order(len(rows), 1, 0), log).call()
    assert [step for step, _ in trained.checkpoints] == [2, 3]
    for _, folder in trained.checkpoints:
        assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
        for file in folder.glob("*.json"):
            assert str(tmp_path) not in file.read_text()


# ------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_weight_stops_in_that_step(kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    log = Log(tmp_path / "work")
    run = Run(kind, world, rows, training_order(len(rows), 1, 0), log)
    with torch.no_grad():
        run.model.base_model.norm.weight[0] = math.nan
    if kind == "dpo":
        trained = run.call()
        assert trained.diverged is not None
        assert trained.diverged["step"] == 1
        assert "nan" in trained.diverged["reason"]
        assert (trained.steps, trained.checkpoints) == (0, [])
    else:
        with pytest.raises(DivergenceError, match="nan at step 1"):
            run.call()
    assert log.lines() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_divergence_later_keeps_the_last_good_checkpoint(
    kind: str, what: str, world: World, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss whose gradient or whose step leaves the finite range, in step 3."""
    log = Log(tmp_path / "work")
    run = Run(kind, world, rows, training_order(len(rows), 1, 0), log, checkpoint_every_steps=1, batch_size=4)
    weight = run.model.base_model.norm.weight
    if what == "gradient":
        calls = iter(range(1, 99))
        weight.register_hook(lambda grad: grad * math.inf if next(calls) == 3 else grad)
    else:
        step, steps = torch.optim.AdamW.step, iter(range(1, 99))

        def spoil(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(self, *args, **kwargs)
            if next(steps) == 3:
                with torch.no_grad():
                    weight[0] = math.inf
            return result

        monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    if kind == "dpo":
        trained = run.call()
        assert trained.diverged is not None
        assert trained.diverged["step"] == 3
        assert [at for at, _ in trained.checkpoints] == [1, 2]
        assert trained.checkpoints[-1][1].is_dir()
        # the signal comes from all the pairs that it was given: a diverged arm is still matched
        pairs = PackedPairs(world.pairs)
        assert trained.consumed == pairs.ids_digest(pairs.split_rows("train"))
    else:
        with pytest.raises(DivergenceError, match="3"):
            run.call()
    assert [at for at, _ in log.lines()] == [1, 2]


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", ["dpo", "dpo+lora", "reward+lora"])  # the stages' own tests do it for the others
def test_resume_is_exact_wherever_it_was_cut(
    kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Killed and stopped in turn, before the first checkpoint too: bit-identical weights and the same metrics."""
    order = training_order(len(rows), 2, 4)
    whole = Log(tmp_path / "whole")
    run = Run(kind, world, rows, order, whole, schedule="cosine", weight_decay=0.1)
    expected = run.call()

    def attempt(**how: int) -> tuple[Run, Log]:
        log = Log(tmp_path / "work", **how)
        return Run(kind, world, rows, order, log, schedule="cosine", weight_decay=0.1), log

    for at in (1, 3, 4):
        with pytest.raises(Killed):
            attempt(kill_at=at)[0].call()
    with pytest.raises(StageInterrupted):
        attempt(stop_at=4)[0].call()  # at step 3, which is between two checkpoints
    assert (tmp_path / "work" / "checkpoints" / "step-0000000003").is_dir()
    last, log = attempt()
    trained = last.call()
    assert last.digest() == run.digest()
    assert log.lines() == whole.lines()
    assert (trained.steps, trained.consumed) == (expected.steps, expected.consumed)
    if kind == "reward+lora":
        assert "trained.safetensors" in {file.name for file in (tmp_path / "work" / "checkpoints").glob("*/*")}
    for (step, folder), (_, wanted) in zip(trained.checkpoints, expected.checkpoints, strict=True):
        assert (folder / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes(), step


@pytest.mark.parametrize("kind", ADAPTED)
def test_training_moves_the_adapter_and_never_the_base(
    kind: str, world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    log, sft = Log(tmp_path / "work"), trunk_digest(load_policy(world.model, CPU))
    run = Run(kind, world, rows, training_order(len(rows), 2, 0), log, weight_decay=0.1)
    name = kind.partition("+")[0].replace("dpo", "policy")
    before = {at: one.detach().clone() for at, one in adapter_state(run.model, name).items()}
    assert base_digest(run.model) == sft
    trained = run.call()
    assert base_digest(run.model) == sft
    assert not any(torch.equal(one, before[at]) for at, one in adapter_state(run.model, name).items())
    with adapters_off(run.model):
        assert base_digest(run.model) == sft
    for _, folder in trained.checkpoints:
        assert trunk_digest(load_policy(folder, CPU)) != sft
    if trained.checkpoints:  # what is published is the merged model, as it reads back
        last = load_policy(trained.checkpoints[-1][1], CPU)
        assert tensors_digest(last.state_dict()) == tensors_digest(merged_state(run.model, name))
    (checkpoint,) = (tmp_path / "work" / "checkpoints").glob("*4")
    assert not (checkpoint / "model.safetensors").exists(), "a checkpoint holds what is trained alone"


def test_a_checkpoint_of_another_adapter_is_refused(world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    model = add_adapter(load_policy(world.model, CPU), LORA, "policy", 0)
    save_trained(model, tmp_path / "trained.safetensors")
    other = add_adapter(load_policy(world.model, CPU), Lora(rank=2, alpha=8), "policy", 0)
    with pytest.raises(IntegrityError):
        load_trained(other, tmp_path / "trained.safetensors")


def test_a_damaged_checkpoint_is_left_for_the_one_before_it(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    order = training_order(len(rows), 2, 4)
    run = Run("dpo", world, rows, order, Log(tmp_path / "whole"))
    run.call()
    with pytest.raises(Killed):
        Run("dpo", world, rows, order, Log(tmp_path / "work", kill_at=5)).call()
    newest = sorted((tmp_path / "work" / "checkpoints").iterdir())[-1]
    assert newest.name == "step-0000000004"
    (newest / "optimizer.pt").write_bytes(b"torn")
    again = Run("dpo", world, rows, order, Log(tmp_path / "work"))
    again.call()
    assert again.digest() == run.digest()


def test_checkpoints_hold_the_rows_that_were_gathered(world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    order = training_order(len(rows), 2, 0)
    with pytest.raises(Killed):
        Run("reward", world, rows, order, Log(tmp_path / "work", kill_at=3)).call()
    (folder,) = (tmp_path / "work" / "checkpoints").iterdir()
    found = json.loads((folder / "consumed.json").read_text())
    assert found in (sorted(order[:16]), sorted(order[:24])), "two batches, and perhaps one fetched ahead"
