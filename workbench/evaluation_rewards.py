"""The stage that follows DPO's implicit reward over training, beside `workbench.evaluation`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.records_io import read_jsonl
from workbench.errors import StageInterrupted
from workbench.models import Placement, load_policy, parameter_count
from workbench.numerics import check_finite
from workbench.policy_set import read_policy_set
from workbench.scoring import sequence_logprobs
from workbench.stage_log import StageLog
from workbench.tokens import PackedPairs, load_tokenizer, read_packed_prompts


def score_checkpoints(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Implicit rewards of both sides of held-out pairs, and of out-of-distribution samples, at every checkpoint.

    The reference's log-probabilities are those that training used; they are not computed again.

    Args:
        config: {"splits": [...], "beta", "batch_size", "trust_remote_code"}.
        inputs: `policy` (policy set), `pairs` (packed), `reference_logprobs`; `ood` (generations of the SFT) with
            `prompts` (packed), or neither.
        out: Receives checkpoints.json: "pair_id", "prompt_id", "split", "chosen_tokens", "rejected_tokens" of the
            pairs; "generation_id" of the samples; "points": [{"name", "step", "chosen", "rejected", "samples"}], nats.
    """
    placement = Placement.of(log.resources)
    pairs = PackedPairs(inputs["pairs"])
    index = [row for split in config["splits"] for row in pairs.split_rows(split)]
    rows, meta = [pairs.as_lists(row) for row in index], [pairs.meta(row) for row in index]
    reference = np.load(inputs["reference_logprobs"] / "logprobs.npz")
    prompts = [row["prompt_ids"] for row in rows]
    asked = {
        side: (prompts, [row[f"{side}_ids"] for row in rows], reference[side][index]) for side in ("chosen", "rejected")
    }
    samples = list(read_jsonl(inputs["ood"] / "generations.jsonl")) if "ood" in inputs else []
    if samples:
        ids = {row["prompt_id"]: row["ids"] for row in read_packed_prompts(inputs["prompts"])}
        asked["samples"] = (
            [ids[one["prompt_id"]] for one in samples],
            [one["response_ids"] for one in samples],
            np.array([one["ref_seq_logprob"] for one in samples]),
        )
    tokens = sum(
        len(p) + len(r) for given, responses, _ in asked.values() for p, r in zip(given, responses, strict=True)
    )
    policies = read_policy_set(inputs["policy"])
    points: list[dict[str, Any]] = []
    for number, checkpoint in enumerate(policies.checkpoints):
        if log.stop_requested():
            raise StageInterrupted
        folder = policies.folder(checkpoint.name)
        policy = load_policy(folder, placement, trust_remote_code=config["trust_remote_code"])
        pad_id = int(load_tokenizer(folder, trust_remote_code=config["trust_remote_code"]).pad_token_id)
        columns: dict[str, list[float]] = {}
        for name, (given, responses, under_reference) in asked.items():
            under = sequence_logprobs(policy, given, responses, pad_id=pad_id, batch_size=config["batch_size"])
            columns[name] = (config["beta"] * (np.array(under) - under_reference)).tolist()
        check_finite({f"the implicit reward of {checkpoint.name} ({name})": column for name, column in columns.items()})
        points.append({"name": checkpoint.name, "step": checkpoint.step, "samples": [], **columns})
        queries = sum(len(column) for column in columns.values())
        log.cost(reward_queries=queries, flops=2.0 * parameter_count(policy) * tokens)
        log.progress(number + 1, len(policies.checkpoints))
    found = {name: [one[name] for one in meta] for name in ("pair_id", "prompt_id", "split")} | {
        "chosen_tokens": [len(row["chosen_ids"]) for row in rows],
        "rejected_tokens": [len(row["rejected_ids"]) for row in rows],
        "generation_id": [one["generation_id"] for one in samples],
        "points": points,
    }
    (out / "checkpoints.json").write_text(json.dumps(found, sort_keys=True, allow_nan=False), encoding="utf-8")
