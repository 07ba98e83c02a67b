"""What TRL 1.12's PPOTrainer does with real models and optimizers: numbers behind docs/ppo.md. See golden_ppo.py."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import golden_ppo as golden
from benchmarks.ppo_trl import Settings, make_trainer

PROMPTS = [[40 + i, *range(30, 30 + i % 4)] for i in range(16)]  # of 1 to 4 ids: padded on the left


def facts(module: Any, base: Settings) -> dict[str, Any]:
    """Every fact by name."""
    return {
        "minibatches": minibatches(module, base),
        "gradient_clipping": gradient_clipping(module, base),
        "first_ratio": first_ratio(module, base),
        "missing_eos": missing_eos(module, base),
        "pad_is_eos": pad_is_eos(module, base),
        "empty_response": empty_response(module, base),
        "not_finite": not_finite(module, base),
        "few_prompts": few_prompts(module, base),
        "resume": {"parameters_of_train": list(inspect.signature(module.PPOTrainer.train).parameters)},
    }


def trainer_of(module: Any, base: Settings, prompts: list[list[int]] | None = None, **changes: Any) -> Any:
    """A trainer on the tiny model."""
    rows = json.loads(base.prompts.read_text()) if prompts is None else prompts
    with tempfile.TemporaryDirectory() as folder:
        return make_trainer(module, base, rows, folder, **changes)


def train(trainer: Any) -> None:
    """Runs `train` without its prints."""
    from transformers import set_seed

    set_seed(0)
    trainer.log = lambda metrics: None
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()


def minibatches(module: Any, base: Settings) -> list[dict[str, int]]:
    """Optimizer steps of one epoch of two minibatches, the same batch cut into one and into two device batches."""
    found = []
    rows = json.loads(base.prompts.read_text()) * 2  # the last batch of a pass over the prompts always steps
    for accumulated in (1, 2):
        trainer = trainer_of(
            module, base, rows, num_mini_batches=2, gradient_accumulation_steps=accumulated,
            per_device_train_batch_size=golden.ROWS // accumulated,
        )  # fmt: skip
        steps: list[int] = []
        trainer.optimizer.optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        golden.run_on_tables(module, trainer, golden.rollouts(golden.MIXED))
        found.append({"gradient_accumulation_steps": accumulated, "num_mini_batches": 2, "optimizer_steps": len(steps)})
    return found


def gradient_clipping(module: Any, base: Settings) -> dict[str, float]:
    """The norm of the gradient that the optimizer receives, beside the `max_grad_norm` asked for."""
    import torch

    trainer = trainer_of(module, dataclasses.replace(base, batch=16), PROMPTS, max_grad_norm=1e-3)
    norms: list[float] = []

    def look(optimizer: Any, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([one.norm() for one in gradients]).norm()))

    trainer.optimizer.optimizer.register_step_pre_hook(look)
    train(trainer)
    return {"max_grad_norm": 1e-3, "norm_at_the_step": round(min(norms), 6)}


def first_ratio(module: Any, base: Settings) -> dict[str, dict[str, float]]:
    """Mean |ratio - 1| and the share beyond the clip range in the first minibatch, before any step: 0 but for rounding.

    As it should be; with dropout in the attention of the model's config; with a repetition penalty in the model's
    generation_config.json, as instruction models have.
    """
    found = {}
    edits: Mapping[str, tuple[str, dict[str, float]]] = {
        "plain": ("config.json", {}),
        "attention_dropout_0.1": ("config.json", {"attention_dropout": 0.1}),
        "repetition_penalty_1.1": ("generation_config.json", {"repetition_penalty": 1.1}),
    }
    for name, (file, change) in edits.items():
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            shutil.copytree(base.model, model)
            (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | change))
            changed = dataclasses.replace(base, batch=16, response=12, model=model)
            with mock.patch("workbench.models.disable_dropout"):  # TRL disables what it finds
                trainer = trainer_of(module, changed, PROMPTS)
        ratios: list[Any] = []

        def backward(loss: Any, ratios: list[Any] = ratios) -> None:
            frame = sys._getframe(1).f_locals  # of train
            kept = ~frame["padding_mask"][frame["micro_batch_inds"]]
            ratios.append((frame["ratio"].detach() - 1).abs()[kept])
            loss.backward()

        trainer.accelerator.backward = backward
        train(trainer)
        beyond = (ratios[0] > trainer.args.cliprange).float().mean()
        found[name] = {"mean_off": round(float(ratios[0].mean()), 7), "beyond_clip": round(float(beyond), 4)}
    return found


def missing_eos(module: Any, base: Settings) -> dict[str, Any]:
    """`missing_eos_penalty` where the stop id is not the tokenizer's eos: who is charged."""
    stop = 2
    tables = golden.rollouts(golden.MIXED)
    tables["ids"] = [[stop if one == golden.EOS else 3 if one == stop else one for one in row] for row in tables["ids"]]
    trainer = trainer_of(module, base, stop_token_id=stop, missing_eos_penalty=1.0)
    found = golden.run_on_tables(module, trainer, tables)["scores"]
    charged = [round(given - got) for given, got in zip(tables["scores"], found.tolist(), strict=True)]
    return {"finished": [int(stop in row) for row in tables["ids"]], "charged": charged}


def pad_is_eos(module: Any, base: Settings) -> dict[str, list[int]]:
    """Tokens that count where the pad token is the eos, as most tokenizers without one are set."""
    tables = golden.rollouts(golden.MIXED)
    tables["ids"] = [[golden.EOS if one == golden.PAD else one for one in row] for row in tables["ids"]]
    trainer = trainer_of(module, base)
    trainer.processing_class.pad_token_id = golden.EOS
    mask = golden.run_on_tables(module, trainer, tables)["padding_mask"]
    return {"lengths": list(golden.MIXED), "counted": (~mask).sum(1).tolist()}


def empty_response(module: Any, base: Settings) -> dict[str, float]:
    """The score of a response whose first token is the pad token, and the head's output at the prompt's last token."""
    import torch

    trainer = trainer_of(module, base)
    prompt = torch.tensor([[30, 20]])
    pads = torch.full((1, golden.LENGTH), golden.PAD)
    with torch.no_grad():
        score = module.get_reward(trainer.reward_model, torch.cat([prompt, pads], 1), golden.PAD, 2)[1]
        head = module.get_reward(trainer.reward_model, prompt, golden.PAD, 0)[0]
    return {"score": round(float(score[0]), 6), "at_the_last_prompt_token": round(float(head[0, -1, 0]), 6)}


def not_finite(module: Any, base: Settings) -> dict[str, bool]:
    """One score that is NaN: does `train` return, and what is the loss that it took a step on?"""
    tables = golden.rollouts(golden.MIXED)
    tables["scores"][0] = math.nan
    found = golden.run_on_tables(module, trainer_of(module, base), tables)
    return {"train_returned": True, "loss_was_nan": math.isnan(float(found["pg_loss"]))}


def few_prompts(module: Any, base: Settings) -> dict[str, int]:
    """Batches in a pass over fewer prompts than a batch; `train` takes the next one from an endless loop over them."""
    trainer = trainer_of(module, base, json.loads(base.prompts.read_text())[:-1])
    return {"batch": base.batch, "prompts": base.batch - 1, "batches": len(trainer.dataloader)}
