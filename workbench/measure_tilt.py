"""The optimal-tilt curves of the measure stage: what each reward could give at each KL, from the candidate pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.config_base import BASELINE
from workbench.evidence import Responses
from workbench.measure_scope import Scope, plain
from workbench.metrics.estimates import Array, mean_by_cluster
from workbench.metrics.tilt import betas, joined, lower_ess, refusal, tilt
from workbench.results_base import E
from workbench.results_tilt import TiltPoint

POOL, SCORES = "tilt_pool", "tilt_scores/"  # roles of the SFT


def tilt_points(scope: Scope) -> list[dict[str, Any]]:
    """`tilt`: one curve a reward that scored the pools; empty without a best-of-n arm, whose pools they are."""
    pools = [_pool(scope, run) for run in scope.seeds if scope.artifacts.has(BASELINE, run, POOL)]
    if not pools:
        return []
    proxy = f"proxy/{scope.proxy}"
    others = sorted(name for name in pools[0].columns if name.startswith(("proxy/", "implicit/")) and name != proxy)
    columns = [proxy, *others, *(["gold"] if scope.has_gold else [])]
    return [plain(point) for column in columns for point in _curve(scope, pools, column)]


def _pool(scope: Scope, run: int) -> Responses:
    """The candidates at temperature 1 and top-p 1 with every column that some selector gave them."""
    prefix = f"{BASELINE}/{run}/"
    roles = sorted(name.removeprefix(prefix) for name in scope.artifacts.inputs if name.startswith(prefix + SCORES))
    return scope.artifacts.responses(BASELINE, run, POOL, *roles)


def _curve(scope: Scope, pools: Sequence[Responses], column: str) -> list[TiltPoint]:
    """One reward's points. Each run seed has the beta that its own reward needs for a KL: two runs' rewards share no
    scale, and a curve is read by KL."""
    parts, prompts, seeds = [], [], []
    for run, pool in zip(scope.seeds, pools, strict=True):
        reward, names = _table(pool, column), list(pool.rows)
        # Gold may be missing for a candidate: what it would weigh is not known, so gold's own curve leaves it out.
        whole: npt.NDArray[np.bool_] = np.asarray(np.isfinite(reward).all(axis=1))
        asked = (f"proxy/{scope.proxy}", *(("gold",) if scope.has_gold else ()))
        if whole.any():
            parts.append((reward[whole], [_table(pool, name)[whole] for name in asked]))
            prompts += [name for name, kept in zip(names, whole, strict=True) if kept]
            seeds += [run] * int(whole.sum())
    points = []
    for one in zip(*(betas(reward) for reward, _ in parts), strict=False):  # a constant reward has none
        found = joined([tilt(reward, values, beta) for (reward, values), beta in zip(parts, one, strict=True)])
        refused = refusal(found)

        def told(values: Array, refused: str | None = refused) -> E:
            if refused is None:
                return E.of(mean_by_cluster(values, prompts, None, seeds if len(parts) > 1 else None))
            return E(value=None, low=None, high=None, n=len(dict.fromkeys(prompts)), method=refused)

        points.append(
            TiltPoint(
                reward=column.removeprefix("proxy/"),
                beta=float(np.exp(np.mean(np.log(one)))),
                seq_kl=told(found.seq_kl),
                proxy_reward=told(found.values[0]),
                gold_reward=told(found.values[1]) if scope.has_gold else None,
                gold_gain=told(found.gains[1]) if scope.has_gold else None,
                ess=lower_ess(found),
                pool=parts[0][0].shape[1],
            )
        )
    return points


def _table(pool: Responses, column: str) -> Array:
    """(P, N): a row for each prompt."""
    rows: Array = np.stack(list(pool.by_prompt(column).values()))
    return rows
