"""MLflow's names of the crossed design and of the tilts: the gap's parts as metrics, each reward's curve as points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workbench.tracking_names import Point, estimate_metrics, safe_key


def gap_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The gap of RM+PPO to DPO and its two parts by measure: `gap/gold_reward/selected`."""
    metrics: dict[str, float] = {}
    for one in results.get("decomposition") or ():
        gap, where = one.get("gap"), f"{one['measure']}/{one['at']}"
        if gap:
            split = gap["splits"][-1]  # the mean of both orders, where there are both
            for name, part in (("gap", gap["total"]), ("gap_reward", split["reward"]),
                               ("gap_optimizer", split["optimizer"]),
                               ("gap_relabeling", gap.get("relabeling"))):  # fmt: skip
                metrics |= estimate_metrics(f"{name}/{where}", part)
    return metrics


def tilt_points(results: Mapping[str, Any], unix_ms: int) -> list[Point]:
    """Each reward's optimal-tilt curve on the parent: the i-th point of a reward at step i, refused ones left out."""
    points: list[Point] = []
    seen: dict[str, int] = {}
    for entry in results.get("tilt") or ():
        step = seen[entry["reward"]] = seen.get(entry["reward"], -1) + 1
        for field in ("seq_kl", "gold_reward", "proxy_reward"):
            value = (entry.get(field) or {}).get("value")
            if isinstance(value, int | float) and math.isfinite(value):
                points.append((safe_key(f"tilt_{field}/{entry['reward']}"), float(value), unix_ms, step))
    return points
