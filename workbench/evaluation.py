"""Stages that look at policies and change none: scores, margins, reference log-probabilities, a checkpoint chosen.

One code path for all arms. Every stage writes what it loaded and consumed to facts.json (or into its arrays), digests
recomputed from the tensors and ids themselves: the match certificate compares these, not the config. `generations` has
the stages that sample.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.records_io import read_jsonl
from workbench.models import Placement, load_policy, load_reward_model, parameter_count, trunk_digest
from workbench.numerics import check_finite
from workbench.policy_set import read_policy_set, read_selected
from workbench.scoring import reward_scores, sequence_logprobs
from workbench.stage_log import StageLog
from workbench.stage_parts import digest_of, progress_of, write_sorted
from workbench.tokens import PackedPairs, load_tokenizer, read_packed_prompts


def reference_logprobs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Sequence log-probabilities of chosen and rejected under the SFT, once for every arm, seed and trial.

    Args:
        config: {"batch_size", "trust_remote_code"}.
        inputs: `sft` (policy set), `pairs` (packed).
        out: Receives logprobs.npz: chosen (N,), rejected (N,) float64 nats at temperature 1, and two digests.
    """
    placement = Placement.of(log.resources)
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
                on_batch=progress_of(log, 2 * len(rows), number * len(rows)),
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

    placement, trust = Placement.of(log.resources), config["trust_remote_code"]
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
            on_batch=progress_of(log, steps, done),
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
            on_batch=progress_of(log, steps, done),
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
    write_sorted(out / "scores.json", columns)
    write_sorted(
        out / "facts.json",
        {"scorers": scorers, "prompts": digest_of(sorted({one["prompt_id"] for one in generations}))},
    )


def score_pairs(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Margins of the explicit and the implicit reward on held-out pairs.

    Args:
        config: {"splits": [...], "implicit": {column: beta}, "batch_size", "trust_remote_code"}.
        inputs: `pairs` (packed), `reference_logprobs`, `reward:NAME`, `policy:COLUMN`, `selected:COLUMN`.
        out: Receives margins.json: columns "pair_id", "prompt_id", "split", "proxy/NAME", COLUMN; chosen minus
            rejected.
    """
    placement, trust = Placement.of(log.resources), config["trust_remote_code"]
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
    write_sorted(out / "margins.json", columns)


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
    write_sorted(out / "selected.json", chosen)
