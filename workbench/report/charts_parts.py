"""What stands around charts: legends, switches, the figure itself; and rows of points with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workbench.report.charts import Estimate, Look, Plot, ends, marker_path, short, told, value_of
from workbench.report.shell import safe
from workbench.report.wording import number


def dots(
    rows: Sequence[str], series: Sequence[tuple[str, Look, Callable[[int], Estimate | None]]], *,
    name: str, label: str, coin: float | None = None, marks: Mapping[int, float] | None = None,
    tint: Callable[[int], Look] | None = None,
) -> str:  # fmt: skip
    """Rows of points with intervals: one row a name, one marker a series.

    Args:
        rows: Names.
        series: (words, look, row -> estimate).
        name: Of the axis.
        label: What a screen reader says in place of it.
        coin: A vertical reference, such as 0.5.
        marks: row -> a tick across it, such as agreement by chance.
        tint: row -> look, where a row has the color of its arm.
    """
    each = 14 * len(series) + 12
    found = [(row, n, look, one) for row in range(len(rows)) for n, (_, look, of) in enumerate(series)
             if (one := of(row)) and value_of(one) is not None]  # fmt: skip
    values = [end for *_, one in found for end in ends(one)] + list((marks or {}).values())
    values += [coin] if coin is not None else []

    frame = (196, 4, 540, each * len(rows) + 44)
    plot = Plot("", x=values, y=(), names=(name, ""), ranges=(None, (len(rows), 0)), frame=frame)
    for row, words in enumerate(rows):
        at = plot.py(row + 0.5)
        short = words if len(words) <= 24 else f"{words[:10]}…{words[-13:]}"
        full = f"<title>{safe(words)}</title>" if short != words else ""
        plot.parts.append(f'<text class="end row" x="{plot.left - 10}" y="{at + 4:.1f}">{safe(short)}{full}</text>')
        if row:
            line = f'<path class="grid" d="M{plot.left} {plot.py(row):.1f}H{plot.width - plot.RIGHT}"/>'
            plot.parts.insert(0, line)
        if marks and row in marks:
            top, x = plot.py(row + 0.1), plot.px(marks[row])
            tip = f"<title>{safe(words)}: by chance {number(marks[row])}</title>"
            plot.parts.append(f'<path class="mark pt" d="M{x:.1f} {top:.1f}V{plot.py(row + 0.9):.1f}">{tip}</path>')
    if coin is not None:
        plot.upright(coin)
    for row, n, look, one in found:
        y = row + (n + 1) / (len(series) + 1)
        worn = tint(row) if tint else look
        shown = Look(color=worn.color, marker=look.marker, arm=worn.arm)
        tip = f"{rows[row]}, {series[n][0]}: {told(one)}"
        plot.point(one["value"], y, shown, tip, filled=n == 0, along=ends(one))
    return plot.svg(label)


def figure(
    name: str, panels: Sequence[str], caption: str, *, legend: str = "", numbers: str = "", cls: str = ""
) -> str:
    """A figure: its legend, its panels side by side as the width allows, its caption, its numbers to unfold."""
    more = f'<details class="numbers"><summary>The numbers</summary>{numbers}</details>' if numbers else ""
    return (
        f'<figure id="fig-{safe(name)}" class="chart {cls}">{legend}<div class="panels">{"".join(panels)}</div>'
        f"<figcaption>{caption}</figcaption></figure>{more}\n"
    )


def key(entries: Sequence[tuple[str, Look, bool]]) -> str:
    """A legend: (words, look, filled)."""
    items = (f"<li>{swatch(look, filled)}{safe(words)}</li>" for words, look, filled in entries)
    return f'<ul class="key">{"".join(items)}</ul>'


def switches(arms: Mapping[str, Look]) -> str:
    """A legend whose entries switch the arms on and off: checkboxes, so that the keyboard works them; no script."""
    items = (
        f'<li><label><input type="checkbox" id="arm-{look.arm}" checked>{swatch(look, False)}'
        f"{safe(short(name))}</label></li>"
        for name, look in arms.items()
    )
    legend = "<legend>Arms shown in the figures</legend>"
    return f'<fieldset class="switches">{legend}<ul class="key">{"".join(items)}</ul></fieldset>'


def switch_rules(arms: Mapping[str, Look]) -> str:
    """The style by which those checkboxes work."""
    return "".join(f"main:has(#arm-{one.arm}:not(:checked)) .arm-{one.arm}{{display:none}}\n" for one in arms.values())


def swatch(look: Look, filled: bool) -> str:
    """A piece of line with its marker."""
    dashes = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    mark = f'<path class="mk{" f" if filled else ""}" d="{marker_path(look.marker, 17, 7)}"/>'
    drawn = f'{Look(color=look.color, marker="").opened()}<path class="ln" d="M1 7H33"{dashes}/>{mark}</g>'
    return f'<svg class="swatch" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">{drawn}</svg>'
