"""What the arms that train on rollouts through TRL share: what they load, sample, score, report and refuse.

The trainer (`workbench.trl_online`) decides when; here stands what must be the same for every arm: our prompt ids, our
sampler with a seed of the update's number, the explicit reward model on the ids that were drawn, and the facts for the
certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import processes
from workbench.batching import make_batch
from workbench.digests import prompt_set_digest
from workbench.errors import IntegrityError
from workbench.lora import Lora, base_digest, operations_per_token, parametrization
from workbench.lora_files import load_reference, load_trainee
from workbench.models import (
    Placement,
    load_reward_model,
    parameter_count,
    trunk_digest,
)
from workbench.numerics import numerics
from workbench.policy_set import (
    keep_start,
    publish_checkpoints,
    read_policy_set,
    write_policy_set,
)
from workbench.rollouts import (
    apply_eos_rule,
    check_kl_sign,
    check_reward_varies,
    guard,
    prompt_rows,
    rollout_figures,
    rollout_seed,
)
from workbench.sampling import Decoding, Sample, sample
from workbench.scoring import last_token_scores
from workbench.stage_log import StageLog
from workbench.tokens import load_tokenizer, read_packed_prompts


class OnlineArm:
    """Policy, frozen reference and reward model of one arm, and its rollouts.

    Args:
        config: An `arms.*` block of kind rloo or grpo, with `max_response_tokens`, `stop_ids` and `trust_remote_code`,
            and `lora` where adapters are trained instead of all weights; checkpoints are whole models all the same.
        inputs: `sft` and `reward_model` (policy sets), `prompts` (packed).
        log: Seed, resources, metrics, cost.

    Raises:
        IntegrityError: There is no prompt of the train split.
    """

    def __init__(self, config: Mapping[str, Any], inputs: Mapping[str, Path], log: StageLog) -> None:
        self.config, self.log = config, log
        placement = Placement.of(log.resources)
        trust = config["trust_remote_code"]
        sft, reward = read_policy_set(inputs["sft"]), read_policy_set(inputs["reward_model"])
        self.sft = sft.folder()
        self.tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
        self.pad_id = int(self.tokenizer.pad_token_id)
        lora = Lora.from_config(config.get("lora"))
        self.policy = load_trainee(sft.folder(), placement, lora, log.seed, trust_remote_code=trust)
        self.reference = load_reference(sft.folder(), placement, lora, trust_remote_code=trust)
        self.reward_model = load_reward_model(reward.folder(), placement, trust_remote_code=trust)
        self.center = float(reward.facts["center"])
        rows = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] == "train"]
        if not rows:
            raise IntegrityError("no training prompts to roll out on", where=str(inputs["prompts"]))
        self.prompts = [row["ids"] for row in rows]
        self.facts: dict[str, Any] = {
            "sft_tensors": base_digest(self.policy),
            "reference_tensors": trunk_digest(self.reference),
            "reward_tensors": trunk_digest(self.reward_model),
            "reward_trunk_start": reward.facts["sft_tensors"],
            "consumed_pairs": reward.facts["consumed_pairs"],
            "pairs_filter": reward.facts["pairs_filter"],
            "numerics": numerics(self.policy),
            "parametrization": parametrization(lora),
            "rollout_prompts": prompt_set_digest([row["prompt_id"] for row in rows]),
        }
        self.decoding = Decoding(
            temperature=config["temperature"],
            top_p=1.0,  # the ratio is of the whole distribution
            max_response_tokens=config["max_response_tokens"],
            stop_ids=tuple(config["stop_ids"]),
        )
        self.update = -1  # number of the update that is under way, from 0
        self.measured = False  # its rollout is within bounds
        self.samples: list[Sample] = []  # of the latest rollout, in the trainer's order
        self.scores = torch.zeros(0)  # (B,) of the same, centered and after the EOS rule

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps per update."""
        return int(self.config["epochs"] * self.config["minibatches"])

    def prompt_order(self) -> list[int]:
        """Rows of the train split's prompts in the order of training, one for each group of responses."""
        per_update = self.config["batch_size"] // self.config["generations_per_prompt"]
        return [
            row
            for update in range(self.config["updates"])
            for row in prompt_rows(len(self.prompts), update, per_update, self.log.seed)
        ]

    def roll_out(self, policy: Any, prompts: Sequence[Sequence[int]], update: int) -> list[list[int]]:
        """Ids of one response to each row of prompt ids; seeded by the update's number, so resuming needs no state."""
        self.update, self.measured = update, False
        training = policy.training
        policy.eval()
        self.samples = sample(
            policy, prompts, self.decoding, pad_id=self.pad_id, batch_size=len(prompts),
            seed=rollout_seed(self.log.seed, update), dealt=processes.size() > 1,
        )  # fmt: skip
        policy.train(training)
        return [one.ids for one in self.samples]

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Centered scores of the latest rollout's responses after the EOS rule; `responses` must be its very ids.

        Raises:
            IntegrityError: The trainer wants other ids scored than were drawn.
        """
        if [list(ids) for ids in responses] != [one.ids for one in self.samples]:
            raise IntegrityError("the trainer hands back other response ids than were drawn: TRL has changed inside")
        mine = processes.share(range(len(responses)))
        own_prompts, own_responses = ([rows[i] for i in mine] for rows in (prompts, responses))
        batch = make_batch(own_prompts, own_responses, self.pad_id, self.reward_model.device)
        with torch.no_grad():
            raw = processes.whole(last_token_scores(self.reward_model, batch), mine, len(responses))
        finished = torch.tensor([one.finish_reason == "stop" for one in self.samples], device=raw.device)
        self.scores = apply_eos_rule(raw - self.center, finished, self.config["eos_rule"], self.config["eos_penalty"])
        self._count(prompts)
        return [float(value) for value in self.scores]

    def sampled_logprobs(self, mask: Tensor) -> Tensor:
        """(B, R) float32 log-probabilities of the latest rollout as it was drawn, 0 outside the mask."""
        table = torch.zeros(mask.shape)
        for row, one in enumerate(self.samples):
            table[row, : len(one.logprobs)] = torch.tensor(one.logprobs)
        return table.to(mask.device)

    def report(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
        """Diagnostics of the latest rollout, (B, R) at its temperature; scoring.py measures the KL that is reported.

        Raises:
            DivergenceError: A number is not finite, KL passed its ceiling or is negative beyond noise, or the reward
                model says the same of everything.
        """
        if self.update == 0:
            check_reward_varies(self.scores)
        finished = torch.tensor([one.finish_reason == "stop" for one in self.samples])
        values = rollout_figures(self.scores, finished, logprobs, ref_logprobs, mask) | {
            "kl_coef": float(self.config["kl_coef"]),
            "episodes": float(self.config["batch_size"] * (self.update + 1)),
        }
        guard(values, self.update + 1, max_seq_kl=self.config["max_seq_kl"])
        check_kl_sign(values, self.update + 1)
        self.measured = True
        return values

    def _count(self, prompts: Sequence[Sequence[int]]) -> None:
        generated = sum(len(one.ids) for one in self.samples)
        tokens = generated + sum(len(prompt) for prompt in prompts)
        trained = tokens * self.config["epochs"]
        self.log.cost(
            tokens_generated=generated,
            tokens_trained=trained,
            reward_queries=len(self.samples),
            # 2 a parameter and token forward (sample, policy, reference, reward model), 6 to train (the policy alone)
            flops=2.0 * 4 * parameter_count(self.policy) * tokens + operations_per_token(self.policy) * trained,
        )

    def publish(self, kept: Path, out: Path, diverged: Mapping[str, Any] | None) -> None:
        """Writes the policy set from the checkpoints in `kept`; without one the last good policy is the SFT."""
        placement, trust = Placement(dtype=self.log.resources.dtype), self.config["trust_remote_code"]
        keep_start(kept, self.sft, self.tokenizer, placement, trust)
        listed = publish_checkpoints(kept, out, placement, trust)
        write_policy_set(out, listed, facts=self.facts, diverged=diverged)
