"""TRL's RLOO and GRPO trainers behind the same door as `trl_adapter`, which this file extends.

Theirs: the order of steps, groups and minibatches, advantages, losses, optimizer and schedule. Ours, and why:

- the dataset's "prompt" is the number of a row of packed prompts, and `_tokenize_prompts` looks its ids up: no text is
  tokenized again;
- `_generate_single_turn` calls the bench's sampler: our stop ids, seeded by the update's number;
- the reward function scores the ids that were drawn, not their text;
- `_get_per_token_logps_and_entropies` is the bench's forward pass, where a token has the position at which it was
  sampled (theirs counts padding as positions, which a model with learned positions notices);
- the reference is the frozen SFT that the certificate digests; theirs would be loaded from a path anew.

A checkpoint is written at the end of an update alone, so that no rollout has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from workbench import objectives, processes
from workbench.batching import Batch, make_batch
from workbench.checkpoints import latest_checkpoint
from workbench.errors import DivergenceError, StageInterrupted
from workbench.lora_files import save_merged
from workbench.models import check_finite
from workbench.online import OnlineArm
from workbench.passes import Shares
from workbench.policy_set import forget_checkpoint, keep_checkpoint
from workbench.rollouts import check_ratio
from workbench.scoring import token_figures
from workbench.trl_adapter import TrainSpec, _common, _Exact

# Trainer log name -> ours (docs/metrics.md); all are means over an update's minibatches.
_OURS = "workbench/"
METRIC_NAMES: Mapping[str, str] = {
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "frac_reward_zero_std": "silent_groups",
}


@dataclass(frozen=True, kw_only=True)
class OnlineTrained:
    """What a run leaves beside the policies in `kept`: why and at which update it left the finite range, or None."""

    diverged: dict[str, Any] | None = None


def train_rloo(arm: OnlineArm, kept: Path) -> OnlineTrained:
    """REINFORCE with the other responses to a prompt as baseline, KL inside the reward.

    Args:
        arm: Models, prompts, config.
        kept: Folder that receives a policy at each checkpoint.

    Source: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740).
    """
    args = RLOOConfig(**_arguments(arm), normalize_advantages=False)
    return _run(_RLOO(**_given(arm), args=args), arm, kept)


def train_grpo(arm: OnlineArm, kept: Path) -> OnlineTrained:
    """Clipped policy gradient on rewards relative to their group, KL inside the loss.

    Args:
        arm: Models, prompts, config.
        kept: Folder that receives a policy at each checkpoint.

    Source: Shao et al. 2024 (https://arxiv.org/abs/2402.03300).
    """
    config = arm.config
    args = GRPOConfig(
        **_arguments(arm),
        loss_type=config["loss"],
        scale_rewards=config["advantage_scale"],
        importance_sampling_level="token",
        use_bias_correction_kl=True,  # without it k3 as a loss pulls along the gradient of another divergence
    )
    return _run(_GRPO(**_given(arm), args=args), arm, kept)


# ------------------------------------------------------------------------------------------------ what they are told


def _arguments(arm: OnlineArm) -> dict[str, Any]:
    config = arm.config
    rows = config["batch_size"] // config["minibatches"]
    spec = TrainSpec(
        learning_rate=config["learning_rate"],
        batch_size=rows,
        schedule=config["schedule"],
        warmup_fraction=0.0,
        weight_decay=0.0,
        max_grad_norm=config["max_grad_norm"],
        checkpoint_every_steps=config["checkpoint_every_updates"] * arm.steps_per_update,
        seed=arm.log.seed,
        gradient_checkpointing=config.get("gradient_checkpointing", False),
        microbatch_size=config.get("microbatch_size"),
    )
    return _common(spec, arm.log, config["updates"] * arm.steps_per_update * rows) | {
        "logging_steps": arm.steps_per_update,
        "adam_epsilon": config["adam_eps"],
        "router_aux_loss_coef": 0.0,  # of a mixture of experts: our forward pass gives none, and PPO has none either
        "beta": 0.0,  # keeps TRL from loading a reference of its own; `_run` sets both
        "num_generations": config["generations_per_prompt"],
        "max_completion_length": config["max_response_tokens"],
        "temperature": config["temperature"],
        "num_iterations": config["epochs"],
        "steps_per_generation": config["minibatches"],
        "epsilon": config["clip"],
        "shuffle_dataset": False,
        "disable_dropout": True,
    }


def _given(arm: OnlineArm) -> dict[str, Any]:
    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return arm.score([arm.prompts[int(row)] for row in prompts], completion_ids)

    return {
        "model": arm.policy,
        "reward_funcs": reward,
        "train_dataset": Dataset.from_dict({"prompt": [str(row) for row in arm.prompt_order()]}),
        "processing_class": arm.tokenizer,
    }


# ------------------------------------------------------------------------------------------------ how they run


class _Online(_Exact):
    """Mixin over both trainers: our ids, sampler, forward pass and diagnostics."""

    arm: OnlineArm
    state: Any
    _logprobs: Tensor  # (B, R) of the latest forward pass, detached
    _ref_logprobs: Tensor  # (B, R) of the latest rollout; empty until it is known

    def note(self, values: Mapping[str, float]) -> None:
        """Adds to what TRL averages over the update and logs."""
        for name, value in values.items():
            self._metrics["train"][_OURS + name].append(value)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        # Past _Exact's: the trainer's own repeats each prompt of our order within a group and over minibatches.
        sampler: Sampler[int] = super(_Exact, self)._get_train_sampler(dataset)  # type: ignore[misc]
        return sampler

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.arm.prompts[int(row)]) for row in prompts], None, {}

    def _draw(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        policy = self.accelerator.unwrap_model(self.model)
        return self.arm.roll_out(policy, prompt_ids, self.state.global_step // self.arm.steps_per_update)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        count = len(input_ids)
        dealt = processes.size() > 1 and not torch.is_grad_enabled()  # rows of a step are dealt before they come here
        mine = processes.share(range(count)) if dealt else list(range(count))
        parts = [mine[at : at + (batch_size or count)] for at in range(0, len(mine), batch_size or count)]
        given = (logits_to_keep, compute_entropy)
        figures = torch.cat([self._pass(model, input_ids[rows], attention_mask[rows], *given) for rows in parts])
        if dealt:
            figures = processes.whole(figures, mine, count)
        found = figures[:, 0]
        if model is self.arm.reference:
            self._ref_logprobs = found
        else:
            self._logprobs = found.detach()
        return found, figures[:, 1] if compute_entropy else None, None

    def _pass(self, model: Any, ids: Tensor, mask: Tensor, length: int, with_entropy: bool) -> Tensor:
        """(B, 1 or 2, R) log-probabilities of some rows and their entropies, 0 outside the mask."""
        batch = as_batch(ids, mask, length, self.arm.pad_id)
        with self.accelerator.autocast():
            figures = token_figures(model, batch, self.arm.config["temperature"], with_entropy=with_entropy)
        found = [figures.logprobs] if figures.entropy is None else [figures.logprobs, figures.entropy]
        return torch.stack([_widened(batch.spread(one), length) for one in found], dim=1)

    def shares_of(self, part: Mapping[str, Any], step: Mapping[str, Any]) -> Shares:
        tokens = float(part["completion_mask"].sum() / step["completion_mask"].sum())
        rows = self.rows_of(part) / self.rows_of(step)
        # TRL divides GRPO's `dapo` loss by the tokens of the whole rollout, all others by the rows that they see.
        loss = 1.0 if self.arm.config.get("loss") == "dapo" else rows
        return Shares(loss, tokens, {_OURS + "policy_loss": loss})

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._ref_logprobs = torch.zeros(0)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        mask = output["completion_mask"].bool()
        if not len(self._ref_logprobs):  # kl_coef 0: the trainer had no use for it, the report has
            ids, seen = (
                torch.cat([output[f"prompt_{name}"], output[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
            )
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(
                    self.arm.reference, ids, seen, mask.shape[1], self.args.per_device_train_batch_size
                )
        output["sampled_logprobs"] = self.arm.sampled_logprobs(mask)
        self.note(self.arm.report(output["sampled_logprobs"], self._ref_logprobs, mask))
        # The trainer shuffles next, with torch's global generator: seeded here, so that it is the same after a resume.
        torch.manual_seed((self.arm.log.seed + 104_729 * (self.arm.update + 1)) % 2**63)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        mask, sampled = inputs["completion_mask"].bool(), inputs["sampled_logprobs"]
        log_ratio = torch.where(mask, self._logprobs - sampled, torch.zeros_like(sampled))
        off = float(log_ratio.abs().max())
        if self.state.global_step % self.arm.steps_per_update == 0:
            check_ratio(off, self.arm.log.resources.dtype)
        values = {
            "policy_loss": float(loss.detach()),
            "ratio": float(objectives.masked_mean(log_ratio.exp(), mask)),
            # KL(rollout policy || policy) on the rollout policy's samples: k3 with the roles that the samples have.
            "approx_kl": float(objectives.masked_mean(objectives.kl_k3(sampled, self._logprobs), mask)),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),  # type: ignore[attr-defined]
        }
        self.note(values)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None:
            self.note({"grad_norm": float(norm)})
        return norm


class _RLOO(_Online, RLOOTrainer):  # type: ignore[misc]
    def shares_of(self, part: Mapping[str, Any], step: Mapping[str, Any]) -> Shares:
        found = super().shares_of(part, step)  # its ratio, and so what is clipped, is of whole responses
        return found._replace(named={**found.named, "clip_ratio/region_mean": found.loss})

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        return self._draw(prompt_ids)


class _GRPO(_Online, GRPOTrainer):  # type: ignore[misc]
    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return self._draw(prompt_ids), None


def as_batch(input_ids: Tensor, attention_mask: Tensor, length: int, pad_id: int) -> Batch:
    """The trainer's rows in the bench's layout.

    Args:
        input_ids, attention_mask: (B, P + length): prompts padded on the left, responses on the right.
        length: Columns of the responses.
    """
    width = input_ids.shape[1] - length
    prompts, responses = (
        [ids[mask].tolist() for ids, mask in zip(input_ids[:, part], attention_mask[:, part].bool(), strict=True)]
        for part in (slice(0, width), slice(width, None))
    )
    return make_batch(prompts, responses, pad_id, input_ids.device)


def _widened(values: Tensor, length: int) -> Tensor:
    """(B, length) from (B, R): zeros on the right."""
    return torch.nn.functional.pad(values, (0, length - values.shape[1]))


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Sends metrics and progress to the stage log, asks for checkpoints, and stops between two updates when told to."""

    def __init__(self, arm: OnlineArm, keep: Callable[[int], None]) -> None:
        self.arm, self.keep = arm, keep
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        arm, updates = self.arm, self.arm.config["updates"]
        update, within = divmod(state.global_step, arm.steps_per_update)
        check_finite(model, f"in update {update + (1 if within else 0)}")
        if within:
            return
        last = update == updates
        due = update % arm.config["checkpoint_every_updates"] == 0
        if due or last:
            self.keep(update)
        self.stopped = processes.any_of(arm.log.stop_requested()) and not last
        if (due or self.stopped) and not last:
            control.should_save = True
        if self.stopped:
            control.should_training_stop = True
        arm.log.progress(update, updates)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        found = {name: value for name, value in (logs or {}).items() if value is not None}
        values = {name.removeprefix(_OURS): float(found[name]) for name in found if name.startswith(_OURS)}
        if values:
            values |= {ours: float(found[name]) for name, ours in METRIC_NAMES.items() if name in found}
            self.arm.log.metrics(state.global_step // self.arm.steps_per_update, values)


def _run(trainer: Any, arm: OnlineArm, kept: Path) -> OnlineTrained:
    trainer.arm, trainer.work, trainer.microbatch_size = arm, arm.log.work, arm.config.get("microbatch_size")
    trainer.beta, trainer.ref_model = arm.config["kl_coef"], arm.reference

    def keep_policy(update: int) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if processes.is_main():
            keep_checkpoint(kept, update, lambda folder: save_merged(model, arm.tokenizer, folder))

    watch = _Watch(arm, keep_policy)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)  # metrics go to the stage log, not to stdout
    resume = processes.from_main(lambda: latest_checkpoint(arm.log.work))
    arm.log.rewind(resume[0] // arm.steps_per_update if resume is not None else -1)
    try:
        trainer.train(resume_from_checkpoint=str(resume[1]) if resume is not None else None)
    except DivergenceError as error:
        if not arm.measured and processes.is_main():
            forget_checkpoint(kept, arm.update)  # the policy that was just rolled out is the bad one
        arm.log.say(f"{arm.log.instance}: {error.message}; the last good checkpoint is kept")
        return OnlineTrained(diverged={"reason": error.message, "step": arm.update + 1})
    if watch.stopped:
        raise StageInterrupted
    processes.check_lockstep(one for one in trainer.model.parameters() if one.requires_grad)
    return OnlineTrained()
