"""PPO and DPO reach an optimum that is known: pi* proportional to pi_ref exp(r / kl_coef), in two enumerable tasks.

Every response of every prompt is listed, so that pi*, the distance to it and the pairs for DPO are exact. The reward
is a reward model's, as PPO reads it; DPO gets Bradley-Terry preferences of the same reward, with beta = kl_coef
(Rafailov et al. 2023, eq. 4: https://arxiv.org/abs/2305.18290).
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines import dpo, ppo
from tests.ml_helpers import CPU, Log, World, dpo_config, policy_of, ppo_config, ppo_inputs, tiny_model
from workbench import evaluation
from workbench.models import load_reward_model, new_reward_model, save_model, trunk_digest
from workbench.packed import write_packed_pairs, write_packed_prompts
from workbench.policy_set import Checkpoint, read_policy_set, write_policy_set
from workbench.scoring import reward_scores, sequence_logprobs

PAD, EOS, KL_COEF = 0, 1, 0.5
COPIES = 16  # of each pair of responses, about 16 sigmoid(r1 - r2) of them in one order and the rest in the other


@dataclass
class Task:
    """A world whose responses can be listed: `responses` of each prompt, the same for all.

    Args:
        ref_logprobs: (P, S) nats of each response under the SFT; they sum to 1.
        rewards: (P, S).
    """

    world: World
    prompts: list[list[int]]
    responses: list[list[int]]
    max_tokens: int

    def __post_init__(self) -> None:
        self.ref_logprobs = self.logprobs(self.world.model)
        model = load_reward_model(self.world.reward_model / "checkpoints" / "last", CPU)
        rewards = [
            reward_scores(model, [prompt] * len(self.responses), self.responses, pad_id=PAD) for prompt in self.prompts
        ]
        self.rewards = torch.tensor(rewards, dtype=torch.float64)
        tilted = self.ref_logprobs + self.rewards / KL_COEF
        self.optimum = tilted - tilted.logsumexp(1, keepdim=True)

    def logprobs(self, folder: Path) -> Tensor:
        """(P, S) float64 of a policy in a folder."""
        model = policy_of(folder)
        rows = [
            sequence_logprobs(model, [prompt] * len(self.responses), self.responses, pad_id=PAD)
            for prompt in self.prompts
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def distance(self, logprobs: Tensor) -> tuple[float, float]:
        """Total variation to pi*, and KL(policy||pi*) in nats: means over prompts."""
        apart = (logprobs.exp() - self.optimum.exp()).abs().sum(1) / 2
        kl = (logprobs.exp() * (logprobs - self.optimum)).sum(1)
        return float(apart.mean()), float(kl.mean())

    def objective(self, logprobs: Tensor) -> float:
        """E[r] - kl_coef KL(policy||SFT), mean over prompts."""
        return float((logprobs.exp() * (self.rewards - KL_COEF * (logprobs - self.ref_logprobs))).sum(1).mean())


def listed(vocabulary: int, longest: int) -> list[list[int]]:
    """Every response: ids up to the first EOS, or `longest` ids without one. The pad id may be drawn as any other."""
    done: list[list[int]] = []
    open_ones: list[list[int]] = [[]]
    for _ in range(longest):
        longer = [[*one, token] for one in open_ones for token in range(vocabulary)]
        done += [one for one in longer if one[-1] == EOS]
        open_ones = [one for one in longer if one[-1] != EOS]
    return done + open_ones


def build_task(root: Path, *, vocabulary: int, prompts: int, longest: int, scale: float) -> Task:
    """SFT and reward model as artifacts, with a vocabulary small enough to list all responses."""
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="w2")
    world = World(root, tokenizer)
    size = {"hidden_size": 32, "intermediate_size": 64}
    model = tiny_model(tokenizer, initializer_range=0.15, **size)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.8)  # tied embeddings would make the SFT repeat its last token
    save_model(model, tokenizer, world.model)
    digest = trunk_digest(model)
    sft = Checkpoint(name="sft", path="checkpoints/sft", step=0, tensors=digest)
    write_policy_set(world.sft, [sft], facts={"sft_tensors": digest, "adopted": True})
    reward = new_reward_model(world.model, CPU, 3, pad_id=PAD)
    # A trunk of its own: a reward that is no simple function of the SFT's states.
    reward.model.load_state_dict(tiny_model(tokenizer, seed=7, initializer_range=0.2, **size).model.state_dict())
    with torch.no_grad():
        reward.score.weight.mul_(scale)
    save_model(reward, tokenizer, world.reward_model / "checkpoints" / "last")
    last = Checkpoint(name="last", path="checkpoints/last", step=1, tensors=trunk_digest(reward))
    facts = {"sft_tensors": digest, "consumed_pairs": "c", "pairs_filter": "f", "center": 0.0, "pad_id": PAD}
    write_policy_set(world.reward_model, [last], facts=facts)
    ids = [[2, 3], [3, 2, 2]][:prompts]  # of two lengths
    world.prompts.mkdir()
    rows = [{"prompt_id": f"p{i}", "prompt": f"p{i}", "split": "train", "ids": one} for i, one in enumerate(ids)]
    write_packed_prompts(world.prompts, rows)
    return Task(world, ids, listed(vocabulary, longest), longest)


TASKS: dict[str, dict[str, Any]] = {
    "bandit": {"vocabulary": 16, "prompts": 1, "longest": 1, "scale": 2.0},
    "tabular": {"vocabulary": 4, "prompts": 2, "longest": 2, "scale": 3.5},
}


@pytest.fixture(scope="module", params=list(TASKS))
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return build_task(tmp_path_factory.mktemp(request.param), **TASKS[request.param])


def train_ppo(task: Task, work: Path, **changes: Any) -> Path:
    """PPO's policy: the arm's own stage, from start to end."""
    settings: dict[str, Any] = {
        "kl_coef": KL_COEF, "updates": 40, "batch_size": 512, "minibatches": 4, "epochs": 2, "learning_rate": 5e-3,
        "critic_warmup_updates": 4, "lam": 1.0, "checkpoint_every_updates": 100,
    }  # fmt: skip
    config = ppo_config(**settings | changes) | {"stop_ids": [EOS], "max_response_tokens": task.max_tokens}
    out = task.world.out("ppo")
    ppo.run(config, ppo_inputs(task.world), out, Log(work))
    return read_policy_set(out).folder()


def train_dpo(task: Task, work: Path, **changes: Any) -> Path:
    """DPO's policy on every pair of responses of every prompt, labeled by Bradley-Terry on the reward."""
    rows, rng = [], random.Random(0)
    for prompt, rewards in zip(task.prompts, task.rewards.tolist(), strict=True):
        for first, second in combinations(range(len(task.responses)), 2):
            share = 1 / (1 + math.exp(rewards[second] - rewards[first]))
            wins = math.floor(COPIES * share + rng.random())  # rounded without bias, or sure pairs would be too sure
            one, other = task.responses[first], task.responses[second]
            rows += [(prompt, one, other)] * wins + [(prompt, other, one)] * (COPIES - wins)
    pairs, reference, out = task.world.out("pairs"), task.world.out("reference"), task.world.out("dpo")
    meta = {"prompt_id": "p", "split": "train", "annotations": [], "target_margin": None}
    write_packed_pairs(pairs, rows, ({"pair_id": str(i)} | meta for i in range(len(rows))))
    (pairs / "filter.json").write_text(json.dumps({"rows": len(rows), "kept": len(rows)}))
    sft = {"sft": task.world.sft, "pairs": pairs}
    evaluation.reference_logprobs({"batch_size": 4096, "trust_remote_code": False}, sft, reference, Log(work / "ref"))
    settings: dict[str, Any] = {
        "beta": KL_COEF, "epochs": 60, "batch_size": len(rows) // 4, "learning_rate": 1e-2,
        "checkpoint_every_steps": 10**6,
    }  # fmt: skip
    dpo.run(dpo_config(**settings | changes), sft | {"reference_logprobs": reference}, out, Log(work / "dpo"))
    return read_policy_set(out).folder()


# ------------------------------------------------------------------------------------------- both reach it

TOLERANCE_TV, TOLERANCE_KL, GAP_CLOSED = 0.1, 0.03, 0.98


def test_every_response_is_listed_and_there_is_something_to_gain(task: Task) -> None:
    assert task.ref_logprobs.exp().sum(1).tolist() == pytest.approx([1.0] * len(task.prompts), abs=1e-5)
    apart, kl = task.distance(task.ref_logprobs)
    assert apart > 5 * TOLERANCE_TV
    assert kl > 10 * TOLERANCE_KL
    # The closed form is the best there is: its value is kl_coef log Z, and moving away from it costs.
    best = KL_COEF * (task.ref_logprobs + task.rewards / KL_COEF).logsumexp(1).mean()
    assert task.objective(task.optimum) == pytest.approx(float(best), abs=1e-5)
    tilted = task.optimum + 0.1 * task.rewards
    assert task.objective(tilted - tilted.logsumexp(1, keepdim=True)) < task.objective(task.optimum)
    # The tolerance can tell: the optimum of half the coefficient is outside it.
    other = task.ref_logprobs + 2 * task.rewards / KL_COEF
    assert task.distance(other - other.logsumexp(1, keepdim=True))[0] > 1.5 * TOLERANCE_TV


@pytest.mark.parametrize("train", [train_ppo, train_dpo], ids=["ppo", "dpo"])
def test_the_policy_reaches_the_known_optimum(task: Task, tmp_path: Path, train: Any) -> None:
    found = task.logprobs(train(task, tmp_path))
    apart, kl = task.distance(found)
    best, start = task.objective(task.optimum), task.objective(task.ref_logprobs)
    assert apart < TOLERANCE_TV
    assert kl < TOLERANCE_KL
    assert (task.objective(found) - start) / (best - start) > GAP_CLOSED
