"""What an arm cost: its own stages, all that it stands on, and one answer at inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipelines.graph import Graph
from workbench.outcome import Outcome
from workbench.stages import dependencies
from workbench.types import Cost, StageRecord


def arm_cost(graph: Graph, records: Mapping[str, StageRecord], label: str, runs: Iterable[int]) -> tuple[Cost, Cost]:
    """Cost of an arm's own stages, and with all that they stand on, over run seeds; of the record when cached."""
    own: list[str] = []
    for run in runs:
        roles = graph.arms[label, run]
        own += [roles[role] for role in ("relabeled", "policy", "pool", "selector_scores") if role in roles]
        if label == "sft":
            own += [instance for instance in ("sft",) if instance not in own]
    upstream: dict[str, None] = {}
    waiting = list(own)
    while waiting:
        instance = waiting.pop()
        if instance not in upstream:
            upstream[instance] = None
            waiting += dependencies(graph.stages[instance])
    return total(records[instance].cost for instance in own), total(records[i].cost for i in upstream)


def total(costs: Iterable[Cost]) -> Cost:
    """Sum of costs, largest peak memory."""
    found = Cost()
    for cost in costs:
        found = found.plus(cost)
    return found


def answer_cost(graph: Graph, outcome: Outcome, label: str, runs: Iterable[int]) -> Cost:
    """One answer at inference: sampling it, and for best-of-n sampling and scoring n; means over all prompts."""
    from workbench.config import BestOfN
    from workbench.stage_log import read_metrics

    arm = graph.comparison.arms.get(label)
    found, answers = Cost(), 0
    for run in runs:
        roles = graph.arms[label, run]
        sampled = roles["pool"] if isinstance(arm, BestOfN) else roles["generations"]
        artifact, record = outcome.artifacts[sampled], outcome.records[sampled]
        measured = next(read_metrics(artifact.metrics_path))["values"]
        found = found.plus(
            Cost(
                wall_s=measured["sampling_wall_s"],
                cpu_s=measured["sampling_cpu_s"],
                gpu_s=measured["sampling_wall_s"] if record.cost.gpu_s else 0.0,
                flops=measured["sampling_flops"],
                tokens_generated=record.cost.tokens_generated,
                peak_memory_bytes=record.cost.peak_memory_bytes,
            )
        )
        if isinstance(arm, BestOfN):
            found = found.plus(outcome.records[roles["selector_scores"]].cost)
        with (artifact.path / "generations.jsonl").open("rb") as lines:
            answers += sum(1 for _ in lines)
    share = (arm.n if isinstance(arm, BestOfN) else 1) / max(answers, 1)
    return Cost(
        wall_s=found.wall_s * share,
        cpu_s=found.cpu_s * share,
        gpu_s=found.gpu_s * share,
        flops=found.flops * share,
        tokens_generated=round(found.tokens_generated * share),
        reward_queries=round(found.reward_queries * share),
        peak_memory_bytes=found.peak_memory_bytes,
    )
