"""Figures of reward against KL: all arms on one frontier, and where each arm's gold parts from its proxy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report.figures import (
    Style,
    _canvas,
    _ends,
    _has_bound,
    _interval,
    _kl_axis,
    _label,
    _on_test,
    _save,
    _styles,
    _title,
    _value,
)
from workbench.report.wording_curves import turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {"gold_reward": "gold reward", "proxy_reward": "proxy reward (shared reward model)", "win_rate": "win rate"}
_GOLD_SELECTOR: Style = {"color": "0.35", "marker": ".", "linestyle": (0, (1, 2))}
_NAME_LENGTH = 28
Point = Mapping[str, Any]


def draw_frontier(results: Mapping[str, Any], path: Path) -> Path:
    """Quality against KL beside quality against proxy, one line per arm, intervals in both directions.

    Quality is gold where there is one, else the win rate, else the proxy. A filled marker is on the Pareto set of its
    prompts; what is named in the legend needs no label beside a point, so none can overlap.
    """
    points = results["frontier"]
    field = next(
        (f for f in ("gold_reward", "win_rate") if any(_value(p.get(f)) is not None for p in points)), "proxy_reward"
    )
    against = ["seq_kl", "proxy_reward"] if field != "proxy_reward" else ["seq_kl"]
    figure, panels = _canvas(columns=len(against))
    figure.set_size_inches(10.8 if len(against) > 1 else 7.2, 5.4)
    for axes, x_field in zip(panels, against, strict=True):
        shown = [p for p in points if _value(p.get(x_field)) is not None and _value(p.get(field)) is not None]
        for label, style in _styles(results).items():
            for number, own in enumerate(_own_lines(shown, label)):
                _draw_path(axes, own, x_field, field, _name(label, own) if number == 0 else None, style)
        if field == "win_rate":
            axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
        if x_field == "seq_kl":
            _kl_axis(axes, shown)
        else:
            axes.set_xlabel(WORDS[x_field], fontsize=9)
    panels[0].set_ylabel(WORDS[field])
    told = WORDS[field].split(" (")[0]
    beside = " and against proxy" if len(against) > 1 else ""
    figure.suptitle(_title(results, f"{told} against distance from the SFT policy{beside}"), fontsize=11)
    _legend(figure, panels)
    notes = [
        "filled: on the Pareto set of its prompts (more gain, less KL)",
        "ringed: selected checkpoint on test prompts",
    ]
    return _save(figure, path, results, bound=_has_bound(points), more=notes)


def _name(label: str, own: Sequence[Point]) -> str:
    """Name in the legend; a bound and what gold picked are marked."""
    bound = any(p["seq_kl"].get("kl_kind") == "bound" for p in own)
    gold = own[0].get("selector", "own") == "gold"
    name = label if len(label) <= _NAME_LENGTH else f"{label[: _NAME_LENGTH - 1]}…"
    return ("best-of-n by gold" if gold else _label(name)) + (" (KL bound)" if bound else "")


def _own_lines(points: Sequence[Point], label: str) -> list[list[Point]]:
    """An arm's points as lines: one a run seed, what gold picked and points on test prompts apart.

    A trajectory is measured on validation prompts; a line to a point on other prompts would show no movement.
    """
    found: dict[object, list[Point]] = {}
    for p in points:
        if p["arm"] == label:
            found.setdefault((p.get("selector", "own"), p.get("seed"), _on_test(p)), []).append(p)
    return sorted(found.values(), key=lambda own: (_on_test(own[0]), own[0].get("selector", "own") == "gold"))


def _draw_path(axes: Axes, own: Sequence[Point], x_field: str, y_field: str, name: str | None, style: Style) -> None:
    x, y = ([p[field]["value"] for p in own] for field in (x_field, y_field))
    gold, final = own[0].get("selector", "own") == "gold", _on_test(own[0])
    look = _GOLD_SELECTOR if gold else style
    axes.errorbar(
        x,
        y,
        xerr=_ends([p[x_field] for p in own]),
        yerr=_ends([p[y_field] for p in own]),
        **(look | ({"linestyle": "none"} if final else {})),
        markerfacecolor="white",
        markersize=4.5 if gold else 6,
        linewidth=1.4,
        # Many checkpoints would make a wall of bars: the more there are, the fainter they are.
        elinewidth=0.8 if len(own) <= 12 else 0.5,
        ecolor=(look["color"], 1.0 if final else max(0.25, min(0.8, 6 / len(own)))),
        capsize=2.0 if final else 0.0,
        label=name if name is not None or not gold else _name("", own),
        zorder=4 if final else 2,
    )
    best = [(a, b) for a, b, p in zip(x, y, own, strict=True) if p.get("pareto")]
    if best and not gold:
        filled = {"marker": look["marker"], "color": look["color"], "markersize": 6}
        axes.plot(*zip(*best, strict=True), **filled, linestyle="none", zorder=5)
    if final:
        ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": look["color"]}
        axes.plot(x, y, **ring, linestyle="none")


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, under them: names never cover points."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if not found:
        return
    columns = min(len(found), 2 * len(panels))
    # The layout knows no legend of a figure: blank lines under the axes' names keep its place, above the notes.
    for axes in panels:
        axes.set_xlabel(axes.get_xlabel() + "\n" * (1 + math.ceil(1.4 * math.ceil(len(found) / columns))), fontsize=9)
    figure.legend(
        list(found.values()), list(found), loc="lower center", bbox_to_anchor=(0.5, 0.065), ncols=columns,
        frameon=False, fontsize=8.5, handlelength=3.2,
    )  # fmt: skip


def draw_overoptimization(results: Mapping[str, Any], path: Path) -> Path:
    """Proxy and gold by KL, one panel per arm: where the two part, the proxy is being exploited.

    The band is the onset: the points that may be gold's best, once gold falls and the proxy rises beyond noise. In
    best-of-n's panels stands what gold itself would have picked from the pool. The proxy drawn is the shared reward
    model; where band and title are about another one, which the arm itself optimized, both are named.
    """
    points = [p for p in results["frontier"] if not _on_test(p)]
    styles = {label: style for label, style in _styles(results).items() if any(p["arm"] == label for p in points)}
    figure, panels = _canvas(columns=max(1, len(styles)))
    known = {(entry["arm"], entry.get("selector", "own")): entry for entry in reversed(turns(results))}
    oracle = [p for p in points if p.get("selector", "own") == "gold" and _value(p.get("gold_reward")) is not None]
    for axes, (label, style) in zip(panels, styles.items(), strict=False):
        own = [p for p in points if p["arm"] == label and p.get("selector", "own") == "own"]
        own = [p for p in own if _value(p["seq_kl"]) is not None]
        turned = known.get((label, "own")) or {}
        other = _label(turned["proxy"][:24]) if turned.get("proxy_role") == "own" else None
        proxy = "shared proxy" if other else "proxy"
        for field, line, fill, name in (("proxy_reward", "--", "white", proxy), ("gold_reward", "-", None, "gold")):
            scored = [p for p in own if _value(p.get(field)) is not None]
            for number, shown in enumerate(_own_lines(scored, label)):
                x, y = [p["seq_kl"]["value"] for p in shown], [p[field]["value"] for p in shown]
                low, high = zip(*(_interval(p[field]) for p in shown), strict=True)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
                look = {"color": style["color"], "linestyle": line, "marker": style["marker"], "markersize": 4.5}
                axes.plot(x, y, **look, markerfacecolor=fill or style["color"], label=name if number == 0 else None)
        if oracle and any(p["seq_kl"].get("kl_kind") == "bound" for p in own):
            reach = max(p["seq_kl"]["value"] for p in own) + 1e-9
            near = [p for p in oracle if p["seq_kl"]["value"] <= reach]
            x, y = [p["seq_kl"]["value"] for p in near], [p["gold_reward"]["value"] for p in near]
            axes.plot(x, y, **_GOLD_SELECTOR, label="gold, picked by gold")
        _mark_turn(axes, turned, own)
        _kl_axis(axes, own)
        axes.set_xlabel("KL from SFT (nats)", fontsize=9)
        told = f"\nGoodhart: gold falls, {other or 'proxy'} rises" if turned.get("goodhart") is True else ""
        told = told or (f"\nband: with proxy {other}" if other else "")
        axes.set_title(_label(label[:24]) + told, fontsize=9.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="best")
    panels[0].set_ylabel("reward")
    figure.suptitle(_title(results, "proxy and gold reward by KL"), fontsize=11)
    notes = ["grey band: points that may be gold's best", "dotted: fitted peak"] if known else []
    return _save(figure, path, results, bound=_has_bound(points), more=notes)


def _mark_turn(axes: Axes, entry: Mapping[str, Any], own: Sequence[Point]) -> None:
    """The onset as a band and the fitted peak as a line, within what was reached."""
    reach = max((p["seq_kl"]["value"] for p in own), default=0.0)
    onset, peak = entry.get("onset_kl"), _value(entry.get("peak_kl"))
    if _value(onset) is not None and onset is not None:
        low, high = _interval(onset)
        axes.axvspan(low, max(high, low + 0.01 * reach), color="0.85", zorder=0, linewidth=0)
    if peak is not None and peak <= 1.5 * reach:
        axes.axvline(peak, color="0.4", linewidth=0.9, linestyle=":")
