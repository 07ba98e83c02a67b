"""What the PPO benchmarks run on: a model folder as SFT and reward model artifacts, and prompts of random ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES: Mapping[str, Mapping[str, Any]] = {
    # 12 layers, d = 256, 8 heads, vocabulary 512: about 10M parameters, enough for the multiplications to count
    "10m": {
        "hidden_size": 256, "num_layers": 12, "num_heads": 8, "intermediate_size": 704, "initializer_range": 0.02,
    },
}  # fmt: skip
VOCABULARY = 512


def make_model(size: str, folder: Path) -> Path:
    """Writes an untrained Llama-style model of a named size with a tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from workbench.models import new_small_llama, save_model

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    model = new_small_llama(SIZES[size], vocab_size=VOCABULARY, special={"pad": 0, "eos": 1}, context=1024, seed=0)
    save_model(model, tokenizer, folder)
    return folder


def make_prompts(count: int, low: int, high: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of `low` to `high` random ids; special ids (below 3) are left out."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, size=rng.integers(low, high + 1)).tolist() for _ in range(count)]


def make_artifacts(model: Path, prompts: list[list[int]], root: Path, *, reward_seed: int = 1) -> dict[str, Path]:
    """The inputs of the ppo stage: the model as SFT, the same with a random head as reward model, packed prompts."""
    from workbench.models import Placement, load_policy, new_reward_model, save_model, trunk_digest
    from workbench.packed import write_packed_prompts
    from workbench.policy_set import Checkpoint, write_policy_set
    from workbench.tokens import load_tokenizer

    tokenizer = load_tokenizer(model)
    policy = load_policy(model, Placement())
    digest = trunk_digest(policy)
    reward = new_reward_model(model, Placement(), reward_seed, pad_id=int(tokenizer.pad_token_id))
    facts = {
        "sft": {"sft_tensors": digest, "adopted": True},
        "reward_model": {"sft_tensors": digest, "consumed_pairs": "none", "pairs_filter": "none", "center": 0.0},
    }
    inputs = {}
    for name, one in (("sft", policy), ("reward_model", reward)):
        save_model(one, tokenizer, root / name / "checkpoints" / "last")
        last = Checkpoint(name="last", path="checkpoints/last", step=0, tensors=trunk_digest(one))
        write_policy_set(root / name, [last], facts=facts[name])
        inputs[name] = root / name
    inputs["prompts"] = root / "prompts"
    inputs["prompts"].mkdir()
    write_packed_prompts(
        inputs["prompts"],
        [{"prompt_id": f"p{i}", "prompt": f"p{i}", "split": "train", "ids": ids} for i, ids in enumerate(prompts)],
    )
    return inputs


def stage_log(work: Path, *, seed: int, threads: int, device: str = "cpu") -> Any:
    """A stage log without a driver behind it."""
    from workbench.stage_log import StageLog
    from workbench.stages import Resources

    work.mkdir(parents=True, exist_ok=True)
    resources = Resources(threads=threads, device=device, gpus=int(device == "cuda"))
    return StageLog(
        work=work, seed=seed, resources=resources, instance="ppo", send=lambda _: None, stop=threading.Event()
    )


def write_prompts(path: Path, prompts: list[list[int]]) -> Path:
    """Prompts as the JSON file that the driver of TRL reads."""
    path.write_text(json.dumps(prompts))
    return path
