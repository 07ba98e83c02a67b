"""Charts of win rates, and of implicit against explicit reward: by set, reliability, over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.report.charts import Look, Plot, ends, looks, short, told, value_of
from workbench.report.charts_parts import dots, figure, key
from workbench.report.figures_agreement import reliability_sets
from workbench.report.wording import clean, judge_text, number, rates_against

IMPLICIT = Look(color="c1", marker="circle")
EXPLICIT = Look(color="c0", marker="square", dash="7 3")
TOGETHER = Look(color="ink", marker="diamond")
REWARDS = {"implicit": IMPLICIT, "explicit": EXPLICIT}


def win_rates(results: Mapping[str, Any]) -> str:
    """Every arm's win rate against the baseline, by each judge, at equal length, and by length alone."""
    rates = [(label, rate) for label, rate in rates_against(results.get("arms") or {}) if value_of(rate) is not None]
    if not rates:
        return ""
    arms, styles = list(dict.fromkeys(label for label, _ in rates)), looks(results)
    judges = list(dict.fromkeys(judge_text(rate) for _, rate in rates))
    marks = ("circle", "diamond", "square", "up", "down", "plus", "cross")
    found = {(label, judge_text(rate)): rate for label, rate in rates}
    series = [
        (judge, Look(color="ink", marker=marks[n % len(marks)]), lambda row, judge=judge: found.get((arms[row], judge)))
        for n, judge in enumerate(judges)
    ]
    drawn = dots(
        arms, series, name=f"win rate against {rates[0][1]['baseline']}", coin=0.5, tint=lambda row: styles[arms[row]],
        label=f"Win rates of {len(arms)} arms; the numbers stand in the table below",
    )  # fmt: skip
    entries = [
        (words, Look(color="ink", marker=look.marker, dash="0 99"), n == 0) for n, (words, look, _) in enumerate(series)
    ]
    return figure(
        "win-rates", [drawn], "Bars: 95% intervals. Line: 0.5, no difference.", legend=key(entries), cls="one"
    )


def agreement(results: Mapping[str, Any]) -> str:
    """How often the two rewards order a pair the same way, and how often each is right, by where the pairs are from."""
    sets = {name: one for name, one in (results.get("agreement") or {}).items() if one}
    if not sets:
        return ""
    names, entries = list(sets), list(sets.values())
    series = [
        ("agreement with each other", TOGETHER, lambda row: entries[row].get("agreement")),
        ("implicit: accuracy", IMPLICIT, lambda row: entries[row].get("implicit_accuracy")),
        ("explicit: accuracy", EXPLICIT, lambda row: entries[row].get("explicit_accuracy")),
    ]
    chance = {row: value for row, one in enumerate(entries) if (value := value_of(one.get("chance"))) is not None}
    label = f"Agreement of implicit and explicit reward on {len(names)} sets; the numbers stand in the table below"
    drawn = dots(names, series, name="share of pairs, ties half", coin=0.5, marks=chance, label=label)
    shown = [
        (words, Look(color=look.color, marker=look.marker, dash="0 99"), n == 0)
        for n, (words, look, _) in enumerate(series)
    ]
    words = (
        "Bars: 95% intervals. Line: a coin. Upright stroke: what two scorers of these accuracies agree on by chance."
    )
    return figure("agreement", [drawn], words, legend=key(shown), cls="one")


def reliability(results: Mapping[str, Any]) -> str:
    """Share preferred against predicted probability, one panel a set; on the diagonal is calibrated."""
    panels = []
    for name, found in reliability_sets(results).items():
        plot = Plot(f"{short(name)} ({found.get('labels', 'given')} labels)", x=(), y=(), ranges=((0, 1), (0, 1)),
                    names=("predicted: sigmoid(margin)", "share preferred"), frame=(52, 24, 440, 400))  # fmt: skip
        plot.diagonal()
        corner = []
        for side, look in REWARDS.items():
            points = [p for p in found[f"{side}_reliability"] if value_of(p["preferred"]) is not None]
            plot.line([(p["predicted"], p["preferred"]["value"]) for p in points], look)
            for p in points:
                tip = (
                    f"{side}: predicted {number(p['predicted'])}, preferred {told(p['preferred'])}, {p['pairs']} pairs"
                )
                at = (p["predicted"], p["preferred"]["value"])
                plot.point(*at, look, tip, filled=side == "explicit", across=ends(p["preferred"]))
            figures = [f"{words} {number(value)}" for words, field in (("ECE", "ece"), ("slope", "slope"))
                       if (value := value_of(found.get(f"{side}_{field}"))) is not None]  # fmt: skip
            corner.append(f"{side}: {', '.join(figures)}")
        plot.note(corner)
        panels.append(plot.svg(f"reliability of both rewards on {name}: {'; '.join(corner)}"))
    if not panels:
        return ""
    entries = [(side, look, side == "explicit") for side, look in REWARDS.items()]
    words = "Bars: 95% intervals, equal-mass bins. On the diagonal the reward's probabilities are right."
    return figure("reliability", panels, words, legend=key(entries), cls="small")


def trajectory(results: Mapping[str, Any]) -> str:
    """Agreement of each DPO checkpoint with the explicit reward, and its accuracy, by step; one panel a set."""
    points = results.get("agreement_trajectory") or ()
    arms = [label for label in results.get("arms") or {} if any(p["arm"] == label for p in points)]
    styles = looks(results)
    fields = ("agreement", "implicit_accuracy")
    heights = [end for p in points for f in fields if value_of(p.get(f)) is not None for end in ends(p[f])]
    panels = []
    for name in dict.fromkeys(p["set"] for p in points):
        plot = Plot(short(name), x=[p["step"] for p in points], y=heights, names=("DPO step", "share of pairs"))
        apart = 0.012 * max(p["step"] for p in points)  # so that the intervals of two arms at a step can be told apart
        for place, label in enumerate(arms):
            own = [p for p in points if p["set"] == name and p["arm"] == label]
            for number_of, (field, dash) in enumerate(zip(fields, ("", "2 3"), strict=True)):
                shift = apart * (2 * place + number_of - len(arms) + 0.5)
                shown = [p for p in own if value_of(p.get(field)) is not None]
                look = Look(color=styles[label].color, marker=styles[label].marker, arm=styles[label].arm)
                plot.line([(p["step"] + shift, p[field]["value"]) for p in shown], look, dash=dash)
                for p in shown:
                    tip = f"{clean(label)}, step {p['step']}, {field.replace('_', ' ')} {told(p[field])}"
                    at = (p["step"] + shift, p[field]["value"])
                    plot.point(*at, look, tip, filled=field == "agreement", across=ends(p[field]))
        explicit = next(
            (v for p in points if p["set"] == name and (v := value_of(p["explicit_accuracy"])) is not None), None
        )
        if explicit is not None and plot.y_range[0] <= explicit <= plot.y_range[1]:
            plot.level(explicit, "explicit: accuracy")
        panels.append(plot.svg(f"agreement and accuracy by DPO step on {name}; the numbers stand in the table below"))
    if not panels:
        return ""
    entries = [
        (label, Look(color=styles[label].color, marker=styles[label].marker, dash="0 99"), True) for label in arms
    ]
    entries += [("agreement", Look(color="ink", marker="circle"), True)]
    entries += [("accuracy of the implicit reward", Look(color="ink", marker="circle", dash="2 3"), False)]
    return figure(
        "trajectory", panels, "Bars: 95% intervals. Horizontal line: the explicit reward.", legend=key(entries)
    )
