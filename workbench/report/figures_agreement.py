"""Figures of implicit against explicit reward: by set with the chance line, over training, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report.figures import SIZE_INCHES, _canvas, _ends, _label, _save, _style, _title, _value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 4
# Told apart in grey by fill and line, not by color alone.
_REWARDS: dict[str, dict[str, Any]] = {
    "implicit": {"color": "#D55E00", "marker": "o", "linestyle": "-", "markerfacecolor": "white"},
    "explicit": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
}


def draw_agreement(results: Mapping[str, Any], path: Path) -> Path:
    """How often implicit (DPO) and explicit reward order a pair the same way, by where the pairs come from.

    The short thick line over each set is what two scorers of these accuracies agree on by chance.
    """
    sets = {name: entry for name, entry in results["agreement"].items() if entry}
    series = (
        ("agreement", "agreement with each other", "0.25", ""),
        ("implicit_accuracy", "implicit: accuracy", "0.60", "///"),
        ("explicit_accuracy", "explicit: accuracy", "0.88", "..."),
    )
    figure, (axes,) = _canvas()
    figure.set_size_inches(max(SIZE_INCHES[0], 0.95 * len(sets)), SIZE_INCHES[1])
    width = 0.26
    for place, (field, name, shade, hatch) in enumerate(series):
        shown = [(i, e[field]) for i, e in enumerate(sets.values()) if _value(e.get(field)) is not None]
        if not shown:
            continue
        axes.bar(
            [i + (place - 1) * width for i, _ in shown],
            [e["value"] for _, e in shown],
            width,
            yerr=_ends([e for _, e in shown]),
            color=shade,
            edgecolor="black",
            linewidth=0.6,
            hatch=hatch,
            error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "0.35" if place else "0.5"},
            label=name,
        )
    chance = [(i, value) for i, e in enumerate(sets.values()) if (value := _value(e.get("chance"))) is not None]
    for i, value in chance:
        ends = (i - 1.5 * width, i - 0.5 * width)
        axes.plot(ends, (value, value), color="white", linewidth=4.5, solid_capstyle="butt", zorder=4)
        label = "agreement by chance" if i == chance[0][0] else None
        axes.plot(ends, (value, value), color="#D55E00", linewidth=2.4, solid_capstyle="butt", zorder=5, label=label)
    axes.axhline(0.5, color="black", linewidth=0.9, linestyle="--")
    axes.annotate("coin", (1.005, 0.5), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    names = [_label(name).replace("/", "/\n").replace("-", "-\n").replace("_s", "_\ns") for name in sets]
    axes.set_xticks(range(len(sets)), names, fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of pairs, ties half")
    axes.set_title(_title(results, "implicit against explicit reward"), fontsize=11)
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _save(figure, path, results, bound=False)


def reliability_sets(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Sets with reliability curves, at most four: held-out pairs, other prompts, then the arms' own samples."""
    found = {
        name: entry["calibration"]
        for name, entry in (results.get("agreement") or {}).items()
        if entry and (entry.get("calibration") or {}).get("implicit_reliability")
    }
    last = ("on_policy/sft", "temperature_shift")
    order = sorted(found, key=lambda name: (name != "heldout", name != "ood", name in last))
    return {name: found[name] for name in order[:MAX_PANELS]}


def draw_reliability(results: Mapping[str, Any], path: Path) -> Path:
    """Share preferred against predicted probability, both rewards, one panel a set; on the diagonal is calibrated."""
    sets = reliability_sets(results)
    figure, panels = _canvas(columns=len(sets))
    for axes, (name, found) in zip(panels, sets.items(), strict=True):
        axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.9, zorder=0)
        for side, style in _REWARDS.items():
            points = [one for one in found[f"{side}_reliability"] if _value(one["preferred"]) is not None]
            axes.errorbar(
                [one["predicted"] for one in points],
                [one["preferred"]["value"] for one in points],
                yerr=_ends([one["preferred"] for one in points]),
                **style,
                markersize=5,
                linewidth=1.3,
                elinewidth=0.7,
                capsize=1.8,
                label=side,
            )
        _told(axes, found)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("predicted: sigmoid(margin)", fontsize=9)
        axes.set_title(_label(f"{name} ({found.get('labels', 'given')} labels)"), fontsize=9)
    panels[0].set_ylabel("share preferred")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(_title(results, "reliability of both rewards"), fontsize=11)
    return _save(figure, path, results, bound=False, more=["equal-mass bins", "grey: calibrated"])


def _told(axes: Axes, found: Mapping[str, Any]) -> None:
    """ECE and slope in the corner."""
    lines = []
    for side in _REWARDS:
        ece, slope = _value(found.get(f"{side}_ece")), _value(found.get(f"{side}_slope"))
        parts = [f"ECE {ece:.2f}"] if ece is not None else []
        parts += [f"slope {slope:.2f}"] if slope is not None else []
        lines.append(f"{side}: {', '.join(parts)}")
    axes.annotate("\n".join(lines), (0.98, 0.03), xycoords="axes fraction", fontsize=7, ha="right", va="bottom")


def draw_trajectory(results: Mapping[str, Any], path: Path) -> Path:
    """Agreement of each DPO checkpoint with the explicit reward, and its accuracy, by step; one panel a set."""
    points = results["agreement_trajectory"]
    sets = list(dict.fromkeys(one["set"] for one in points))
    arms = [label for label in results.get("arms") or {} if any(one["arm"] == label for one in points)]
    figure, panels = _canvas(columns=len(sets))
    for axes, name in zip(panels, sets, strict=True):
        for place, arm in enumerate(arms):
            own = [one for one in points if one["set"] == name and one["arm"] == arm]
            style = _style(place)
            # A little apart, so that the intervals of two arms at the same step can be told apart.
            apart = 0.012 * max(one["step"] for one in points)
            shift = (2 * place - (2 * len(arms) - 1) / 2) * apart
            _line(axes, own, "agreement", style, "-", f"{arm}: agreement", None, shift)
            _line(axes, own, "implicit_accuracy", style, ":", f"{arm}: accuracy", "white", shift + apart)
        explicit = [value for one in points if one["set"] == name and (value := _value(one["explicit_accuracy"]))]
        if explicit:
            axes.axhline(explicit[0], color="0.35", linewidth=0.9, linestyle="--", zorder=0)
            axes.annotate("explicit: accuracy", (0.02, explicit[0]), xycoords=("axes fraction", "data"),
                          xytext=(0, 2), textcoords="offset points", fontsize=7, color="0.3")  # fmt: skip
        axes.set_xlabel("DPO step", fontsize=9)
        axes.set_title(_label(name), fontsize=10)
    panels[0].set_ylabel("share of pairs, ties half")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.1 * (1 + len(arms)) * (high - low))  # room for the legend above the lines
    panels[0].legend(frameon=False, fontsize=7.5, ncols=2, loc="upper left")
    figure.suptitle(_title(results, "DPO's implicit reward over training"), fontsize=11)
    return _save(figure, path, results, bound=False)


def _line(
    axes: Axes,
    own: Sequence[Mapping[str, Any]],
    field: str,
    style: Mapping[str, Any],
    line: str,
    label: str,
    fill: str | None,
    shift: float,
) -> None:
    shown = [one for one in own if _value(one.get(field)) is not None]
    if not shown:
        return
    axes.errorbar(
        [one["step"] + shift for one in shown],
        [one[field]["value"] for one in shown],
        yerr=_ends([one[field] for one in shown]),
        color=style["color"],
        marker=style["marker"],
        linestyle=line,
        markerfacecolor=fill or style["color"],
        markersize=5,
        linewidth=1.3,
        elinewidth=0.6,
        capsize=1.5,
        label=_label(label),
    )
