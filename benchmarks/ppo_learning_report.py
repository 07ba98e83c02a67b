"""Summary, table and figure of benchmarks/ppo_learning.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

NAMES = {"ours": "workbench", "trl": "TRL 1.12"}
LAST = 0.1  # share of the updates whose mean counts as the end of a curve
ROWS = {
    "score_all": "score, mean over all episodes",
    "score_end": "score, last tenth of the episodes",
    "score_at_s": "score, mean over the first {s:.0f} CPU s",
    "cpu_s": "CPU seconds, all updates",
    "held_out_score": "held-out prompts: score",
    "held_out_gold": "held-out prompts: gold",
    "held_out_kl": "held-out prompts: KL, nats",
    "held_out_tokens": "held-out prompts: response tokens",
}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its t-interval over seeds; no ends with fewer than two."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": mean, "low": None, "high": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours less theirs with Welch's t-interval: the seeds of the two sides have nothing in common."""
    value, n = float(np.mean(ours) - np.mean(theirs)), min(len(ours), len(theirs))
    if n < 2:
        return {"value": value, "low": None, "high": None, "n": n}
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def score_by_second(curve: Sequence[Mapping[str, float]], until: float) -> float:
    """Mean score over the CPU seconds 0 to `until`; each update's score over its own seconds."""
    ends = np.array([one["cpu_s"] for one in curve])
    scores = np.array([one["score"] for one in curve])
    widths = np.diff(np.minimum(np.concatenate([[0.0], ends]), until))
    return float((scores * widths).sum() / widths.sum())


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every row of the table for both sides, and their difference.

    The seconds of `score_at_s` are those of the shortest run.
    """
    shortest = min(run["curve"][-1]["cpu_s"] for run in runs)
    values: dict[str, dict[str, list[float]]] = {name: {side: [] for side in NAMES} for name in ROWS}
    for run in runs:
        curve, held = run["curve"], run["held_out"]
        scores = [one["score"] for one in curve]
        found = {
            "score_all": float(np.mean(scores)),
            "score_end": float(np.mean(scores[-max(1, round(LAST * len(scores))) :])),
            "score_at_s": score_by_second(curve, shortest),
            "cpu_s": curve[-1]["cpu_s"],
            "held_out_score": held["score"],
            "held_out_gold": held["gold"],
            "held_out_kl": held["seq_kl"],
            "held_out_tokens": held["response_tokens"],
        }
        for name, value in found.items():
            values[name][run["side"]].append(value)
    rows = {
        name: {side: interval(one[side]) for side in NAMES} | {"difference": difference(one["ours"], one["trl"])}
        for name, one in values.items()
    }
    return {"rows": rows, "shortest_run_cpu_s": shortest, "diverged": sum(bool(run["diverged"]) for run in runs)}


def markdown(summary: Mapping[str, Any]) -> str:
    """The table of docs/ppo.md."""
    lines = [f"| mean over seeds, 95% | {NAMES['ours']} | {NAMES['trl']} | difference |", "|---|---|---|---|"]
    for name, title in ROWS.items():
        row = summary["rows"][name]
        cells = [_cell(row["ours"]), _cell(row["trl"]), _cell(row["difference"], sign="+")]
        lines.append(f"| {title.format(s=summary['shortest_run_cpu_s'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: Mapping[str, Any], sign: str = "") -> str:
    digits = 1 if abs(one["value"]) >= 10 else 2
    if one["low"] is None:
        return f"{one['value']:{sign}.{digits}f} (one seed)"
    return f"{one['value']:{sign}.{digits}f} [{one['low']:{sign}.{digits}f}, {one['high']:{sign}.{digits}f}]"


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Score against episodes and against CPU seconds, mean and interval over seeds; readable in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9.0, 3.8), sharey=True)
    styles = {"ours": ("#0072B2", "-", "o", 0.30), "trl": ("#D55E00", "--", "s", 0.18)}
    for side, (color, line, marker, alpha) in styles.items():
        curves = [run["curve"] for run in runs if run["side"] == side]
        end = min(curve[-1]["cpu_s"] for curve in curves)
        start = max(curve[0]["cpu_s"] for curve in curves)
        axes = {"episodes": [one["episodes"] for one in curves[0]], "cpu_s": list(np.linspace(start, end, 60))}
        for panel, (axis, x) in zip(panels, axes.items(), strict=True):
            points = [
                np.interp(
                    np.array(x), np.array([one[axis] for one in curve]), np.array([one["score"] for one in curve])
                )
                for curve in curves
            ]
            found = [interval(list(column)) for column in np.array(points).T]
            mean = [one["value"] for one in found]
            panel.plot(
                x, mean, line, color=color, marker=marker, markevery=max(1, len(x) // 10), markersize=5,
                label=NAMES[side],
            )  # fmt: skip
            if len(curves) > 1:
                panel.fill_between(
                    x, [one["low"] for one in found], [one["high"] for one in found], color=color, alpha=alpha, lw=0
                )
    panels[0].set(xlabel="episodes", ylabel="score by the reward model (SFT = 0)")
    panels[1].set(xlabel="CPU seconds at one thread")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    seeds = sum(run["side"] == "ours" for run in runs)
    figure.suptitle(f"PPO on the helpdesk world: mean over {seeds} seeds, 95% t-interval", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
