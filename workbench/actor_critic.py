"""What PPO trains and what it asks: policy, critic, frozen reference, reward. Three ways to hold them in memory.

    full weights, own critic     policy · reference · reward model · critic: four networks
    full weights, critic a head  policy with a value head on its trunk · reference · reward model: three
    LoRA                         one frozen base; the policy, the critic and the reward model are adapters on it (the
                                 critic perhaps a head on the policy's), the reference is the base with none active

A critic starts from the reward model: a network of its own from all of it, an adapter from its adapter, a head from its
head. With an implicit reward, or a reward model that was trained elsewhere, it starts at 0 on the SFT's trunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.batching import Batch
from workbench.errors import DivergenceError, IntegrityError
from workbench.lora import (
    CRITIC,
    POLICY,
    REWARD,
    Lora,
    active_adapter,
    adapter_parameters,
    adapter_state,
    add_adapter,
    base_digest,
    copy_adapter,
    float32_head,
    operations_per_token,
    parametrization,
    using,
)
from workbench.lora_files import load_adapter, load_trainee
from workbench.models import Placement, load_policy, load_reward_model, parameter_count, tensors_digest, trunk_digest
from workbench.policy_set import PolicySet, read_policy_set, read_selected
from workbench.scoring import TokenFigures, last_token_scores, response_logprobs, response_states, token_figures

CRITICS = ("separate", "head", "detached_head")


class ActorCritic:
    """Policy, reference, reward and critic of one run.

    Args:
        config: {"critic": one of CRITICS, "lora": block or None, "compile", "trust_remote_code"}, and "implicit_beta"
            where the reward is a DPO policy's.
        inputs: `sft` and `reward_model` (policy sets), or instead of the latter `implicit` (a DPO arm's policy set)
            with `selected_implicit`.
        placement: Device and precision.
        seed: Of the policy's adapter.

    Attributes:
        policy: The causal language model that is trained and sampled from.
        head: (1, H) value head of the critic.
        facts: Digests of everything loaded, for the certificate.
    """

    reward_model: Any = None  # None under LoRA and with an implicit reward
    _implicit_reward = False
    _external_parameters: int | None = None  # of a reward model that was trained elsewhere
    _critic_trunk: Any = None  # None: the policy's own, with the critic's adapter if there is one

    def __init__(
        self, config: Mapping[str, Any], inputs: Mapping[str, Path], placement: Placement, *, seed: int
    ) -> None:
        self.config, self.placement, self._seed = config, placement, seed
        sft = read_policy_set(inputs["sft"])
        self.lora = Lora.from_config(config.get("lora"))
        trust = config["trust_remote_code"]
        self.policy = load_trainee(sft.folder(), placement, self.lora, seed, trust_remote_code=trust)
        self.reference = None if self.lora is not None else self._load(sft.folder())
        self.shares_trunk = config["critic"] != "separate"
        self._reward: Callable[[Batch], Tensor]
        self.facts: dict[str, Any] = {}
        if "reward_model" in inputs:
            self._explicit(read_policy_set(inputs["reward_model"]))
        else:
            self._implicit(read_policy_set(inputs["implicit"]), read_selected(inputs["selected_implicit"]))
        digest = base_digest(self.policy)
        self.facts |= {
            "sft_tensors": digest,
            "reference_tensors": self.reference_tensors(),
            "parametrization": parametrization(self.lora),
        }
        if "critic_tensors" not in self.facts:  # a head on the policy's trunk, or adapters on the same base
            self.facts["critic_tensors"] = digest
        if config.get("gradient_checkpointing"):
            told = {"use_reentrant": False, "context_fn": self._recomputing}
            for model in (self.policy, self._critic_trunk):
                if model is not None:
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=told)
        self._trunks: dict[str, Any] = {}
        if config["compile"]:
            self._trunks = {"policy": torch.compile(self.policy.base_model)}
            if self._critic_trunk is not None:
                self._trunks["critic"] = torch.compile(self._critic_trunk)

    def _load(self, folder: Path) -> Any:
        return load_policy(folder, self.placement, trust_remote_code=self.config["trust_remote_code"])

    # ---- the reward, and the critic that starts from it

    def _explicit(self, reward: PolicySet) -> None:
        trust = self.config["trust_remote_code"]
        self.center = self._value_offset = float(reward.facts["center"])
        self.facts |= {
            "reward_trunk_start": reward.facts["sft_tensors"],
            "consumed_pairs": reward.facts["consumed_pairs"],
            "pairs_filter": reward.facts["pairs_filter"],
        }
        if reward.facts.get("external") or reward.facts.get("base"):
            self._external(load_reward_model(reward.folder(), self.placement, trust_remote_code=trust))
            return
        if self.lora is not None:
            given = load_adapter(self.policy, REWARD, reward.folder() / "adapter")
            if given is None:
                raise IntegrityError("the reward model's adapter has no head", where=str(reward.folder()))
            self.head = float32_head(copy.deepcopy(given))
            self._reward_head = float32_head(given).requires_grad_(False)
            self._reward = self._adapter_score
            reward_tensors = tensors_digest(adapter_state(self.policy, REWARD))
            if not self.shares_trunk:
                add_adapter(self.policy, self.lora, CRITIC, 0)
                copy_adapter(self.policy, REWARD, CRITIC)
                self.facts["critic_tensors"] = tensors_digest(adapter_state(self.policy, CRITIC))
        else:
            model = load_reward_model(reward.folder(), self.placement, trust_remote_code=trust)
            self._reward = lambda batch: last_token_scores(model, batch)
            self.reward_model = model
            reward_tensors = trunk_digest(model)
            if self.shares_trunk:
                self.head = copy.deepcopy(model.score).float().requires_grad_(True)
            else:
                critic = load_reward_model(reward.folder(), self.placement, trust_remote_code=trust, trainable=True)
                self.critic, self.head, self._critic_trunk = critic, critic.score, critic.base_model
        self.facts["reward_tensors"] = reward_tensors
        if not self.shares_trunk and self.lora is None:
            self.facts["critic_tensors"] = trunk_digest(self.critic)

    def _external(self, model: Any) -> None:
        """A reward model that was trained elsewhere: its trunk, and perhaps its tokens, are none of a critic's."""
        self._reward, self.reward_model = (lambda batch: last_token_scores(model, batch)), model
        self._value_offset, self._external_parameters = 0.0, parameter_count(model)
        self.facts["reward_tensors"] = trunk_digest(model)
        self._fresh_critic()

    def _implicit(self, dpo: PolicySet, selected: str) -> None:
        beta = float(self.config["implicit_beta"])
        model = self._load(dpo.folder(selected))

        def score(batch: Batch) -> Tensor:
            under_sft = self.reference_logprobs(batch)
            return beta * (response_logprobs(model, batch) - under_sft).sum(1)

        self._reward, self.center, self._value_offset = score, 0.0, 0.0
        self._implicit_reward = True  # a pass of the DPO policy, and one of the reference at temperature 1
        self._fresh_critic()
        self.facts |= {
            "reward_tensors": dpo.checkpoint(selected).tensors,
            "reward_trunk_start": dpo.facts["sft_tensors"],
            "consumed_pairs": dpo.facts["consumed_pairs"],
            "pairs_filter": dpo.facts["pairs_filter"],
        }

    def _fresh_critic(self) -> None:
        """A critic that says 0 on the SFT's trunk, where no reward model of that trunk is there to start from."""
        width = self.policy.get_output_embeddings().weight.shape[1]
        self.head = nn.Linear(width, 1, bias=False, device=self.policy.device)
        nn.init.zeros_(self.head.weight)
        if not self.shares_trunk:
            if self.lora is not None:
                add_adapter(self.policy, self.lora, CRITIC, self._seed + 1)
            else:
                self._critic_trunk = copy.deepcopy(self.policy.base_model)
                self.facts["critic_tensors"] = tensors_digest(self._critic_trunk.state_dict())

    def _adapter_score(self, batch: Batch) -> Tensor:
        with using(self.policy, REWARD):
            hidden = self.policy.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            score: Tensor = self._reward_head(hidden.flatten(0, 1)[batch.last]).squeeze(-1).float()
            return score

    # ---- what is asked without a gradient

    @contextmanager
    def acting(self) -> Iterator[Any]:
        """The policy in eval mode, its adapter active, to sample from."""
        self.policy.eval()
        with using(self.policy, POLICY if self.lora is not None else None):
            yield self.policy

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """(B,) reward of the whole response, less the mean over SFT samples."""
        return self._reward(batch) - self.center

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """(B, R) under the SFT."""
        if self.reference is not None:
            return response_logprobs(self.reference, batch, temperature)
        with using(self.policy, None):
            return response_logprobs(self.policy, batch, temperature)

    # ---- what is trained

    def figures(self, batch: Batch, temperature: float) -> TokenFigures:
        """The policy's log-probabilities with their gradient, entropies, and states for a value head."""
        self._mode(self.policy)
        with using(self.policy, POLICY if self.lora is not None else None):
            return token_figures(self.policy, batch, temperature, trunk=self._trunks.get("policy"), with_entropy=True)

    def values(self, batch: Batch, states: Tensor | None = None) -> Tensor:
        """(B, R) value of the state before each token, centered as the score is; 0 outside the mask.

        Args:
            batch: The responses.
            states: (N, H) of the policy's trunk, where a pass has made them and the critic is a head on it.
        """
        if states is None:
            self._mode(self.policy if self._critic_trunk is None else self._critic_trunk)
            if self._critic_trunk is not None:
                states = response_states(self._trunks.get("critic", self._critic_trunk), batch)
            else:
                adapter = None if self.lora is None else POLICY if self.shares_trunk else CRITIC
                with using(self.policy, adapter):
                    states = response_states(self._trunks.get("policy", self.policy.base_model), batch)
        if self.config["critic"] == "detached_head":
            states = states.detach()
        return batch.spread(self.values_of(states))

    def _mode(self, model: Any) -> None:
        """Activations are computed again in training mode alone; without dropout that is all that the mode changes."""
        if self.config.get("gradient_checkpointing"):
            model.train(torch.is_grad_enabled())

    def _recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around a layer's pass, and around the same pass in backward, when another adapter may be the active one."""
        return nullcontext(), using(self.policy, active_adapter(self.policy))

    def values_of(self, states: Tensor) -> Tensor:
        """(N,) float32 values, in the score's units and centered as it is, of (N, H) states."""
        values: Tensor = self.head(states.to(self.head.weight.dtype)).squeeze(-1).float()
        return values - self._value_offset

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        """What the policy's optimizer steps."""
        if self.lora is None:
            return [one for one in self.policy.parameters() if one.requires_grad]
        return adapter_parameters(self.policy, POLICY)

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """What the critic's optimizer steps: its own trunk or adapter, and the head."""
        own: list[nn.Parameter] = []
        if self._critic_trunk is not None:
            own = list(self._critic_trunk.parameters())
        elif not self.shares_trunk:
            own = adapter_parameters(self.policy, CRITIC)
        return own + list(self.head.parameters())

    @property
    def operations_to_roll_out(self) -> float:
        """Operations a token, 2 a parameter: sample, reference, reward, and the pass of a critic that has its own."""
        passes = 3 + self._implicit_reward + (not self.shares_trunk)
        own = parameter_count(self.policy)
        other = 0 if self._external_parameters is None else self._external_parameters - own
        return 2.0 * (own * passes + other)

    def operations_to_train(self, *, train_policy: bool = True) -> float:
        """Operations to train policy and critic on a token once; without the policy only the critic learns."""
        forward = 2.0 * parameter_count(self.policy)
        policy = operations_per_token(self.policy) if train_policy else forward
        own = 0.0 if self.shares_trunk else operations_per_token(self._critic_trunk or self.policy)
        return policy + own

    @property
    def operations_to_demonstrate(self) -> float:
        """Operations to train the policy alone on a token once."""
        return operations_per_token(self.policy)

    def reference_tensors(self) -> str:
        """Digest of what answers as the reference now: under LoRA the base, which training must not have touched."""
        return base_digest(self.policy) if self.reference is None else trunk_digest(self.reference)

    def check_finite(self, when: str) -> None:
        """Refuses trained weights that hold a NaN or an infinity; waits for the device once.

        Raises:
            DivergenceError: `when` ("after update 7") goes into the message.
        """
        state = self.state()
        fine = torch.stack(torch._foreach_norm(list(state.values()), math.inf)).isfinite().tolist()
        for name, good in zip(state, fine, strict=True):
            if not good:
                raise DivergenceError(f"the weights {name} are not finite {when}; lower the learning rate")

    def state(self) -> dict[str, Tensor]:
        """Everything trained, by a name of its place: for a checkpoint to resume from."""
        named = (("policy", self.policy_parameters), ("critic", self.critic_parameters))
        return {f"{name}.{at:05d}": one.detach() for name, found in named for at, one in enumerate(found)}

    def load_state(self, state: Mapping[str, Tensor], where: Path) -> None:
        """Puts back what `state` gave, bit for bit.

        Raises:
            IntegrityError: It is of another model or critic.
        """
        own = self.state()
        if {at: one.shape for at, one in own.items()} != {at: one.shape for at, one in state.items()}:
            raise IntegrityError(
                "the checkpoint is of another model or another kind of critic; delete the stage's work folder and "
                "run again",
                where=str(where),
            )
        with torch.no_grad():
            for at, one in own.items():
                one.copy_(state[at])
