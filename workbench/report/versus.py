"""Two comparisons side by side as people read them: a page, and tables for the terminal, from the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from workbench.report.charts import Look, looks
from workbench.report.charts_parts import dots, figure, key
from workbench.report.markup import escape, table
from workbench.report.prose import prose
from workbench.report.shell import asset, page, safe, section, write_page
from workbench.report.terminal import _add, _table
from workbench.report.wording import MISSING, clean, interval

FIGURES = {
    "win_rate": "win rate",
    "gold_reward": "gold",
    "gold_gain": "gain in gold",
    "proxy_reward": "proxy",
    "proxy_gain": "gain in proxy",
    "seq_kl": "KL (nats)",
    "response_tokens": "tokens",
    "eos_rate": "EOS rate",
    "agreement": "agreement",
    "implicit_accuracy": "implicit accuracy",
    "explicit_accuracy": "explicit accuracy",
    "accuracy": "accuracy",
}
LISTED = 8  # settings, facts and stages in the terminal
CUT = 110  # characters of a setting in a table
Table = tuple[str, Sequence[str], list[list[str]]]


def headline(found: Mapping[str, Any]) -> str:
    """What came of it in a sentence: how many differences are beyond noise, and which."""
    told = [one for one in found["numbers"] if one["difference"]["value"] is not None]
    clear = [one for one in told if beyond(one["difference"])]
    if not told:
        return "No number can be compared."
    named = [f"{clean(one['of'])} {_figure(one)} {interval(one['difference'])}" for one in clear
             if one["figure"] in ("win_rate", "gold_gain")][:6]  # fmt: skip
    more = f", among them {'; '.join(named)}" if named else ""
    text = f"{len(clear)} of {len(told)} differences are beyond noise, each at 95%, not corrected for their number"
    return f"{text}{more}."


def beyond(difference: Mapping[str, Any]) -> bool:
    """Whether the interval leaves out no difference."""
    low, high = difference.get("low"), difference.get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def notes(found: Mapping[str, Any]) -> list[str]:
    """What to know before quoting a difference."""
    listed = [f"Pairing: {found['pairing']}.", *found["notes"]]
    only = ((side.upper(), found[f"arms_only_{side}"]) for side in ("a", "b"))
    listed += [f"Only in {side}: {', '.join(arms)}." for side, arms in only if arms]
    return listed


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """(title, header, rows) of everything, plain text."""
    rows = [[clean(one["of"]), _figure(one), interval(one["a"]), interval(one["b"]), _difference(one["difference"])]
            for one in found["numbers"]]  # fmt: skip
    yield "Numbers", ("of", "figure", "A", "B", "B less A"), rows
    if found["config"] is not None:
        yield "Config", ("setting", "A", "B"), _changes(found["config"])
    yield "Data, weights and decoding, by the certificate", ("check", "A", "B"), _changes(found["facts"])
    yield "Stages", ("stage", "A", "B"), _changes(found["stages_changed"])


def _figure(one: Mapping[str, Any]) -> str:
    judge = f" by {clean(one['judge'])}" if one.get("judge") else ""
    return FIGURES.get(one["figure"], clean(one["figure"])) + judge


def _difference(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "refused"
    return interval(one) + (" *" if beyond(one) else "")


def _changes(changed: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[clean(one["name"]), *(_short(one[side]) for side in ("a", "b"))] for one in changed]


def _short(text: str | None) -> str:
    plain = MISSING if text is None else clean(text)
    return plain if len(plain) <= CUT else plain[: CUT - 1] + "…"


# ------------------------------------------------------------------------------------------ terminal


def print_versus(found: Mapping[str, Any], out: Console) -> None:
    """Prints the differences, what changed, and what to know."""
    out.print(Text(f"A: {_side(found, 'a')}\nB: {_side(found, 'b')}\n"))
    for title, header, rows in tables(found):
        if title == "Numbers":
            out.print(_numbers(header, rows))
            continue
        out.print(Text(f"{title}: {len(rows)} differ", style="bold"))
        for name, a, b in rows[:LISTED]:
            out.print(Text(f"  {name}: {a} -> {b}"), soft_wrap=True)
        if len(rows) > LISTED:
            out.print(Text(f"  and {len(rows) - LISTED} more, on the page"))
    out.print()
    for line in (*_reasons(found), *notes(found)):
        out.print(Text(clean(line)))
    out.print(Text(headline(found), style="bold"))


def _numbers(header: Sequence[str], rows: list[list[str]]) -> RichTable:
    shown = _table("B less A, 95% intervals; * beyond noise", header)
    last = ""
    for of, *cells in rows:
        _add(shown, ["" if of == last else of, *cells], "dim" if cells[-1] == "refused" else "")
        last = of
    return shown


def _side(found: Mapping[str, Any], side: str) -> str:
    seeds = ", ".join(map(str, found[f"{side}_seeds"]))
    return f"{clean(found[side])} (run seeds {seeds})"


def _reasons(found: Mapping[str, Any]) -> list[str]:
    """Why differences were refused, each reason once."""
    reasons: dict[str, list[str]] = {}
    for one in found["numbers"]:
        if one["difference"]["value"] is None:
            reasons.setdefault(one["difference"]["method"], []).append(f"{clean(one['of'])} {_figure(one)}")
    return [f"{why.capitalize()} ({len(names)}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''})."
            for why, names in reasons.items()]  # fmt: skip


# ------------------------------------------------------------------------------------------ page


def write_versus_page(found: Mapping[str, Any], results: Mapping[str, Any], path: Path) -> Path:
    """Writes the page.

    Args:
        found: `Versus` as a dictionary.
        results: B's results.json, for the arms' colors.
        path: Where it goes.
    """
    return write_page(versus_page(found, results), path)


def versus_page(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The page's text (`write_versus_page`)."""
    listed = "".join(f"<li>{safe(line)}</li>" for line in (*notes(found), *_reasons(found)))
    sides = "".join(f"<div><dt>{side.upper()}</dt><dd>{safe(found[side])}"
                    f"<small>run seeds {', '.join(map(str, found[f'{side}_seeds']))}</small></dd></div>"
                    for side in ("a", "b"))  # fmt: skip
    head = f'<dl class="cards">{sides}</dl><p class="lead">{safe(headline(found))}</p><ul>{listed}</ul>'
    parts = [("summary", "What changed", head), ("numbers", "Numbers", _drawn(found, results))]
    for name, (title, header, rows) in zip(("numbers", "config", "data", "stages"), _padded(found), strict=True):
        told = _told(title, header, rows, found)
        if name == "numbers":
            parts[1] = ("numbers", "Numbers", parts[1][2] + told)
        else:
            parts.append((name, title, told))
    return page(
        title=f"{found['a']} and {found['b']}",
        kicker="Two comparisons · differences are B less A, with 95% intervals",
        nav=[(name, heading.split(",")[0]) for name, heading, _ in parts],
        body="".join(section(*part) for part in parts),
        style=asset("report.css"),
        script=asset("report.js"),
    )


def _padded(found: Mapping[str, Any]) -> list[Table]:
    listed = list(tables(found))
    if found["config"] is None:
        listed.insert(1, ("Config", (), []))
    return listed


def _told(title: str, header: Sequence[str], rows: list[list[str]], found: Mapping[str, Any]) -> str:
    if not header:
        return "<p>One of the runs kept no config.json: what differs shows in the stages below.</p>"
    if not rows:
        return "<p>Nothing differs.</p>"
    drawn = prose(table([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows]), title)
    if title == "Numbers":
        drawn += '<p class="note">* beyond noise: the interval leaves out 0.</p>'
    if title == "Stages":
        drawn += f'<p class="note">{found["stages_same"]} stages are the same in both, by their keys.</p>'
    return drawn


def _drawn(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Differences of the arms' win rates, or of gold where nobody judged."""
    for wanted in ("win_rate", "gold_gain", "gold_reward", "proxy_gain"):
        shown = [one for one in found["numbers"] if one["figure"] == wanted and one["difference"]["value"] is not None]
        first = shown[0].get("judge") if shown else None
        shown = [one for one in shown if one.get("judge") == first]
        if shown:
            break
    else:
        return ""
    styles, names = looks(results), [str(one["of"]) for one in shown]
    a, b = Look(color="ink", marker="circle"), Look(color="ink", marker="square")
    words = _figure(shown[0])
    sides = dots(
        names, [("A", a, lambda row: shown[row]["a"]), ("B", b, lambda row: shown[row]["b"])], name=words,
        label=f"{words} of {len(names)} arms in A and B; the numbers stand in the table below",
        coin=0.5 if wanted == "win_rate" else None, tint=lambda row: styles[names[row]],
    )  # fmt: skip
    gaps = dots(
        names, [("B less A", Look(color="ink", marker="diamond"), lambda row: shown[row]["difference"])],
        name=f"{words}, B less A", coin=0.0, tint=lambda row: styles[names[row]],
        label=f"Difference in {words} of {len(names)} arms; the numbers stand in the table below",
    )  # fmt: skip
    legend = key([("A", Look(color="ink", marker="circle", dash="0 99"), True),
                  ("B", Look(color="ink", marker="square", dash="0 99"), False)])  # fmt: skip
    return figure(
        "versus", [sides, gaps], "Bars: 95% intervals. Right: B less A; the line is no difference.", legend=legend
    )
