"""What a finished comparison looks like in a terminal: tables of at most 100 columns, plain when piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.report import crossed, wording, wording_curves
from workbench.report.agreement import generalization_line
from workbench.report.decision import diversity_rows
from workbench.report.wording import clean, interval

WIDTH = 100
BOUND_NOTE = "≤: best-of-n's KL is the bound log n - (n-1)/n; the others are measured (k1, nats per response)."


def make_console(*, stderr: bool = True, file: IO[str] | None = None) -> Console:
    """A console for people: at most 100 columns, no colors and no wrapping tricks when it is not a terminal."""
    console = Console(stderr=stderr, file=file, highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        return Console(stderr=stderr, file=file, highlight=False, emoji=False, markup=False, width=WIDTH, no_color=True)
    console.width = min(console.width, WIDTH)
    return console


def print_results(
    results: Mapping[str, Any], console: Console | None = None, *, results_path: str | None = None
) -> None:
    """Prints the outcome: arms, cost, duels, agreement, diversity, certificate, decision, where things are.

    Args:
        results: results.json, schema 1, as a dictionary.
        results_path: Where results.json lies.
    """
    out = console or make_console()
    arms = results.get("arms") or {}
    out.print(_arms_table(results, arms))
    if any((arm.get("seq_kl") or {}).get("kl_kind") == "bound" for arm in arms.values()):
        out.print(Text(BOUND_NOTE, style="dim"))
    if gains := wording.gains(arms):
        out.print(Text(gains))
    if rates := wording.rates_against(arms):
        out.print(_against_table(rates))
    if results.get("judges"):
        out.print(_judge_table(results["judges"]))
    out.print(_cost_table(arms))
    if results.get("head_to_head"):
        out.print(_duel_table(results["head_to_head"]))
    if results.get("agreement"):
        out.print(_agreement_table(results["agreement"]))
        if line := generalization_line(results):
            out.print(Text(clean(line)))
    columns, rows = diversity_rows(arms)
    if rows:
        table = _table("diversity of the samples", columns)
        for row in rows:
            _add(table, row)
        out.print(table)
    for label, arm in arms.items():
        if arm.get("diverged"):
            out.print(Text(f"{clean(label)} diverged: {clean(arm['diverged'])}", style="bold red"))
    for name, reason in (results.get("judging_incomplete") or {}).items():
        out.print(Text(f"judge {clean(name)} did not finish: {clean(reason)}", style="bold red"))
    for warning in results.get("warnings") or ():
        out.print(Text(f"warning: {clean(warning)}", style="yellow"))
    header, rows = wording_curves.matched_table(results)
    if rows:
        _print_rows(out, "gold (or proxy) at matched KL; - : beyond the arm's KL", header, rows)
    for alarming, line in wording_curves.overoptimization_lines(results):
        out.print(Text(line, style="yellow" if alarming else ""))
    for line in wording_curves.pairs_lines(results):
        out.print(Text(line))
    for line in crossed.lines(results):
        out.print(Text(clean(line)))
    out.print()
    decided = wording.decision_line(results)
    if decided is None:
        out.print(Text(wording.verdict(results), style="bold"))
    _print_certificate(results, out)
    if decided is not None:
        out.print(Text(decided, style="bold"))
    _print_places(results, results_path, out)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(Text(columns[0]), overflow="fold", max_width=22)
    for column in columns[1:]:
        table.add_column(Text(column), justify="right", no_wrap=True)  # the labels fold, the numbers do not
    return table


def _add(table: Table, cells: Sequence[str], style: str = "") -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells), style=style)


def _arms_table(results: Mapping[str, Any], arms: Mapping[str, Any]) -> Table:
    seeds = len(wording.run_seeds(results))
    against = wording.baseline_and_judge(results)
    title = f"{clean(results.get('comparison', ''))}: {seeds} run seed{'s' if seeds != 1 else ''}, 95% intervals"
    title += f"; win rate {against}" if against else ""
    table = _table(title, ("arm", "win rate", "gold", "proxy", "KL"))
    for label, arm in arms.items():
        cells = [interval(arm.get(field)) for field in ("win_rate", "gold_reward", "proxy_reward")]
        _add(table, [label, *cells, wording.kl_text(arm.get("seq_kl"))], "red" if arm.get("diverged") else "")
    return table


def _cost_table(arms: Mapping[str, Any]) -> Table:
    columns = ("arm", "tokens", "EOS rate", "own CPU", "all CPU", "sampled", "queries", "one answer")
    table = _table("length and cost (all CPU: with everything that the arm stands on)", columns)
    for label, arm in arms.items():
        cost = arm.get("cost") or {}
        own = cost.get("own") or {}
        tokens, eos = (arm.get(field) or {} for field in ("response_tokens", "eos_rate"))
        shown = [wording.number(tokens.get("value")), wording.number(eos.get("value"))]
        shown += [wording.cost_text(own), wording.cost_text(cost.get("with_upstream"))]
        shown += [wording.count(own.get(part)) for part in ("tokens_generated", "reward_queries")]
        _add(table, [label, *shown, wording.cost_text(cost.get("answer"))])
    return table


def _against_table(rates: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    columns = ("arm", "judge", "win rate", "p (Holm)", "detectable")
    table = _table(f"win rate against {clean(rates[0][1]['baseline'])}, by judge", columns)
    for label, rate in rates:
        if rate.get("value") is None:  # the report says why
            continue
        shown = [wording.p_text(rate.get("p_holm")), wording.number(rate.get("minimum_detectable_effect"))]
        _add(table, [label, wording.judge_text(rate), interval(rate), *shown], "dim" if wording.is_null(rate) else "")
    return table


def _judge_table(judges: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("judges", ("judge", "kind", "asked", "scored", "flip rate", "first shown", "ties"))
    for name, judge in judges.items():
        shares = [interval(judge.get(field)) for field in ("flip_rate", "first_shown_preferred", "ties")]
        counts = [wording.count(judge.get(field)) for field in ("asked", "scored")]
        _add(table, [name, str(judge.get("kind", "")), *counts, *shares])
    return table


def _duel_table(duels: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("head to head", ("pair", "judge", "win rate of the first", "p (Holm)", "detectable"))
    for duel in duels:
        shown = [wording.p_text(duel.get("p_holm")), wording.number(duel.get("minimum_detectable_effect"))]
        _add(table, [f"{duel['a']} : {duel['b']}", str(duel.get("judge", "")), interval(duel["win_rate"]), *shown])
    return table


def _agreement_table(agreement: Mapping[str, Any]) -> Table:
    columns = ("pairs", "agreement", "kappa", "implicit acc.", "explicit acc.")
    table = _table("implicit (DPO) against explicit reward", columns)
    for name, entry in agreement.items():
        if entry:
            fields = ("agreement", "kappa", "implicit_accuracy", "explicit_accuracy")
            _add(table, [name, *(interval(entry.get(field)) for field in fields)])
    return table


def _print_rows(out: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = _table(title, header)
    for row in rows:
        _add(table, row)
    out.print(table)


def _print_certificate(results: Mapping[str, Any], out: Console) -> None:
    ok, line = wording.certificate_line(results)
    out.print(Text(line, style="green" if ok else "bold red"))
    for name, detail in wording.failed_checks(results):
        out.print(Text(f"  FAILED {name}: {detail}", style="red"))


def _print_places(results: Mapping[str, Any], results_path: str | None, out: Console) -> None:
    mlflow = results.get("mlflow") or {}
    run = f" run {mlflow['run_id']}" if mlflow.get("run_id") else " (not sent yet: kept in the spool)"
    places = [("results", results_path), ("report", _page(results.get("report")))]
    if mlflow.get("tracking_uri"):
        places.append(("MLflow", f"{mlflow['tracking_uri']}{run}"))
    for name, place in places:
        if place:
            out.print(Text(f"{name + ':':9}{clean(place)}"), soft_wrap=True)  # a path is never broken


def _page(report: str | None) -> str | None:
    """The page beside report.md, where there is one."""
    beside = Path(report).with_suffix(".html") if report else None
    return str(beside) if beside and beside.is_file() else report


def print_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what would run and what is there already, and why.

    Args:
        plan: ``{"stages": [{"name", "instance", "key", "cached", "why"}]}``.
    """
    out = console or make_console()
    stages: Sequence[Mapping[str, Any]] = plan.get("stages") or ()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for column, width in (("stage", 44), ("", 6), ("why", 40)):
        table.add_column(Text(column), overflow="fold", max_width=width)
    for stage in stages:
        state = Text("hit", style="green") if stage.get("cached") else Text("run", style="yellow")
        table.add_row(Text(clean(stage.get("instance"))), state, Text(_short_wait(clean(stage.get("why") or ""))))
    hits = sum(bool(stage.get("cached")) for stage in stages)
    out.print(table)
    out.print(Text(f"{len(stages)} stages: {hits} in the store, {len(stages) - hits} to run"))


def _short_wait(why: str) -> str:
    """``waits for a, b and 7 more``: the whole list stands in the JSON."""
    start = "waits for "
    if not why.startswith(start):
        return why
    # Instances hold commas of their own, in brackets: "ppo[ppo,seed=0]".
    names = why.removeprefix(start).split(", ")
    return why if len(names) <= 3 else f"{start}{', '.join(names[:2])} and {len(names) - 2} more"
