"""The parts of results.json about reward against KL: the frontier, matched KL, areas and over-optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.results_base import KL, Count, E, Model, Probability
from workbench.types import KLKind

PromptSet = Literal["validation", "test"]
Selector = Literal["own", "gold"]
_SELECTOR = "gold: what the gold reward itself would have picked from the same pool, for comparison; own: all else"


class FrontierPoint(Model):
    """One point of the reward-KL frontier: a checkpoint, or best-of-n at one n."""

    arm: str
    label: str
    seq_kl: KL
    proxy_reward: E | None
    gold_reward: E | None
    win_rate: E | None
    pareto: bool | None = Field(
        default=None, description="No point on the same prompts has more reward at less KL, by point estimates"
    )
    pareto_share: Probability | None = Field(
        default=None, description="Share of resamples of prompts and run seeds in which the point is Pareto"
    )
    prompt_set: PromptSet | None = Field(default=None, description="The prompts that its figures are about")
    selector: Selector = Field(default="own", description=_SELECTOR)
    kl_slack: E | None = Field(
        default=None,
        description="Estimate, from the pool's ties and text probabilities, of how far the bound lies above the KL",
    )
    seed: int | None = None
    step: int | None = None


class MatchedKL(Model):
    """Reward of an arm at one KL, or its reward less another arm's at the same KL."""

    arm: str
    against: str | None = Field(default=None, description="The arm that is taken off; null: the arm's own reward")
    kl: float = Field(ge=0, description="Nats per response")
    reward: Literal["gold_reward", "proxy_reward"]
    estimate: E = Field(description="Null beyond the arm's largest KL: nothing is extrapolated")
    kl_kind: KLKind | Literal["mixed"] = Field(description="mixed: a bound beside a measured KL")
    prompt_set: PromptSet | Literal["mixed"] = Field(description="mixed: other prompts on either side, so unpaired")


class FrontierArea(Model):
    """Mean reward of an arm over the KLs from 0 to `kl_to`, or that less another arm's."""

    arm: str
    against: str | None = None
    reward: Literal["gold_reward", "proxy_reward"]
    kl_to: float | None = Field(description="All usable arms reach it, or both of a pair; null where there is no curve")
    estimate: E = Field(description="Area under reward by KL over its width")
    kl_kind: KLKind | Literal["mixed"]
    prompt_set: PromptSet | Literal["mixed"]


class PairsEffect(Model):
    """Two arms of one kind whose rewards saw different numbers of pairs: is the turn smaller and later with more?"""

    kind: str
    fewer: str
    more: str
    pairs_fewer: Count
    pairs_more: Count
    less_fall: E = Field(description="Fall from the best point with fewer pairs less that with more; low > 0: smaller")
    turns_later: bool | None = Field(
        description="The best point lies at more KL with more pairs, beyond noise; false: at less; null: not resolved, "
        "or fewer than five run seeds"
    )
    best_kl_fewer: tuple[float, float | None] | None = Field(
        description="KLs between which the best point lies; null above: the last point may be the best"
    )
    best_kl_more: tuple[float, float | None] | None


class Overoptimization(Model):
    """Where the truth parts from the proxy along an arm's points, and Gao's form of it, d = sqrt(KL).

    bon: d (alpha - beta d), rl: d (alpha - beta log d). DPO has a row for each form; all but the fit are the same.
    """

    arm: str
    form: Literal["bon", "rl"]
    alpha: E
    beta: E = Field(description="Above 0 also for a perfect selector: compare with the row of selector gold")
    peak_kl: E | None
    drop_from_peak: E | None = Field(description="Gold at the best point less gold at the last; low > 0: it fell")
    seed: int | None = None
    selector: Selector = Field(default="own", description=_SELECTOR)
    truth: Literal["gold", "judge", "ensemble"] = Field(
        default="gold",
        description="What stands for the truth: gold; win rate by an independent judge less a half; mean standardized "
        "score of the reward models that the arm did not optimize",
    )
    residual_rms: float | None = Field(default=None, description="Root mean square distance of the points from the fit")
    lack_of_fit_p: Probability | None = Field(
        default=None, description="p of the fit being right, by its largest standardized residual; small: it is not"
    )
    onset_kl: E | None = Field(
        default=None,
        description="KL of the best point; low: of the first point that no later one beats beyond noise; high: of the "
        "last that may be the best. Null where the last point may be the best or the proxy no longer rises",
    )
    proxy_since_peak: E | None = Field(
        default=None, description="Proxy at the last point less proxy at the best point by gold, interval as the drop's"
    )
    gap: E | None = Field(
        default=None,
        description="At the last point: the proxy's gain over the SFT less gold's, each in standard deviations of SFT "
        "samples",
    )
    goodhart: bool | None = Field(
        default=None,
        description="From the best point to the last gold falls and the proxy rises, both beyond noise, simultaneous "
        "over points; null where it cannot be told",
    )
    disagreement: E | None = Field(
        default=None,
        description="Truth ensemble: spread (standard deviation) of the reward models' standardized scores of one "
        "response at the last point less that on SFT samples",
    )
    proxy: str | None = Field(default=None, description="Reward model that the proxy's figures are about")
    proxy_role: Literal["own", "shared", "both"] | None = Field(
        default=None,
        description="own: the arm optimized `proxy`; shared: it did not, the frontier's proxy is this one; both",
    )
    points: Count | None = Field(default=None, description="Points that the line has, the SFT not counted")
