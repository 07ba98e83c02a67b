"""What a side of a comparison states of itself, recomputed from what it loaded and consumed; `match` compares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from workbench.match_tuning import Tuning
from workbench.types import Cost, KLKind

Kind = Literal["sft", "ppo", "rloo", "grpo", "dpo", "best_of_n"]
ONLINE: tuple[Kind, ...] = ("ppo", "rloo", "grpo")  # trained on rollouts that an explicit reward model scores
TRAINED: tuple[Kind, ...] = (*ONLINE, "dpo")
ARMS: tuple[Kind, ...] = (*TRAINED, "best_of_n")
HARD_LABELS = "majority labels"


@dataclass(frozen=True, kw_only=True)
class RewardLineage:
    """The reward that an arm optimized or selected by.

    Args:
        name: Reward model's name, or the label of the DPO arm whose implicit reward it is.
        sft_tensors: Digest of the tensors that its trunk was initialised from.
        pair_rows: Pairs that it was trained on, where the arm trains on pairs with its labels: as a set, whatever
            their labels are.
        external: It was trained elsewhere, on pairs that nobody here knows: declared, and no part of what is matched.
        base: It was trained here, on these pairs, but from another model than the SFT: its lineage alone is declared.
    """

    name: str
    sft_tensors: str | None
    pair_rows: str | None = None
    external: bool = False
    base: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How evaluation responses were sampled. Tokens; temperature 1 is the model's own distribution."""

    temperature: float
    top_p: float
    max_response_tokens: int
    sampler: str = "workbench"


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """Digest of the tokenizer's files, digest (or name) of the prompt template, ids that end a response."""

    tokenizer: str
    template: str
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What the last bits depend on."""

    dtype: str
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rule that chose the checkpoint that is evaluated."""

    rule: Literal["last", "best"]
    metric: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class KLMeasure:
    """How this side's KL was measured.

    Args:
        estimator: "mc_k1" on own samples, or "bound" (best-of-n's formula).
        temperature, top_p: Of the samples that it was measured on, or that the bound's candidates were drawn at.
        code: Identity of the code path, such as "workbench.scoring:seq_logprobs@1".
        fault: Why the estimate cannot be a KL (below 0 beyond noise), or None.
    """

    estimator: KLKind
    temperature: float
    top_p: float
    code: str
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one arm (or sft) in one run seed loaded and consumed. Digests are hex strings; None = not recorded.

    Args:
        label, kind, seed: Which side; seed is None where there is one.
        diverged: Reason, or None.
        sft_tensors: Tensors that training started from, or of the sampler (best_of_n), or evaluated (sft).
        reference_tensors: Tensors that training's KL and implicit reward are relative to.
        evaluated_reference_tensors: The same of the evaluation's KL.
        selected_tensors, evaluated_tensors: The chosen checkpoint as training saved it and as evaluation loaded it.
        reward: What PPO, RLOO or GRPO optimized or best-of-n selected by.
        critic_sft_tensors: Tensors at the root of PPO's critic's trunk.
        rollout_prompts: Prompts that PPO, RLOO or GRPO rolled out on (`prompt_set_digest`).
        parametrization: What was trained from the SFT: "full", or the adapters' settings; a reward model's beside it
            where that differs.
        pair_rows: Preference pairs behind the signal, as token ids whatever their order: DPO's own, else those of
            its reward. As a set: where an arm declares other labels, with every turn of a pair undone.
        labels: Of a DPO arm, whose labels its pairs carry; None: the data's.
        declared_pairs: Digest of the subset of the training pairs that the config gives to the reward behind the arm,
            as recomputed from the shared pairs; None: all.
        declared: The same in words.
        consumed_labels: The pairs behind the signal with their labels (ids, target, margin), as the trainer had them.
        expected_labels: The same recomputed from the packed pairs that the config gives to this side.
        label_use: The rule that made the labels, in words.
        filter: The filter's report (which rows were dropped, and why).
        splits: split -> digest of its prompt ids (`prompt_set_digest`).
        eval_prompts: prompt set -> digest of the prompt ids in order (`prompt_order_digest`).
        own_cost, total_cost: Own stages; with all that they stand on.
    """

    label: str
    kind: Kind
    seed: int | None = None
    diverged: str | None = None
    sft_tensors: str | None = None
    reference_tensors: str | None = None
    evaluated_reference_tensors: str | None = None
    selected_tensors: str | None = None
    evaluated_tensors: str | None = None
    rollout_prompts: str | None = None
    reward: RewardLineage | None = None
    critic_sft_tensors: str | None = None
    parametrization: str | None = None
    pair_rows: str | None = None
    labels: str | None = None
    declared_pairs: str | None = None
    declared: str = ""
    consumed_labels: str | None = None
    expected_labels: str | None = None
    label_use: str | None = None
    filter: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    eval_prompts: Mapping[str, str] = field(default_factory=dict)
    decoding: Decoding | None = None
    tokenization: Tokenization | None = None
    numerics: Numerics | None = None
    selection: Selection | None = None
    kl: KLMeasure | None = None
    tuning: Tuning | None = None
    own_cost: Cost | None = None
    total_cost: Cost | None = None

    @property
    def name(self) -> str:
        """`ppo`, or `ppo[seed=1]`."""
        return self.label if self.seed is None else f"{self.label}[seed={self.seed}]"
