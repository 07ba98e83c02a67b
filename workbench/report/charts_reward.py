"""Charts of reward against KL: the frontier, where gold parts from the proxy, and perfect optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.report.charts import GREY, Look, Plot, ends, looks, reach, short, told, value_of
from workbench.report.charts_parts import figure, key, switches
from workbench.report.crossed import told as tilted
from workbench.report.markup import escape, table
from workbench.report.prose import prose
from workbench.report.wording import MISSING, clean, interval, kl_text, number
from workbench.report.wording_curves import turns

WORDS = {"gold_reward": "gold reward", "proxy_reward": "proxy reward", "win_rate": "win rate"}
KL_NAME = "KL from the SFT policy (nats per response)"
Point = Mapping[str, Any]
_CURVES = ("", "8 3", "9 3 2 3", "2 3")


def quality(results: Mapping[str, Any]) -> str:
    """Field that stands for quality: gold where there is one, else the win rate, else the proxy."""
    points = results.get("frontier") or ()
    known = (f for f in ("gold_reward", "win_rate") if any(value_of(p.get(f)) is not None for p in points))
    return next(known, "proxy_reward")


def frontier(results: Mapping[str, Any]) -> str:
    """Quality against KL, and against the proxy."""
    points = [p for p in results.get("frontier") or () if value_of(p.get(quality(results))) is not None]
    if not points:
        return ""
    field, styles = quality(results), looks(results)
    against = ["seq_kl"] + (["proxy_reward"] if field != "proxy_reward" else [])
    panels = [_frontier_panel(points, field, x_field, styles) for x_field in against]
    oracle = any(p.get("selector") == "gold" for p in points)
    words = "Bars: 95% intervals, cut at the frame. Filled: on the Pareto set of its prompts. Ringed: the selected "
    words += "checkpoint on test prompts; the others are checkpoints on validation prompts."
    words += " Dotted grey: what gold itself would have picked from best-of-n's pool." if oracle else ""
    words += _bound_words(points)
    rows = [
        [
            escape(p["arm"]) + (" (gold selector)" if p.get("selector") == "gold" else ""),
            escape(p["label"]),
            kl_text(p["seq_kl"]),
            *(interval(p.get(name)) for name in WORDS),
            MISSING if p.get("pareto") is None else "yes" if p["pareto"] else "no",
        ]
        for p in points
    ]
    numbers = prose(table(("arm", "point", "KL (nats)", *WORDS.values(), "Pareto"), rows), "points of the frontier")
    return figure("frontier", panels, words, legend=switches(styles), numbers=numbers)


def _frontier_panel(points: Sequence[Point], field: str, x_field: str, styles: Mapping[str, Look]) -> str:
    shown = [p for p in points if value_of(p.get(x_field)) is not None]
    names = (KL_NAME if x_field == "seq_kl" else "proxy reward (shared reward model)", WORDS[field])
    held = [reach(p[name] for p in shown) for name in (x_field, field)]
    plot = Plot("", x=held[0], y=held[1], names=names, root=x_field == "seq_kl")
    if field == "win_rate":
        plot.level(0.5)
    for label, look in styles.items():
        for own in own_lines(shown, label):
            gold = own[0].get("selector", "own") == "gold"
            worn = Look(color=GREY.color, marker=GREY.marker, dash=GREY.dash, arm=look.arm) if gold else look
            if not on_test(own[0]):
                plot.line([(p[x_field]["value"], p[field]["value"]) for p in own], worn)
            for p in own:
                plot.point(
                    p[x_field]["value"], p[field]["value"], worn, _tip(p, field), filled=bool(p.get("pareto")) or gold,
                    ring=on_test(p), across=ends(p[field]), along=ends(p[x_field]),
                )  # fmt: skip
    return plot.svg(f"{names[1]} against {names[0]}, {len(shown)} points of {len(styles)} arms; numbers below")


def _tip(p: Point, field: str) -> str:
    selector = " (picked by gold)" if p.get("selector") == "gold" else ""
    lines = [f"{clean(p['arm'])}{selector}, {clean(p['label'])}", f"{WORDS[field]} {told(p[field])}"]
    lines.append(f"KL {kl_text(p['seq_kl'])} nats")
    if field != "proxy_reward" and value_of(p.get("proxy_reward")) is not None:
        lines.append(f"proxy {interval(p['proxy_reward'])}")
    return " · ".join(lines)


def own_lines(points: Sequence[Point], label: str) -> list[list[Point]]:
    """An arm's points as lines: one a run seed, what gold picked and points on test prompts apart."""
    found: dict[object, list[Point]] = {}
    for p in points:
        if p["arm"] == label:
            found.setdefault((p.get("selector", "own"), p.get("seed"), on_test(p)), []).append(p)
    return list(found.values())


def on_test(p: Point) -> bool:
    """Whether a point is a selected policy on test prompts, off the line of its checkpoints."""
    return str(p["label"]).endswith("(test)")


def overoptimization(results: Mapping[str, Any]) -> str:
    """Proxy and gold by KL, one panel an arm, on one scale."""
    points = [p for p in results.get("frontier") or () if not on_test(p) and value_of(p["seq_kl"]) is not None]
    styles = {label: look for label, look in looks(results).items() if any(p["arm"] == label for p in points)}
    if not styles:
        return ""
    fields = ("gold_reward", "proxy_reward")
    heights = reach(p[f] for p in points for f in fields if value_of(p.get(f)) is not None)
    known = {(one["arm"], one.get("selector", "own")): one for one in reversed(turns(results))}
    oracle = [p for p in points if p.get("selector") == "gold"]
    panels = []
    for label, look in styles.items():
        own = [p for p in points if p["arm"] == label]
        turned = known.get((label, "own")) or {}
        plot = Plot(_panel_title(label, turned), x=[p["seq_kl"]["value"] for p in own], y=heights, root=True,
                    names=("KL (nats)", "reward"))  # fmt: skip
        _mark_turn(plot, turned, own)
        for line in own_lines([p for p in own if p.get("selector", "own") == "own"], label):
            _two_rewards(plot, line, look)
        if any(p["seq_kl"].get("kl_kind") == "bound" for p in own):
            last = max(p["seq_kl"]["value"] for p in own) + 1e-9
            for line in (line for arm in styles for line in own_lines(oracle, arm)):
                _two_rewards(plot, [p for p in line if p["seq_kl"]["value"] <= last], look)
        panels.append(f'<div class="arm-{look.arm}">' + plot.svg(f"proxy and gold reward of {label} by KL") + "</div>")
    entries = [("gold", Look(color="ink", marker="circle"), True)]
    entries.append(("proxy (shared reward model)", Look(color="ink", marker="circle", dash="7 3"), False))
    if oracle:
        entries.append(("gold, picked by gold", GREY, True))
    words = "Bands: 95% intervals, cut at the frame. Where gold turns down while the proxy still rises, the proxy is "
    words += "being exploited."
    words += (
        " Grey area: points that may be gold's best."
        if any(value_of(one.get("onset_kl")) is not None for one in known.values())
        else ""
    )
    return figure("overoptimization", panels, words + _bound_words(points), legend=key(entries), cls="small")


def _panel_title(label: str, turned: Mapping[str, Any]) -> str:
    return short(label) + (": gold falls, proxy rises" if turned.get("goodhart") is True else "")


def _two_rewards(plot: Plot, line: Sequence[Point], look: Look) -> None:
    if not line:
        return
    oracle = line[0].get("selector") == "gold"
    for field, dash in (("proxy_reward", "7 3"), ("gold_reward", "")):
        shown = [p for p in line if value_of(p.get(field)) is not None]
        if not shown or (oracle and field == "proxy_reward"):
            continue
        worn = GREY if oracle else Look(color=look.color, marker=look.marker)
        if not oracle:
            plot.band([(p["seq_kl"]["value"], *ends(p[field])) for p in shown], worn)
        plot.line([(p["seq_kl"]["value"], p[field]["value"]) for p in shown], worn, dash=GREY.dash if oracle else dash)
        for p in shown:
            filled = field == "gold_reward"
            plot.point(p["seq_kl"]["value"], p[field]["value"], worn, _tip(p, field), filled=filled)


def _mark_turn(plot: Plot, turned: Mapping[str, Any], own: Sequence[Point]) -> None:
    last = max((p["seq_kl"]["value"] for p in own), default=0.0)
    onset, peak = turned.get("onset_kl"), value_of(turned.get("peak_kl"))
    if peak is not None and plot.x_range[0] <= peak <= min(plot.x_range[1], 1.5 * last):
        plot.upright(peak)
    if onset and value_of(onset) is not None:
        low, high = ends(onset)
        plot.span(max(low, plot.x_range[0]), min(high, plot.x_range[1]))


def tilt(results: Mapping[str, Any]) -> str:
    """What each reward could give with a perfect optimizer, and where the arms ended."""
    points = [p for p in results.get("tilt") or () if tilted(p)]
    rewards = list(dict.fromkeys(p["reward"] for p in points))
    if not any(sum(p["reward"] == reward for p in points) > 1 for reward in rewards):
        return ""
    field = "gold_reward" if any(p.get("gold_reward") for p in points) else "proxy_reward"
    arms = {label: arm for label, arm in (results.get("arms") or {}).items() if label != "sft"}
    arms = {
        label: arm for label, arm in arms.items() if all(value_of(arm.get(f)) is not None for f in ("seq_kl", field))
    }
    held = [*points, *arms.values()]
    start = value_of(((results.get("arms") or {}).get("sft") or {}).get(field))
    heights = reach(p[field] for p in held) + ([] if start is None else [start])
    plot = Plot("", x=[p["seq_kl"]["value"] for p in held], y=heights, root=True,
                names=(KL_NAME, WORDS[field]))  # fmt: skip
    entries: list[tuple[str, Look, bool]] = []
    for place, reward in enumerate(rewards):
        own = [p for p in points if p["reward"] == reward]
        look = Look(color=f"g{place % 4}", marker="dot", dash=_CURVES[place % len(_CURVES)])
        plot.band([(p["seq_kl"]["value"], *ends(p[field])) for p in own], look)
        plot.line([(p["seq_kl"]["value"], p[field]["value"]) for p in own], look)
        for p in own:
            tip = f"perfect optimizer of {clean(reward)}, KL {number(p['seq_kl']['value'])}, "
            tip += f"{WORDS[field]} {told(p[field])}"
            plot.point(p["seq_kl"]["value"], p[field]["value"], look, tip, filled=True)
        entries.append((f"perfect optimizer of {reward}", look, True))
    styles = looks(results)
    for label, arm in arms.items():
        kl, tip = arm["seq_kl"], f"{clean(label)}: {WORDS[field]} {told(arm[field])}, KL {kl_text(arm['seq_kl'])}"
        plot.point(
            kl["value"], arm[field]["value"], styles[label], tip, filled=True, across=ends(arm[field]), along=ends(kl)
        )
        entries.append((label, Look(color=styles[label].color, marker=styles[label].marker, dash="0 99"), True))
    if start is not None:
        plot.level(start, "SFT")
    words = "Bands: 95% intervals. Lines end where too few candidates carry the weight." + _bound_words(
        list(arms.values())
    )
    label = f"{WORDS[field]} of perfect optimizers of {len(rewards)} rewards by KL, with the arms' end points"
    return figure("tilt", [plot.svg(label)], words, legend=key(entries), cls="one")


def _bound_words(points: Sequence[Mapping[str, Any]]) -> str:
    bound = any((p.get("seq_kl") or {}).get("kl_kind") == "bound" for p in points)
    return " Best-of-n's KL is the bound log n \u2212 (n\u22121)/n." if bound else ""
