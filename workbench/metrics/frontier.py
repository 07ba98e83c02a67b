"""Points of the reward-KL frontier, from samples of each checkpoint and from best-of-n's pool.

KL is +KL(policy || reference) in nats a response. A checkpoint's is the mean of seq_logprob - ref_seq_logprob over its
own samples at temperature 1 and top-p 1 (`mc_k1`, unbiased, may come out a little below 0); best-of-n's is a bound
from n alone (`bound`). The two are never compared without their `kl_kind`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from workbench.metrics.best_of_n import best_of_n_value, best_of_n_weights, bound_kl
from workbench.metrics.estimates import Labels, Values, mean_by_cluster
from workbench.metrics.win_rate import Judged, win_rate
from workbench.results_base import KL, E
from workbench.results_curves import FrontierPoint, PromptSet, Selector
from workbench.types import Estimate


def checkpoint_point(
    arm: str,
    label: str,
    *,
    prompts: Labels,
    seq_kl: Values,
    proxy_reward: Values | None,
    gold_reward: Values | None,
    win_rate: Estimate | None = None,
    seeds: Labels | None = None,
    seed: int | None = None,
    step: int | None = None,
    prompt_set: PromptSet | None = None,
) -> FrontierPoint:
    """One checkpoint's point from its samples at temperature 1.

    Args:
        arm, label: The arm, and the point's name ("step 21").
        prompts: (N,) prompt of each sample.
        seq_kl: (N,) seq_logprob - ref_seq_logprob of each sample, nats.
        proxy_reward, gold_reward: (N,) of each sample; None without that scorer.
        win_rate: Against sft, where it was judged.
        seeds: (N,) run seed of each sample, where the point is over several.
        seed, step: Of a single run's checkpoint.
        prompt_set: What the prompts are.
    """

    def mean(values: Values | None) -> E | None:
        return None if values is None else E.of(mean_by_cluster(values, prompts, None, seeds))

    return FrontierPoint(
        arm=arm,
        label=label,
        seq_kl=KL.of(mean_by_cluster(seq_kl, prompts, None, seeds), kl_kind="mc_k1"),
        proxy_reward=mean(proxy_reward),
        gold_reward=mean(gold_reward),
        win_rate=None if win_rate is None else E.of(win_rate),
        seed=seed,
        step=step,
        prompt_set=prompt_set,
    )


def bound_estimate(n: int, prompts: int) -> KL:
    """Best-of-n's KL bound as an estimate: a formula, so it has no interval."""
    return KL(
        value=bound_kl(n),
        low=None,
        high=None,
        n=prompts,
        method="bound log n - (n - 1) / n, no interval",
        kl_kind="bound",
    )


def best_of_n_judged(selector: Mapping[str, Values], judged: Mapping[str, Values], n: int) -> Judged:
    """Best-of-n as a weighted arm: every candidate of the pool with its probability to be picked.

    Args:
        selector: prompt_id -> (N,) selecting score of the pool.
        judged: prompt_id -> (N,) the judge's value of the same candidates in the same order.
        n: Candidates drawn.
    """
    return Judged(
        scores={p: judged[p] for p in selector}, weights={p: best_of_n_weights(s, n) for p, s in selector.items()}
    )


def best_of_n_point(
    arm: str,
    n: int,
    *,
    selector: Sequence[Mapping[str, Values]],
    proxy: Sequence[Mapping[str, Values]] | None,
    gold: Sequence[Mapping[str, Values]] | None,
    baseline: Sequence[Judged] | None = None,
    kl_slack: E | None = None,
    picked_by: Selector = "own",
    seed: int | None = None,
) -> FrontierPoint:
    """The point of best-of-n at one n, from whole pools by order-statistic weights.

    Args:
        arm: The arm's label; the point's is "n=<n>".
        n: Candidates drawn.
        selector: One mapping a run seed: prompt_id -> (N,) score that picks.
        proxy, gold: The same shape: what the figures are about (the selector's own score may be the proxy).
        baseline: sft's judged values, one a run seed, by the scorer behind `gold`; None for no win rate.
        kl_slack: How far the bound lies above the KL, where that was estimated.
        picked_by: `gold` where the selector is the gold reward itself, for comparison.
        seed: Of a single run.
    """
    keys = [(s, p) for s, pools in enumerate(selector) for p in pools]

    def mean(values: Sequence[Mapping[str, Values]] | None) -> E | None:
        if values is None:
            return None
        picked = [best_of_n_value(selector[s][p], values[s][p], n) for s, p in keys]
        return E.of(mean_by_cluster(picked, [p for _, p in keys], None, [s for s, _ in keys]))

    won = None
    if baseline is not None and gold is not None:
        arms = [best_of_n_judged(s, g, n) for s, g in zip(selector, gold, strict=True)]
        won = E.of(win_rate(arms, baseline))
    return FrontierPoint(
        arm=arm,
        label=f"n={n}",
        seq_kl=bound_estimate(n, len({p for _, p in keys})),
        proxy_reward=mean(proxy),
        gold_reward=mean(gold),
        win_rate=won,
        prompt_set="test",
        selector=picked_by,
        kl_slack=kl_slack,
        seed=seed,
    )


def kl_fault(seq_kl: Estimate | E) -> str | None:
    """What is wrong with a KL estimate, or None: KL is never negative, so below -4 standard errors is a fault.

    A small negative value is the noise of k1 near 0.
    """
    if seq_kl.value is None or seq_kl.prompt_se is None or seq_kl.value >= 0:
        return None
    standard_error = math.hypot(seq_kl.prompt_se, seq_kl.seed_se or 0.0)
    if seq_kl.value >= -4 * standard_error:
        return None
    return (
        f"KL estimate {seq_kl.value:.4g} nats is more than 4 standard errors ({standard_error:.3g}) below 0: "
        "the samples were not drawn from the policy whose log-probabilities these are, at temperature 1 and top-p 1"
    )
