"""What more preference pairs behind the reward do to the turn: does gold fall less, and turn later?

Two arms of one kind whose rewards saw different numbers of pairs. Each arm's fall from its best point, and the set of
points that may be its best, hold for all its points at once at 97.5%; so what is said of both holds at 95%. The
difference of the falls lies between the lower end of one less the upper end of the other: wide, but it needs nothing
about how a fall that was picked is distributed. "Later" is said where the two sets of points do not overlap in KL, and
of five run seeds or more: with fewer it would be said of checkpoints. Several comparisons are not corrected for their
number.

Source: Gao, Schulman & Hilton 2022, section 3.3 (more data, smaller and later turn); Bonferroni.
"""

from __future__ import annotations

import numpy as np

from workbench.metrics.lines import MIN_PROMPTS, Line, contenders, joint, means, prompt_draws, simultaneous
from workbench.results_base import SEEDS_FOR_METHODS, E
from workbench.results_curves import PairsEffect

LEVEL = 0.975


def pairs_effect(
    fewer: Line, more: Line, pairs: tuple[int, int], kind: str, rng: np.random.Generator, resamples: int = 1000
) -> PairsEffect:
    """One comparison of two arms.

    Args:
        fewer, more: Their points from the SFT on: an arm may turn before its first checkpoint.
        pairs: Pairs behind their rewards.
        kind: Of both arms.
        rng: Seeded generator.
        resamples: Draws of the prompts.
    """
    turned = [_turn(line.scored(), rng, resamples) for line in (fewer, more)]
    known = [one for one in turned if one is not None]
    prompts = min(len(line.scored().prompts) for line in (fewer, more))
    if len(known) < 2:
        reason = f"refused: {prompts} prompts; {MIN_PROMPTS} prompts and 2 points of each arm needed"
        gap, later = E(value=None, low=None, high=None, n=prompts, method=reason), None
    else:
        (drop, near), (other, far) = known
        how = "difference of falls from the best point, each simultaneous over points at 97.5%"
        gap = E(
            value=drop[0] - other[0], low=drop[1] - other[2], high=drop[2] - other[1], n=prompts,
            method=how + (f"; {len(fewer.seeds)} run seeds" if len(fewer.seeds) > 1 else "; one run seed"),
        )  # fmt: skip
        # A line whose last point may be its best has not turned within what it reached: open above.
        later = True if near[1] < far[0] else False if far[1] < near[0] else None
        if min(len(fewer.seeds), len(more.seeds)) < SEEDS_FOR_METHODS:
            later = None
    return PairsEffect(
        kind=kind,
        fewer=fewer.arm,
        more=more.arm,
        pairs_fewer=pairs[0],
        pairs_more=pairs[1],
        less_fall=gap,
        turns_later=later,
        best_kl_fewer=_range(known[0][1] if len(known) == 2 else None),
        best_kl_more=_range(known[1][1] if len(known) == 2 else None),
    )


def _range(kl: tuple[float, float] | None) -> tuple[float, float | None] | None:
    return None if kl is None else (kl[0], kl[1] if np.isfinite(kl[1]) else None)


def _turn(
    line: Line, rng: np.random.Generator, resamples: int
) -> tuple[tuple[float, float, float], tuple[float, float]] | None:
    """(value, low, high) of the fall from the best point, and the KLs between which the best point lies."""
    prompts, points = len(line.prompts), len(line.labels)
    if prompts < MIN_PROMPTS or points < 2:
        return None
    draws = prompt_draws(prompts, rng, resamples)
    gold = means(line.reward, draws)
    mean, drawn, parts = joint(gold[:, :, :-1] - gold[:, :, -1:], prompts, rng)
    reach = simultaneous(drawn, mean, parts, LEVEL)
    fall = tuple(max(0.0, float(end.max())) for end in (mean, mean - reach, mean + reach))
    may, _ = contenders(gold, prompts, rng, LEVEL)
    at = line.kl.mean(axis=(0, 1))[may]
    return (fall[0], fall[1], fall[2]), (float(at.min()), float("inf") if may[-1] == points - 1 else float(at.max()))
