"""The explicit reward model: the SFT's trunk with a scalar head at the last token, trained by Bradley-Terry."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench import processes
from workbench.data.subset import subset_rows
from workbench.errors import DataError, DivergenceError
from workbench.label_targets import read_targets
from workbench.lora import REWARD, Lora, add_adapter, base_digest, float32_head, operations_per_token, parametrization
from workbench.lora_files import load_base, save_adapter, save_merged
from workbench.model_files import check_trained_head, context_of_folder, copy_model
from workbench.models import Placement, load_policy, load_reward_model, new_reward_model, trunk_digest
from workbench.numerics import numerics
from workbench.packed import write_packed_pairs
from workbench.policy_set import Checkpoint, read_policy_set, write_policy_set
from workbench.quantized import snap
from workbench.reader import Reader, check_reading, copy_reader, write_reader
from workbench.sampling import Decoding, sample
from workbench.scoring import reward_scores
from workbench.stage_log import StageLog
from workbench.staged import RereadPairs, StagedPairs
from workbench.tokens import PackedPairs, load_tokenizer, read_packed_prompts, vocabulary_digest

MAX_TIE_RATE = 0.05


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains one reward model and measures the constant that centers it.

    Args:
        config: A `reward_models.*` block, with `max_response_tokens`, `stop_ids` and `trust_remote_code`, and `lora`
            where an adapter and the head are trained instead of all weights, `pairs` and `pairs_seed` where it sees a
            subset of them, `template` and `max_length` with a `base`.
        inputs: `sft` (policy set), `pairs` (packed), `prompts` (packed); `base` (folder) where it starts from another
            model than the SFT, which may have a tokenizer of its own.
        out: Receives a policy set of one checkpoint, a whole model, with adapter and head apart in its `adapter/`;
            `facts.center` is the mean raw score on SFT samples.
        log: Seed, resources, metrics, cost.

    Raises:
        DataError: A `base` cannot read what the policy writes: text is lost, tokens are unknown, its context is too
            short.
        DivergenceError: It scores everything alike; PPO on it would learn noise.
    """
    from workbench.trl_adapter import TrainSpec, train_reward, training_order

    # ---- 1. Load: trunk of the SFT, head drawn from N(0, 1/sqrt(d + 1)).
    placement = Placement.of(log.resources)
    trust = config["trust_remote_code"]
    sft, pairs = read_policy_set(inputs["sft"]), PackedPairs(inputs["pairs"])
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    pad_id, last = int(tokenizer.pad_token_id), out / "checkpoints" / "last"
    trunk = inputs.get("base", sft.folder())
    own = load_tokenizer(trunk, trust_remote_code=trust) if "base" in inputs else tokenizer
    reader, reading = None, {}
    if "base" in inputs:
        if reads_otherwise(own, tokenizer, config):
            reader = make_reader(log.scratch / "reader", trunk, own, tokenizer, config)
            reading = check_reading(reader, written_rows(pairs, pairs.split_rows("train")))
        check_room(context_of_folder(trunk), reading.get("growth", 1.0), config["max_length"], trunk)
    own_pad = int(own.pad_token_id if own.pad_token_id is not None else own.eos_token_id or 0)  # only fills
    lora = Lora.from_config(config.get("lora"))

    rounded: dict[str, Any] = {}

    def load(place: Placement) -> Any:
        told = {"pad_id": own_pad, "trust_remote_code": trust, "trainable": lora is None}
        made = new_reward_model(trunk, place, log.seed, **told)
        if "base" in inputs and lora is not None and lora.quantize is not None:  # the SFT is rounded already
            rounded["quantized"] = snap(made, place.torch_dtype)
        return made

    model = load_base(load, placement, lora)
    if lora is not None:
        add_adapter(model, lora, REWARD, log.seed)
        float32_head(model.score)
    start = base_digest(model)

    # ---- 2. Train on the pairs that every arm shares, or on the declared subset of them.
    train = pairs.split_rows("train")
    if config.get("pairs") is not None:
        train = subset_rows(pairs, config["pairs"], config["pairs_seed"])
    order = [train[i] for i in training_order(len(train), config["epochs"], log.seed)]
    staged = StagedPairs(pairs, placement.device, values=read_targets(pairs.folder, len(pairs)))
    if reader is not None:
        staged = reread(staged, pairs, reader, log.scratch / "pairs", placement.device)
    trained = train_reward(model, own, staged, order, TrainSpec.from_config(config, log.seed), log)
    if not processes.is_main():
        return
    tokens = staged.tokens(order)
    log.cost(tokens_trained=tokens, flops=operations_per_token(model) * tokens)
    save_merged(model, own, last)
    if reader is not None:
        copy_reader(log.scratch / "reader", last)
    if lora is not None:  # what is measured from here on is the merged model, which everybody else will load
        save_adapter(model, REWARD, last / "adapter", head=model.score)
    if lora is not None or reader is not None:
        del model  # before the merged one is read
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
    facts: dict[str, Any] = {
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
    if "base" in inputs:
        told = {"template": config["template"], "own_tokenizer": reader is not None, **reading}
        facts |= {"base": True, "reading": told} | rounded
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
    placement = Placement.of(log.resources)
    trust, sft = config["trust_remote_code"], read_policy_set(inputs["sft"])
    folder = out / "checkpoints" / "last"
    copy_model(inputs["reward_model"], folder)
    check_trained_head(folder)
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    own = load_tokenizer(folder, trust_remote_code=trust)
    another, context = reads_otherwise(own, tokenizer, config), context_of_folder(folder)
    if another:
        write_reader(folder, tokenizer, config["stop_ids"], config["template"], context)
    model = load_reward_model(folder, placement, trust_remote_code=trust)

    # ---- 2. Whether it can read these texts, and says something about them.
    pairs = PackedPairs(inputs["pairs"])
    rows = [pairs.as_lists(index) for index in (pairs.split_rows("validation") or pairs.split_rows("train"))[:512]]
    prompts, chosen, rejected = ([row[f"{name}_ids"] for row in rows] for name in ("prompt", "chosen", "rejected"))
    written = [*zip(prompts, chosen, strict=True), *zip(prompts, rejected, strict=True)]
    reading = check_reading(model.reader, written) if another else {}
    check_room(context, reading.get("growth", 1.0), config["max_length"], inputs["reward_model"])
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


def written_rows(pairs: PackedPairs, rows: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of both sides of the first 512 of these pairs."""
    found = [pairs.as_lists(row) for row in list(rows)[:512]]
    return [(row["prompt_ids"], row[f"{side}_ids"]) for row in found for side in ("chosen", "rejected")]


def reads_otherwise(own: Any, policy: Any, config: dict[str, Any]) -> bool:
    """Whether a model with this tokenizer must have the policy's texts tokenised anew."""
    return bool(config["template"] == "chat" or vocabulary_digest(own) != vocabulary_digest(policy))


def check_room(context: int | None, growth: float, max_length: int, folder: Path) -> None:
    """Refuses a model whose positions do not hold a prompt with its response, counted in its own tokens.

    Raises:
        DataError: `growth` of its tokens for one of the policy's are too many.
    """
    longest = math.ceil(growth * max_length)
    if context is not None and longest > context:
        raise DataError(
            f"the reward model reads {context} tokens, but prompt and response may have {longest} of its tokens; lower "
            "model.max_length, or take one with a longer context",
            where=str(folder),
        )


def make_reader(folder: Path, base: Path, own: Any, policy: Any, config: dict[str, Any]) -> Reader:
    """A reader before there is a model beside it: both tokenizers in a scratch folder; the same after a resume."""
    folder.mkdir(parents=True, exist_ok=True)
    own.save_pretrained(folder)
    write_reader(folder, policy, config["stop_ids"], config["template"], context_of_folder(base))
    return Reader(folder, trust_remote_code=config["trust_remote_code"])


def reread(staged: StagedPairs, pairs: PackedPairs, reader: Reader, folder: Path, device: str) -> RereadPairs:
    """The same pairs in the reader's ids; digests stay those of the ids that every arm shares."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [pairs.as_lists(index) for index in range(len(pairs))]
    ids = []
    for row in rows:
        prompt, chosen, done = reader.texts(row["prompt_ids"], row["chosen_ids"])
        _, rejected, ended = reader.texts(row["prompt_ids"], row["rejected_ids"])
        # What is prompt and what response does not matter to a score; a column must not be empty.
        first, second = reader.ids(prompt, chosen, done), reader.ids(prompt, rejected, ended)
        shared = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 1)
        at = max(1, min(shared, len(first) - 1, len(second) - 1))
        ids.append((first[:at], first[at:], second[at:]))
    write_packed_pairs(folder, ids, [pairs.meta(index) for index in range(len(pairs))])
    return RereadPairs(PackedPairs(folder), device, original=staged)


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
