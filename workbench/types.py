"""The records that stages exchange. Frozen, keyword-only, stdlib only.

Shapes and units stand at each field; `docs/architecture.md` shows one worked example of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "validation", "test", "ood"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "ood")
FinishReason = Literal["stop", "length"]
KLKind = Literal["mc_k1", "bound"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of one split. `prompt_id` is derived from the normalised text, so equal texts share it."""

    prompt_id: str
    prompt: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotator's verdict on a pair. `prefers_first`: about the pair as it was *shown* (first, second)."""

    annotator: str
    prefers_first: bool


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, the preferred one first.

    `prompt`, `chosen` and `rejected` are the exact texts that are tokenised (template already applied for
    conversational rows; `chosen` and `rejected` do not repeat the prompt). `annotations` are in terms of
    (chosen, rejected): `prefers_first=False` means that this annotator preferred `rejected`.
    `target_margin` is an offset inside the loss, in nats.
    """

    pair_id: str
    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    source: str
    split: Split
    annotations: tuple[Annotation, ...] = ()
    target_margin: float | None = None
    chosen_finished: bool = True  # False: the response was cut at the length limit, so no EOS is appended
    rejected_finished: bool = True


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One sampled response.

    `response_ids` (R,) include the stop token when `finish_reason` is "stop". `seq_logprob` and
    `ref_seq_logprob` are sums over the response in nats, float32, at temperature 1 and top-p 1 whatever the
    sampling temperature was.
    """

    generation_id: str
    prompt_id: str
    policy: str
    sample_index: int
    response: str
    response_ids: tuple[int, ...]
    finish_reason: FinishReason
    seq_logprob: float
    ref_seq_logprob: float


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """One verdict of one judge (or annotator) on two responses to one prompt.

    Args:
        prompt_id: The prompt.
        judge: Name of the judge.
        first_id, second_id: The two responses (`Generation.generation_id`, or any id of the system's answer).
        order: Which of them was shown first. A judge that sees no order (a scorer) is "first_shown_first".
        preference: In [0, 1]: 0 the first is better, 1 the second, 0.5 a tie, whatever the order in which they were
            shown; continuous for judges that give a probability. None: unscored.
        status: "unscored": asked, but no verdict came (unparseable, refused, failed); never a loss or a tie.
        annotator: Which person of several, for human judges.
        rationale: The judge's reason; for unscored ones what went wrong.
        first, second: Names of the two systems, where the file leaves the comparison.
        first_length, second_length: Characters of the two responses, for length control.
    """

    prompt_id: str
    judge: str
    first_id: str
    second_id: str
    order: Literal["first_shown_first", "second_shown_first"] = "first_shown_first"
    preference: float | None
    status: Literal["scored", "unscored"] = "scored"
    annotator: str | None = None
    rationale: str | None = None
    first: str | None = None
    second: str | None = None
    first_length: int | None = None
    second_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

    Args:
        value: Point estimate; None where it is undefined.
        low, high: Ends of the 95% interval; None where it is undefined.
        n: Number of independent units behind it (prompts, unless `method` says otherwise).
        n_unscored: Units that were asked for but have no score.
        method: How the interval was made ("cluster-t by prompt", "wilson", ...).
        prompt_se: Standard error from the draw of prompts, in the value's unit; with one run seed that is all of it,
            sampling noise included. None where it is unknown.
        seed_se: Standard error from what a run seed redraws (training, samples); None with one seed. The two add in
            quadrature.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_unscored: int = 0
    method: str
    prompt_se: float | None = None
    seed_se: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage took. Seconds, counts and bytes; summed over resumes."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    flops: float = 0.0
    tokens_trained: int = 0
    tokens_generated: int = 0
    reward_queries: int = 0
    peak_memory_bytes: int = 0

    def plus(self, other: Cost) -> Cost:
        """Sum of two costs; peak memory is the larger one, because the stages need not overlap."""
        return Cost(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            gpu_s=self.gpu_s + other.gpu_s,
            flops=self.flops + other.flops,
            tokens_trained=self.tokens_trained + other.tokens_trained,
            tokens_generated=self.tokens_generated + other.tokens_generated,
            reward_queries=self.reward_queries + other.reward_queries,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
        )


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Provenance of one artifact, kept in its manifest. Not part of the artifact's content digest."""

    key: str
    name: str
    instance: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # role -> content digest
    output: str  # content digest
    seed: int
    commit: str | None
    dirty: bool | None
    packages: Mapping[str, str]
    device: str
    threads: int
    dtype: str
    cost: Cost
    finished_unix_s: float
    modules: Mapping[str, str] = field(default_factory=dict)  # module -> hash of its syntax tree
    mlflow_run_id: str | None = None
    processes: int = 1
