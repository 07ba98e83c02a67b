"""A tiny world for tests of the ML core: random Llama models, the helpdesk tokenizer, packed pairs and stage logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines import ppo
from workbench.config_arms import DPO, PPO, SFT, RewardModel
from workbench.models import (
    Placement,
    load_policy,
    new_reward_model,
    new_small_llama,
    save_model,
    trunk_digest,
)
from workbench.packed import write_packed_pairs, write_packed_prompts
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.quantized import snap
from workbench.stage_log import StageLog, read_metrics
from workbench.stages import Resources
from workbench.tokens import load_tokenizer
from workbench.worlds import helpdesk

torch.set_num_threads(1)

PAD, EOS = 0, 1
STOPS = [EOS, *range(10, 28)]  # many, so that random models end their responses
SIZE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "initializer_range": 0.4}
CPU = Placement()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Log(StageLog):
    """A stage log on a scratch folder; it can be told to stop, or be killed, once a step is reached.

    Args:
        stop_at: The driver asks to stop once this step was logged, by an earlier attempt perhaps.
        kill_at: Dies right after this step's metrics line was written, leaving half a line behind it.
    """

    def __init__(
        self,
        work: Path,
        *,
        seed: int = 0,
        stop_at: int | None = None,
        kill_at: int | None = None,
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.said: list[tuple[Any, ...]] = []
        super().__init__(
            work=work,
            seed=seed,
            resources=Resources(),
            instance=work.name,
            send=self.said.append,
            stop=threading.Event(),
        )
        self.stop_at, self.kill_at = stop_at, kill_at
        self.logged = max((step for step, _ in self.lines()), default=0)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        self.logged = step
        if self.kill_at is not None and step >= self.kill_at:
            with (self.work / "metrics.jsonl").open("a") as file:
                file.write('{"step":99,"uni')
            raise Killed

    def stop_requested(self) -> bool:
        return self.stop_at is not None and self.logged >= self.stop_at

    def lines(self) -> list[tuple[int, dict[str, float]]]:
        """(step, values) of every metrics line: all that two equal runs share."""
        return [(row["step"], row["values"]) for row in read_metrics(self.work / "metrics.jsonl")]


def tiny_model(tokenizer: Any, seed: int = 0, **size: Any) -> Any:
    """An untrained Llama with a peaked enough distribution to tell positions apart, frozen."""
    special = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    model = new_small_llama(SIZE | size, vocab_size=len(tokenizer), special=special, context=64, seed=seed)
    return model.eval().requires_grad_(False)


def random_rows(
    rng: np.random.Generator, count: int, *, low: int = 1, high: int = 7, end: bool = True
) -> list[list[int]]:
    """Ragged ids without special or stop ids; `end` appends EOS."""
    return [rng.integers(30, 60, size=rng.integers(low, high)).tolist() + ([EOS] if end else []) for _ in range(count)]


@dataclass(frozen=True)
class World:
    """Folders of the artifacts that training stages read."""

    root: Path
    tokenizer: Any

    @property
    def sft(self) -> Path:
        return self.root / "sft"

    @property
    def model(self) -> Path:
        return self.sft / "checkpoints" / "sft"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    @property
    def reward_model(self) -> Path:
        return self.root / "reward_model"

    def out(self, name: str) -> Path:
        """A new empty output folder."""
        number = 0
        while (folder := self.root / "outs" / f"{name}-{number}").exists():
            number += 1
        folder.mkdir(parents=True)
        return folder


def add_policy(world: World, model: Any) -> None:
    """A trained policy beside the SFT: a set of one checkpoint in `policy`, named by `selected`."""
    save_model(model, world.tokenizer, world.root / "policy" / "checkpoints/last")
    listed = [Checkpoint(name="last", path="checkpoints/last", step=1, tensors=trunk_digest(model))]
    write_policy_set(world.root / "policy", listed, facts={})
    (world.root / "selected").mkdir()
    (world.root / "selected" / "selected.json").write_text(json.dumps({"checkpoint": "last"}))


def build_world(
    root: Path,
    *,
    train: int = 24,
    head_scale: float = 1.0,
    size: Mapping[str, Any] | None = None,
    snapped: bool = False,
) -> World:
    """SFT and reward model as policy sets, packed pairs (train, validation) and packed prompts.

    Args:
        size: Of the SFT, where it differs from SIZE.
        snapped: The SFT's weights are those that 4 bits hold.
    """
    helpdesk.build_tokenizer(root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    world = World(root, tokenizer)
    model = tiny_model(tokenizer, **(size or {}))
    if snapped:
        snap(model, torch.float32)
    save_model(model, tokenizer, world.model)
    digest = trunk_digest(model)
    write_policy_set(
        world.sft, [Checkpoint(name="sft", path="checkpoints/sft", step=0, tensors=digest)],
        facts={"sft_tensors": digest, "adopted": True},
    )  # fmt: skip
    rng = np.random.default_rng(3)
    count = train + 8
    splits = ["train"] * train + ["validation"] * 8
    rows = list(zip(random_rows(rng, count, end=False), random_rows(rng, count), random_rows(rng, count), strict=True))
    meta = [
        {"pair_id": f"pair{i}", "prompt_id": f"p{i}", "split": split, "annotations": [], "target_margin": None}
        for i, split in enumerate(splits)
    ]
    world.pairs.mkdir()
    write_packed_pairs(world.pairs, rows, meta)
    (world.pairs / "filter.json").write_text(json.dumps({"rows": count, "kept": count}))
    world.prompts.mkdir()
    write_packed_prompts(
        world.prompts,
        [{"prompt_id": f"p{i}", "prompt": f"p{i}", "split": splits[i], "ids": rows[i][0]} for i in range(count)],
    )
    reward = new_reward_model(world.model, CPU, 5, pad_id=PAD)
    with torch.no_grad():
        reward.score.weight.mul_(head_scale)
    save_model(reward, tokenizer, world.reward_model / "checkpoints" / "last")
    write_policy_set(
        world.reward_model,
        [Checkpoint(name="last", path="checkpoints/last", step=1, tensors=trunk_digest(reward))],
        facts={
            "sft_tensors": digest, "consumed_pairs": "c", "pairs_filter": "f", "center": 0.25, "pad_id": PAD,
        },
    )  # fmt: skip
    return world


def token_scores(
    reward_model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """(B, T) float32: the head's output at every position, from a pass with mask and positions given."""
    hidden = reward_model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    scores: torch.Tensor = reward_model.score(hidden).squeeze(-1).float()
    return scores


def policy_of(folder: Path) -> Any:
    """The policy in a folder, frozen."""
    return load_policy(folder, CPU)


_COMMON = {"stop_ids": STOPS, "trust_remote_code": False, "max_response_tokens": 8}


def ppo_config(**changes: Any) -> dict[str, Any]:
    """A small PPO block with what the graph adds to it."""
    small = {"updates": 4, "batch_size": 16, "critic_warmup_updates": 1, "learning_rate": 1e-3}
    return PPO(**(small | {"checkpoint_every_updates": 1} | changes)).model_dump() | _COMMON


def reward_config(**changes: Any) -> dict[str, Any]:
    """A small reward model block with what the graph adds to it."""
    small = {"epochs": 2, "batch_size": 8, "checkpoint_every_steps": 2, "center_samples": 16}
    return RewardModel(**(small | changes)).model_dump() | _COMMON


def dpo_config(**changes: Any) -> dict[str, Any]:
    """A small DPO block with what the graph adds to it."""
    small = {"epochs": 2, "batch_size": 8, "checkpoint_every_steps": 2, "checkpoint_at_steps": []}
    return DPO(**(small | changes)).model_dump() | _COMMON


def sft_config(**changes: Any) -> dict[str, Any]:
    """A small SFT block with what the graph adds to it."""
    small = {"corpus": "chosen", "steps": 6, "batch_size": 8, "checkpoint_every_steps": 2}
    return SFT(**(small | changes)).model_dump() | _COMMON | {"max_length": 64}


def ppo_inputs(world: World) -> dict[str, Path]:
    return {"sft": world.sft, "reward_model": world.reward_model, "prompts": world.prompts}


def ppo_trainer(world: World, tmp_path: Path, **config: Any) -> ppo.Trainer:
    return ppo.Trainer(ppo_config(**config), ppo_inputs(world), Log(tmp_path / "work"))


def run_ppo(world: World, log: Log, **config: Any) -> Path:
    out = world.out("ppo")
    ppo.run(ppo_config(**config), ppo_inputs(world), out, log)
    return out
