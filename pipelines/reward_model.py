"""The explicit reward model: the SFT's trunk with a scalar head at the last token, trained by Bradley-Terry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.subset import subset_rows
from workbench.errors import DataError, DivergenceError
from workbench.evaluation import numerics
from workbench.label_targets import read_targets
from workbench.lora import REWARD, Lora, add_adapter, base_digest, float32_head, operations_per_token, parametrization
from workbench.lora_files import save_adapter, save_merged
from workbench.model_files import check_trained_head, context_of_folder, copy_model
from workbench.models import Placement, cast_parameters, load_policy, load_reward_model, new_reward_model, trunk_digest
from workbench.policy_set import Checkpoint, read_policy_set, write_policy_set
from workbench.reader import POLICY_FOLDER, READER_FILE, check_reading
from workbench.sampling import Decoding, sample
from workbench.scoring import reward_scores
from workbench.stage_log import StageLog
from workbench.staged import StagedPairs
from workbench.tokens import PackedPairs, load_tokenizer, read_packed_prompts, vocabulary_digest

MAX_TIE_RATE = 0.05


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains one reward model and measures the constant that centers it.

    Args:
        config: A `reward_models.*` block, with `max_response_tokens`, `stop_ids` and `trust_remote_code`, and `lora`
            where an adapter and the head are trained instead of all weights, `pairs` and `pairs_seed` where it sees a
            subset of them.
        inputs: `sft` (policy set), `pairs` (packed), `prompts` (packed).
        out: Receives a policy set of one checkpoint, a whole model, with adapter and head apart in its `adapter/`;
            `facts.center` is the mean raw score on SFT samples.
        log: Seed, resources, metrics, cost.

    Raises:
        DivergenceError: It scores everything alike; PPO on it would learn noise.
    """
    from workbench.trl_adapter import TrainSpec, train_reward, training_order

    # ---- 1. Load: trunk of the SFT, head drawn from N(0, 1/sqrt(d + 1)).
    placement = Placement(device=log.resources.device, dtype=log.resources.dtype)
    trust = config["trust_remote_code"]
    sft = read_policy_set(inputs["sft"])
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    pad_id = int(tokenizer.pad_token_id)
    model = new_reward_model(sft.folder(), placement, log.seed, pad_id=pad_id, trust_remote_code=trust)
    lora = Lora.from_config(config.get("lora"))
    if lora is not None:
        cast_parameters(model.base_model, placement.torch_dtype)  # exact: they were read in this precision
        add_adapter(model, lora, REWARD, log.seed)
        float32_head(model.score)
    start = base_digest(model)

    # ---- 2. Train on the pairs that every arm shares, or on the declared subset of them.
    pairs = PackedPairs(inputs["pairs"])
    train = pairs.split_rows("train")
    if config.get("pairs") is not None:
        train = subset_rows(pairs, config["pairs"], config["pairs_seed"])
    order = [train[i] for i in training_order(len(train), config["epochs"], log.seed)]
    staged = StagedPairs(pairs, placement.device, values=read_targets(pairs.folder, len(pairs)))
    trained = train_reward(model, tokenizer, staged, order, TrainSpec.from_config(config, log.seed), log)
    tokens = staged.tokens(order)
    log.cost(tokens_trained=tokens, flops=operations_per_token(model) * tokens)
    last = out / "checkpoints" / "last"
    save_merged(model, tokenizer, last)
    if lora is not None:  # what is measured from here on is the merged model, which everybody else will load
        save_adapter(model, REWARD, last / "adapter", head=model.score)
        model = load_reward_model(last, placement, trust_remote_code=trust)
    model.eval()

    # ---- 3. Check that it says something at all, on held-out pairs.
    held_out = [pairs.as_lists(index) for index in (pairs.split_rows("validation") or train)[:512]]
    prompts = [row["prompt_ids"] for row in held_out]
    chosen = np.array(reward_scores(model, prompts, [row["chosen_ids"] for row in held_out], pad_id=pad_id))
    rejected = np.array(reward_scores(model, prompts, [row["rejected_ids"] for row in held_out], pad_id=pad_id))
    check_not_constant(np.concatenate([chosen, rejected]), float(np.mean(chosen == rejected)))
    log.metrics(
        trained.steps, {"validation_accuracy": float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))}
    )

    # ---- 4. Center: rewards are differences, so the SFT's own samples are put at 0.
    center, spread = sft_score(config, sft.folder(), model, inputs["prompts"], tokenizer, placement, log)

    kept = Checkpoint(name="last", path="checkpoints/last", step=trained.steps, tensors=trunk_digest(model))
    facts = {
        "sft_tensors": start,
        "consumed_pairs": trained.consumed,
        "consumed_labels": trained.consumed_labels,
        "pairs_filter": pairs.filter_digest(),
        "numerics": numerics(model),
        "center": center,
        "sft_score_sd": spread,
        "pad_id": pad_id,
        "parametrization": parametrization(lora),
    }
    write_policy_set(out, [kept], facts=facts)


def adopt(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Takes a reward model that was trained elsewhere: checks that it can read these texts, and centers it.

    Args:
        config: {"template": "text" | "chat", "center_samples", "max_response_tokens", "max_length", "stop_ids",
            "trust_remote_code"}.
        inputs: `reward_model` (its folder), `sft` (policy set), `pairs`, `prompts` (packed).
        out: Receives a policy set of one checkpoint as `run` does, with `facts.external`; small files are copied, large
            ones linked. Of another tokenizer it has a reader.json (`workbench.reader`).
        log: Seed of the SFT samples, resources, cost.

    Raises:
        IntegrityError: It has no trained head.
        DataError: It cannot read what the policy writes: text is lost, tokens are unknown, its context is too short.
        DivergenceError: It scores everything alike.
    """
    # ---- 1. Its files, and how it reads.
    placement = Placement(device=log.resources.device, dtype=log.resources.dtype)
    trust, sft = config["trust_remote_code"], read_policy_set(inputs["sft"])
    folder = out / "checkpoints" / "last"
    copy_model(inputs["reward_model"], folder)
    check_trained_head(folder)
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    own = load_tokenizer(folder, trust_remote_code=trust)
    another = config["template"] == "chat" or vocabulary_digest(own) != vocabulary_digest(tokenizer)
    context = context_of_folder(folder)
    if another:
        tokenizer.save_pretrained(folder / POLICY_FOLDER)
        told = {"policy": POLICY_FOLDER, "stop_ids": config["stop_ids"], "template": config["template"]}
        (folder / READER_FILE).write_text(json.dumps(told | {"context": context}))
    model = load_reward_model(folder, placement, trust_remote_code=trust)

    # ---- 2. Whether it can read these texts, and says something about them.
    pairs = PackedPairs(inputs["pairs"])
    rows = [pairs.as_lists(index) for index in (pairs.split_rows("validation") or pairs.split_rows("train"))[:512]]
    prompts, chosen, rejected = ([row[f"{name}_ids"] for row in rows] for name in ("prompt", "chosen", "rejected"))
    written = [*zip(prompts, chosen, strict=True), *zip(prompts, rejected, strict=True)]
    reading = check_reading(model.reader, written) if another else {}
    longest = math.ceil(reading["growth"] * config["max_length"]) if another else config["max_length"]
    if context is not None and longest > context:
        raise DataError(
            f"the reward model reads {context} tokens, but prompt and response may have {longest} of its tokens; lower "
            "model.max_length, or take one with a longer context",
            where=str(inputs["reward_model"]),
        )
    pad_id = int(tokenizer.pad_token_id)
    better, worse = (np.array(reward_scores(model, prompts, side, pad_id=pad_id)) for side in (chosen, rejected))
    check_not_constant(np.concatenate([better, worse]), float(np.mean(better == worse)))
    log.metrics(0, {"validation_accuracy": float(np.mean((better > worse) + 0.5 * (better == worse)))})

    # ---- 3. Center it on the SFT's own samples, and write.
    center, spread = sft_score(config, sft.folder(), model, inputs["prompts"], tokenizer, placement, log)
    digest = trunk_digest(model)
    facts = {
        "sft_tensors": digest,
        "external": True,
        "consumed_pairs": None,
        "consumed_labels": None,
        "pairs_filter": pairs.filter_digest(),
        "numerics": numerics(model),
        "center": center,
        "sft_score_sd": spread,
        "pad_id": pad_id,
        "parametrization": "external",
        "reading": {"template": config["template"], "own_tokenizer": another, **reading},
    }
    kept = Checkpoint(name="last", path="checkpoints/last", step=0, tensors=digest)
    write_policy_set(out, [kept], facts=facts)


def sft_score(
    config: dict[str, Any], sft: Path, model: Any, prompts: Path, tokenizer: Any, placement: Placement, log: StageLog
) -> tuple[float, float]:
    """Mean and standard deviation of the raw score over `center_samples` SFT samples on training prompts."""
    ids = [row["ids"] for row in read_packed_prompts(prompts) if row["split"] == "train"]
    picked = np.random.default_rng([log.seed, 5]).integers(len(ids), size=config["center_samples"])
    rows = [ids[index] for index in picked]
    pad_id = int(tokenizer.pad_token_id)
    decoding = Decoding(max_response_tokens=config["max_response_tokens"], stop_ids=tuple(config["stop_ids"]))
    policy = load_policy(sft, placement, trust_remote_code=config["trust_remote_code"])
    drawn = [one.ids for one in sample(policy, rows, decoding, pad_id=pad_id, seed=log.seed + 11)]
    scores = np.array(reward_scores(model, rows, drawn, pad_id=pad_id))
    log.cost(tokens_generated=sum(map(len, drawn)), reward_queries=len(drawn))
    return float(scores.mean()), float(scores.std())


def check_not_constant(scores: np.ndarray[Any, Any], tie_rate: float) -> None:
    """Refuses a reward model without a spread.

    Raises:
        DivergenceError: Standard deviation about 0, or more than 5% of held-out pairs tied.
    """
    spread = float(scores.std())
    if not np.isfinite(scores).all() or spread < 1e-6 or tie_rate > MAX_TIE_RATE:
        raise DivergenceError(
            f"the reward model is constant or not finite: standard deviation {spread:.2e} and {tie_rate:.0%} ties on "
            f"held-out pairs, expected a spread and at most {MAX_TIE_RATE:.0%} ties; lower its learning rate, look at "
            "the pairs"
        )
