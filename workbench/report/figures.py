"""The figures of a comparison as PNG files. Readable in grey: every arm has its own marker and line style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report import wording
from workbench.report.wording import seeds_caveat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SIZE_INCHES = (7.2, 4.6)
# Okabe and Ito's colors, told apart by the color-blind, ordered so that neighbors differ in lightness as well.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
_WORDS = {"gold_reward": "gold reward", "proxy_reward": "proxy reward (shared reward model)", "win_rate": "win rate"}
Style = dict[str, Any]


def draw_all(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws every figure that the results have data for.

    Args:
        results: results.json, schema 1.
        folder: Where the PNG files go; made if it is missing.

    Returns:
        The paths written, in the order of the report.
    """
    from workbench.report.figures_frontier import draw_frontier, draw_overoptimization
    from workbench.report.figures_tilt import draw_tilt, drawable
    from workbench.report.figures_agreement import draw_agreement, draw_reliability, draw_trajectory, reliability_sets

    folder.mkdir(parents=True, exist_ok=True)
    frontier = results.get("frontier") or []
    written: list[Path] = []
    for name, draw, wanted in (
        ("frontier.png", draw_frontier, bool(frontier)),
        ("tilt.png", draw_tilt, drawable(results)),
        ("overoptimization.png", draw_overoptimization, bool(frontier)),
        ("agreement.png", draw_agreement, any((results.get("agreement") or {}).values())),
        ("reliability.png", draw_reliability, bool(reliability_sets(results))),
        ("agreement_trajectory.png", draw_trajectory, bool(results.get("agreement_trajectory"))),
    ):
        if wanted:
            written.append(draw(results, folder / name))
    return written


def draw_frontier(results: Mapping[str, Any], path: Path) -> Path:
    """Quality against KL, one line per arm, with intervals in both directions; the final point is filled.

    Quality is gold where there is one, else the win rate, else the proxy.
    """
    points = results["frontier"]
    field = next(
        (f for f in ("gold_reward", "win_rate") if any(_value(p.get(f)) is not None for p in points)), "proxy_reward"
    )
    figure, (axes,) = _canvas()
    for label, style in _styles(results).items():
        for place, own in enumerate(_lines(points, label, field)):
            _draw_path(axes, own, field, label if place == 0 else None, style)
    if field == "win_rate":
        axes.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    _kl_axis(axes, points)
    axes.set_ylabel(_WORDS[field])
    axes.set_title(_title(results, f"{_WORDS[field].split(' (')[0]} against distance from the SFT policy"), fontsize=11)
    axes.legend(frameon=False, loc="best", fontsize=9)
    return _save(figure, path, results, bound=_has_bound(points), more=["filled: end of the line"])


def _draw_path(axes: Axes, own: Sequence[Mapping[str, Any]], field: str, label: str | None, style: Style) -> None:
    x, y = [p["seq_kl"]["value"] for p in own], [p[field]["value"] for p in own]
    bound = any(p["seq_kl"].get("kl_kind") == "bound" for p in own)
    axes.errorbar(
        x,
        y,
        xerr=_ends([p["seq_kl"] for p in own]),
        yerr=_ends([p[field] for p in own]),
        **style,
        markerfacecolor="white",
        markersize=5.5,
        linewidth=1.4,
        elinewidth=0.7,
        capsize=1.8,
        label=None if label is None else _label(label) + (" (KL bound)" if bound else ""),
    )
    axes.plot(x[-1], y[-1], marker=style["marker"], color=style["color"], markersize=8.5, linestyle="none", zorder=5)
    axes.annotate(
        _label(str(own[-1]["label"])[:18]), (x[-1], y[-1]), xytext=(6, -11), textcoords="offset points", fontsize=7.5
    )


def draw_overoptimization(results: Mapping[str, Any], path: Path) -> Path:
    """Proxy and gold by KL, one panel per arm: where the two part, the proxy is being exploited."""
    points = results["frontier"]
    points = [p for p in points if not _on_test(p)]
    styles = {label: style for label, style in _styles(results).items() if any(p["arm"] == label for p in points)}
    figure, panels = _canvas(columns=len(styles))
    drops: dict[str, Any] = {}
    for entry in results.get("overoptimization") or ():
        drops.setdefault(entry["arm"], entry)  # the first seed's
    for axes, (label, style) in zip(panels, styles.items(), strict=True):
        own = [p for p in points if p["arm"] == label and _value(p["seq_kl"]) is not None]
        for field, line, fill, name in (("proxy_reward", "--", "white", "proxy"), ("gold_reward", "-", None, "gold")):
            for place, shown in enumerate(_lines(points, label, field)):
                x, y = [p["seq_kl"]["value"] for p in shown], [p[field]["value"] for p in shown]
                low, high = zip(*(_interval(p[field]) for p in shown), strict=True)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
                look = {"color": style["color"], "linestyle": line, "marker": style["marker"], "markersize": 4.5}
                axes.plot(x, y, **look, markerfacecolor=fill or style["color"], label=name if place == 0 else None)
        peak = _value((drops.get(label) or {}).get("peak_kl"))
        if peak is not None and own and peak <= 1.5 * max(p["seq_kl"]["value"] for p in own):
            axes.axvline(peak, color="0.4", linewidth=0.9, linestyle=":")
            axes.annotate(
                "fitted peak",
                (peak, 0.01),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                rotation=90,
                xytext=(2, 2),
                textcoords="offset points",
                color="0.3",
            )
        _kl_axis(axes, own)
        axes.set_title(_label(label[:24]), fontsize=10)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel("reward")
    figure.suptitle(_title(results, "proxy and gold reward by KL"), fontsize=11)
    return _save(figure, path, results, bound=_has_bound(points))


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, metric: str, title: str) -> Path:
    """A training curve of one metric, one line per run.

    Args:
        curves: run name -> (step, value) points.
        metric: Its name, as in docs/metrics.md; the y-axis.
    """
    figure, (axes,) = _canvas()
    for place, (name, points) in enumerate(curves.items()):
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        style = _style(place)
        every = max(1, len(finite) // 12)
        axes.plot(
            *zip(*finite, strict=True), **style, markevery=every, markersize=4.5, linewidth=1.2, label=_label(name)
        )
    axes.set_xlabel("step")
    axes.set_ylabel(_label(metric))
    axes.set_title(_label(title), fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path, {}, bound=False)


def _canvas(columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state and may look for a display.
    figure = Figure(figsize=(max(SIZE_INCHES[0], 3.1 * columns), SIZE_INCHES[1]), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(panels)


def _save(figure: Figure, path: Path, results: Mapping[str, Any], *, bound: bool, more: Sequence[str] = ()) -> Path:
    notes = ["bars and bands: 95% intervals", *more] if results else []
    notes += ["best-of-n's KL is the bound log n - (n-1)/n"] if bound else []
    lines = [" · ".join(notes), seeds_caveat(results) if results else None]
    if any(lines):
        figure.supxlabel("\n".join(line for line in lines if line), fontsize=7, color="0.35")
    # No date and no version in the file: the same results give the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _style(place: int) -> Style:
    return {
        name: seq[place % len(seq)] for name, seq in (("color", _COLORS), ("marker", _MARKERS), ("linestyle", _LINES))
    }


def _styles(results: Mapping[str, Any]) -> dict[str, Style]:
    """One style per arm, the same in every figure: by its place in the results."""
    labels = [label for label in results.get("arms") or {} if label != "sft"]
    labels += [p["arm"] for p in results.get("frontier") or () if p["arm"] not in labels and p["arm"] != "sft"]
    return {label: _style(place) for place, label in enumerate(dict.fromkeys([*labels, "sft"]))}


def _lines(points: Sequence[Mapping[str, Any]], label: str, field: str) -> list[list[Mapping[str, Any]]]:
    """An arm's drawable points in the order given: one list per run seed, points on test prompts apart.

    A trajectory is measured on validation prompts; a line to a point on other prompts would show no movement.
    """
    by_seed: dict[object, list[Mapping[str, Any]]] = {}
    for p in points:
        if p["arm"] == label and _value(p.get(field)) is not None and _value(p["seq_kl"]) is not None:
            by_seed.setdefault((p.get("seed"), _on_test(p)), []).append(p)
    return list(by_seed.values())


def _on_test(point: Mapping[str, Any]) -> bool:
    return str(point["label"]).endswith("(test)")


def _kl_axis(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """KL grows with the square of the push: a square-root axis spreads the small ones; noise below 0 stays visible."""
    values = [value for p in points if (value := _value(p["seq_kl"])) is not None]
    if values and max(values) > 4 and min(values) > -1:
        axes.set_xscale("function", functions=(lambda x: _signed_root(x), lambda x: _signed_square(x)))
        axes.set_xticks(
            [tick for tick in (0, 1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500) if tick <= 1.15 * max(values)]
        )
    axes.set_xlabel("KL from the SFT policy (nats per response)", fontsize=9)


def _signed_root(x: Any) -> Any:
    import numpy as np

    return np.sign(x) * np.sqrt(np.abs(x))


def _signed_square(x: Any) -> Any:
    import numpy as np

    return np.sign(x) * np.square(x)


def _label(text: object) -> str:
    """Text for a figure: not taken for mathematics, and not left out of the legend for a leading underscore."""
    plain = wording.clean(text).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _title(results: Mapping[str, Any], text: str) -> str:
    return f"{_label(str(results.get('comparison', ''))[:40])}: {text}"


def _has_bound(points: Sequence[Mapping[str, Any]]) -> bool:
    return any((p.get("seq_kl") or {}).get("kl_kind") == "bound" for p in points)


def _value(estimate: Mapping[str, Any] | None) -> float | None:
    value = (estimate or {}).get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(estimate: Mapping[str, Any]) -> tuple[float, float]:
    value = float(estimate["value"])
    low, high = estimate.get("low"), estimate.get("high")
    return (value if low is None else float(low), value if high is None else float(high))


def _ends(estimates: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Intervals as matplotlib's (below, above) distances, never negative."""
    pairs = [(_interval(e), float(e["value"])) for e in estimates]
    return [[max(0.0, v - low) for (low, _), v in pairs], [max(0.0, high - v) for (_, high), v in pairs]]
