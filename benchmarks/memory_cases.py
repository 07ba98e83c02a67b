"""The stages that `benchmarks/memory.py` measures, on inputs made here: a random model, random pairs and prompts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench import evaluation
from workbench.config_arms import DPO, PPO, RewardModel
from workbench.models import Placement, load_policy, new_small_llama, save_model, trunk_digest
from workbench.packed import write_packed_pairs, write_packed_prompts
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.quantized import NF4, snap
from workbench.stage_log import StageLog
from workbench.stages import Resources
from workbench.tokens import load_tokenizer
from workbench.worlds import helpdesk

# heads of 32, feed-forward of 8/3 the width; "10m" has 12 layers, width 256, 8 heads, vocabulary 512
SIZES = {
    "0.1m": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 168},
    "1m": {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 344},
    "10m": {"hidden_size": 256, "num_layers": 12, "num_heads": 8, "intermediate_size": 688},
    "60m": {"hidden_size": 768, "num_layers": 8, "num_heads": 24, "intermediate_size": 2048},
}
VOCABULARY = 512
NEVER = 10**6  # steps between checkpoints: none on the way


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all cases share. `batch` sequences in one forward and backward pass: half as many pairs for DPO.

    Args:
        model: Folder of a model, or one of SIZES.
        prompt, response: Tokens of every prompt and every response.
        updates: Optimizer steps of DPO, updates of one epoch and one minibatch of PPO.
        packed: Some case packs the SFT in 4 bits, so its weights must be those that 4 bits hold.
    """

    model: str = "10m"
    batch: int = 64
    prompt: int = 24
    response: int = 48
    updates: int = 3
    rank: int = 16
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    packed: bool = False

    @property
    def lora(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": 2.0 * self.rank, "target_modules": ["all-linear"]}

    @property
    def qlora(self) -> dict[str, Any]:
        return self.lora | {"quantize": NF4}


def log_of(work: Path, shape: Shape) -> StageLog:
    """A stage log on a new scratch folder, without a driver."""
    work.mkdir(parents=True)
    gpus = 1 if shape.device == "cuda" else 0
    resources = Resources(threads=shape.threads, gpus=gpus, device=shape.device, dtype=shape.dtype)
    return StageLog(
        work=work, seed=1, resources=resources, instance=work.name, send=lambda _: None, stop=threading.Event()
    )


def prepare(root: Path, shape: Shape) -> None:
    """Writes what the stages read: sft, pairs, prompts, reference log-probabilities, reward models of both kinds."""
    model_folder = root / "sft" / "checkpoints" / "sft"
    if shape.model in SIZES:
        tokenizer_folder = root / "tokenizer"
        helpdesk.build_tokenizer(tokenizer_folder)
        tokenizer = load_tokenizer(tokenizer_folder)
        special = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
        size = SIZES[shape.model] | {"initializer_range": 0.08}
        context = shape.prompt + shape.response
        save_model(
            new_small_llama(size, vocab_size=VOCABULARY, special=special, context=context, seed=0),
            tokenizer,
            model_folder,
        )
    else:
        save_model(load_policy(Path(shape.model), Placement()), load_tokenizer(Path(shape.model)), model_folder)
    model = load_policy(model_folder, Placement(device="cpu", dtype=shape.dtype))
    if shape.packed:
        snap(model, model.dtype)
        save_model(model, load_tokenizer(model_folder), model_folder)
    digest = trunk_digest(model)
    sft = [Checkpoint(name="sft", path="checkpoints/sft", step=0, tensors=digest)]
    write_policy_set(root / "sft", sft, facts={"sft_tensors": digest})
    pairs = shape.updates * shape.batch // 2
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.get_text_config().vocab_size)

    def tokens(length: int) -> list[int]:
        return [int(one) for one in rng.integers(3, vocabulary, size=length)]

    rows = [(tokens(shape.prompt), tokens(shape.response), tokens(shape.response)) for _ in range(pairs)]
    meta = [
        {"pair_id": f"{i}", "prompt_id": f"{i}", "split": "train", "annotations": [], "target_margin": None}
        for i in range(pairs)
    ]
    prompts = [{"prompt_id": f"{i}", "prompt": f"{i}", "split": "train", "ids": row[0]} for i, row in enumerate(rows)]
    for name in ("pairs", "prompts", "reference"):
        (root / name).mkdir()
    write_packed_pairs(root / "pairs", rows, meta)
    (root / "pairs" / "filter.json").write_text(json.dumps({"rows": pairs, "kept": pairs}))
    write_packed_prompts(root / "prompts", prompts)
    (root / "prompts.json").write_text(json.dumps([row["ids"] for row in prompts]))
    (root / "shape.json").write_text(json.dumps(asdict(shape)))
    config = {"batch_size": shape.batch, "trust_remote_code": False}
    inputs = {"sft": root / "sft", "pairs": root / "pairs"}
    evaluation.reference_logprobs(config, inputs, root / "reference", log_of(root / "work" / "reference", shape))
    for name, lora in (("reward", None), ("reward_lora", shape.lora)):
        _reward(root, name, shape, lora)


def _common(shape: Shape, lora: dict[str, Any] | None) -> dict[str, Any]:
    # No stop ids: every response has all its tokens.
    common: dict[str, Any] = {"max_response_tokens": shape.response, "stop_ids": [], "trust_remote_code": False}
    return common | ({"lora": lora} if lora is not None else {})


def _reward(root: Path, name: str, shape: Shape, lora: dict[str, Any] | None) -> None:
    from pipelines import reward_model

    block = RewardModel(epochs=1.0, batch_size=shape.batch // 2, center_samples=8, checkpoint_every_steps=NEVER)
    inputs = {part: root / part for part in ("sft", "pairs", "prompts")}
    (root / name).mkdir()
    reward_model.run(
        block.model_dump() | _common(shape, lora), inputs, root / name, log_of(root / "work" / name, shape)
    )


def _dpo(root: Path, scratch: Path, shape: Shape, lora: dict[str, Any] | None) -> None:
    from pipelines import dpo

    never: dict[str, Any] = {"checkpoint_every_steps": NEVER, "checkpoint_at_steps": []}
    block = DPO(epochs=1.0, batch_size=shape.batch // 2, learning_rate=1e-5, **never)
    inputs = {"sft": root / "sft", "pairs": root / "pairs", "reference_logprobs": root / "reference"}
    log = log_of(scratch / "work", shape)
    (scratch / "out").mkdir()
    dpo.run(block.model_dump() | _common(shape, lora), inputs, scratch / "out", log)


def _ppo(root: Path, scratch: Path, shape: Shape, lora: dict[str, Any] | None, critic: str) -> None:
    from pipelines import ppo

    block = PPO(
        updates=shape.updates, batch_size=shape.batch, minibatches=1, epochs=1, learning_rate=1e-5,
        critic_warmup_updates=0, checkpoint_every_updates=NEVER, critic=critic,
    )  # fmt: skip
    reward = root / ("reward" if lora is None else "reward_lora")
    inputs = {"sft": root / "sft", "reward_model": reward, "prompts": root / "prompts"}
    log = log_of(scratch / "work", shape)
    (scratch / "out").mkdir()
    config = block.model_dump(mode="json", exclude={"kind", "reward"}) | _common(shape, lora)
    ppo.run(config, inputs, scratch / "out", log)


# name -> what runs it: (prepared folder, new scratch folder, shape)
CASES: dict[str, Callable[[Path, Path, Shape], None]] = {
    "dpo_full": lambda root, scratch, shape: _dpo(root, scratch, shape, None),
    "dpo_lora": lambda root, scratch, shape: _dpo(root, scratch, shape, shape.lora),
    "dpo_qlora": lambda root, scratch, shape: _dpo(root, scratch, shape, shape.qlora),
    "ppo_full": lambda root, scratch, shape: _ppo(root, scratch, shape, None, "separate"),
    "ppo_full_head": lambda root, scratch, shape: _ppo(root, scratch, shape, None, "head"),
    "ppo_shared": lambda root, scratch, shape: _ppo(root, scratch, shape, shape.lora, "separate"),
    "ppo_shared_qlora": lambda root, scratch, shape: _ppo(root, scratch, shape, shape.qlora, "separate"),
    "ppo_shared_head": lambda root, scratch, shape: _ppo(root, scratch, shape, shape.lora, "head"),
}
TRL = "ppo_trl"


def preload(case: str) -> None:
    """Imports what the case imports, so that its memory is above that of the imports."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    if case.endswith("qlora"):
        import bitsandbytes  # noqa: F401

    if case.startswith("dpo"):
        from pipelines import dpo
        from workbench import trl_adapter

        assert dpo, trl_adapter
    else:
        from pipelines import ppo

        assert ppo
    torch.zeros(8, 8) @ torch.zeros(8, 8)
