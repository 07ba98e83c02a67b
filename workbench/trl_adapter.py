"""TRL's SFT, reward and DPO trainers behind one door; with `trl_online`, all that touches TRL's inside.

What the adapter guarantees and the trainers alone do not: our token ids and nothing truncated or dropped behind our
back; an explicit order of rows; the shared reference log-probabilities; fp32 on CPU and bf16 on GPU; a non-finite loss
or gradient stops in that step; checkpoints that are atomic, verified and resumed exactly; the digest of the rows that
were really consumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TextCollator

from workbench import objectives, processes
from workbench.checkpoints import latest_checkpoint, save_checkpoint
from workbench.errors import ConfigError, DivergenceError, StageInterrupted
from workbench.lora import adapters
from workbench.lora_files import load_trained, save_merged, save_trained
from workbench.models import check_finite
from workbench.passes import Passes, Shares
from workbench.policy_set import keep_checkpoint, kept_checkpoints
from workbench.stage_log import StageLog
from workbench.staged import Batches, PairBatches, RewardBatches, StagedPairs

# Trainer log name -> ours (docs/metrics.md). What is not named is not kept: token counters and wall times restart on
# resume and would make two equal runs differ.
METRIC_NAMES: Mapping[str, str] = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "accuracy": "train_accuracy",
    "margin": "train_margin",
    "mean_reward": "train_score",
    "rewards/chosen": "implicit_reward_chosen",
    "rewards/rejected": "implicit_reward_rejected",
    "rewards/accuracies": "train_accuracy",
    "rewards/margins": "train_margin",
    "logps/chosen": "seq_logprob_chosen",
    "logps/rejected": "seq_logprob_rejected",
    "nll": "nll_chosen",
}


_TRAINED = "trained.safetensors"  # in a checkpoint of a model with adapters: what is trained, and nothing else


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What every trainer is told. Rates per step, lengths in steps or rows."""

    learning_rate: float
    batch_size: int
    schedule: str
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    checkpoint_every_steps: int
    seed: int
    checkpoint_at_steps: Sequence[int] = ()  # a policy is kept there too
    gradient_checkpointing: bool = False
    microbatch_size: int | None = None  # rows of a forward and backward pass; None: the step's

    @classmethod
    def from_config(cls, config: Mapping[str, Any], seed: int) -> TrainSpec:
        """The fields of an `sft`, `reward_models.*` or `arms.*` block."""
        names = ("learning_rate", "batch_size", "schedule", "warmup_fraction", "weight_decay", "max_grad_norm")
        return cls(
            **{name: config[name] for name in names},
            checkpoint_every_steps=config["checkpoint_every_steps"],
            checkpoint_at_steps=config.get("checkpoint_at_steps", ()),
            gradient_checkpointing=config.get("gradient_checkpointing", False),
            microbatch_size=config.get("microbatch_size"),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run leaves beside the weights in `model`.

    Args:
        steps: Optimizer steps done in all, over every attempt.
        consumed: Order-independent digest of the rows that the collator gathered, read back from where it gathered
            them; after a divergence the rest of what the trainer was given counts too, because the arm's signal comes
            from it all the same; None for SFT.
        checkpoints: (step, folder) of the policies kept on the way, the last step included.
        diverged: Why and at which step training left the finite range, or None.
    """

    steps: int
    consumed: str | None
    consumed_labels: str | None = None  # the same rows with target and margin (`label_targets.labels_digest`)
    checkpoints: list[tuple[int, Path]] = field(default_factory=list)
    diverged: dict[str, Any] | None = None


def training_order(rows: int, epochs: float, seed: int) -> list[int]:
    """Row indices in the order of training: one fresh permutation per epoch, the last one cut short."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(math.ceil(epochs)):
        order.extend(rng.permutation(rows).tolist())
    return order[: round(rows * epochs)]


# ------------------------------------------------------------------------------------------------ the three trainers


def train_sft(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, list[int]]],
    order: list[int],
    spec: TrainSpec,
    log: StageLog,
) -> Trained:
    """Maximum likelihood of responses given prompts.

    Args:
        rows: {"prompt_ids", "response_ids"} each; the loss counts response tokens alone, EOS included.
    """
    table = {
        "input_ids": [row["prompt_ids"] + row["response_ids"] for row in rows],
        "labels": [[-100] * len(row["prompt_ids"]) + row["response_ids"] for row in rows],
    }
    args = SFTConfig(
        **_common(spec, log, len(order)), max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = _SFT(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(table).select(order),
        processing_class=tokenizer,
        data_collator=TextCollator(pad_token_id=tokenizer.pad_token_id),
    )
    return _run(trainer, spec, log, collator=None, keep=None)


def train_reward(
    model: Any, tokenizer: Any, pairs: StagedPairs, order: list[int], spec: TrainSpec, log: StageLog
) -> Trained:
    """Bradley-Terry on pairs.

    Args:
        pairs: Staged where the model is; values "target" and "margin" are the labels (`objectives.preference_loss`).
        order: Row numbers in the order of training.
    """
    collator = RewardBatches(pairs, tokenizer.pad_token_id)
    trainer = _Reward(
        model=model,
        args=RewardConfig(**_common(spec, log, len(order), staged=True), max_length=None, disable_dropout=True),
        train_dataset=Dataset.from_dict({"row": order}),
        processing_class=tokenizer,
        data_collator=collator,
    )
    return _run(trainer, spec, log, collator=collator, keep=None)


def train_dpo(
    model: Any,
    tokenizer: Any,
    pairs: StagedPairs,
    order: list[int],
    spec: TrainSpec,
    log: StageLog,
    *,
    beta: float,
    keep: Path,
    nll_coef: float = 0.0,
) -> Trained:
    """Sigmoid DPO on pairs with given reference log-probabilities (`objectives.dpo_loss`, `dpo_nll_loss`).

    Args:
        pairs: Staged where the model is, with values "ref_chosen_logps" and "ref_rejected_logps", and perhaps "target"
            and "margin" (`objectives.preference_loss`).
        order: Row numbers in the order of training.
        beta: Strength of the KL penalty.
        keep: Folder that receives a policy at each checkpoint.
        nll_coef: Weight of the chosen responses' mean negative log-likelihood; 0: plain DPO.
    """
    collator = PairBatches(pairs, tokenizer.pad_token_id)
    with_nll: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_coef]}
    args = DPOConfig(
        **_common(spec, log, len(order), staged=True),
        **(with_nll if nll_coef else {"loss_type": ["sigmoid"]}),
        beta=beta,
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    trainer = _DPO(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"row": order}),
        processing_class=tokenizer,
        data_collator=collator,
    )
    return _run(trainer, spec, log, collator=collator, keep=keep)


# ------------------------------------------------------------------------------------------------ how they run


def _common(spec: TrainSpec, log: StageLog, rows: int, *, staged: bool = False) -> dict[str, Any]:
    """Trainer arguments shared by all three. One 'epoch' is the whole explicit order of rows."""
    on_cpu = log.resources.device == "cpu"
    steps = math.ceil(rows / spec.batch_size)
    return {
        "output_dir": str(log.scratch / "trainer"),
        "per_device_train_batch_size": spec.batch_size,
        "num_train_epochs": 1,
        "learning_rate": spec.learning_rate,
        # transformers' plain "constant" leaves the warm-up out without a word
        "lr_scheduler_type": "constant_with_warmup" if spec.schedule == "constant" else spec.schedule,
        "warmup_steps": round(spec.warmup_fraction * steps),
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.max_grad_norm,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides a NaN
        "save_strategy": "no",  # checkpoints are ours: the callback asks for them, the mixin writes them
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and log.resources.dtype == "bfloat16",
        "gradient_checkpointing": spec.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if spec.gradient_checkpointing else None,
        "dataloader_pin_memory": not on_cpu and not staged,  # what is on the GPU already cannot be pinned
        "remove_unused_columns": False,
        "seed": spec.seed % 2**32,
        "data_seed": spec.seed % 2**32,
    }


class _Exact(Passes):
    """Mixin: explicit order, atomic checkpoints of our own, stop at the first non-finite number."""

    work: Path
    batches: Batches | None = None
    args: Any
    state: Any

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[attr-defined]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise DivergenceError(f"the loss is {float(loss)} at step {self.state.global_step + 1}")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if norm is not None and not math.isfinite(float(norm)):
            raise DivergenceError(f"the gradient norm is {float(norm)} at step {self.state.global_step + 1}")
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept = Path(resume_from_checkpoint) / _TRAINED
        if kept.exists():
            load_trained(self.model, kept)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def write(folder: Path) -> None:
            if adapters(self.model):
                save_trained(self.model, folder / _TRAINED)
            else:
                self.save_model(str(folder), _internal_call=True)  # type: ignore[attr-defined]
            self._save_optimizer_and_scheduler(str(folder))  # type: ignore[attr-defined]
            self._save_rng_state(str(folder))  # type: ignore[attr-defined]
            self.state.save_to_json(str(folder / "trainer_state.json"))
            if self.batches is not None:
                (folder / "consumed.json").write_text(json.dumps(sorted(self.batches.seen)))

        if processes.is_main():
            save_checkpoint(self.work, self.state.global_step, write)


class _SFT(_Exact, SFTTrainer):  # type: ignore[misc]
    def shares_of(self, part: Mapping[str, Any], step: Mapping[str, Any]) -> Shares:
        tokens = float((part["labels"] != -100).sum() / (step["labels"] != -100).sum())
        return Shares(loss=1.0, metrics=tokens)  # the loss is divided by the step's tokens already


class _Reward(_Exact, RewardTrainer):  # type: ignore[misc]
    sequences_per_row = 2

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def loss_of(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        margin, target = inputs.pop("margin", None), inputs.pop("target", None)
        if margin is None and target is None:
            return super().loss_of(model, inputs, return_outputs, **options)
        _, outputs = super().loss_of(model, inputs, True, **options)  # for its metrics; the loss is ours
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        loss = objectives.bradley_terry_loss(chosen, rejected, margin, target)
        return (loss, outputs) if return_outputs else loss


class _DPO(_Exact, DPOTrainer):  # type: ignore[misc]
    sequences_per_row = 2
    loss_weights: list[float]

    def shares_of(self, part: Mapping[str, Any], step: Mapping[str, Any]) -> Shares:
        chosen = float(_chosen_tokens(part).sum() / _chosen_tokens(step).sum())
        tokens = float(part["completion_mask"].sum() / step["completion_mask"].sum())
        named = {"nll": chosen, "mean_token_accuracy": chosen, "entropy": tokens}
        return super().shares_of(part, step)._replace(named=named)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # the columns are there already

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        margin, target = inputs.pop("margin", None), inputs.pop("target", None)
        whole = self.loss_weights
        if "sft" in self.loss_types:  # a mean over tokens beside one over rows: of another share of the step
            self.loss_weights = [1.0, whole[1] * self.shares.named.get("nll", 1.0) / self.shares.loss]
        try:
            if margin is None and target is None:
                loss = super()._compute_loss(model, inputs, return_outputs)
            else:
                loss = self._labeled_loss(model, inputs, return_outputs, margin, target)
        finally:
            self.loss_weights = whole
        if "sft" in self.loss_types:  # which the trainer does not log
            tokens = float(_chosen_tokens(inputs).float().mean())
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["nll"].append(-metrics["logps/chosen"][-1] / tokens)
        return loss

    def _labeled_loss(
        self, model: Any, inputs: Any, return_outputs: bool, margin: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """`objectives.dpo_loss` or `dpo_nll_loss` of the pass that TRL makes; TRL's own loss knows no targets."""
        seen: list[Any] = []
        hook = model.register_forward_hook(lambda _module, _given, outputs: seen.append(outputs))
        try:
            super()._compute_loss(model, inputs, return_outputs)  # for its metrics
        finally:
            hook.remove()
        (outputs,) = seen
        mask = inputs["completion_mask"][:, 1:].bool()
        logprobs = outputs.log_probs[:, -mask.shape[1] :]
        (chosen, rejected), (kept, _) = logprobs.chunk(2), mask.chunk(2)
        others = (rejected.sum(1), inputs["ref_chosen_logps"], inputs["ref_rejected_logps"], self.beta)
        if "sft" not in self.loss_types:
            return objectives.dpo_loss(chosen.sum(1), *others, margin, target)
        coefficient = self.loss_weights[self.loss_types.index("sft")]
        return objectives.dpo_nll_loss(chosen, kept, *others, coefficient, margin, target)


def _chosen_tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    """(B,) response tokens of the chosen side."""
    chosen: torch.Tensor = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0]
    return chosen


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Sends metrics and progress to the stage log, asks for checkpoints, and stops when the driver says so."""

    def __init__(self, spec: TrainSpec, log: StageLog, keep: Callable[[int], None] | None) -> None:
        self.spec, self.log, self.keep = spec, log, keep
        self.stopped = False
        self.good = 0  # the last step after which the weights were finite

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        check_finite(model, f"after step {step}")
        self.good = step
        due = step % self.spec.checkpoint_every_steps == 0
        if self.keep is not None and (due or last or step in self.spec.checkpoint_at_steps):
            self.keep(step)
        self.stopped = processes.any_of(self.log.stop_requested()) and not last
        if (due or self.stopped) and not last:
            control.should_save = True
        if self.stopped:
            control.should_training_stop = True
        self.log.progress(step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        values = {METRIC_NAMES[name]: float(value) for name, value in (logs or {}).items() if name in METRIC_NAMES}
        if values:
            self.log.metrics(state.global_step, values)


def _run(trainer: Any, spec: TrainSpec, log: StageLog, *, collator: Batches | None, keep: Path | None) -> Trained:
    trainer.work, trainer.batches, trainer.microbatch_size = log.work, collator, spec.microbatch_size
    if trainer.in_parts and getattr(trainer, "aux_loss_enabled", False):
        raise ConfigError(
            f"{log.instance}: a mixture of experts is trained with a load-balancing loss, which is no sum over the "
            "rows of a step; leave microbatch_size out and set resources.processes to 1, or set router_aux_loss_coef "
            "to 0 in the model's config.json"
        )

    def keep_policy(step: int) -> None:
        assert keep is not None
        # Not trainer.save_model: its training_args.bin is a pickle that holds paths and would enter the digest.
        model = trainer.accelerator.unwrap_model(trainer.model)
        if processes.is_main():
            keep_checkpoint(keep, step, lambda folder: save_merged(model, trainer.processing_class, folder))

    watch = _Watch(spec, log, keep_policy if keep is not None else None)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)  # metrics go to the stage log, not to stdout
    resume = processes.from_main(lambda: latest_checkpoint(log.work))
    log.rewind(resume[0] if resume is not None else -1)
    if resume is not None:
        watch.good = resume[0]
        if collator is not None:
            collator.seen.update(json.loads((resume[1] / "consumed.json").read_text()))
    diverged: dict[str, Any] | None = None
    try:
        trainer.train(resume_from_checkpoint=str(resume[1]) if resume is not None else None)
    except DivergenceError as error:
        if keep is None:
            raise
        diverged = {"reason": error.message, "step": watch.good + 1}
        if collator is not None:
            collator.seen.update(trainer.train_dataset["row"])
    if watch.stopped:
        raise StageInterrupted
    processes.check_lockstep(one for one in trainer.model.parameters() if one.requires_grad)
    return Trained(
        steps=int(trainer.state.global_step),
        consumed=collator.pairs.ids_digest(collator.seen) if collator is not None else None,
        consumed_labels=collator.pairs.labels_digest(collator.seen) if collator is not None else None,
        checkpoints=kept_checkpoints(keep) if keep is not None else [],
        diverged=diverged,
    )
