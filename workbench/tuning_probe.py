"""Scores a checkpoint while its arm still trains: what a pruner decides by.

A trial's own score comes from the graph, like everybody's. This is a quick look on fewer prompts, drawn with the same
seed for every trial, so that trials are compared on the same prompts and the same draws.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config_tuning import Objective
from workbench.gold import stage_gold
from workbench.metrics.win_rate import win_probability
from workbench.models import Placement, load_policy, load_reward_model, parameter_count
from workbench.policy_set import read_policy_set
from workbench.sampling import sample
from workbench.scoring import reward_scores
from workbench.stage_parts import decoding_of, texts_of
from workbench.tokens import load_tokenizer, read_packed_prompts
from workbench.types import Cost


class Probe:
    """Scorer of checkpoints of one run seed.

    Args:
        sft, reward_model: Policy sets.
        prompts: Packed prompts.
        gold: {"gold": its config or None}; `gold_input`: its file or folder.
        decoding: Config of a generations stage.
        seed: Of the draws.
        objective: What is scored: gold or proxy, as a mean or as a win rate over the SFT's sample.
        prompts_per_score: Most prompts, from the head of the split.
        device, dtype: As the stages have them.
    """

    def __init__(
        self,
        *,
        sft: Path,
        prompts: Path,
        reward_model: Path,
        gold: Mapping[str, Any],
        gold_input: Path | None,
        decoding: Mapping[str, Any],
        seed: int,
        objective: Objective,
        prompts_per_score: int,
        device: str,
        dtype: str,
        split: str,
    ) -> None:
        began = (time.monotonic(), time.process_time())
        self.placement, self.objective, self.seed = Placement(device=device, dtype=dtype), objective, seed
        self.trust, self.batch_size = bool(decoding["trust_remote_code"]), int(decoding["batch_size"])
        self.decoding = decoding_of(decoding)
        rows = [row for row in read_packed_prompts(prompts) if row["split"] == split][:prompts_per_score]
        self.rows = rows
        self.tokenizer = load_tokenizer(read_policy_set(sft).folder(), trust_remote_code=self.trust)
        self.gold = stage_gold(gold, {"gold": gold_input} if gold_input is not None else {})
        self.judge = read_policy_set(reward_model) if objective.scorer == "proxy" else None
        self.reward_model = (
            load_reward_model(self.judge.folder(), self.placement, trust_remote_code=self.trust)
            if self.judge is not None
            else None
        )
        self.baseline, tokens, flops = None, 0, 0.0
        if objective.metric == "win_rate":
            self.baseline, tokens, flops = self._values(read_policy_set(sft).folder())
        # Loading it is charged to the trial that looks first.
        self.unpaid = self._cost(began, len(self.baseline or ()), tokens, flops)

    def scores(self, folder: Path) -> tuple[dict[str, float], Cost]:
        """prompt -> the objective there, and what the look cost; the first one pays for loading the scorer."""
        began = (time.monotonic(), time.process_time())
        values, tokens, flops = self._values(folder)
        if self.baseline is not None:
            values = [win_probability([a], [b]) for a, b in zip(values, self.baseline, strict=True)]
        cost = self._cost(began, len(values), tokens, flops).plus(self.unpaid)
        self.unpaid = Cost()
        return {row["prompt_id"]: value for row, value in zip(self.rows, values, strict=True)}, cost

    def _cost(self, began: tuple[float, float], scored: int, tokens: int, flops: float) -> Cost:
        """Of what began at (wall, CPU) seconds."""
        wall_s = time.monotonic() - began[0]
        return Cost(
            wall_s=wall_s,
            cpu_s=time.process_time() - began[1],
            gpu_s=wall_s if self.placement.device == "cuda" else 0.0,
            flops=flops,
            tokens_generated=tokens,
            reward_queries=scored if self.judge is not None else 0,
        )

    def _values(self, folder: Path) -> tuple[list[float], int, float]:
        """One score a prompt, tokens drawn, operations."""
        policy = load_policy(folder, self.placement, trust_remote_code=self.trust)
        ids: list[Sequence[int]] = [row["ids"] for row in self.rows]
        pad_id = int(self.tokenizer.pad_token_id)
        drawn = sample(policy, ids, self.decoding, pad_id=pad_id, seed=self.seed, batch_size=self.batch_size)
        responses = [one.ids for one in drawn]
        generated = sum(map(len, responses))
        read = generated + sum(map(len, ids))
        flops = 2.0 * parameter_count(policy) * read
        if self.reward_model is not None:
            assert self.judge is not None
            options = {"pad_id": self.judge.facts["pad_id"], "batch_size": self.batch_size}
            raw = reward_scores(self.reward_model, ids, responses, **options)
            values = [float(value) - float(self.judge.facts["center"]) for value in raw]
            return values, generated, flops + 2.0 * parameter_count(self.reward_model) * read
        assert self.gold is not None
        texts = texts_of(self.tokenizer, ids, responses, self.decoding.stop_ids)
        finished = [one.finish_reason == "stop" for one in drawn]
        return self.gold([row["prompt"] for row in self.rows], texts, finished), generated, flops
