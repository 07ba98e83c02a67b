"""The figures of a comparison as PNG files. Readable in grey: every arm has its own marker and line style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report import wording
from workbench.report.palette import COLORS, places
from workbench.report.wording import seeds_caveat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SIZE_INCHES = (7.2, 4.6)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
Style = dict[str, Any]


def draw_all(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws every figure that the results have data for.

    Args:
        results: results.json, schema 1.
        folder: Where the PNG files go; made if it is missing.

    Returns:
        The paths written, in the order of the report.
    """
    from workbench.report.figures_agreement import draw_agreement, draw_reliability, draw_trajectory, reliability_sets
    from workbench.report.figures_frontier import draw_frontier, draw_overoptimization
    from workbench.report.figures_tilt import draw_tilt, drawable

    folder.mkdir(parents=True, exist_ok=True)
    frontier = results.get("frontier") or []
    written: list[Path] = []
    for name, draw, wanted in (
        ("frontier.png", draw_frontier, bool(frontier)),
        ("overoptimization.png", draw_overoptimization, any(not _on_test(point) for point in frontier)),
        ("tilt.png", draw_tilt, drawable(results)),
        ("agreement.png", draw_agreement, any((results.get("agreement") or {}).values())),
        ("reliability.png", draw_reliability, bool(reliability_sets(results))),
        ("agreement_trajectory.png", draw_trajectory, bool(results.get("agreement_trajectory"))),
    ):
        if wanted:
            written.append(draw(results, folder / name))
    return written


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
        name: seq[place % len(seq)] for name, seq in (("color", COLORS), ("marker", _MARKERS), ("linestyle", _LINES))
    }


def _styles(results: Mapping[str, Any]) -> dict[str, Style]:
    """One style per arm, the same in every figure: by its place in the results."""
    return {label: _style(place) for label, place in places(results).items()}


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
