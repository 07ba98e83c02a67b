"""Small charts as SVG: in a page they take its colors, light or dark; as files they bring their own.

Every text is escaped; no style attribute and no script, so that a page's policy can forbid both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from workbench.report.shell import safe

WIDTH: Final = 640
STYLE: Final = """
figure{margin:.4rem 0}.chart{display:block;width:100%;max-width:46rem;height:auto;margin:.6rem 0 1.2rem;font-size:12px}
.chart text{fill:var(--muted,#565c64)}.chart .strong{fill:var(--text,#1b1d20)}
.chart .axis{stroke:var(--strong-line,#868d96);fill:none}.chart .grid{stroke:var(--line,#dcdfe3);fill:none}
.chart .even{stroke:var(--strong-line,#868d96);stroke-dasharray:4 3;fill:none}
.chart .s0{fill:var(--s0);stroke:var(--s0)}.chart .s1{fill:var(--s1);stroke:var(--s1)}
.chart .s2{fill:var(--s2);stroke:var(--s2)}.chart .s3{fill:var(--s3);stroke:var(--s3)}
.chart .line{fill:none;stroke-width:2}.chart .bar{stroke:none;fill-opacity:.75}
.chart .whisker{stroke-width:1.6;fill:none}.chart .flag{fill:var(--bad,#a61b1b);stroke:var(--bad,#a61b1b)}
.chart .cell{stroke:var(--bg,#fff)}
:root{--s0:light-dark(#0072b2,#56b4e9);--s1:light-dark(#b35806,#f0a35c);--s2:light-dark(#117755,#4cc3a0);
--s3:light-dark(#a3478a,#e39bc9)}
"""
_ALONE: Final = (
    ":root{color-scheme:light dark;--bg:light-dark(#fff,#15171a);--text:light-dark(#1b1d20,#e4e6e9);"
    "--muted:light-dark(#565c64,#a3a9b1);--line:light-dark(#dcdfe3,#33383f);"
    "--strong-line:light-dark(#868d96,#7d848d);--bad:light-dark(#a61b1b,#ff9a91)}"
    "svg{background:var(--bg);font-family:system-ui,sans-serif}"
)


def standalone(svg: str) -> str:
    """A chart as a file of its own, with its colors."""
    head, rest = svg.split(">", 1)
    return f"{head}><style>{_ALONE}{STYLE}</style>{rest}\n"


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A figure with its interval; `flag` marks it. A value of None leaves the row empty, with `note`."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    flag: bool = False
    note: str = ""


@dataclass
class _Canvas:
    """Parts of one chart and how data become pixels."""

    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> None:
        named = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{safe(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, title: str = "", opacity: str = ""
    ) -> None:
        inside = f"<title>{safe(title)}</title>" if title else ""
        see = f' fill-opacity="{opacity}"' if opacity else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" '
            f'class="{kind}"{see}>{inside}</rect>'
        )

    def dot(self, x: float, y: float, kind: str, title: str = "") -> None:
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{kind}"><title>{safe(title)}</title></circle>'
        )

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{safe(self.title)}">' + "".join(self.parts) + "</svg>"
        )


def dots(
    rows: Sequence[Dot], *, title: str, bounds: tuple[float, float] | None = None, even: float | None = None,
    percent: bool = True,
) -> str:  # fmt: skip
    """Figures under each other with their intervals.

    Args:
        rows: In the order shown.
        title: For screen readers.
        bounds: Ends of the axis; None: what the intervals need.
        even: A dashed line, for example at chance.
        percent: Values are shares.
    """
    ends = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    ends += [] if even is None else [even]
    low, high = bounds or _padded(ends or [0.0, 1.0])
    left, right, top, step = 190, WIDTH - 118, 8, 26
    canvas = _Canvas(top + step * len(rows) + 30, title)

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    bottom = top + step * len(rows)
    for tick in _ticks(low, high):
        canvas.line(at(tick), top, at(tick), bottom, "grid")
        canvas.text(at(tick), bottom + 16, _shown(tick, percent), "middle")
    if even is not None:
        canvas.line(at(even), top, at(even), bottom, "even")
    for place, row in enumerate(rows):
        y = top + step * (place + 0.5)
        canvas.text(left - 10, y + 4, _clipped(row.label, 25), "end", "strong")
        if row.value is None:
            canvas.text(left + 6, y + 4, _clipped(row.note or "unknown", 62))
            continue
        kind = "flag" if row.flag else "s0"
        words = _shown(row.value, percent)
        if row.low is not None and row.high is not None:
            canvas.line(at(row.low), y, at(row.high), y, f"{kind} whisker")
            words += f" [{_shown(row.low, percent, sign=False)}, {_shown(row.high, percent, sign=False)}]"
        canvas.dot(at(row.value), y, kind, f"{row.label}: {words}")
        canvas.text(WIDTH - 2, y + 4, words, "end", "strong")
    return canvas.svg()


def histogram(
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    title: str,
    unit: str,
    last_open: bool = True,
) -> str:
    """Counts by bin, series side by side.

    Args:
        edges: (K + 1,).
        series: (name, (K,) counts).
        unit: Under the axis.
        last_open: The last bin holds all that is larger.
    """
    left, right, top, bottom = 52, WIDTH - 12, 26, 196
    canvas = _Canvas(240, title)
    most = max(max(counts, default=0) for _, counts in series) or 1
    width = (right - left) / max(1, len(edges) - 1)
    part = (width - 1) / len(series)
    for tick in _ticks(0, most):
        y = bottom - tick / most * (bottom - top)
        canvas.line(left, y, right, y, "grid")
        canvas.text(left - 6, y + 4, f"{tick:,.0f}", "end")
    for number, (name, counts) in enumerate(series):
        kind = f"s{number} bar"
        for place, count in enumerate(counts):
            height = count / most * (bottom - top)
            label = f"{name}: {count:,} of {edges[place]:g} to {edges[place + 1]:g} {unit}"
            start = left + place * width + 0.5 + number * part
            canvas.rect(start, bottom - height, part - 0.5, height, kind, label)
        canvas.rect(left + 110 * number, 6, 10, 10, kind)
        canvas.text(left + 110 * number + 15, 15, name)
    canvas.line(left, bottom, right, bottom, "axis")
    every = max(1, math.ceil((len(edges) - 1) / 10))
    for place in range(0, len(edges) - 1, every):
        canvas.text(
            left + place * width,
            bottom + 16,
            f"{edges[place]:,.3g}" if edges[-1] < 100 else f"{edges[place]:,.0f}",
            "middle",
        )
    tail = f" (the last bar holds all from {edges[-2]:,.0f} up)" if last_open else ""
    canvas.text((left + right) / 2, bottom + 36, unit + tail, "middle")
    return canvas.svg()


def curve(points: Sequence[Dot], *, title: str, x: str, even: float = 0.5) -> str:
    """A share over ordered classes with intervals and a line at `even`."""
    left, right, top, bottom = 58, WIDTH - 12, 12, 200
    canvas = _Canvas(262, title)
    ends = [v for one in points for v in (one.low, one.high, one.value) if v is not None] + [even]
    low, high = max(0.0, min(ends) - 0.03), min(1.0, max(ends) + 0.03)

    def at(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    for tick in _ticks(low, high):
        canvas.line(left, at(tick), right, at(tick), "grid")
        canvas.text(left - 6, at(tick) + 4, _shown(tick, True), "end")
    canvas.line(left, at(even), right, at(even), "even")
    step = (right - left) / max(1, len(points))
    places = [left + step * (at_ + 0.5) for at_ in range(len(points))]
    known = [(place, one.value) for place, one in zip(places, points, strict=True) if one.value is not None]
    if known:
        path = " ".join(f"{place:.1f},{at(value):.1f}" for place, value in known)
        canvas.parts.append(f'<polyline points="{path}" class="s0 line"/>')
    for place, one in zip(places, points, strict=True):
        if one.value is not None:
            if one.low is not None and one.high is not None:
                canvas.line(place, at(one.low), place, at(one.high), "s0 whisker")
            canvas.dot(place, at(one.value), "s0", f"{one.label}: {_shown(one.value, True)} {one.note}")
        canvas.text(place, bottom + 16, one.label, "middle")
        canvas.text(place, bottom + 31, one.note, "middle")
    canvas.line(left, bottom, right, bottom, "axis")
    canvas.text((left + right) / 2, bottom + 53, x, "middle")
    return canvas.svg()


def grouped(rows: Sequence[tuple[str, Sequence[Dot]]], *, title: str) -> str:
    """Shares of several groups under each label, with intervals: one color a group."""
    names = list(dict.fromkeys(dot.label for _, dots_ in rows for dot in dots_))
    left, right, top = 250, WIDTH - 16, 28
    step = 14 * max(1, len(names)) + 12
    canvas = _Canvas(top + step * len(rows) + 30, title)
    high = max([d.high or d.value or 0.0 for _, dots_ in rows for d in dots_] or [1.0])
    bottom = top + step * len(rows)

    def at(value: float) -> float:
        return left + value / high * (right - left)

    for tick in _ticks(0.0, high):
        canvas.line(at(tick), top, at(tick), bottom, "grid")
        canvas.text(at(tick), bottom + 16, _shown(tick, True), "middle")
    for number, name in enumerate(names):
        canvas.dot(left + 110 * number + 5, 12, f"s{number % 4}")
        canvas.text(left + 110 * number + 14, 16, name)
    for place, (label, dots_) in enumerate(rows):
        y = top + step * place + 10
        canvas.text(left - 10, top + step * (place + 0.5) + 4, _clipped(label, 38), "end", "strong")
        for dot in dots_:
            number = names.index(dot.label)
            if dot.value is None:
                continue
            level = y + 14 * number
            if dot.low is not None and dot.high is not None:
                canvas.line(at(dot.low), level, at(dot.high), level, f"s{number % 4} whisker")
            canvas.dot(at(dot.value), level, f"s{number % 4}", f"{label}, {dot.label}: {_shown(dot.value, True)}")
    return canvas.svg()


def heat(names: Sequence[str], cells: Sequence[tuple[int, int, float | None]], *, title: str) -> str:
    """A half matrix of values from 0 to 1: darker is more; the number stands in each cell."""
    left, top = 170, 8
    size = min(64.0, (WIDTH - left - 10) / max(1, len(names)))
    canvas = _Canvas(int(top + size * len(names) + 34), title)
    for place, name in enumerate(names):
        canvas.text(left - 8, top + size * (place + 0.5) + 4, f"{_clipped(name, 20)}  {place + 1}", "end", "strong")
        canvas.text(left + size * (place + 0.5), top + size * len(names) + 16, str(place + 1), "middle")
    for row, column, value in cells:
        x, y = left + size * column, top + size * row
        words = "-" if value is None else f"{value:.2f}"
        about = f"{names[row]} and {names[column]}: {words}"
        canvas.rect(x, y, size, size, "s0 cell", about, f"{0.1 + 0.5 * min(1.0, max(0.0, value or 0.0)):.2f}")
        canvas.text(x + size / 2, y + size / 2 + 4, words, "middle", "strong")
    return canvas.svg()


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside."""
    raw = max((high - low) / 4, 1e-9)
    scale = 10 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _shown(value: float, percent: bool, *, sign: bool = True) -> str:
    return f"{100 * value:.0f}" + ("%" if sign else "") if percent else f"{value:.2f}"


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
