"""Figure of the optimal tilts: what each reward could give at each KL, and where the arms' optimizers ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.report.crossed import told
from workbench.report.figures import _canvas, _ends, _interval, _kl_axis, _label, _save, _style, _title, _value

# Told apart in grey by line style and width; the arms by their markers.
_CURVES: tuple[dict[str, Any], ...] = (
    {"color": "0.0", "linestyle": "-", "linewidth": 1.8},
    {"color": "0.35", "linestyle": "--", "linewidth": 1.6},
    {"color": "0.55", "linestyle": "-.", "linewidth": 1.6},
    {"color": "0.45", "linestyle": (0, (1, 1)), "linewidth": 1.6},
)


def drawable(results: Mapping[str, Any]) -> bool:
    """Whether some reward has two points that were not refused."""
    counts: dict[str, int] = {}
    for point in results.get("tilt") or ():
        counts[point["reward"]] = counts.get(point["reward"], 0) + told(point)
    return max(counts.values(), default=0) > 1


def draw_tilt(results: Mapping[str, Any], path: Path) -> Path:
    """One line a reward, pi_ref exp(r / beta) over KL, with its band; the arms' end points beside them.

    Gold where there is one, else the shared proxy. Best-of-n stands at its bound.
    """
    points = [point for point in results["tilt"] if told(point)]
    field = "gold_reward" if any(point.get("gold_reward") for point in points) else "proxy_reward"
    figure, (axes,) = _canvas()
    for style, reward in zip(_CURVES * 8, dict.fromkeys(point["reward"] for point in points), strict=False):
        own = [point for point in points if point["reward"] == reward]
        kl = [point["seq_kl"]["value"] for point in own]
        low, high = zip(*(_interval(point[field]) for point in own), strict=True)
        axes.fill_between(kl, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(kl, [point[field]["value"] for point in own], label=f"tilt by {_label(reward)}", zorder=3, **style)
    arms = {label: arm for label, arm in (results.get("arms") or {}).items() if label != "sft"}
    drawn: list[Mapping[str, Any]] = [{"seq_kl": point["seq_kl"]} for point in points]
    for place, (label, arm) in enumerate(arms.items()):
        if _value(arm.get("seq_kl")) is None or _value(arm.get(field)) is None:
            continue
        style = {**_style(place), "linestyle": "none", "markersize": 6.5, "capsize": 2, "elinewidth": 0.9}
        axes.errorbar(
            arm["seq_kl"]["value"], arm[field]["value"], xerr=_ends([arm["seq_kl"]]), yerr=_ends([arm[field]]),
            label=_label(label), markeredgecolor="black", markeredgewidth=0.6, zorder=4, **style,
        )  # fmt: skip
        drawn.append(arm)
    start = (results.get("arms") or {}).get("sft", {}).get(field)
    if _value(start) is not None:
        axes.axhline(start["value"], color="0.7", linewidth=0.9, linestyle=":", zorder=0)
        axes.annotate("SFT", (1.005, start["value"]), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    _kl_axis(axes, drawn)
    axes.set_ylabel("gold reward" if field == "gold_reward" else "proxy reward (shared reward model)")
    axes.set_title(_title(results, "what each reward could give, and what the arms got"), fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.06, 0.5))
    figure.set_size_inches(9.2, 4.8)
    bound = any((arm.get("seq_kl") or {}).get("kl_kind") == "bound" for arm in arms.values())
    return _save(figure, path, results, bound=bound, more=["lines end where too few candidates carry the weight"])
