"""What `benchmarks/scaling.py` lets grow: the axes, as changes of one small config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import load_config

FILE_PAIRS = 128
Raw = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that grows.

    Args:
        unit: What sizes count.
        sizes: Sizes, growing.
        change: Changes the raw config to a size.
        stages: Name of a line -> the beginning of the instance's name whose record it is.
        note: What is fixed.
    """

    unit: str
    sizes: tuple[int, ...]
    change: Callable[[Raw, int, Path], None]
    stages: Mapping[str, str]
    note: str


def base() -> Raw:
    """The smoke config without what no axis looks at: one worker, no tracking, no checkpoints on the way."""
    raw: Raw = load_config(Path("smoke")).model_dump(mode="json")
    raw["resources"]["workers"] = 1
    raw["tracking"]["enabled"] = False
    raw["arms"] = {label: raw["arms"][label] for label in ("dpo", "best_of_n")}
    never: dict[str, Any] = {"checkpoint_every_steps": 100_000, "checkpoint_at_steps": []}
    raw["arms"]["dpo"] |= {"epochs": 1, "batch_size": 32, **never}
    raw["reward_models"]["main"] |= {"epochs": 1, "batch_size": 32, "checkpoint_every_steps": 100_000}
    raw["evaluation"] |= {"prompts": 8, "samples_per_prompt": 2, "trajectory_prompts": 0, "batch_size": 256}
    return raw


def more_pairs(raw: Raw, size: int, folder: Path) -> None:
    """Training pairs, sampled and labeled; reward model and DPO pass over them once."""
    raw["arms"].pop("best_of_n")
    raw["data"]["pairs"] = size


def more_prompts(raw: Raw, size: int, folder: Path) -> None:
    """Test prompts of the evaluation."""
    raw["evaluation"]["prompts"] = size


def larger_n(raw: Raw, size: int, folder: Path) -> None:
    """n of best-of-n; the pool is four times as large."""
    raw["arms"]["best_of_n"] |= {"n": size, "pool": 4 * size, "report_n": None}


def longer_responses(raw: Raw, size: int, folder: Path) -> None:
    """Tokens of every response, by a model that never draws its end token; PPO does two updates."""
    raw["model"] = {"policy": str(endless_model(folder / "model")), "stop_token_ids": None}
    raw["data"] = {"preferences": str(some_pairs(folder / "pairs.jsonl")), "splits": {"validation": 0.1, "test": 0.25}}
    raw["sft"], raw["gold"] = None, None
    raw["arms"] = {"ppo": {"kind": "ppo", "updates": 2, "batch_size": 64, "critic_warmup_updates": 0}}
    raw["evaluation"] |= {
        "prompts": 16, "samples_per_prompt": 8, "max_response_tokens": size, "judges": ["proxy"],
    }  # fmt: skip


AXES: Mapping[str, Axis] = {
    "pairs": Axis(
        unit="training pairs",
        sizes=(500, 1000, 2000, 4000, 8000),
        change=more_pairs,
        stages={
            "sample pairs": "rollouts", "label": "pairs", "pack": "packed_pairs", "reference": "reference_logprobs",
            "reward model": "reward_model[", "DPO": "dpo[",
        },
        note="one epoch, batches of 32",
    ),
    "prompts": Axis(
        unit="test prompts",
        sizes=(64, 128, 256, 512, 1024),
        change=more_prompts,
        stages={
            "sample": "generations[dpo,test", "score": "scores[dpo,test", "candidates": "candidates[",
            "measure": "measure",
        },
        note="two samples per prompt, pools of 8",
    ),
    "n": Axis(
        unit="n",
        sizes=(4, 16, 64, 256),
        change=larger_n,
        stages={
            "candidates": "candidates[", "score": "scores[candidates,test,main", "pick": "best_of_n[",
            "measure": "measure",
        },
        note="pools of 4n for 8 prompts",
    ),
    "response": Axis(
        unit="response tokens",
        sizes=(16, 32, 64, 128),
        change=longer_responses,
        stages={"sample": "generations[ppo,test", "score": "scores[ppo,test", "PPO": "ppo["},
        note="128 responses; PPO: 2 updates of 64",
    ),
}  # fmt: skip


def endless_model(folder: Path) -> Path:
    """A model of the smoke config's size with a longer context, whose end token is all but impossible.

    The first unit of every embedding is 1, of the end token's -1; embeddings are tied, so its logit stays far below.
    """
    import torch

    from workbench.models import new_small_llama, save_model
    from workbench.tokens import load_tokenizer
    from workbench.worlds.helpdesk import build_tokenizer

    build_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    special = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    size = load_config(Path("smoke")).model.size.model_dump()
    model = new_small_llama(size, vocab_size=len(tokenizer), special=special, context=256, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.get_input_embeddings().weight[tokenizer.eos_token_id, 0] = -1.0
    save_model(model, tokenizer, folder)
    return folder


def some_pairs(path: Path) -> Path:
    """A small file of preference pairs on helpdesk prompts."""
    from workbench.worlds.helpdesk import parse_prompt, sample_prompts, sample_response
    from workbench.worlds.helpdesk_gold import gold

    rng = np.random.default_rng(0)
    rows = []
    for one in sample_prompts(rng, {"train": FILE_PAIRS}):
        first, second = (sample_response(parse_prompt(one.prompt), rng) for _ in range(2))
        if first != second:
            better, worse = sorted((first, second), key=lambda text: gold(one.prompt, text), reverse=True)
            rows.append({"prompt": one.prompt, "chosen": better, "rejected": worse})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
