"""Stages that look at policies and change none: generations, scores, reference log-probabilities, trajectories.

One code path for all arms. Every stage writes what it loaded and consumed to facts.json (or into its arrays), digests
recomputed from the tensors and ids themselves: the match certificate compares these, not the config.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.data.records_io import read_jsonl, write_jsonl
from workbench.digests import prompt_set_digest
from workbench.errors import DivergenceError, StageInterrupted
from workbench.keys import module_hashes
from workbench.models import Placement, load_policy, load_reward_model, parameter_count, trunk_digest
from workbench.policy_set import read_policy_set, read_selected
from workbench.sampling import Decoding, sample
from workbench.sampling_server import Request, ServerSampler
from workbench.scoring import KL_ESTIMATOR, reward_scores, sequence_logprobs
from workbench.stage_log import StageLog
from workbench.tokens import PackedPairs, decode_response, load_tokenizer, read_packed_prompts, tokenizer_digest


def reference_logprobs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Sequence log-probabilities of chosen and rejected under the SFT, once for every arm, seed and trial.

    Args:
        config: {"batch_size", "trust_remote_code"}.
        inputs: `sft` (policy set), `pairs` (packed).
        out: Receives logprobs.npz: chosen (N,), rejected (N,) float64 nats at temperature 1, and two digests.
    """
    placement = _placement(log)
    sft = read_policy_set(inputs["sft"])
    model = load_policy(sft.folder(), placement, trust_remote_code=config["trust_remote_code"])
    pad_id = int(load_tokenizer(sft.folder(), trust_remote_code=config["trust_remote_code"]).pad_token_id)
    pairs = PackedPairs(inputs["pairs"])
    rows = [pairs.as_lists(index) for index in range(len(pairs))]
    columns = {}
    for number, side in enumerate(("chosen", "rejected")):
        columns[side] = np.array(
            sequence_logprobs(
                model,
                [row["prompt_ids"] for row in rows],
                [row[f"{side}_ids"] for row in rows],
                pad_id=pad_id,
                batch_size=config["batch_size"],
                on_batch=_progress(log, 2 * len(rows), number * len(rows)),
            )
        )
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    log.cost(flops=2.0 * parameter_count(model) * tokens)
    np.savez(
        out / "logprobs.npz",
        chosen=columns["chosen"],
        rejected=columns["rejected"],
        pairs_digest=pairs.ids_digest(),
        reference_tensors=trunk_digest(model),
    )


def generate(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Samples responses of one policy on one prompt set and measures their log-probabilities under it and the SFT.

    Args:
        config: {"split" (or several), "prompts": most prompts to take or None, "samples_per_prompt" or "pairs"
            {split: pairs to make}, "temperature", "top_p", "max_response_tokens", "stop_ids", "batch_size",
            "trust_remote_code"}; perhaps "cache", or "server" with "connection" (`workbench.sampling_server`).
        inputs: `prompts` (packed), `sft` (policy set), and `policy` (policy set) with `selected`, or neither for the
            SFT itself.
        out: Receives generations.jsonl and facts.json.
    """
    placement, trust = _placement(log), config["trust_remote_code"]
    sft = read_policy_set(inputs["sft"])
    own = "policy" in inputs
    chosen = read_policy_set(inputs["policy"]).folder(read_selected(inputs["selected"])) if own else sft.folder()
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    pad_id = int(tokenizer.pad_token_id)
    prompts = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] in _splits(config["split"])]
    prompts = prompts[: config["prompts"]]
    samples = _samples_per_prompt(config, prompts)
    rows = [row for row in prompts for _ in range(samples[row["split"]])]
    numbers = [number for row in prompts for number in range(samples[row["split"]])]
    ids = [row["ids"] for row in rows]
    steps = len(rows) * (3 if own else 2)

    log.rewind(-1)
    server, halved = None, list[str]()
    if "server" in config:  # it needs the device's memory: it has stopped before our own models are loaded
        server = ServerSampler(config["server"], config["connection"], _decoding(config), tokenizer, log)
        requests = [Request(prompt=row["prompt"], ids=row["ids"]) for row in rows]
        drawn = server.sample(chosen, requests, seed=log.seed, on_batch=_progress(log, steps))
    reference = load_policy(sft.folder(), placement, trust_remote_code=trust)
    policy = load_policy(chosen, placement, trust_remote_code=trust) if own else reference
    if server is not None:
        sampling, agreement = server.took, server.check(policy, reference if own else None, ids, drawn)
    else:
        wall_s, cpu_s = time.monotonic(), time.process_time()
        drawn = sample(
            policy, ids, _decoding(config), pad_id=pad_id, seed=log.seed, batch_size=config["batch_size"],
            on_batch=_progress(log, steps), cache=config.get("cache", "dynamic"), say=partial(_say, log, halved),
        )  # fmt: skip
        # Sampling alone is what an answer costs; the stage's own cost has the passes for log-probabilities in it too.
        sampling = {"sampling_wall_s": time.monotonic() - wall_s, "sampling_cpu_s": time.process_time() - cpu_s}
    responses = [one.ids for one in drawn]
    under_policy = sequence_logprobs(
        policy,
        ids,
        responses,
        pad_id=pad_id,
        batch_size=config["batch_size"],
        on_batch=_progress(log, steps, len(rows)),
    )
    under_sft = under_policy
    if own:
        under_sft = sequence_logprobs(
            reference, ids, responses, pad_id=pad_id, batch_size=config["batch_size"],
            on_batch=_progress(log, steps, 2 * len(rows)),
        )  # fmt: skip
    digest = trunk_digest(policy)
    texts = _texts(tokenizer, ids, responses, config)
    write_jsonl(
        out / "generations.jsonl",
        (
            {
                "generation_id": f"{row['prompt_id']}/{number}",
                "prompt_id": row["prompt_id"],
                "policy": digest,
                "sample_index": number,
                "response": text,
                "response_ids": one.ids,
                "finish_reason": one.finish_reason,
                "seq_logprob": logprob,
                "ref_seq_logprob": ref_logprob,
            }
            for row, number, text, one, logprob, ref_logprob in zip(
                rows, numbers, texts, drawn, under_policy, under_sft, strict=True
            )
        ),
    )
    generated = sum(map(len, responses))
    one_pass = 2.0 * parameter_count(policy) * (generated + sum(map(len, ids)))
    log.cost(tokens_generated=generated, flops=one_pass * (3 if own else 2))
    log.metrics(0, sampling | {"sampling_flops": one_pass})
    scoring_code = module_hashes("workbench.scoring:sequence_logprobs")["workbench.scoring"]
    facts = {
        "policy_tensors": digest,
        "reference_tensors": trunk_digest(reference),
        "prompts": _digest([[row["prompt_id"], row["ids"]] for row in prompts]),
        "tokenizer": tokenizer_digest(sft.folder(), trust_remote_code=trust),
        "policy_tokenizer": tokenizer_digest(chosen, trust_remote_code=trust),
        "decoding": {name: config[name] for name in ("temperature", "top_p", "max_response_tokens", "stop_ids")}
        | ({"sampler": server.name} if server is not None else {}),
        "samples_per_prompt": samples,
        "kl_estimator": f"{KL_ESTIMATOR}; code {scoring_code[:12]}",
        "template": _digest(load_tokenizer(chosen, trust_remote_code=trust).chat_template),
        "splits": _split_digests(inputs["prompts"]),
        "numerics": numerics(policy),
        "parameters": parameter_count(policy),
    }
    if server is not None:
        facts["served"] = agreement
    if halved:
        facts["halved"] = halved
    _write(out / "facts.json", facts)


def score(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Scores generations: by the explicit reward models, by gold, by DPO's implicit reward — whatever is given.

    Args:
        config: {"gold": the gold's config or None, "implicit": {column: beta}, "batch_size", "trust_remote_code"}.
        inputs: `generations`, `prompts` (packed); `reward:NAME` (policy sets of reward models);
            `policy:COLUMN` and `selected:COLUMN` for each implicit column.
        out: Receives scores.json, columns in the order of the generations: "generation_id", "proxy/NAME" (centered),
            "gold", COLUMN; and facts.json with what each scorer is made of.
    """
    from workbench.gold import stage_gold

    placement, trust = _placement(log), config["trust_remote_code"]
    generations = list(read_jsonl(inputs["generations"] / "generations.jsonl"))
    by_id = {row["prompt_id"]: row for row in read_packed_prompts(inputs["prompts"])}
    prompts = [by_id[one["prompt_id"]]["ids"] for one in generations]
    responses = [one["response_ids"] for one in generations]
    rewards = sorted(role for role in inputs if role.startswith("reward:"))
    steps = len(generations) * (len(rewards) + len(config["implicit"]))
    columns: dict[str, list[Any]] = {"generation_id": [one["generation_id"] for one in generations]}
    scorers: dict[str, Any] = {}
    tokens = sum(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    done = 0
    for role in rewards:
        source = read_policy_set(inputs[role])
        model = load_reward_model(source.folder(), placement, trust_remote_code=trust)
        raw = reward_scores(
            model, prompts, responses, pad_id=source.facts["pad_id"], batch_size=config["batch_size"],
            on_batch=_progress(log, steps, done),
        )  # fmt: skip
        column = f"proxy/{role.removeprefix('reward:')}"
        columns[column] = [value - source.facts["center"] for value in raw]
        scorers[column] = dict(source.facts) | {"tensors": trunk_digest(model)}
        log.cost(reward_queries=len(generations), flops=2.0 * parameter_count(model) * tokens)
        done += len(generations)
    for column, beta in config["implicit"].items():
        source = read_policy_set(inputs[f"policy:{column}"])
        policy = load_policy(
            source.folder(read_selected(inputs[f"selected:{column}"])), placement, trust_remote_code=trust
        )
        pad_id = int(load_tokenizer(source.folder(), trust_remote_code=trust).pad_token_id)
        under_policy = sequence_logprobs(
            policy, prompts, responses, pad_id=pad_id, batch_size=config["batch_size"],
            on_batch=_progress(log, steps, done),
        )  # fmt: skip
        references = [one["ref_seq_logprob"] for one in generations]
        columns[column] = [beta * (a - b) for a, b in zip(under_policy, references, strict=True)]
        scorers[column] = dict(source.facts) | {"tensors": trunk_digest(policy)}
        log.cost(reward_queries=len(generations), flops=2.0 * parameter_count(policy) * tokens)
        done += len(generations)
    gold = stage_gold(config, inputs)
    if gold is not None:
        finished = [one["finish_reason"] == "stop" for one in generations]
        texts = [by_id[one["prompt_id"]]["prompt"] for one in generations]
        columns["gold"] = gold(texts, [one["response"] for one in generations], finished)
        scorers["gold"] = config["gold"]
    check_finite(columns)
    _write(out / "scores.json", columns)
    _write(
        out / "facts.json", {"scorers": scorers, "prompts": _digest(sorted({one["prompt_id"] for one in generations}))}
    )


def score_pairs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Margins of the explicit and the implicit reward on held-out pairs.

    Args:
        config: {"splits": [...], "implicit": {column: beta}, "batch_size", "trust_remote_code"}.
        inputs: `pairs` (packed), `reference_logprobs`, `reward:NAME`, `policy:COLUMN`, `selected:COLUMN`.
        out: Receives margins.json: columns "pair_id", "prompt_id", "split", "proxy/NAME", COLUMN; chosen minus
            rejected.
    """
    placement, trust = _placement(log), config["trust_remote_code"]
    pairs = PackedPairs(inputs["pairs"])
    index = [row for split in config["splits"] for row in pairs.split_rows(split)]
    rows = [pairs.as_lists(row) for row in index]
    prompts = [row["prompt_ids"] for row in rows]
    sides = {side: [row[f"{side}_ids"] for row in rows] for side in ("chosen", "rejected")}
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    meta = [pairs.meta(row) for row in index]
    columns: dict[str, list[Any]] = {name: [one[name] for one in meta] for name in ("pair_id", "prompt_id", "split")}
    for role in sorted(role for role in inputs if role.startswith("reward:")):
        source = read_policy_set(inputs[role])
        model = load_reward_model(source.folder(), placement, trust_remote_code=trust)
        values = {
            side: reward_scores(model, prompts, ids, pad_id=source.facts["pad_id"], batch_size=config["batch_size"])
            for side, ids in sides.items()
        }
        margins = np.array(values["chosen"]) - np.array(values["rejected"])
        columns[f"proxy/{role.removeprefix('reward:')}"] = margins.tolist()
        log.cost(reward_queries=2 * len(rows), flops=2.0 * parameter_count(model) * tokens)
    reference = np.load(inputs["reference_logprobs"] / "logprobs.npz")
    for column, beta in config["implicit"].items():
        source = read_policy_set(inputs[f"policy:{column}"])
        folder = source.folder(read_selected(inputs[f"selected:{column}"]))
        policy = load_policy(folder, placement, trust_remote_code=trust)
        pad_id = int(load_tokenizer(folder, trust_remote_code=trust).pad_token_id)
        margins = np.zeros(len(rows))
        for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
            under = sequence_logprobs(policy, prompts, sides[side], pad_id=pad_id, batch_size=config["batch_size"])
            margins += sign * beta * (np.array(under) - reference[side][index])
        columns[column] = margins.tolist()
        log.cost(reward_queries=2 * len(rows), flops=2.0 * parameter_count(policy) * tokens)
    check_finite(columns)
    _write(out / "margins.json", columns)


def trajectory(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Follows a policy over its checkpoints on validation prompts: proxy, gold, KL, length, at each.

    Args:
        config: As `generate`, with "gold" and "reward": the reward model's name.
        inputs: `prompts` (packed), `sft`, `policy` (policy sets), `reward_model`.
        out: Receives trajectory.json: {"prompt_id": [...], "points": [{"name", "step", "seq_kl": [...], "proxy": [...],
            "gold": [...] | null, "response_tokens": [...], "finished": [...]}]}, one entry per prompt and sample. The
            first point is the SFT at step 0.
    """
    from workbench.gold import stage_gold

    placement, trust = _placement(log), config["trust_remote_code"]
    sft, policies = read_policy_set(inputs["sft"]), read_policy_set(inputs["policy"])
    reward = read_policy_set(inputs["reward_model"])
    reference = load_policy(sft.folder(), placement, trust_remote_code=trust)
    reward_model = load_reward_model(reward.folder(), placement, trust_remote_code=trust)
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    pad_id = int(tokenizer.pad_token_id)
    gold = stage_gold(config, inputs)
    rows = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] in _splits(config["split"])]
    rows = [row for row in rows[: config["prompts"]] for _ in range(config["samples_per_prompt"])]
    ids = [row["ids"] for row in rows]
    options = {"pad_id": pad_id, "batch_size": config["batch_size"]}

    points = []
    stops = [("sft", 0, sft.folder())] + [
        (one.name, one.step, policies.folder(one.name)) for one in policies.checkpoints
    ]
    for number, (name, step, folder) in enumerate(stops):
        if log.stop_requested():
            raise StageInterrupted
        policy = load_policy(folder, placement, trust_remote_code=trust)
        drawn = sample(
            policy, ids, _decoding(config), seed=log.seed, cache=config.get("cache", "dynamic"), say=log.say, **options
        )
        responses = [one.ids for one in drawn]
        logprobs = np.array(sequence_logprobs(policy, ids, responses, **options))
        ref_logprobs = np.array(sequence_logprobs(reference, ids, responses, **options))
        proxy = np.array(reward_scores(reward_model, ids, responses, **options)) - reward.facts["center"]
        finished = [one.finish_reason == "stop" for one in drawn]
        texts = _texts(tokenizer, ids, responses, config)
        generated = sum(map(len, responses))
        # One pass to sample, two for the log-probabilities, one for the reward.
        flops = 2.0 * parameter_count(policy) * 4 * (generated + sum(map(len, ids)))
        log.cost(tokens_generated=generated, reward_queries=len(drawn), flops=flops)
        points.append(
            {
                "name": name,
                "step": step,
                "seq_kl": (logprobs - ref_logprobs).tolist(),
                "proxy": proxy.tolist(),
                "gold": gold([row["prompt"] for row in rows], texts, finished) if gold is not None else None,
                "response_tokens": [len(one) for one in responses],
                "finished": finished,
            }
        )
        log.progress(number + 1, len(stops))
    _write(out / "trajectory.json", {"prompt_id": [row["prompt_id"] for row in rows], "points": points})


def select(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Chooses the checkpoint that is compared, by the one rule that all arms share.

    Args:
        config: {"rule": "last" | "best", "metric": "proxy_reward" | "gold_reward"}; best is by the validation mean.
        inputs: `policy` (policy set) and, for best, `trajectory`.
        out: Receives selected.json.
    """
    index = json.loads((inputs["policy"] / "index.json").read_text())
    chosen = {"checkpoint": index["last"], "rule": config["rule"], "metric": None, "value": None}
    if config["rule"] == "best":
        column = {"proxy_reward": "proxy", "gold_reward": "gold"}[config["metric"]]
        points = json.loads((inputs["trajectory"] / "trajectory.json").read_text())["points"][
            1:
        ]  # the SFT is no candidate
        best = max(points, key=lambda point: (float(np.mean(point[column])), -point["step"]))
        chosen |= {"checkpoint": best["name"], "metric": config["metric"], "value": float(np.mean(best[column]))}
    _write(out / "selected.json", chosen)


# ------------------------------------------------------------------------------------------------ pieces


def _say(log: StageLog, kept: list[str], line: str) -> None:
    kept.append(line)
    log.say(line)


def _placement(log: StageLog) -> Placement:
    return Placement(device=log.resources.device, dtype=log.resources.dtype)


def numerics(model: Any) -> dict[str, Any]:
    """What the last bits depend on, read off the model and the process, for the certificate."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"dtype": dtype, "device": model.device.type, "threads": torch.get_num_threads()}


def _split_digests(prompts: Path) -> dict[str, str]:
    splits: dict[str, list[str]] = {}
    for row in read_packed_prompts(prompts):
        splits.setdefault(row["split"], []).append(row["prompt_id"])
    return {split: prompt_set_digest(ids) for split, ids in splits.items()}


def _decoding(config: Mapping[str, Any]) -> Decoding:
    return Decoding(
        temperature=config["temperature"],
        top_p=config["top_p"],
        max_response_tokens=config["max_response_tokens"],
        stop_ids=tuple(config["stop_ids"]),
    )


def check_finite(columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuses scores that are no numbers before they reach a mean.

    Raises:
        DivergenceError: Names the scorer and the first response.
    """
    for column, values in columns.items():
        wrong = [row for row, value in enumerate(values) if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            raise DivergenceError(
                f"{column} scores {len(wrong)} of {len(values)} responses with numbers that are not finite, first row "
                f"{wrong[0]}; its weights have diverged: lower its learning rate"
            )


def _samples_per_prompt(config: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples of each prompt by split: as configured, or two for each pair that is to be made of the split."""
    splits = Counter(row["split"] for row in prompts)
    if "pairs" not in config:
        return dict.fromkeys(splits, config["samples_per_prompt"])
    return {split: 2 * math.ceil(config["pairs"][split] / count) for split, count in splits.items()}


def _splits(split: str | Sequence[str]) -> tuple[str, ...]:
    return (split,) if isinstance(split, str) else tuple(split)


def _texts(
    tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], config: Mapping[str, Any]
) -> list[str]:
    return [
        decode_response(tokenizer, prompt, response, config["stop_ids"])
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _progress(log: StageLog, total: int, before: int = 0) -> Callable[[int], None]:
    def on_batch(done: int) -> None:
        log.progress(before + done, total)
        if log.stop_requested():
            raise StageInterrupted

    return on_batch


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=None, sort_keys=True, allow_nan=False), encoding="utf-8")
