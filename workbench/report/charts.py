"""Small charts as SVG inside the page: drawn here, so that they stand without scripts; the script adds the tooltips.

Every arm has its own color, marker and dash, as in the PNG figures, so that the page can be read in grey. Nothing is
styled inline: classes alone, which the page's one style sheet knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.report.palette import COLORS, places
from workbench.report.shell import safe
from workbench.report.wording import clean, interval

DASHES = ("", "7 3", "9 3 2 3", "2 3", "12 3", "5 2 1 2 1 2", "1 2")
MARKERS = ("circle", "square", "up", "diamond", "down", "plus", "cross")
ROOT_TICKS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000)
NAME_LENGTH = 28
Ends = tuple[float, float]
Estimate = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series is told apart. `arm`: its place among the arms, by which it is switched on and off."""

    color: str
    marker: str
    dash: str = ""
    arm: int | None = None

    @classmethod
    def of(cls, place: int) -> Look:
        """Of the arm at a place; from the eighth on colors return with other markers."""
        shift = place // len(COLORS)
        return cls(
            color=f"c{place % len(COLORS)}",  # a class of the style sheet
            marker=MARKERS[(place + shift) % len(MARKERS)],
            dash=DASHES[(place + shift) % len(DASHES)],
            arm=place,
        )

    def opened(self, extra: str = "") -> str:
        """A group that carries the color and the arm."""
        arm = f" arm-{self.arm}" if self.arm is not None else ""
        return f'<g class="{self.color}{arm}{extra}">'


GREY = Look(color="ink", marker="dot", dash="1 3")


def looks(results: Mapping[str, Any]) -> dict[str, Look]:
    """One look per arm, the same in every chart: by its place in the results, the SFT last."""
    return {label: Look.of(place) for label, place in places(results).items()}


class Plot:
    """One panel: axes with few lines, and what is drawn into them.

    Args:
        title: Over the panel; empty: none.
        x, y: Values that the axes must hold.
        names: Of the axes.
        root: Spread small x by a square root: KL grows with the square of the push.
        ranges: Fixed ranges in place of those of the values.
        frame: Left and top margin, width, height. A y-axis has ticks where it has a name.
    """

    RIGHT, BOTTOM = 10, 40

    def __init__(
        self,
        title: str,
        *,
        x: Iterable[float],
        y: Iterable[float],
        names: tuple[str, str],
        root: bool = False,
        ranges: tuple[Ends | None, Ends | None] = (None, None),
        frame: tuple[int, int, int, int] = (52, 24, 440, 310),
    ) -> None:
        self.title, self.names = title, names
        self.left, self.top, self.width, self.height = frame
        held = [one for one in x if math.isfinite(one)]
        self.root = root and max(held, default=0.0) > 6 and min(held, default=0.0) > -1
        spread = _range(map(self._spread, held))  # the edge is as wide on the paper on either side
        self.x_range = ranges[0] or (self._back(spread[0]), self._back(spread[1]))
        self.y_range = ranges[1] or _range(y)
        self.parts: list[str] = []

    # ---- where things stand

    def px(self, x: float) -> float:
        low, high = (self._spread(one) for one in self.x_range)
        return self.left + (self._spread(x) - low) / (high - low) * (self.width - self.left - self.RIGHT)

    def py(self, y: float) -> float:
        low, high = self.y_range
        return self.height - self.BOTTOM - (y - low) / (high - low) * (self.height - self.top - self.BOTTOM)

    def _spread(self, x: float) -> float:
        return math.copysign(math.sqrt(abs(x)), x) if self.root else x

    def _back(self, at: float) -> float:
        return math.copysign(at * at, at) if self.root else at

    # ---- what is drawn

    def line(self, points: Sequence[tuple[float, float]], look: Look, *, dash: str | None = None) -> None:
        """A line through the points, in their order."""
        style = look.dash if dash is None else dash
        dashes = f' stroke-dasharray="{style}"' if style else ""
        self._add(look, f'<polyline class="ln" points="{self._path(points)}"{dashes}/>')

    def band(self, points: Sequence[tuple[float, float, float]], look: Look) -> None:
        """The area between (x, low, high)."""
        points = [(x, _clamp(low, self.y_range), _clamp(high, self.y_range)) for x, low, high in points]
        edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
        self._add(look, f'<polygon class="band" points="{self._path(edge)}"/>')

    def point(
        self, x: float, y: float, look: Look, tip: str, *, filled: bool = False, ring: bool = False,
        across: Ends | None = None, along: Ends | None = None,
    ) -> None:  # fmt: skip
        """A marker with its intervals: `across` in y, `along` in x."""
        a, b = self.px(x), self.py(y)
        drawn = ""
        if across:
            low, high = (_clamp(one, self.y_range) for one in across)
            drawn += f'<path class="bar" d="M{a:.1f} {self.py(low):.1f}V{self.py(high):.1f}"/>'
        if along:
            low, high = (_clamp(one, self.x_range) for one in along)
            drawn += f'<path class="bar" d="M{self.px(low):.1f} {b:.1f}H{self.px(high):.1f}"/>'
        if ring:
            drawn += f'<circle class="ring" cx="{a:.1f}" cy="{b:.1f}" r="8.5"/>'
        full = " f" if filled else ""
        told = f"<title>{safe(tip)}</title>"
        self._add(look, f'{drawn}<path class="mk pt{full}" d="{marker_path(look.marker, a, b)}">{told}</path>')

    def level(self, y: float, words: str = "") -> None:
        """A horizontal reference."""
        at = self.py(y)
        self.parts.insert(0, f'<path class="ref" d="M{self.left} {at:.1f}H{self.width - self.RIGHT}"/>')
        if words:
            place = f'x="{self.width - self.RIGHT}" y="{at - 4:.1f}"'
            self.parts.append(f'<text class="end" {place}>{safe(words)}</text>')

    def upright(self, x: float) -> None:
        """A vertical reference."""
        self.parts.insert(0, f'<path class="ref" d="M{self.px(x):.1f} {self.top}V{self.height - self.BOTTOM}"/>')

    def span(self, low: float, high: float) -> None:
        """A grey band over a range of x."""
        a, b = self.px(low), self.px(high)
        size = f'width="{max(1.5, b - a):.1f}" height="{self.height - self.top - self.BOTTOM}"'
        self.parts.insert(0, f'<rect class="span" x="{a:.1f}" y="{self.top}" {size}/>')

    def diagonal(self) -> None:
        """Where x is y."""
        low, high = (max(self.x_range[0], self.y_range[0]), min(self.x_range[1], self.y_range[1]))
        self.parts.insert(0, f'<polyline class="ref" points="{self._path([(low, low), (high, high)])}"/>')

    def note(self, lines: Sequence[str]) -> None:
        """Words in the lower right corner."""
        for place, words in enumerate(reversed(lines)):
            at = self.height - self.BOTTOM - 8 - 17 * place
            self.parts.append(f'<text class="end" x="{self.width - self.RIGHT - 2}" y="{at}">{safe(words)}</text>')

    def _add(self, look: Look, drawn: str) -> None:
        self.parts.append(f"{look.opened()}{drawn}</g>")

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)

    # ---- the whole

    def svg(self, label: str) -> str:
        """The panel.

        Args:
            label: What a screen reader says in place of it.
        """
        box = f"0 0 {self.width} {self.height}"
        head = f'<text class="head" x="{self.left}" y="12">{safe(self.title)}</text>' if self.title else ""
        drawn = self._axes() + head + "".join(self.parts)
        return f'<svg viewBox="{box}" role="img" aria-label="{safe(label)}">{drawn}</svg>\n'

    def _axes(self) -> str:
        left, base = self.left, self.height - self.BOTTOM
        right = self.width - self.RIGHT
        drawn = ""
        for tick in ticks(*self.y_range) if self.names[1] else ():
            at = self.py(tick)
            drawn += f'<path class="grid" d="M{left} {at:.1f}H{right}"/>'
            drawn += f'<text class="end" x="{left - 7}" y="{at + 4:.1f}">{_tick(tick)}</text>'
        for tick in self._x_ticks():
            at = self.px(tick)
            drawn += f'<path class="axis" d="M{at:.1f} {base}v4"/>'
            drawn += f'<text class="mid" x="{at:.1f}" y="{base + 16}">{_tick(tick)}</text>'
        drawn += f'<path class="axis" d="M{left} {base}H{right}"/>'
        drawn += f'<text class="mid" x="{(left + right) / 2:.0f}" y="{self.height - 6}">{safe(self.names[0])}</text>'
        if self.names[1]:
            middle = (self.top + base) / 2
            turned = f'transform="translate(14 {middle:.0f}) rotate(-90)"'
            drawn += f'<text class="mid" {turned}>{safe(self.names[1])}</text>'
        return drawn

    def _x_ticks(self) -> list[float]:
        low, high = self.x_range
        if not self.root:
            return ticks(low, high)
        found: list[float] = []
        for one in ROOT_TICKS:
            if low <= one <= high and (not found or self.px(one) - self.px(found[-1]) > 26):
                found.append(one)
        return found


def short(name: str, most: int = NAME_LENGTH) -> str:
    """A label that fits a legend."""
    plain = clean(name)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def value_of(estimate: Estimate | None) -> float | None:
    """The point estimate, or None."""
    value = (estimate or {}).get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def ends(estimate: Estimate) -> Ends:
    """The interval; without one the value itself."""
    value = float(estimate["value"])
    low, high = estimate.get("low"), estimate.get("high")
    return (value if low is None else float(low), value if high is None else float(high))


def reach(estimates: Iterable[Estimate]) -> list[float]:
    """Values that an axis must hold: the points, and their intervals as far as they leave the points readable."""
    held = [(float(one["value"]), *ends(one)) for one in estimates]
    if not held:
        return []
    low, high = min(value for value, *_ in held), max(value for value, *_ in held)
    room = 0.6 * (high - low) or math.inf
    return [max(low - room, min(high + room, one)) for found in held for one in found]


def told(estimate: Estimate) -> str:
    """``0.71 [0.68, 0.74], n 256``."""
    n = estimate.get("n")
    return interval(estimate) + (f", n {n}" if n else "")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range, about so many."""
    low, high = min(low, high), max(low, high)
    span = (high - low) / about
    if span <= 0 or not math.isfinite(span):
        return [low]
    size = 10.0 ** math.floor(math.log10(span))
    step = next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= span * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(one * step, 12) for one in range(first, last + 1)]


def _clamp(value: float, within: Ends) -> float:
    return max(min(within), min(max(within), value))


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")


def _range(values: Iterable[float]) -> Ends:
    found = [one for one in values if math.isfinite(one)]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    edge = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - edge, high + edge


def marker_path(shape: str, x: float, y: float) -> str:
    """The path of a marker, about 8 units across."""
    if shape == "circle":
        return f"M{x - 3.8:.1f} {y:.1f}a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0 -7.6 0z"
    if shape == "dot":
        return f"M{x - 2.2:.1f} {y:.1f}a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0z"
    outline = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "up": ((0, -4.4), (4.2, 3.2), (-4.2, 3.2)),
        "down": ((0, 4.4), (4.2, -3.2), (-4.2, -3.2)),
        "diamond": ((0, -4.8), (4.2, 0), (0, 4.8), (-4.2, 0)),
        "plus": ((-1.5, -4.2), (1.5, -4.2), (1.5, -1.5), (4.2, -1.5), (4.2, 1.5), (1.5, 1.5),
                 (1.5, 4.2), (-1.5, 4.2), (-1.5, 1.5), (-4.2, 1.5), (-4.2, -1.5), (-1.5, -1.5)),
        "cross": ((-4, -4), (0, -1.6), (4, -4), (1.6, 0), (4, 4), (0, 1.6), (-4, 4), (-1.6, 0)),
    }[shape]  # fmt: skip
    return "M" + "L".join(f"{x + a:.1f} {y + b:.1f}" for a, b in outline) + "z"
