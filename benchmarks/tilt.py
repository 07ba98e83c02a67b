"""Bias and coverage of the optimal-tilt curve under its rule of refusal, on pools whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/tilt.py [--repeats 60] [--json]

Each prompt's rewards have a shape, scale and gold of their own; the truth is integrated over the distribution itself,
at the beta that was used. For each shape and pool size: up to which KL points are told, how often, the bias of KL and
of gold gain where they are, how far points lie off the true curve (gold at the true curve's same KL), and how often
the 95% intervals hold the truth.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np

from workbench.metrics.estimates import Array, mean_by_cluster
from workbench.metrics.tilt import betas, refusals, tilt

PROMPTS = 256
LINK = 0.6  # gold = LINK times the standardized reward, and noise that the reward does not know
Shape = Callable[[Array], Array]

# Quantile functions with mean about 0 and deviation 1, at probabilities (..., N).
SHAPES: dict[str, Shape] = {}


def _shape(name: str) -> Callable[[Shape], Shape]:
    def keep(shape: Shape) -> Shape:
        SHAPES[name] = shape
        return shape

    return keep


@_shape("normal")
def _normal(u: Array) -> Array:
    from scipy import special

    found: Array = special.ndtri(u)
    return found


@_shape("long lower tail")
def _lower(u: Array) -> Array:
    from scipy import special

    found: Array = -(special.gammaincinv(2, 1 - u) - 2) / math.sqrt(2)
    return found


@_shape("two values")
def _two(u: Array) -> Array:
    return np.where(u > 0.9, 3.0, -1 / 3)


@_shape("exponential upper tail")
def _upper(u: Array) -> Array:
    from scipy import special

    found: Array = (special.gammaincinv(2, u) - 2) / math.sqrt(2)
    return found


def truth(shape: Shape, scales: Array, beta: float, nodes: int) -> tuple[float, float]:
    """Mean KL and mean gold gain at one beta, by quadrature over the quantiles of each of 32 scales."""
    grid = (np.arange(nodes) + 0.5) / nodes
    x = shape(grid)
    kls, gains = [], []
    for scale in np.quantile(scales, (np.arange(32) + 0.5) / 32):
        score = scale * x / beta
        mass = np.exp(score - score.max())
        mass /= mass.sum()
        kls.append(float(mass @ score - score.max() - math.log(np.mean(np.exp(score - score.max())))))
        gains.append(float(LINK * (mass @ x - x.mean())))
    return float(np.mean(kls)), float(np.mean(gains))


def cell(name: str, size: int, repeats: int, rng: np.random.Generator, nodes: int = 400_000) -> dict[str, object]:
    """One shape and pool size."""
    shape = SHAPES[name]
    # The scales are quantiles, so that every repeat has the same truth.
    scales = np.exp(0.25 * _normal((np.arange(PROMPTS) + 0.5) / PROMPTS))
    grid = betas(scales[:, None] * shape(rng.random((PROMPTS, size))))
    known = {beta: truth(shape, scales, beta, nodes) for beta in grid}
    curve = sorted(known.values())
    rows: dict[float, list[tuple[float, float, float, bool, bool]]] = {beta: [] for beta in grid}
    for _ in range(repeats):
        x = shape(rng.random((PROMPTS, size)))
        gold = LINK * x + rng.normal(size=x.shape) * math.sqrt(1 - LINK**2)
        points = [tilt(scales[:, None] * x, [gold], beta) for beta in grid]
        for beta, found, refused in zip(grid, points, refusals(points), strict=True):
            if refused is not None:
                continue
            kl, gain = (mean_by_cluster(values, np.arange(PROMPTS)) for values in (found.seq_kl, found.gains[0]))
            true_kl, true_gain = known[beta]
            at = float(np.interp(kl.value or 0.0, [k for k, _ in curve], [g for _, g in curve]))
            held = [e.low is not None and e.low <= t <= (e.high or 0.0) for e, t in ((kl, true_kl), (gain, true_gain))]
            rows[beta].append(((kl.value or 0) / true_kl - 1, (gain.value or 0) / true_gain - 1,
                               (gain.value or 0) / at - 1, held[0], held[1]))  # fmt: skip
    often = {beta: found for beta, found in rows.items() if len(found) >= repeats / 2}
    if not often:
        return {"shape": name, "pool": size, "largest_kl": None}
    means = {beta: np.mean(np.array(found, dtype=float), axis=0) for beta, found in often.items()}
    table = np.array(list(means.values()))
    worst = {n: float(table[np.argmax(np.abs(table[:, i])), i]) for i, n in enumerate(("kl", "gain", "off_curve"))}
    last = min(often)
    return {
        "shape": name, "pool": size, "largest_kl": known[last][0], "points": len(often),
        "worst_bias_kl": worst["kl"], "worst_bias_gain": worst["gain"], "worst_off_curve": worst["off_curve"],
        "coverage_kl": float(table[:, 3].mean()), "coverage_gain": float(table[:, 4].mean()),
        "worst_coverage_gain": float(table[:, 4].min()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--pools", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    found = [cell(name, size, options.repeats, rng) for name in SHAPES for size in options.pools]
    if options.json:
        print(json.dumps(found))
        return
    print("| rewards | pool | told up to KL | bias of KL | of gain | off the curve | coverage KL | gain (worst) |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for one in found:
        if one["largest_kl"] is None:
            print(f"| {one['shape']} | {one['pool']} | none | | | | | |")
            continue
        shares = [f"{one[name]:+.1%}" for name in ("worst_bias_kl", "worst_bias_gain", "worst_off_curve")]
        print(
            f"| {one['shape']} | {one['pool']} | {one['largest_kl']:.2f} | {' | '.join(shares)} | "
            f"{one['coverage_kl']:.2f} | {one['coverage_gain']:.2f} ({one['worst_coverage_gain']:.2f}) |"
        )


if __name__ == "__main__":
    main()
