"""The parts of results.json about reward against KL: the frontier and over-optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import KL, E, Model


class FrontierPoint(Model):
    """One point of the reward-KL frontier: a checkpoint, or best-of-n at one n."""

    arm: str
    label: str
    seq_kl: KL
    proxy_reward: E | None
    gold_reward: E | None
    win_rate: E | None
    pareto: bool | None = Field(default=None, description="No point of the same kl_kind has more reward at less KL")
    seed: int | None = None
    step: int | None = None


class Overoptimization(Model):
    """Gao's form of an arm's gold reward, d = sqrt(KL): bon d (alpha - beta d), rl d (alpha - beta log d)."""

    arm: str
    form: Literal["bon", "rl"]
    alpha: E
    beta: E = Field(description="Above 0 also for a perfect selector: compare with one before calling it a fault")
    peak_kl: E | None
    drop_from_peak: E | None = Field(description="Gold at the best point less gold at the last; low > 0: it fell")
    seed: int | None = None
