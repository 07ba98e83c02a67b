"""The terminal's tables of `workbench data`: errors first, at most 100 columns, plain when piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.data.findings import SHOWN, option_of
from workbench.report.wording import MISSING, clean, interval

STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def print_check(found: Mapping[str, Any], kept: int, console: Console) -> None:
    """The findings of `data check`.

    Args:
        found: The documented JSON.
        kept: Usable rows.
    """
    for finding in found["findings"]:
        style = STYLES[finding["severity"]]
        head = Text.assemble((f"{finding['severity']:<8}", style), (finding["code"], "bold"), f"  {finding['count']:,}")
        if finding["rows"]:
            more = ", …" if finding["count"] > len(finding["rows"]) and len(finding["rows"]) >= SHOWN else ""
            head.append(f"  rows {', '.join(map(str, finding['rows']))}{more}", style="dim")
        console.print(head)
        console.print(Text(f"        {clean(finding['message'])}"))
        if finding["severity"] != "info":
            option = option_of(finding["code"])
            console.print(Text(f"        {clean(finding['fix'])}" + (f"  [{option}]" if option else ""), style="cyan"))
    counts = {name: sum(one["severity"] == name for one in found["findings"]) for name in STYLES}
    verdict = Text("ok" if found["ok"] else "not usable as it is", style="bold green" if found["ok"] else "bold red")
    told = f": {found['rows']:,} rows, {kept:,} usable pairs; {counts['error']} errors, {counts['warning']} warnings, "
    console.print(Text.assemble(verdict, told + f"{counts['info']} notes"))


def print_describe(found: Mapping[str, Any], lines: Sequence[str], console: Console) -> None:
    """The figures of `data describe` that fit a terminal."""
    for line in lines:
        console.print(Text(clean(line), style="bold"))
    for finding in found["findings"]:
        console.print(Text(f"not described: {clean(finding['message'])}", style="yellow"))
    if not found["pairs"]:
        return
    table = _table("", "mean", "median", "95%", "most")
    for unit, roles in found["lengths"].items():
        for role, one in roles.items():
            points = one["percentiles"]
            table.add_row(
                f"{role}, {unit}", interval(one["mean"]), f"{points['50']:,}", f"{points['95']:,}", f"{points['100']:,}"
            )
    console.print(table)
    console.print(Text(f"The longer response is chosen in {interval(found['longer_chosen']['characters'])} of pairs."))
    table = _table("longer by, words", "pairs", "longer one is chosen")
    for one in found["win_by_length"]:
        last = f"-{one['to_words']}" if one["to_words"] else " and more"
        table.add_row(f"{one['from_words']}{last}", f"{one['pairs']:,}", interval(one["longer_wins"]))
    console.print(table)
    topics = found["topics"]
    if topics and topics["topics"]:
        splits = list(topics["topics"][0]["shares"])
        table = _table("topic", "prompts", *splits)
        for topic in topics["topics"]:
            shares = [f"{100 * one['value']:.0f}%" for one in topic["shares"].values()]
            table.add_row(Text(clean(", ".join(topic["words"][:5]))), f"{topic['prompts']:,}", *shares)
        console.print(table)
        console.print(Text(f"{topics['method']}; another seed agrees to {topics['stability']:.2f}.", style="dim"))


def print_annotators(found: Mapping[str, Any], console: Console) -> None:
    """The figures of `data annotators` that fit a terminal."""
    overall = found["overall"]
    console.print(
        Text(f"{found['labels']:,} labels on {found['pairs']:,} pairs, {found['shared']:,} of them by several", "bold")
    )
    for name, words in (
        ("agreement", "raw agreement"),
        ("alpha_nominal", "Krippendorff's alpha"),
        ("fleiss_kappa", "Fleiss' kappa"),
    ):
        one = overall[name]
        console.print(
            Text(f"{words}: {interval(one)}" + (f" ({clean(one['method'])})" if one["value"] is None else ""))
        )
    table = _table("annotator", "labels", "majority, %", "right, %", "shown first, %", "longer, ±%")
    for row in found["annotators"]:
        fields = ("leave_one_out", "reliability", "first_shown_preferred", "longer_gap")
        style = "yellow" if row["name"] in found["retrain"] else ""
        table.add_row(Text(clean(row["name"]), style=style), f"{row['labels']:,}", *(_percent(row[f]) for f in fields))
    console.print(table)
    console.print(
        Text(
            "majority: agrees with the others' majority; right: estimated chance of the right label; longer: prefers "
            "the longer response more than the others do.",
            style="dim",
        )
    )
    for name, why in found["retrain"].items():
        console.print(Text(f"{clean(name)}: {clean('; '.join(why))}", style="yellow"))
    if found["relabel_total"]:
        first = ", ".join(clean(f"row {one['row']}" if one["row"] else one["pair"]) for one in found["relabel"][:5])
        console.print(Text(f"{found['relabel_total']:,} pairs to label again, the most doubtful: {first}"))
    for warning in found["warnings"]:
        console.print(Text(f"warning: {clean(warning)}", style="yellow"))


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return MISSING
    ends = "" if estimate["low"] is None else f" [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"
    return f"{100 * estimate['value']:.0f}{ends}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    return table
