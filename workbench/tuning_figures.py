"""The figures of a tuning, drawn from tuning.json: what the budget bought, and where the good settings lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.report.palette import COLORS
from workbench.results_tuning import TrialRow, TunedArm, TuningResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
SHARED = ("best_so_far_trials", "best_so_far_seconds")
OF_AN_ARM = ("history", "slice", "contour", "importance", "pareto")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STATES = {"complete": ("o", "#0072B2"), "pruned": ("x", "#E69F00"), "failed": ("X", "#D55E00")}


def draw(found: TuningResults, folder: Path) -> list[Path]:
    """All figures that there is something to draw for.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    what = found.objective.metric + (f" ({found.objective.judge})" if found.objective.judge else "")
    curves = {label: arm for label, arm in found.arms.items() if arm.best_so_far}
    written: list[Path] = []
    for by, axis in (("trials", "trials"), ("seconds", "compute of the arm's own stages, s")):
        if curves:
            figure, axes = _panels(1)
            _best_so_far(axes[0], curves, by)
            _label(axes[0], axis, f"best {what} so far", "What the budget bought (the search's own scores)")
            written.append(_save(figure, folder / f"best_so_far_{by}.png"))
    for label, arm in found.arms.items():
        what = arm.metric + (f" ({found.objective.judge})" if arm.metric == "win_rate" else "")
        complete = [row for row in arm.rows if row.value is not None and row.value.value is not None]
        figure, axes = _panels(1)
        _history(axes[0], arm)
        _label(axes[0], "trial", what, f"{label}: history")
        written.append(_save(figure, folder / f"{label}-history.png"))
        names = list(dict.fromkeys(name for row in complete for name in row.params))
        numeric = [name for name in names if all(_is_number(row.params.get(name, 0)) for row in complete)]
        if names:
            figure, axes = _panels(len(names))
            for one, name in zip(axes, names, strict=True):
                _slice(one, complete, name)
                _label(one, name, what, f"{label}: {name}")
            written.append(_save(figure, folder / f"{label}-slice.png"))
        if len(numeric) >= 2 and len(complete) >= 4:
            figure, axes = _panels(1)
            _contour(figure, axes[0], complete, numeric[0], numeric[1], what)
            _label(axes[0], numeric[0], numeric[1], f"{label}: {what}")
            written.append(_save(figure, folder / f"{label}-contour.png"))
        if arm.importance:
            figure, axes = _panels(1)
            axes[0].barh(list(arm.importance)[::-1], list(arm.importance.values())[::-1], color=COLORS[0])
            _label(axes[0], "share of the score's variance (fANOVA)", "", f"{label}: importance")
            written.append(_save(figure, folder / f"{label}-importance.png"))
        if any(row.seq_kl is not None for row in complete):
            figure, axes = _panels(1)
            _pareto(axes[0], complete, found.objective.max_kl)
            _label(axes[0], "KL from sft, nats a response", what, f"{label}: score against KL")
            written.append(_save(figure, folder / f"{label}-pareto.png"))
    return written


def figures_of(label: str, paths: Sequence[Path]) -> list[Path]:
    """Those of an arm, and those of all arms: `dpo-0.1-history` is no figure of `dpo`."""
    own = {*SHARED, *(f"{label}-{what}" for what in OF_AN_ARM)}
    return [path for path in paths if path.stem in own]


def _best_so_far(axes: Axes, arms: Mapping[str, TunedArm], by: str) -> None:
    for place, (label, arm) in enumerate(arms.items()):
        x = [float(getattr(one, by)) for one in arm.best_so_far]
        y = [one.value for one in arm.best_so_far]
        style = {"color": COLORS[place % len(COLORS)], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 4}
        axes.step(x, y, where="post", label=label, **style)
    axes.legend(frameon=False)


def _history(axes: Axes, arm: TunedArm) -> None:
    for state, (marker, color) in _STATES.items():
        rows = [row for row in arm.rows if row.state == state]
        values = [_value(row) for row in rows]
        shown = [(row.number, value) for row, value in zip(rows, values, strict=True) if value is not None]
        if shown:
            axes.scatter(*zip(*shown, strict=True), marker=marker, color=color, label=state)
        elif rows:
            axes.scatter([], [], marker=marker, color=color, label=f"{state} ({len(rows)})")
    axes.legend(frameon=False)


def _slice(axes: Axes, rows: Sequence[TrialRow], name: str) -> None:
    rows = [row for row in rows if name in row.params]
    x = [row.params[name] for row in rows]
    points: Any = [value if _is_number(value) else str(value) for value in x]
    values: Any = [_value(row) for row in rows]
    axes.scatter(points, values, c=[row.number for row in rows], cmap="viridis")
    _log(axes.set_xscale, x)


def _contour(figure: Figure, axes: Axes, rows: Sequence[TrialRow], first: str, second: str, what: str) -> None:
    """Scores over two settings, interpolated between trials where these span a plane."""
    rows = [row for row in rows if first in row.params and second in row.params]
    x, y = ([float(str(row.params[name])) for row in rows] for name in (first, second))
    z = [_value(row) or 0.0 for row in rows]
    logged = [[math.log(one) for one in side] if min(side) > 0 else side for side in (x, y)]
    if len({*zip(*logged, strict=True)}) >= 4 and all(len(set(side)) > 2 for side in logged):
        with suppress(ValueError, RuntimeError):  # settings on a line: points alone
            axes.tricontourf(x, y, z, levels=10, cmap="viridis", alpha=0.6)
    dots = axes.scatter(x, y, c=z, cmap="viridis", edgecolors="black")
    figure.colorbar(dots, ax=axes, label=what)
    _log(axes.set_xscale, x)
    _log(axes.set_yscale, y)


def _pareto(axes: Axes, rows: Sequence[TrialRow], max_kl: float | None) -> None:
    points = [(row.seq_kl.value, _value(row)) for row in rows if row.seq_kl is not None]
    known = sorted((kl, value) for kl, value in points if kl is not None and value is not None)
    front: list[tuple[float, float]] = []
    for kl, value in known:
        if not front or value > front[-1][1]:
            front.append((kl, value))
    axes.scatter(*zip(*known, strict=True), color=COLORS[0])
    axes.step(*zip(*front, strict=True), where="post", color=COLORS[1], label="best at this KL or below")
    if max_kl is not None:
        axes.axvline(max_kl, color="grey", linestyle=":", label="max_kl")
    axes.legend(frameon=False)


def _value(row: TrialRow) -> float | None:
    return row.value.value if row.value is not None else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _log(scale: Any, values: Sequence[Any]) -> None:
    """A logarithmic axis where settings span a factor of five."""
    if values and all(_is_number(one) and one > 0 for one in values) and max(values) >= 5 * min(values):
        scale("log")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 if count == 1 else 4.4 * count, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    return figure, axes


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    return path
