"""Ranking of systems by Bradley-Terry: log-odds of beating the baseline, from the win rates of the pairs that met.

Each prompt gives every two systems that met one comparison, shared between them by its win probability. A tenth of
a prompt that ties is added to every two that met, so that a system that wins everything keeps a finite rating; a whole
one takes the coverage of the 95% interval to 81% (best of 16 against 1, 128 prompts). Systems that met only the
baseline are ranked through it. Ratings exist only within a set of systems that comparisons connect: what is not
connected with the baseline has none.

Bradley-Terry puts the systems on one line. Intransitive triples (a beats b, b beats c, c beats a) say where that fails;
between systems of about equal strength they also come by chance, so those beyond noise are counted apart.

Source: Bradley & Terry 1952; Hunter 2004 (likelihood); Kendall & Babington Smith 1940 (circular triads); solved by
Newton's method on log-odds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from workbench.metrics.estimates import Array, mean_by_cluster
from workbench.metrics.resampling import Rows, bootstrap_vector
from workbench.metrics.win_rate import Wins
from workbench.results import Rating
from workbench.results_base import E
from workbench.types import Estimate

Pairs: TypeAlias = Mapping[tuple[str, str], Wins]
"""(a, b) -> wins of a over b, for the pairs that met."""

_PRIOR_TIES = 0.05  # to either side: a tenth of a tied prompt


def bradley_terry(
    wins: Array,
    baseline: int = 0,
    *,
    met: npt.NDArray[np.bool_] | None = None,
    prior_ties: float = _PRIOR_TIES,
) -> Array:
    """Maximum-likelihood log-odds from (possibly fractional) win counts.

    Args:
        wins: (..., A, A) how often row beats column; the diagonal is ignored.
        baseline: The arm whose rating is 0.
        met: (A, A) the pairs that were compared at all; None = those with a count in any of the matrices.
        prior_ties: Half a tied comparison added to either side of every pair that met.

    Returns:
        (..., A) ratings in nats: sigmoid(r_i - r_j) is the chance that i beats j.

    Raises:
        ValueError: Fewer than two arms, a negative count, or arms that no comparison connects.
    """
    size = wins.shape[-1]
    if size < 2 or wins.shape[-2] != size or (wins < 0).any():
        raise ValueError(f"expected (..., A, A) counts >= 0 of at least two arms, got shape {wins.shape}")
    either = np.any(wins.reshape(-1, size, size) > 0, axis=0) if met is None else met
    pairs = np.logical_and(np.logical_or(either, either.T), ~np.eye(size, dtype=bool))
    if len(parts := _connected(pairs)) > 1:
        raise ValueError(f"no comparison connects the arms {parts}: they have no common scale")
    won = np.where(pairs, wins + prior_ties, 0.0)
    played = won + np.swapaxes(won, -1, -2)
    free = [i for i in range(size) if i != baseline]
    ratings: Array = np.zeros(wins.shape[:-1])
    for _ in range(200):
        chance = 1 / (1 + np.exp(ratings[..., None, :] - ratings[..., :, None]))
        gradient = (won - played * chance).sum(axis=-1)
        curvature = played * chance * (1 - chance)
        hessian = np.eye(size) * curvature.sum(axis=-1)[..., None] - curvature
        step = np.linalg.solve(hessian[..., free, :][..., free], gradient[..., free, None])[..., 0]
        ratings[..., free] += np.clip(step, -1.0, 1.0)  # a full step can overshoot where one side wins nearly all
        if np.abs(step).max() < 1e-10:
            break
    return ratings


def ranking(
    wins: Pairs,
    rng: np.random.Generator,
    *,
    baseline: str = "sft",
    n_resamples: int = 500,
) -> list[Rating]:
    """Ratings of all arms, best first, with intervals by bootstrap over prompts (and the variance of run seeds).

    Args:
        wins: The pairs that met; the baseline must be among them.
        rng: Seeded generator.
        baseline: Arm whose rating is 0 by definition.
        n_resamples: Bootstrap draws.

    Returns:
        One row an arm; last, with value None, those that no scored comparison connects with the baseline.

    Raises:
        ValueError: The baseline is missing.
    """
    everyone = sorted({label for pair in wins for label in pair})
    if not everyone:
        return []
    if baseline not in everyone:
        raise ValueError(f"the baseline {baseline!r} is not among the arms {everyone}")
    labels = next(part for part in components(wins) if baseline in part)
    apart = [label for label in everyone if label not in labels]
    rows = _rated(
        {pair: won for pair, won in wins.items() if pair[0] in labels and _scored(won)},
        labels,
        baseline,
        rng,
        n_resamples,
    )
    rows.sort(key=lambda row: -(row.rating.value or 0.0))
    for label in apart:
        n_unscored = sum(won.n_unscored for pair, won in wins.items() if label in pair)
        none = Estimate(
            value=None, low=None, high=None, n=0, n_unscored=n_unscored,
            method=f"no scored comparison connects it with {baseline}",
        )  # fmt: skip
        rows.append(Rating(arm=label, rating=E.of(none)))
    return rows


def _rated(wins: Pairs, labels: list[str], baseline: str, rng: np.random.Generator, n_resamples: int) -> list[Rating]:
    """Ratings of connected arms."""
    columns, prompts, seeds = _win_columns(wins, labels)
    fixed = Estimate(value=0.0, low=None, high=None, n=len(set(prompts)), method="0 by definition: the baseline")
    if len(labels) < 2:
        return [Rating(arm=baseline, rating=E.of(fixed))]
    at = labels.index(baseline)
    n_unscored = int(np.isnan(columns).any(axis=(1, 2)).sum())
    counts = np.nan_to_num(columns)
    met = np.any(counts > 0, axis=0)  # a resample may draw no prompt of a pair; the pair has met all the same

    def statistic(rows: Rows, weights: Array) -> Array:
        drawn = (weights @ rows["wins"].reshape(len(rows["wins"]), -1)).reshape(-1, len(labels), len(labels))
        return bradley_terry(drawn, at, met=met)

    found = bootstrap_vector(statistic, {"wins": counts}, prompts, rng, n_resamples, seeds=seeds, n_unscored=n_unscored)
    return [
        Rating(arm=label, rating=E.of(fixed if label == baseline else estimate))
        for label, estimate in zip(labels, found, strict=True)
    ]


def components(wins: Pairs) -> list[list[str]]:
    """Sets of systems that scored comparisons connect, largest first, names sorted."""
    labels = sorted({label for pair in wins for label in pair})
    met = np.zeros((len(labels), len(labels)), dtype=bool)
    for (a, b), won in wins.items():
        if _scored(won):
            met[labels.index(a), labels.index(b)] = met[labels.index(b), labels.index(a)] = True
    return [[labels[i] for i in part] for part in _connected(met)]


def _connected(met: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Connected components of a symmetric relation (A, A), largest first."""
    left, parts = set(range(len(met))), []
    while left:
        part, edge = set[int](), {min(left)}
        while edge:
            part |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(met[i])} - part
        left -= part
        parts.append(sorted(part))
    return sorted(parts, key=lambda part: (-len(part), part))


@dataclass(frozen=True, kw_only=True)
class Triples:
    """Triples of systems that all met each other, no two of them exactly even.

    Args:
        judged: How many there are; 0 where systems met only a baseline.
        intransitive: Those that run in a circle by their win rates.
        beyond_noise: Of these, the ones whose three 95% intervals all leave 0.5 out.
    """

    judged: int
    intransitive: int
    beyond_noise: int


def intransitive_triples(wins: Pairs) -> Triples:
    """Counts circular triples."""
    beats: dict[tuple[str, str], tuple[bool, bool]] = {}  # (a, b) -> a beats b; beyond noise
    for (a, b), won in wins.items():
        rate = mean_by_cluster(won.wins, won.prompts, seeds=won.seeds, proportion=True)
        if rate.value is None or rate.value == 0.5:
            continue
        sure = rate.low is not None and rate.high is not None and not rate.low <= 0.5 <= rate.high
        beats[a, b], beats[b, a] = (rate.value > 0.5, sure), (rate.value < 0.5, sure)
    judged = circular = beyond = 0
    for a, b, c in itertools.combinations(sorted({label for pair in beats for label in pair}), 3):
        circle = ((a, b), (b, c), (c, a))
        if any(pair not in beats for pair in circle):
            continue
        judged += 1
        if len({beats[pair][0] for pair in circle}) == 1:
            circular += 1
            beyond += all(beats[pair][1] for pair in circle)
    return Triples(judged=judged, intransitive=circular, beyond_noise=beyond)


def _scored(won: Wins) -> bool:
    return bool((~np.isnan(won.wins)).any())


def _win_columns(wins: Pairs, labels: Sequence[str]) -> tuple[Array, list[str], list[int]]:
    """(N, A, A) wins at each (prompt, seed), NaN where a pair that met has no comparison and 0 both ways where it
    never met; prompts and seeds (N,)."""
    place: dict[tuple[str, int], int] = {}
    # Sorted, so that the bootstrap's draws depend on neither the order of the rows nor of the arms.
    for cell in sorted({cell for found in wins.values() for cell in zip(found.prompts, found.seeds, strict=True)}):
        place[cell] = len(place)
    columns = np.zeros((len(place), len(labels), len(labels)))
    for (a, b), found in wins.items():
        i, j = labels.index(a), labels.index(b)
        columns[:, i, j] = columns[:, j, i] = np.nan
        rows = [place[cell] for cell in zip(found.prompts, found.seeds, strict=True)]
        columns[rows, i, j], columns[rows, j, i] = found.wins, 1 - found.wins
    return columns, [prompt for prompt, _ in place], [seed for _, seed in place]
