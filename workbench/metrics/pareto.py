"""Which points no other point beats in both reward and KL, and how often they stay so under resampling.

Points on the same prompts are compared, with prompts and run seeds drawn with replacement for all of them alike. A
bound enters as the KL that the pool says lies behind it (`kl_slack`); what gold itself picked is no policy that one
could have, and takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.metrics.estimates import Array
from workbench.metrics.lines import Line

RESAMPLES = 500


def pareto(
    lines: Sequence[Line], rng: np.random.Generator, resamples: int = RESAMPLES
) -> list[list[tuple[bool, float] | None]]:
    """(on the Pareto set, share of resamples in which it is) of every point of every line; None = not comparable.

    Args:
        lines: Points, single ones among them.
        rng: Seeded generator.
        resamples: Draws.
    """
    found: list[list[tuple[bool, float] | None]] = [[None] * len(line.labels) for line in lines]
    for where in ("validation", "test"):
        chosen = [
            (i, one) for i, line in enumerate(lines) if line.prompt_set == where
            if line.selector == "own" and (one := line.scored()).prompts
        ]  # fmt: skip
        draw = _draws([one for _, one in chosen], np.random.default_rng(rng.integers(2**63)), resamples)
        placed = [(i, k) for i, one in chosen for k in range(len(one.labels))]
        if not placed:
            continue
        kl = np.concatenate([_over(one, _kl(one), draw) for _, one in chosen], axis=1)
        reward = np.concatenate([_over(one, one.reward, draw) for _, one in chosen], axis=1)
        free = undominated(kl, reward)
        for at, (i, k) in enumerate(placed):
            found[i][k] = (bool(free[0, at]), float(free[1:, at].mean()))
    return found


def undominated(kl: Array, reward: Array) -> Array:
    """(B, N) points -> (B, N) whether no other has at least the reward at at most the KL, one of them strictly."""
    free = np.ones(kl.shape, dtype=bool)
    for j in range(kl.shape[1]):
        less, more = kl[:, j : j + 1] <= kl, reward[:, j : j + 1] >= reward
        strictly = (kl[:, j : j + 1] < kl) | (reward[:, j : j + 1] > reward)
        free &= ~(less & more & strictly)
    return free


def _kl(line: Line) -> Array:
    return line.kl if line.kl_slack is None else line.kl - line.kl_slack


_Draw = tuple[dict[str, int], Array, dict[int, int], Array]


def _draws(lines: Sequence[Line], rng: np.random.Generator, resamples: int) -> _Draw:
    """Weights of prompts (B + 1, P) and run seeds (B + 1, S), the first row all of them, and where each stands."""
    prompts = sorted({prompt for line in lines for prompt in line.prompts})
    seeds = sorted({seed for line in lines for seed in line.seeds})

    def weights(count: int) -> Array:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples) if count else np.ones((resamples, 0))
        return np.concatenate([np.ones((1, count)), drawn])

    places = {prompt: i for i, prompt in enumerate(prompts)}, {seed: i for i, seed in enumerate(seeds)}
    return places[0], weights(len(prompts)), places[1], weights(len(seeds))


def _over(line: Line, table: Array, draw: _Draw) -> Array:
    """(S, P, K) -> (B + 1, K) weighted means."""
    prompts, prompt_weights, seeds, seed_weights = draw
    w = prompt_weights[:, [prompts[prompt] for prompt in line.prompts]]
    v = seed_weights[:, [seeds[seed] for seed in line.seeds]]
    # A draw that misses every prompt or seed of a short line says nothing about it: all of them count there.
    w, v = (np.where(x.sum(axis=1, keepdims=True) > 0, x, 1.0) for x in (w, v))
    by_seed = np.matmul(w / w.sum(axis=1, keepdims=True), table)  # (S, B + 1, K)
    found: Array = np.einsum("bs,sbk->bk", v / v.sum(axis=1, keepdims=True), by_seed)
    return found
