"""Memory and operations of every stage of a comparison, from its config and the sizes of its models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.config_arms import DPO, PPO, BestOfN, RewardModel
from workbench.config_arms_online import GRPO, RLOO
from workbench.config_comparison import Comparison
from workbench.estimate import PROCESS_BYTES, TRAINER_BYTES, Setting, Size

NOT_COUNTED = (
    "reading the data, reference log-probabilities and margins of pairs, labels by a reward, simulated pairs, "
    "judges, gold.reward_model, the measures"
)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one stage takes.

    Args:
        stage: Its name, with the arm's label.
        bytes: Peak memory: on a CPU of all processes of the stage, on a GPU of the device of each.
        operations: Floating-point operations of all its run seeds together, by each of its processes.
        passes: Forward (and backward) passes and sampling steps: each has a cost besides its operations.
        lighter: Settings that would make it smaller.
    """

    stage: str
    bytes: float
    operations: float
    passes: float
    lighter: str = ""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens that the estimate counts with: what the data will have is not known before it is read.

    Args:
        prompt, response: Of one sequence, at most (memory) and on average (operations).
        pairs: Training pairs.
        told: How they were counted, where not all were.
    """

    prompt: int
    response: int
    mean_prompt: float
    mean_response: float
    pairs: int
    told: str = ""

    @property
    def longest(self) -> int:
        """Prompt and response together."""
        return self.prompt + self.response

    @property
    def mean(self) -> float:
        """The same on average."""
        return self.mean_prompt + self.mean_response


class Needs:
    """Counts the stages that take most.

    Args:
        comparison: The config.
        setting: Device, precision, adapters.
        policy: Size of the SFT.
        rewards: Size of each reward model.
        lengths: Tokens.
    """

    def __init__(
        self, comparison: Comparison, setting: Setting, policy: Size, rewards: Mapping[str, Size], lengths: Lengths
    ) -> None:
        self.comparison, self.setting, self.policy, self.rewards = comparison, setting, policy, rewards
        self.lengths, self.runs, self.processes = lengths, len(comparison.seeds.runs), comparison.resources.processes

    def all(self) -> list[Need]:
        """The stages that train, and those that sample most, the largest memory first; others are `NOT_COUNTED`."""
        found = [self._evaluation()]
        if self.comparison.sft is not None:
            found.append(self._sft())
        found += [self._reward(name, one) for name, one in self.comparison.reward_models.items()]
        for label, arm in self.comparison.arms.items():
            if isinstance(arm, DPO):
                found.append(self._dpo(label, arm))
            elif isinstance(arm, PPO):
                found.append(self._ppo(label, arm))
            elif isinstance(arm, RLOO | GRPO):
                found.append(self._sister(label, arm))
            elif isinstance(arm, BestOfN):
                found.append(self._best_of_n(label, arm))
        return sorted(found, key=lambda need: -need.bytes)

    # ---- one stage each

    def _need(
        self, stage: str, parts: float, operations: float, passes: float, lighter: str = "", processes: int = 1
    ) -> Need:
        """`parts`: bytes beside those of a process, of each of `processes`."""
        trains = stage.split()[0] in ("sft", "reward_model", "dpo", "rloo", "grpo")
        process = PROCESS_BYTES[self.setting.device] + trains * TRAINER_BYTES[self.setting.device]
        side_by_side = processes if self.setting.device == "cpu" else 1
        return Need(
            stage=stage, bytes=side_by_side * (process + parts), operations=operations / processes, passes=passes,
            lighter=lighter,
        )  # fmt: skip

    def _pass(self, rows: int, most: int | None = None) -> int:
        """Rows of one pass of one process, of a step of `rows`."""
        share = math.ceil(rows / self.processes)
        return share if most is None else min(share, most)

    def _sft(self) -> Need:
        block, policy = self.comparison.sft, self.policy
        assert block is not None
        whole = Setting(device=self.setting.device, dtype=self.setting.dtype, checkpointing=self.setting.checkpointing)
        tokens = self._pass(block.batch_size, block.microbatch_size) * self.lengths.longest
        logits = 4.0 * 3 * tokens * policy.vocabulary  # TRL's: logits, their gradient, log-softmax
        parts = whole.trained(policy) + whole.activations(policy, tokens) + logits
        seen = block.steps * block.batch_size * self.lengths.mean
        return self._need(
            "sft", parts, 6.0 * policy.parameters * seen, block.steps,
            "sft.microbatch_size, model.gradient_checkpointing", self.processes,
        )  # fmt: skip

    def _pairs(self, pairs: int | None) -> int:
        return self.lengths.pairs if pairs is None else min(pairs, self.lengths.pairs)

    def _trained_on_pairs(
        self, stage: str, size: Size, block: RewardModel | DPO, field: str, after: float = 0.0
    ) -> Need:
        """`after`: bytes that the stage takes once it has trained."""
        sequences = 2 * self._pass(block.batch_size, block.microbatch_size)
        parts = self.setting.trained(size) + self.setting.activations(size, sequences * self.lengths.longest)
        parts = max(parts, after)
        pairs = self._pairs(block.pairs) * block.epochs
        each = 6.0 if self.setting.rank is None else 4.0
        recomputed = 2.0 * self.setting.checkpointing
        operations = (each + recomputed) * size.parameters * 2 * pairs * self.lengths.mean
        lighter = f"{field}.microbatch_size, model.gradient_checkpointing, model.lora"
        steps = self.runs * pairs / block.batch_size
        return self._need(stage, parts, self.runs * operations, steps, lighter, self.processes)

    def _reward(self, name: str, block: RewardModel) -> Need:
        size, batch = self.rewards[name], 256 * self.lengths.longest
        # To center it, samples of the SFT are drawn, whole models both.
        parts = float(self.setting.frozen * (size.parameters + self.policy.parameters))
        parts += self.setting.generation(self.policy, 256, self.lengths.longest)
        if block.path is None:
            return self._trained_on_pairs(f"reward_model {name}", size, block, f"reward_models.{name}", after=parts)
        operations = 2.0 * size.parameters * (1024 + block.center_samples) * self.lengths.mean
        return self._need(f"reward_model {name}", parts + self._forward(size, batch), self.runs * operations, self.runs)

    def _dpo(self, label: str, arm: DPO) -> Need:
        return self._trained_on_pairs(f"dpo {label}", self.policy, arm, f"arms.{label}")

    def _ppo(self, label: str, arm: PPO) -> Need:
        policy, setting, lengths = self.policy, self.setting, self.lengths
        reward = self.rewards.get(arm.reward, policy)
        tokens = self._pass(arm.batch_size // arm.minibatches) * lengths.longest
        if arm.microbatch_tokens is not None:
            tokens = min(tokens, arm.microbatch_tokens)
        external = arm.reward in self.rewards and self.comparison.reward_models[arm.reward].path is not None
        weights = setting.trained(policy)
        if setting.rank is None:
            weights += setting.frozen * policy.parameters  # the reference; with adapters it is the base
            weights += setting.trained(policy) if arm.critic == "separate" else 0.0
        elif arm.critic == "separate":
            weights += 16.0 * policy.adapter_parameters(setting.rank)
        if setting.rank is None or external:
            weights += setting.frozen * reward.parameters
        rollout = setting.generation(policy, self._pass(arm.batch_size), lengths.longest)
        parts = weights + max(setting.activations(policy, tokens), rollout)
        seen = arm.batch_size * lengths.mean
        each = 6.0 if setting.rank is None else 4.0
        trained = (each + 2.0 * setting.checkpointing) * (1 + (arm.critic == "separate"))
        operations = seen * policy.parameters * (trained * arm.epochs + 2.0 * (3 + (arm.critic == "separate")))
        operations += 2.0 * seen * (reward.parameters - policy.parameters) if external else 0.0
        passes = arm.updates * (arm.epochs * arm.minibatches * 2 + 3 + lengths.mean_response)
        lighter = f"arms.{label}.microbatch_tokens, arms.{label}.critic: head, model.gradient_checkpointing, model.lora"
        operations *= self.runs * arm.updates
        return self._need(f"ppo {label}", parts, operations, self.runs * passes, lighter, self.processes)

    def _sister(self, label: str, arm: RLOO | GRPO) -> Need:
        policy, setting, lengths = self.policy, self.setting, self.lengths
        tokens = self._pass(arm.batch_size // arm.minibatches, arm.microbatch_size) * lengths.longest
        weights = setting.trained(policy) + setting.base(policy) + setting.frozen * policy.parameters
        logits = 8.0 * tokens * policy.vocabulary
        parts = weights + setting.activations(policy, tokens) + logits
        each = (6.0 if setting.rank is None else 4.0) + 2.0 * setting.checkpointing
        operations = arm.updates * arm.batch_size * lengths.mean * policy.parameters * (each * arm.epochs + 6.0)
        passes = arm.updates * (arm.epochs * arm.minibatches + 3 + lengths.mean_response)
        lighter = f"arms.{label}.microbatch_size, model.gradient_checkpointing, model.lora"
        stage = f"{arm.kind} {label}"
        return self._need(stage, parts, self.runs * operations, self.runs * passes, lighter, self.processes)

    def _best_of_n(self, label: str, arm: BestOfN) -> Need:
        drawn = self.comparison.evaluation.prompts * arm.pool
        return self._sampled(f"candidates of {label}", drawn, 1)

    def _evaluation(self) -> Need:
        """Samples of every policy, and the trajectories over their checkpoints."""
        evaluation, arms = self.comparison.evaluation, self.comparison.arms
        trained = [arm for arm in arms.values() if not isinstance(arm, BestOfN)]
        drawn = evaluation.prompts * evaluation.samples_per_prompt * (len(trained) + 1)
        for arm in trained:
            if isinstance(arm, DPO):
                steps = self._pairs(arm.pairs) * arm.epochs / arm.batch_size
                points = steps / arm.checkpoint_every_steps + len(arm.checkpoint_at_steps)
            else:
                points = arm.updates / arm.checkpoint_every_updates
            drawn += int(evaluation.trajectory_prompts * (points + 1))
        return self._sampled("evaluation", drawn, len(self.rewards))

    def _sampled(self, stage: str, drawn: int, scorers: int) -> Need:
        policy, setting, lengths = self.policy, self.setting, self.lengths
        batch = min(self.comparison.evaluation.batch_size, drawn)
        largest = max([policy.parameters, *(one.parameters for one in self.rewards.values())])
        parts = float(setting.frozen * (2 * policy.parameters + largest))
        parts += max(setting.generation(policy, batch, lengths.longest), self._forward(policy, batch * lengths.longest))
        operations = 2.0 * drawn * lengths.mean * (3 * policy.parameters + scorers * largest)
        passes = drawn / batch * (lengths.mean_response + 2 + scorers)
        return self._need(
            stage, parts, self.runs * operations, self.runs * passes, "evaluation.batch_size, evaluation.prompts"
        )

    def _forward(self, size: Size, tokens: float) -> float:
        """Bytes of a pass without gradient: the widest part of one layer, in and out."""
        return self.setting.frozen * tokens * (4.0 * size.hidden + 2.0 * size.intermediate)
