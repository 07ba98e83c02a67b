"""The SFT policy that every arm starts from: trained on a corpus or on the chosen responses, or adopted."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from workbench import processes
from workbench.errors import DataError
from workbench.model_files import copy_model
from workbench.models import (
    Placement,
    load_policy,
    new_small_llama,
    parameter_count,
    save_model,
    trunk_digest,
)
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.quantized import packable_layers, snap
from workbench.stage_log import StageLog
from workbench.tokens import PackedPairs, continuation, encode_text, encode_texts, load_tokenizer, prompt_ids


def new_model(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes an untrained small Llama and its tokenizer.

    Args:
        config: {"size": the config's `model.size`, "context": positions}.
        inputs: `tokenizer` (folder).
    """
    tokenizer = load_tokenizer(inputs["tokenizer"])
    special = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    model = new_small_llama(
        config["size"], vocab_size=len(tokenizer), special=special, context=config["context"], seed=log.seed
    )
    save_model(model, tokenizer, out)


def adopt(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Declares a given model to be the SFT: small ones are copied, large ones linked, and their digest is taken.

    With `quantize` in the config it is written anew, its linear layers rounded to what 4 bits can hold.
    """
    target, placement = out / "checkpoints" / "sft", Placement(dtype=log.resources.dtype)
    trust, facts = config["trust_remote_code"], {}
    if config.get("quantize") is None:
        copy_model(inputs["model"], target)
        policy = load_policy(target, placement, trust_remote_code=trust)
    else:
        policy = load_policy(inputs["model"], placement, trust_remote_code=trust)
        facts["quantized"] = snap(policy, placement.torch_dtype)
        save_model(policy, load_tokenizer(inputs["model"], trust_remote_code=trust), target)
    digest = trunk_digest(policy)
    only = Checkpoint(name="sft", path="checkpoints/sft", step=0, tensors=digest)
    write_policy_set(out, [only], facts={"sft_tensors": digest, "adopted": True} | facts)


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains the SFT policy by maximum likelihood of responses.

    Args:
        config: The config's `sft` block, with `stop_ids`, `max_length` and `trust_remote_code`, and `quantize` where
            adapters will be trained on it in 4 bits.
        inputs: `model` (folder with tokenizer) and `corpus` (corpus.jsonl) or `pairs` (packed).
        out: Receives a policy set of one checkpoint.
        log: Seed, resources, metrics, cost.
    """
    from workbench.trl_adapter import TrainSpec, train_sft, training_order

    # ---- 1. Load.
    placement = Placement.of(log.resources)
    tokenizer = load_tokenizer(inputs["model"], trust_remote_code=config["trust_remote_code"])
    model = load_policy(inputs["model"], placement, trust_remote_code=config["trust_remote_code"], trainable=True)
    start = trunk_digest(model)
    if config.get("quantize") is not None:
        packable_layers(model)  # refuses a model that cannot be rounded before it is trained

    # ---- 2. Rows: prompt and response ids; over-length ones are counted, never cut.
    rows = _corpus_rows(config, inputs, tokenizer) if "corpus" in inputs else _chosen_rows(inputs)
    kept = [row for row in rows if len(row["prompt_ids"]) + len(row["response_ids"]) <= config["max_length"]]
    if len(kept) < len(rows):
        log.say(f"sft: {len(rows) - len(kept)} of {len(rows)} rows are over {config['max_length']} tokens and left out")

    if not kept:
        raise DataError(
            f"none of the {len(rows)} rows for supervised fine-tuning fits into {config['max_length']} tokens; raise "
            "model.max_length or shorten the data"
        )

    # ---- 3. Train.
    spec = TrainSpec.from_config(config, log.seed)
    examples = config["steps"] * config["batch_size"]
    order = training_order(len(kept), examples / len(kept), log.seed)[:examples]
    train_sft(model, tokenizer, kept, order, spec, log)
    if not processes.is_main():
        return
    tokens = sum(len(kept[i]["prompt_ids"]) + len(kept[i]["response_ids"]) for i in order)
    log.cost(tokens_trained=tokens, flops=6.0 * parameter_count(model) * tokens)

    # ---- 4. Write, the linear layers rounded where adapters will be trained on packed ones.
    quantized = {}
    if config.get("quantize") is not None:
        quantized["quantized"] = snap(model, placement.torch_dtype)
    save_model(model, tokenizer, out / "checkpoints" / "last")
    done = Checkpoint(name="last", path="checkpoints/last", step=config["steps"], tensors=trunk_digest(model))
    facts = {"sft_tensors": done.tensors, "started_from": start, "rows": len(kept), "adopted": False}
    write_policy_set(out, [done], facts=facts | quantized)
    shutil.rmtree(log.scratch / "trainer", ignore_errors=True)


def _corpus_rows(config: dict[str, Any], inputs: dict[str, Path], tokenizer: Any) -> list[dict[str, list[int]]]:
    lines = (inputs["corpus"] / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [(one["prompt"], one["response"]) for one in map(json.loads, lines)]
    prompts = encode_texts(tokenizer, [prompt for prompt, _ in texts])
    whole = encode_texts(tokenizer, [prompt + response for prompt, response in texts])
    rows = []
    for (_, response), before, joint in zip(texts, prompts, whole, strict=True):
        alone = partial(encode_text, tokenizer, response)
        after = continuation(before, joint, alone, config["stop_ids"], finished=True)
        rows.append({"prompt_ids": prompt_ids(tokenizer, before), "response_ids": after.ids})
    return rows


def _chosen_rows(inputs: dict[str, Path]) -> list[dict[str, list[int]]]:
    pairs = PackedPairs(inputs["pairs"])
    rows = []
    for index in pairs.split_rows("train"):
        prompt, chosen, _ = pairs.row(index)
        rows.append({"prompt_ids": prompt.tolist(), "response_ids": chosen.tolist()})
    return rows
