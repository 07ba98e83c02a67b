"""RM+PPO: a policy trained by proximal policy optimization on an explicit reward model. Ours; TRL has none any more.

One file, top to bottom: roll out, score, advantages, update, measure and guard, checkpoint. The mathematics is in
`workbench.objectives`, the models and who shares a trunk with whom in `workbench.actor_critic`, the forward pass that
training and scoring share in `workbench.scoring`. docs/ppo.md says what differs from TRL 1.12, and why.

Sources: Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593), Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325),
Huang et al. 2024, "The N+ implementation details of RLHF with PPO" (https://arxiv.org/abs/2403.17031).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import objectives, processes
from workbench.actor_critic import ActorCritic
from workbench.batching import Batch, make_batch, microbatches
from workbench.checkpoints import latest_checkpoint, save_checkpoint
from workbench.digests import prompt_set_digest
from workbench.errors import DivergenceError, IntegrityError, StageInterrupted
from workbench.lora import POLICY
from workbench.lora_files import save_merged
from workbench.models import Placement
from workbench.numerics import numerics
from workbench.packed import PackedPairs
from workbench.policy_set import (
    forget_checkpoint,
    keep_checkpoint,
    keep_start,
    kept_checkpoints,
    publish_checkpoints,
    read_policy_set,
    write_policy_set,
)
from workbench.rollouts import (
    apply_eos_rule,
    check_kl_sign,
    check_ratio,
    check_reward_varies,
    guard,
    prompt_rows,
    rollout_figures,
    rollout_seed,
)
from workbench.sampling import Decoding, Sample, sample
from workbench.scoring import token_figures
from workbench.stage_log import StageLog
from workbench.tokens import load_tokenizer, read_packed_prompts

# What a forward and backward pass costs besides its tokens, in tokens; benchmarks/ppo.py measures it.
PASS_TOKENS = {"cpu": 128, "cuda": 2048}
STEP_MEANS = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "ratio", "approx_kl", "entropy")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """B sampled responses with all that the update needs; every (B, R) tensor is 0 or arbitrary outside the mask.

    Args:
        batch: Ids and masks.
        old_logprobs: (B, R) of the policy as it sampled, at the rollout temperature.
        ref_logprobs: (B, R) of the frozen reference at the same temperature.
        old_values: (B, R) of the critic before each token.
        score: (B,) centered reward after the EOS rule, before normalization and clipping.
        finished: (B,) bool, True where a stop id was drawn.
    """

    batch: Batch
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    score: Tensor
    finished: Tensor


@dataclass
class State:
    """What an update changes besides weights and optimizers; numbers, so that a checkpoint holds them as JSON.

    Args:
        update: Updates done.
        kl_coef: Adaptive coefficient.
        scores: Count, mean and sum of squared deviations of all scores so far (Welford), for normalization.
        grid: How many KLs of `checkpoint_at_kl` have been passed.
    """

    update: int = 0
    kl_coef: float = 0.0
    scores: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    grid: int = 0


class Trainer:
    """Policy and critic with their optimizers, what they are judged by, and the state of one run."""

    def __init__(self, config: Mapping[str, Any], inputs: Mapping[str, Path], log: StageLog) -> None:
        self.config, self.log = config, log
        placement = Placement.of(log.resources)
        sft = read_policy_set(inputs["sft"])
        self.tokenizer = load_tokenizer(sft.folder(), trust_remote_code=config["trust_remote_code"])
        self.pad_id = int(self.tokenizer.pad_token_id)
        self.models = ActorCritic(config, inputs, placement, seed=log.seed)
        self.policy = self.models.policy
        self.decoding = Decoding(
            temperature=config["temperature"],
            top_p=1.0,  # PPO's ratio is of the whole distribution
            max_response_tokens=config["max_response_tokens"],
            stop_ids=tuple(config["stop_ids"]),
        )
        rows = [row for row in read_packed_prompts(inputs["prompts"]) if row["split"] == "train"]
        self.prompts = [row["ids"] for row in rows]
        if not self.prompts:
            raise IntegrityError("no training prompts to roll out on", where=str(inputs["prompts"]))
        self.facts = self.models.facts | {
            "numerics": numerics(self.policy),
            "rollout_prompts": prompt_set_digest([row["prompt_id"] for row in rows]),
        }
        self.demonstrations = demonstrations(inputs["pairs"]) if config["sft_coef"] else []
        self.policy_optimizer = self._adam(self.models.policy_parameters, config["learning_rate"])
        self.critic_optimizer = self._adam(
            self.models.critic_parameters, config["critic_learning_rate"] or config["learning_rate"]
        )
        self.state = State(kl_coef=float(config["kl_coef"]))
        if "implicit" in inputs:
            self.models.center = self._mean_score()

    def _adam(self, parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=rate, eps=self.config["adam_eps"], fused=True)

    def _mean_score(self) -> float:
        """Mean raw reward of SFT samples, where no reward model brings its center; the same after a resume."""
        prompts = [self.prompts[row] for row in prompt_rows(len(self.prompts), 0, 256, self.log.seed + 5)]
        samples, batch = self._draw(prompts, seed=self.log.seed + 11)
        self._count(samples, prompts)
        return float(self._ask(self.models.scores, batch).mean())

    # ---- 1. Roll out: prompts of the train split, every update seeded by its number, so that resuming needs no state.
    def roll_out(self) -> Rollout:
        config, size = self.config, self.config["batch_size"]
        prompts = [self.prompts[row] for row in prompt_rows(len(self.prompts), self.state.update, size, self.log.seed)]
        samples, batch = self._draw(prompts, seed=rollout_seed(self.log.seed, self.state.update))
        # The log-probabilities are those of the sampling itself; the first minibatch checks that training agrees.
        old_logprobs = batch.spread(torch.tensor([p for one in samples for p in one.logprobs], device=batch.device))
        raw = self._ask(self.models.scores, batch)  # the truncated text is what is scored
        ref_logprobs = self._ask(lambda part: self.models.reference_logprobs(part, config["temperature"]), batch)
        if self.models.shares_trunk:  # read off while sampling
            old_values = batch.spread(torch.tensor([v for one in samples for v in one.values], device=batch.device))
        else:
            old_values = self._ask(self.models.values, batch)
        finished = torch.tensor([one.finish_reason == "stop" for one in samples], device=batch.device)
        score = apply_eos_rule(raw, finished, config["eos_rule"], config["eos_penalty"])
        self._count(samples, prompts)
        return Rollout(
            batch=batch, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
            old_values=old_values, score=score, finished=finished,
        )  # fmt: skip

    @torch.no_grad()
    def _ask(self, function: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """A function of a batch, (B,) or (B, R), taken in passes of rows of about equal length."""
        parts = self._passes(batch.lengths)
        answers = [function(batch.rows(part)) for part in parts]
        shape = batch.response_mask.shape if answers[0].ndim == 2 else (len(batch.lengths),)
        whole = torch.zeros(shape, dtype=answers[0].dtype, device=batch.device)
        for part, answer in zip(parts, answers, strict=True):
            rows = torch.tensor(part, device=batch.device)
            if answer.ndim == 2:
                whole[rows, : answer.shape[1]] = answer
            else:
                whole[rows] = answer
        return processes.total(whole)

    def _draw(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[list[Sample], Batch]:
        head = self.models.values_of if self.models.shares_trunk else None
        with self.models.acting() as policy:
            samples = sample(
                policy, prompts, self.decoding, pad_id=self.pad_id, batch_size=len(prompts), seed=seed,
                value_head=head, dealt=processes.size() > 1,
            )  # fmt: skip
        return samples, make_batch(prompts, [one.ids for one in samples], self.pad_id, self.policy.device)

    # ---- 2. Advantages: k1 in the reward, the terminal score inside the returns, whitened over the tokens that count.
    def advantages(self, rollout: Rollout) -> objectives.Advantages:
        config, mask = self.config, rollout.batch.response_mask
        rewards = objectives.shaped_rewards(
            self.shaped_score(rollout.score), rollout.old_logprobs, rollout.ref_logprobs, mask, self.state.kl_coef
        )
        values = torch.where(mask, rollout.old_values, torch.zeros_like(rollout.old_values))
        found = objectives.gae(rewards, values, mask, config["gamma"], config["lam"])
        if not config["whiten_advantages"]:
            return found
        return found._replace(advantages=objectives.masked_whiten(found.advantages, mask))

    def shaped_score(self, score: Tensor) -> Tensor:
        """(B,) the score as it enters the reward: divided by the deviation of all so far, clipped, where asked."""
        if self.config["normalize_reward"]:
            score = score / self.score_scale()
        clip = self.config["reward_clip"]
        return score if clip is None else score.clamp(-clip, clip)

    def score_scale(self) -> float:
        """Standard deviation of all scores so far; 1 before there are two."""
        count, _, squares = self.state.scores
        return math.sqrt(squares / (count - 1)) if count > 1 and squares > 0 else 1.0

    # ---- 3. Update: several epochs of minibatches over one rollout.
    def optimize(self, rollout: Rollout, found: objectives.Advantages) -> dict[str, float]:
        config, rows = self.config, len(rollout.score)
        per_minibatch = rows // config["minibatches"]
        order = np.random.default_rng([self.log.seed, 23, self.state.update])
        self._demonstration_order = np.random.default_rng([self.log.seed, 29, self.state.update])
        totals: dict[str, float] = {}
        steps = 0
        told = {"learning_rate": self._schedule()}
        for epoch in range(config["epochs"]):
            shuffled = order.permutation(rows)
            for start in range(0, per_minibatch * config["minibatches"], per_minibatch):
                index = shuffled[start : start + per_minibatch].tolist()
                stats = self.minibatch(rollout, found, index, first=epoch == 0 and start == 0)
                steps += 1
                for name, value in stats.items():
                    totals[name] = totals.get(name, 0.0) + value
                limit = config["target_approx_kl"]
                if limit is not None and stats["approx_kl"] > limit:
                    told["stopped_early"] = 1.0
                    break
            if "stopped_early" in told:
                break
        self.models.check_finite(f"after update {self.state.update + 1}")
        return {name: value / steps for name, value in totals.items()} | told

    def minibatch(
        self, rollout: Rollout, found: objectives.Advantages, index: Sequence[int], *, first: bool
    ) -> dict[str, float]:
        """One step of policy and critic on the rows of `index`, in passes of rows of about equal length."""
        config, rows = self.config, np.asarray(index)
        warming_up = self.state.update < config["critic_warmup_updates"]
        tokens = int(rollout.batch.response_sizes[rows].sum())
        self.policy_optimizer.zero_grad(set_to_none=True)
        self.critic_optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(STEP_MEANS), device=rollout.score.device)
        widest = torch.zeros_like(sums[0])
        lengths = rollout.batch.lengths[rows]
        operations = self.models.operations_to_train(train_policy=not warming_up)
        self.log.cost(tokens_trained=int(lengths.sum()), flops=operations * float(lengths.sum()))
        for part in self._passes(lengths):
            seen, off = self._pass(rollout, found, rows[part].tolist(), tokens, train_policy=not warming_up)
            sums, widest = sums + seen, torch.maximum(widest, off)
        sums, widest = processes.total(sums), processes.largest(widest)
        extra = [self._demonstrate(len(rows))] if config["sft_coef"] and not warming_up else []
        processes.add_gradients([] if warming_up else self.models.policy_parameters)
        processes.add_gradients(self.models.critic_parameters)
        norms = [
            torch.zeros_like(widest) if warming_up else self._clip(self.models.policy_parameters),
            self._clip(self.models.critic_parameters),
        ]
        # The one wait for the device in a step.
        *numbers, off_one = torch.stack([*sums, *norms, *extra, widest]).tolist()
        stats = dict(zip((*STEP_MEANS, "grad_norm", "critic_grad_norm", "sft_loss"), numbers, strict=False))
        if first:
            check_ratio(off_one, self.log.resources.dtype)
        for name, value in stats.items():
            if not math.isfinite(value):
                raise DivergenceError(f"{name} is {value} at update {self.state.update + 1}")
        if not warming_up:
            self.policy_optimizer.step()
        self.critic_optimizer.step()
        return stats

    def _passes(self, lengths: np.ndarray[Any, Any]) -> list[list[int]]:
        """Row numbers of each pass: of rows of about equal length, and of this process's share of them."""
        sizes = lengths.tolist()
        mine = processes.share(sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)))
        parts = microbatches(
            [sizes[row] for row in mine],
            cost_of_pass=PASS_TOKENS[self.log.resources.device],
            max_tokens=self.config["microbatch_tokens"],
        )
        return [[mine[at] for at in part] for part in parts]

    def _pass(
        self, rollout: Rollout, found: objectives.Advantages, rows: Sequence[int], tokens: int, *, train_policy: bool
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of some rows; losses and figures are sums over them divided by the step's `tokens`.

        Returns:
            STEP_MEANS of these rows, and the largest |log ratio|.
        """
        config, models = self.config, self.models
        batch = rollout.batch.rows(rows)
        mask, length = batch.response_mask, batch.response_mask.shape[1]
        index = torch.tensor(rows, device=mask.device)
        old, old_values, advantages, returns = (
            one[index, :length] for one in (rollout.old_logprobs, rollout.old_values, *found)
        )
        with torch.set_grad_enabled(train_policy):
            figures = models.figures(batch, config["temperature"])
        logprobs = batch.spread(figures.logprobs)
        policy = objectives.ppo_policy_loss(logprobs, old, advantages, mask, config["clip"], tokens)
        if train_policy and not models.shares_trunk:
            policy.loss.backward()  # type: ignore[no-untyped-call]  # frees the policy's graph before the critic's
        values = models.values(batch, figures.states if models.shares_trunk else None)
        value = objectives.ppo_value_loss(values, old_values, returns, mask, config["value_clip"], tokens)
        loss = config["value_coef"] * value.loss
        if train_policy and models.shares_trunk:
            loss = loss + policy.loss
        loss.backward()
        with torch.no_grad():
            log_ratio = torch.where(mask, logprobs - old, torch.zeros_like(old))
            assert figures.entropy is not None
            means = [
                policy.loss.detach(),
                value.loss.detach(),
                policy.clip_fraction,
                value.clip_fraction,
                objectives.masked_mean(log_ratio.exp(), mask, tokens),
                # KL(rollout policy || policy) on the rollout policy's samples: k3 with the roles the samples have.
                objectives.masked_mean(objectives.kl_k3(old, logprobs.detach()), mask, tokens),
                figures.entropy.sum() / tokens,
            ]
            return torch.stack(means), log_ratio.abs().max()

    def _demonstrate(self, count: int) -> Tensor:
        """Backward of sft_coef times the mean NLL of chosen responses, beside PPO's loss (PPO-ptx).

        Source: Ouyang et al. 2022, eq. 2 (https://arxiv.org/abs/2203.02155).
        """
        picked = self._demonstration_order.integers(len(self.demonstrations), size=count).tolist()
        prompts, chosen = zip(*(self.demonstrations[row] for row in picked), strict=True)
        batch = make_batch(prompts, chosen, self.pad_id, self.policy.device)
        tokens, length = int(batch.response_sizes.sum()), int(batch.lengths.sum())
        self.log.cost(tokens_trained=length, flops=self.models.operations_to_demonstrate * length)
        total = torch.zeros((), device=self.policy.device)
        for part in self._passes(batch.lengths):
            with self.models.acting() as policy:
                nll = -token_figures(policy, batch.rows(part)).logprobs.sum() / tokens
            (self.config["sft_coef"] * nll).backward()
            total += nll.detach()
        return processes.total(total)

    def _clip(self, parameters: Sequence[torch.nn.Parameter]) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, self.config["max_grad_norm"])

    def _schedule(self) -> float:
        """Sets the learning rates of this update, constant or falling to 0 over all updates; returns the policy's."""
        config = self.config
        share = self.state.update / config["updates"]
        factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
        scale = factor[config["schedule"]]
        critic_rate = config["critic_learning_rate"] or config["learning_rate"]
        for optimizer, rate in ((self.policy_optimizer, config["learning_rate"]), (self.critic_optimizer, critic_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        return float(config["learning_rate"] * scale)

    # ---- 4. Measure and guard.
    def note_scores(self, score: Tensor) -> None:
        """Takes the scores of a rollout into the running mean and deviation (Welford, a batch at a time)."""
        count, mean, squares = self.state.scores
        new = score.double()
        size, shift = len(new), float(new.mean()) - mean
        squares += float((new - new.mean()).square().sum()) + shift**2 * count * size / (count + size)
        self.state.scores = [count + size, mean + shift * size / (count + size), squares]

    def report(self, rollout: Rollout, found: objectives.Advantages) -> dict[str, float]:
        """Diagnostics of the rollout and of the critic's values for it."""
        mask = rollout.batch.response_mask
        values = rollout_figures(rollout.score, rollout.finished, rollout.old_logprobs, rollout.ref_logprobs, mask)
        values["kl_coef"] = self.state.kl_coef
        values["episodes"] = float(self.config["batch_size"] * (self.state.update + 1))
        if self.config["normalize_reward"]:
            values["score_scale"] = self.score_scale()
        if self.config["reward_clip"] is not None:
            shaped = self.shaped_score(rollout.score)
            values["reward_clip_fraction"] = float((shaped.abs() >= self.config["reward_clip"]).float().mean())
        explained = objectives.explained_variance(rollout.old_values, found.returns, mask)
        return values if explained is None else values | {"explained_variance": explained}

    def guard(self, values: Mapping[str, float]) -> None:
        """See `workbench.rollouts.guard`."""
        limits = {name: self.config[name] for name in ("max_seq_kl", "min_entropy")}
        guard(values, self.state.update + 1, **limits)

    def adapt(self, seq_kl: float) -> None:
        """Moves the KL coefficient towards its target where that is asked for."""
        control = self.config["adaptive_kl"]
        if control is not None and self.state.update >= self.config["critic_warmup_updates"]:
            self.state.kl_coef = objectives.adapted_kl_coef(
                self.state.kl_coef, seq_kl, target=control["target"], horizon=control["horizon"],
                clip=control["clip"], episodes=self.config["batch_size"],
            )  # fmt: skip

    def passed_on_grid(self, seq_kl: float) -> bool:
        """Whether the policy that was rolled out is the first beyond a KL of `checkpoint_at_kl`."""
        grid = self.config["checkpoint_at_kl"]
        passed = sum(seq_kl >= one for one in grid)
        if self.state.update == 0:  # the SFT itself, at 0 but for rounding
            return False
        before, self.state.grid = self.state.grid, max(self.state.grid, passed)
        return bool(passed > before)

    def _count(self, samples: Sequence[Sample], prompts: Sequence[Sequence[int]]) -> None:
        generated = sum(len(one.ids) for one in samples)
        tokens = generated + sum(len(prompt) for prompt in prompts)
        self.log.cost(
            tokens_generated=generated,
            reward_queries=len(samples),
            flops=tokens * self.models.operations_to_roll_out,
        )

    # ---- 5. Checkpoint and resume: weights, optimizers, state. Rollouts are seeded by the update's number.
    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {at: one.cpu().contiguous() for at, one in self.models.state().items()}, folder / "trained.safetensors"
        )
        optimizers = {"policy": self.policy_optimizer.state_dict(), "critic": self.critic_optimizer.state_dict()}
        torch.save(optimizers, folder / "optimizers.pt")
        (folder / "state.json").write_text(json.dumps(asdict(self.state)))

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.models.load_state(load_file(folder / "trained.safetensors"), folder)
        optimizers = torch.load(folder / "optimizers.pt", weights_only=True)
        self.policy_optimizer.load_state_dict(optimizers["policy"])
        self.critic_optimizer.load_state_dict(optimizers["critic"])
        self.state = State(**json.loads((folder / "state.json").read_text()))

    def save_policy(self, folder: Path) -> None:
        """The policy as a plain model folder, an adapter merged."""
        save_merged(self.policy, self.tokenizer, folder, POLICY if self.models.lora is not None else None)


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains the policy and writes its checkpoints.

    Args:
        config: An `arms.*` block of kind ppo, with `max_response_tokens`, `stop_ids` and `trust_remote_code`; with
            `lora` where adapters on one base are trained, and `implicit_beta` where a DPO policy is the reward.
        inputs: `sft` and `reward_model` (policy sets), `prompts` (packed); `implicit` and `selected_implicit` instead
            of `reward_model`; `pairs` (packed) where `sft_coef` is above 0.
        out: Receives the policy set.
        log: Seed, resources, metrics, cost.

    Divergence ends the training, keeps the last good checkpoint (at worst the SFT) and is recorded in the index, so
    that the arm stays in the table.
    """
    trainer = Trainer(config, inputs, log)
    state, kept = trainer.state, log.work / "policies"
    resumed = processes.from_main(lambda: latest_checkpoint(log.work))
    if resumed is not None:
        trainer.load(resumed[1])
        state = trainer.state
    log.rewind(state.update if resumed is not None else -1)

    diverged: dict[str, Any] | None = None
    while state.update < config["updates"]:
        suspect = True  # the policy that rolls out is no last good checkpoint before its rollout was looked at
        try:
            rollout = trainer.roll_out()
            if state.update == 0:
                check_reward_varies(rollout.score)
            trainer.note_scores(rollout.score)
            found = trainer.advantages(rollout)
            seen = trainer.report(rollout, found)
            trainer.guard(seen)
            suspect = False
            if trainer.passed_on_grid(seen["seq_kl"]) and processes.is_main():
                keep_checkpoint(kept, state.update, trainer.save_policy)
            values = seen | trainer.optimize(rollout, found)
            suspect = True  # entropy and the sign of KL are of the policy that rolled out
            trainer.guard(values)
            check_kl_sign(values, state.update + 1)  # after the ratio check, which knows better what is wrong
        except DivergenceError as error:
            if suspect and processes.is_main():
                forget_checkpoint(kept, state.update)
            last = max((step for step, _ in kept_checkpoints(kept)), default=0)
            diverged = {"reason": error.message, "step": state.update + 1}
            good = f"update {last}" if last else "the SFT"
            log.say(f"{log.instance}: {error.message}; the last good checkpoint is kept: {good}")
            break
        trainer.adapt(values["seq_kl"])
        state.update += 1
        log.metrics(state.update, values)
        log.progress(state.update, config["updates"], f"score {values['score']:+.2f}, KL {values['seq_kl']:.1f}")
        last_one = state.update == config["updates"]
        due = state.update % config["checkpoint_every_updates"] == 0
        if (due or last_one) and processes.is_main():
            keep_checkpoint(kept, state.update, trainer.save_policy)
        stop = processes.any_of(log.stop_requested()) and not last_one
        if (due or stop) and not last_one and processes.is_main():
            save_checkpoint(log.work, state.update, trainer.save)
        if stop:
            raise StageInterrupted

    processes.check_lockstep(trainer.models.state().values())
    if not processes.is_main():
        return
    placement, trust = Placement(dtype=log.resources.dtype), config["trust_remote_code"]
    keep_start(kept, read_policy_set(inputs["sft"]).folder(), trainer.tokenizer, placement, trust)
    listed = publish_checkpoints(kept, out, placement, trust)
    facts = trainer.facts | {"reference_tensors": trainer.models.reference_tensors()}
    write_policy_set(out, listed, facts=facts, diverged=diverged)


def demonstrations(pairs: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and chosen response of every training pair, as ids."""
    packed = PackedPairs(pairs)
    rows = [packed.as_lists(index) for index in packed.split_rows("train")]
    return [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
