"""Lines with a known truth, for the tests of curves, Pareto sets and over-optimization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.metrics.lines import Line
from workbench.metrics.overoptimization import Start


def line(
    kl: Sequence[float] | np.ndarray,
    gold: Sequence[float] | np.ndarray,
    rng: np.random.Generator | None = None,
    *,
    arm: str = "ppo",
    prompts: int = 100,
    seeds: int = 1,
    noise: float = 0.3,
    between: float = 1.0,
    seed_sd: float = 0.0,
    kl_noise: float = 0.0,
    proxy: Sequence[float] | None = None,
    levels: np.ndarray | None = None,
    **extra: object,
) -> Line:
    """A line whose mean gold and KL are the given ones.

    Args:
        noise, between, seed_sd, kl_noise: Standard deviations of a cell, of prompts (`levels`, the same for every point
            and seed), of a seed's whole curve, and of a cell's KL.
        proxy: Means; by default gold's.
    """
    draw = rng or np.random.default_rng(0)
    shape = (seeds, prompts, len(kl))
    level = between * draw.normal(size=(1, prompts, 1)) if levels is None else levels[None, :, None]
    shift = seed_sd * draw.normal(size=(seeds, 1, 1))
    made = {
        "arm": arm,
        "kl_kind": "mc_k1",
        "prompt_set": "validation",
        "labels": tuple(f"step {i}" for i in range(len(kl))),
        "prompts": tuple(f"p{i}" for i in range(prompts)),
        "seeds": tuple(range(seeds)),
        "kl": np.asarray(kl, dtype=float) + kl_noise * draw.normal(size=shape) * (np.asarray(kl) > 0),
        "gold": np.asarray(gold, dtype=float) + level + shift + noise * draw.normal(size=shape),
        "proxy": np.asarray(gold if proxy is None else proxy, dtype=float) + noise * draw.normal(size=shape),
    }
    return Line(**(made | extra))  # type: ignore[arg-type]


def start_of(one: Line, gold: float = 0.0, proxy: float = 0.0, sd: float = 1.0) -> Start:
    """A reference whose samples have these means and this standard deviation on the line's prompts, level included."""
    assert one.gold is not None
    shape = one.kl.shape[:2]
    return Start(
        gold=np.full(shape, gold),
        proxy=np.full(shape, proxy),
        gold_square=np.full(shape, gold**2 + sd**2),
        proxy_square=np.full(shape, proxy**2 + sd**2),
    )
