"""Stages that sample from policies: responses on a set of prompts, and a policy followed over its checkpoints.

One code path for all arms. What was loaded and consumed is written to facts.json, digests recomputed from the tensors
and ids themselves: the match certificate compares these, not the config.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.records_io import write_jsonl
from workbench.digests import prompt_set_digest
from workbench.errors import StageInterrupted
from workbench.keys import module_hashes
from workbench.models import Placement, load_policy, load_reward_model, parameter_count, trunk_digest
from workbench.numerics import numerics
from workbench.policy_set import read_policy_set, read_selected
from workbench.sampling import Sample, sample
from workbench.sampling_server import Request, ServerSampler
from workbench.scoring import KL_ESTIMATOR, reward_scores, sequence_logprobs
from workbench.stage_log import StageLog
from workbench.stage_parts import decoding_of, digest_of, progress_of, splits_of, texts_of, write_sorted
from workbench.tokens import load_tokenizer, read_packed_prompts, tokenizer_digest


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
    trust, own = config["trust_remote_code"], "policy" in inputs
    sft = read_policy_set(inputs["sft"]).folder()
    chosen = read_policy_set(inputs["policy"]).folder(read_selected(inputs["selected"])) if own else sft
    tokenizer = load_tokenizer(sft, trust_remote_code=trust)
    prompts = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] in splits_of(config["split"])]
    prompts = prompts[: config["prompts"]]
    samples = _samples_per_prompt(config, prompts)
    rows = [row for row in prompts for _ in range(samples[row["split"]])]
    numbers = [number for row in prompts for number in range(samples[row["split"]])]
    ids, steps = [row["ids"] for row in rows], len(rows) * (3 if own else 2)

    log.rewind(-1)
    drawn = _draw(config, rows, sft, chosen if own else None, tokenizer, steps, log)
    responses = [one.ids for one in drawn.samples]
    options = {"pad_id": int(tokenizer.pad_token_id), "batch_size": config["batch_size"]}
    under_policy = sequence_logprobs(
        drawn.policy, ids, responses, on_batch=progress_of(log, steps, len(rows)), **options
    )
    under_sft = under_policy
    if own:
        on_batch = progress_of(log, steps, 2 * len(rows))
        under_sft = sequence_logprobs(drawn.reference, ids, responses, on_batch=on_batch, **options)
    policy_tensors = trunk_digest(drawn.policy)
    told = texts_of(tokenizer, ids, responses, config["stop_ids"])
    write_jsonl(
        out / "generations.jsonl",
        (
            {
                "generation_id": f"{row['prompt_id']}/{number}",
                "prompt_id": row["prompt_id"],
                "policy": policy_tensors,
                "sample_index": number,
                "response": text,
                "response_ids": one.ids,
                "finish_reason": one.finish_reason,
                "seq_logprob": logprob,
                "ref_seq_logprob": ref_logprob,
            }
            for row, number, text, one, logprob, ref_logprob in zip(
                rows, numbers, told, drawn.samples, under_policy, under_sft, strict=True
            )
        ),
    )
    generated = sum(map(len, responses))
    one_pass = 2.0 * parameter_count(drawn.policy) * (generated + sum(map(len, ids)))
    log.cost(tokens_generated=generated, flops=one_pass * (3 if own else 2))
    log.metrics(0, drawn.took | {"sampling_flops": one_pass})
    scoring_code = module_hashes("workbench.scoring:sequence_logprobs")["workbench.scoring"]
    facts = {
        "policy_tensors": policy_tensors,
        "reference_tensors": trunk_digest(drawn.reference),
        "prompts": digest_of([[row["prompt_id"], row["ids"]] for row in prompts]),
        "tokenizer": tokenizer_digest(sft, trust_remote_code=trust),
        "policy_tokenizer": tokenizer_digest(chosen, trust_remote_code=trust),
        "decoding": {name: config[name] for name in ("temperature", "top_p", "max_response_tokens", "stop_ids")}
        | drawn.sampler,
        "samples_per_prompt": samples,
        "kl_estimator": f"{KL_ESTIMATOR}; code {scoring_code[:12]}",
        "template": digest_of(load_tokenizer(chosen, trust_remote_code=trust).chat_template),
        "splits": _split_digests(inputs["prompts"]),
        "numerics": numerics(drawn.policy),
        "parameters": parameter_count(drawn.policy),
    }
    write_sorted(out / "facts.json", facts | drawn.facts)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Samples, who drew them, and what it took.

    Args:
        samples: In the order of the rows.
        policy, reference: Loaded; the same where the SFT itself was sampled.
        took: Seconds of the sampling alone.
        sampler: A server's name among the decoding's facts.
        facts: A server's agreement with the policy; batches that did not fit and were halved.
    """

    samples: list[Sample]
    policy: Any
    reference: Any
    took: dict[str, float]
    sampler: dict[str, Any]
    facts: dict[str, Any]


def _draw(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    sft: Path,
    policy: Path | None,
    tokenizer: Any,
    steps: int,
    log: StageLog,
) -> _Drawn:
    """Draws a response of the policy, or of the SFT itself, for every row, here or by a server; loads both."""
    ids, trust, placement = [row["ids"] for row in rows], config["trust_remote_code"], Placement.of(log.resources)
    server = None
    if "server" in config:  # it needs the device's memory: it has stopped before our own models are loaded
        server = ServerSampler(config["server"], config["connection"], decoding_of(config), tokenizer, log)
        requests = [Request(prompt=row["prompt"], ids=row["ids"]) for row in rows]
        drawn = server.sample(policy or sft, requests, seed=log.seed, on_batch=progress_of(log, steps))
    reference = load_policy(sft, placement, trust_remote_code=trust)
    sampled = load_policy(policy, placement, trust_remote_code=trust) if policy is not None else reference
    models = {"policy": sampled, "reference": reference}
    if server is not None:
        agreement = server.check(sampled, reference if policy is not None else None, ids, drawn)
        named = {"sampler": server.name}
        return _Drawn(samples=drawn, took=server.took, sampler=named, facts={"served": agreement}, **models)
    halved: list[str] = []
    wall_s, cpu_s = time.monotonic(), time.process_time()
    drawn = sample(
        sampled, ids, decoding_of(config), pad_id=int(tokenizer.pad_token_id), seed=log.seed,
        batch_size=config["batch_size"], on_batch=progress_of(log, steps), cache=config.get("cache", "dynamic"),
        say=partial(_say, log, halved),
    )  # fmt: skip
    # Sampling alone is what an answer costs; the stage's own cost has the passes for log-probabilities in it too.
    took = {"sampling_wall_s": time.monotonic() - wall_s, "sampling_cpu_s": time.process_time() - cpu_s}
    facts = {"halved": halved} if halved else {}
    return _Drawn(samples=drawn, took=took, sampler={}, facts=facts, **models)


def _say(log: StageLog, kept: list[str], line: str) -> None:
    kept.append(line)
    log.say(line)


def _split_digests(prompts: Path) -> dict[str, str]:
    splits: dict[str, list[str]] = {}
    for row in read_packed_prompts(prompts):
        splits.setdefault(row["split"], []).append(row["prompt_id"])
    return {split: prompt_set_digest(ids) for split, ids in splits.items()}


def _samples_per_prompt(config: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples of each prompt by split: as configured, or two for each pair that is to be made of the split."""
    splits = Counter(row["split"] for row in prompts)
    if "pairs" not in config:
        return dict.fromkeys(splits, config["samples_per_prompt"])
    return {split: 2 * math.ceil(config["pairs"][split] / count) for split, count in splits.items()}


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

    placement, trust = Placement.of(log.resources), config["trust_remote_code"]
    sft, policies = read_policy_set(inputs["sft"]), read_policy_set(inputs["policy"])
    reward = read_policy_set(inputs["reward_model"])
    reference = load_policy(sft.folder(), placement, trust_remote_code=trust)
    reward_model = load_reward_model(reward.folder(), placement, trust_remote_code=trust)
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    pad_id = int(tokenizer.pad_token_id)
    gold = stage_gold(config, inputs)
    rows = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] in splits_of(config["split"])]
    rows = [row for row in rows[: config["prompts"]] for _ in range(config["samples_per_prompt"])]
    ids = [row["ids"] for row in rows]
    options = {"pad_id": pad_id, "batch_size": config["batch_size"]}
    cache = config.get("cache", "dynamic")

    points = []
    stops = [("sft", 0, sft.folder())] + [
        (one.name, one.step, policies.folder(one.name)) for one in policies.checkpoints
    ]
    for number, (name, step, folder) in enumerate(stops):
        if log.stop_requested():
            raise StageInterrupted
        policy = load_policy(folder, placement, trust_remote_code=trust)
        drawn = sample(policy, ids, decoding_of(config), seed=log.seed, cache=cache, say=log.say, **options)
        responses = [one.ids for one in drawn]
        logprobs = np.array(sequence_logprobs(policy, ids, responses, **options))
        ref_logprobs = np.array(sequence_logprobs(reference, ids, responses, **options))
        proxy = np.array(reward_scores(reward_model, ids, responses, **options)) - reward.facts["center"]
        finished = [one.finish_reason == "stop" for one in drawn]
        texts = texts_of(tokenizer, ids, responses, config["stop_ids"])
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
    write_sorted(out / "trajectory.json", {"prompt_id": [row["prompt_id"] for row in rows], "points": points})
