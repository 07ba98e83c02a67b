"""The optimal-tilt curves of the measure stage: what each reward could give at each KL, from the candidate pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.config_base import BASELINE
from workbench.evidence import Responses
from workbench.measure_scope import Scope, plain
from workbench.metrics.estimates import Array, cluster_mean, interval_of_mean, mean_by_cluster
from workbench.metrics.tilt import KL_TARGETS, Tilted, betas, joined, lower_ess, refusals, reward_at, tilt
from workbench.results_base import Compared, E
from workbench.results_tilt import TiltDifference, TiltPoint

POOL, SCORES = "tilt_pool", "tilt_scores/"  # roles of the SFT


class Tilts:
    """`tilt` and `tilt_differences`; both empty without a best-of-n arm, whose pools they are."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    @cached_property
    def curves(self) -> list[Curve]:
        """One for each reward that scored the pools: the shared reward model, the others by name, gold last."""
        scope = self.scope
        pools = [_pool(scope, run) for run in scope.seeds if scope.artifacts.has(BASELINE, run, POOL)]
        if not pools:
            return []
        proxy = f"proxy/{scope.proxy}"
        others = [
            name for name in sorted(pools[0].columns) if name.startswith(("proxy/", "implicit/")) and name != proxy
        ]
        columns = [proxy, *others, *(["gold"] if scope.has_gold else [])]
        return [_curve(scope, pools, column) for column in columns]

    def points(self) -> list[dict[str, Any]]:
        """`tilt`, as plain JSON."""
        return [plain(point) for curve in self.curves for point in _points(self.scope, curve)]

    def differences(self) -> list[dict[str, Any]]:
        """`tilt_differences`, as plain JSON: the explicit reward less the others, and gold less each."""
        if not self.scope.has_gold or len(self.curves) < 2:
            return []
        first, *others, gold = self.curves
        pairs = [*((first, one) for one in others), *((gold, one) for one in (first, *others))]
        return [plain(one) for a, b in pairs for one in _differences(a, b)]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One reward's points.

    Args:
        reward: Its name in results.json.
        betas: Of each point: geometric mean over run seeds.
        tilted: Of each point: one entry a run seed.
        refused: Of each point: why it is not told, or None.
        prompts: Of each run seed: the rows of its entries.
        pool: Candidates a prompt.
    """

    reward: str
    betas: list[float]
    tilted: list[list[Tilted]]
    refused: list[str | None]
    prompts: dict[int, list[str]]
    pool: int

    @property
    def places(self) -> list[tuple[str, int]]:
        """(prompt, run seed) of every row."""
        return [(name, run) for run, names in self.prompts.items() for name in names]


def _pool(scope: Scope, run: int) -> Responses:
    """The candidates at temperature 1 and top-p 1 with every column that some selector gave them."""
    prefix = f"{BASELINE}/{run}/"
    roles = sorted(name.removeprefix(prefix) for name in scope.artifacts.inputs if name.startswith(prefix + SCORES))
    return scope.artifacts.responses(BASELINE, run, POOL, *roles)


def _curve(scope: Scope, pools: Sequence[Responses], column: str) -> Curve:
    """One reward's points. Each run seed has the beta that its own reward needs for a KL: two runs' rewards share no
    scale, and a curve is read by KL."""
    parts, prompts = [], {}
    for run, pool in zip(scope.seeds, pools, strict=True):
        reward, names = _table(pool, column), list(pool.rows)
        # Gold may be missing for a candidate: what it would weigh is not known, so gold's own curve leaves it out.
        whole: npt.NDArray[np.bool_] = np.asarray(np.isfinite(reward).all(axis=1))
        asked = (f"proxy/{scope.proxy}", *(("gold",) if scope.has_gold else ()))
        if whole.any():
            parts.append((reward[whole], [_table(pool, name)[whole] for name in asked]))
            prompts[run] = [name for name, kept in zip(names, whole, strict=True) if kept]
    grid = list(zip(*(betas(reward) for reward, _ in parts), strict=False))  # a constant reward has none
    tilted = [[tilt(reward, values, beta) for (reward, values), beta in zip(parts, one, strict=True)] for one in grid]
    return Curve(
        reward=column.removeprefix("proxy/"),
        betas=[float(np.exp(np.mean(np.log(one)))) for one in grid],
        tilted=tilted,
        refused=refusals([joined(one) for one in tilted]),
        prompts=prompts,
        pool=parts[0][0].shape[1] if parts else 0,
    )


def _points(scope: Scope, curve: Curve) -> list[TiltPoint]:
    prompts, seeds = ([place[i] for place in curve.places] for i in (0, 1))
    several = len(curve.prompts) > 1
    points = []
    for beta, tilted, refused in zip(curve.betas, curve.tilted, curve.refused, strict=True):
        found = joined(tilted)

        def told(values: Array, refused: str | None = refused) -> E:
            if refused is None:
                return E.of(mean_by_cluster(values, prompts, None, seeds if several else None))
            return E(value=None, low=None, high=None, n=len(dict.fromkeys(prompts)), method=refused)

        points.append(
            TiltPoint(
                reward=curve.reward,
                beta=beta,
                seq_kl=told(found.seq_kl),
                proxy_reward=told(found.values[0]),
                gold_reward=told(found.values[1]) if scope.has_gold else None,
                gold_gain=told(found.gains[1]) if scope.has_gold else None,
                ess=lower_ess(found),
                pool=curve.pool,
            )
        )
    return points


def _differences(one: Curve, other: Curve) -> list[TiltDifference]:
    """At every target KL that both curves reach in every run seed, on the prompts that gold scored whole for both."""
    runs = [run for run in one.prompts if run in other.prompts]
    sides = [_gains_by_seed(curve, runs) for curve in (one, other)]
    found = []
    for kl in KL_TARGETS:
        gaps: list[Array] = []
        prompts: list[str] = []
        seeds: list[int] = []
        for run in runs:
            names = [name for name in sides[0][run][0] if name in sides[1][run][0]]
            read = [
                reward_at([_rows(t, [rows[n] for n in names]) for t in told], kl, 1)
                for rows, told in (side[run] for side in sides)
            ]
            if read[0] is None or read[1] is None:
                break
            gaps.append(read[0] - read[1])
            prompts += names
            seeds += [run] * len(names)
        if not runs or len(gaps) < len(runs):
            continue
        mean = cluster_mean(np.concatenate(gaps), prompts, None, seeds if len(runs) > 1 else None)
        gain = Compared.of(interval_of_mean(mean), minimum_detectable_effect=mean.detectable_effect())
        found.append(TiltDifference(reward=one.reward, against=other.reward, kl=kl, gold_gain=gain))
    return found


def _gains_by_seed(curve: Curve, runs: Sequence[int]) -> dict[int, tuple[dict[str, int], list[Tilted]]]:
    """run seed -> (prompt -> row, where gold is known at every point; the points that are told)."""
    found = {}
    for place, (run, names) in enumerate(curve.prompts.items()):
        told = [one[place] for one, why in zip(curve.tilted, curve.refused, strict=True) if why is None]
        rows = {n: i for i, n in enumerate(names) if all(math.isfinite(one.gains[1][i]) for one in told)}
        if run in runs:
            found[run] = (rows, told)
    return found


def _rows(tilted: Tilted, rows: Sequence[int]) -> Tilted:
    """The tilt on some of its prompts."""
    keep = np.asarray(rows, dtype=np.int64)
    return Tilted(
        seq_kl=tilted.seq_kl[keep],
        values=tuple(one[keep] for one in tilted.values),
        gains=tuple(one[keep] for one in tilted.gains),
        ess=tilted.ess[keep],
        half_kl=tilted.half_kl[keep],
    )


def _table(pool: Responses, column: str) -> Array:
    """(P, N): a row for each prompt."""
    rows: Array = np.stack(list(pool.by_prompt(column).values()))
    return rows
