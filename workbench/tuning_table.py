"""What `workbench tune` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from workbench.report.terminal import make_console
from workbench.report.wording import clean


def print_tuning(found: Mapping[str, Any], path: str) -> None:
    """A table of the arms, what limits it, and what to do next, on stderr.

    Args:
        found: tuning.json.
    """
    console = make_console(stderr=True)
    metrics = dict.fromkeys(arm["metric"] for arm in found["arms"].values())
    title = f"{' and '.join(metrics)} on validation; {found['rule']}"
    table = Table(title=clean(title), title_justify="left")
    for name in ("arm", "trials", "seconds", "default", "tuned", "gain", "winner's curse"):
        table.add_column(name)
    settings = []
    for label, arm in found["arms"].items():
        best, default = arm["best"] or {}, arm["default"] or {}
        spent = arm["spent"]
        mark = " (selected)" if best.get("selected") and arm["gain"] is not None else ""
        ended = [f"{arm[state]} {state}" for state in ("failed", "pruned") if arm[state]]
        cells = [
            label,
            f"{arm['trials']}" + (f" ({', '.join(ended)})" if ended else ""),
            f"{spent['gpu_s'] or spent['cpu_s']:.0f}",
            shown(default.get("value")),
            shown(best.get("value")) + mark,
            shown(arm["gain"], sign=True) + mark,
            shown(arm["winners_curse"], sign=True),
        ]
        values = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                  for name, value in best.get("params", {}).items())  # fmt: skip
        settings.append(f"{label}: {', '.join(values) or 'no trial is complete'}")
        table.add_row(*(Text(clean(cell)) for cell in cells))
    console.print(table)
    for line in settings:
        console.print(Text(clean(line)))
    if found["order_default"] and found["order_tuned"]:
        default, tuned = (" > ".join(found[f"order_{what}"]) for what in ("default", "tuned"))
        changed = "the same" if default == tuned else "another one"
        console.print(Text(clean(f"Order on validation by default: {default}; tuned: {tuned}: {changed}.")))
    for line in found["warnings"]:
        console.print(Text(clean(line)))
    console.print(Text(clean(f"{path}; next: workbench compare CONFIG --tuned {found['study']}")))


def shown(estimate: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """`0.41 [0.33, 0.49]`."""
    if estimate is None or estimate["value"] is None:
        return "-"
    plus = "+" if sign else ""
    value = f"{estimate['value']:{plus}.3f}"
    if estimate["low"] is None or estimate["high"] is None:
        return value
    return f"{value} [{estimate['low']:{plus}.3f}, {estimate['high']:{plus}.3f}]"
