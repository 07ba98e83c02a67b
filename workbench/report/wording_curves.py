"""Sentences on reward against KL as people read them: over-optimization, matched KL, areas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.report.wording import clean, interval, number, run_seeds
from workbench.results_base import SEEDS_FOR_METHODS

TRUTHS = {
    "gold": "gold",
    "judge": "the judge's win rate",
    "ensemble": "the score of the reward models that it did not optimize",
}
MOST_KLS = 4


def turning_arm(entry: Mapping[str, Any]) -> str:
    """Whose row of over-optimization it is: ``best_of_n (gold selector)``."""
    return clean(entry["arm"]) + (" (gold selector)" if entry.get("selector", "own") == "gold" else "")


def turns(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of over-optimization, one an arm, selector and seed: an arm's further forms differ in the fit alone."""
    found: dict[object, Mapping[str, Any]] = {}
    for entry in results.get("overoptimization") or ():
        found.setdefault((entry["arm"], entry.get("selector", "own"), entry.get("seed")), entry)
    return list(found.values())


def overoptimization_lines(results: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """(alarming, sentence) per arm and seed: did the truth fall from its best point, and what did the proxy do?"""
    lines: list[tuple[bool, str]] = []
    entries = turns(results)
    several = len({entry.get("seed") for entry in entries}) > 1
    for entry in entries:
        drop = entry.get("drop_from_peak") or {}
        if drop.get("value") is None:
            continue
        arm, low = turning_arm(entry), drop.get("low")
        if several and entry.get("seed") is not None:
            arm += f" (seed {entry['seed']})"
        proven = low is not None and low > 0
        paired = "paired " if str(drop.get("method", "")).startswith("paired") else ""
        truth, where = TRUTHS[entry.get("truth", "gold")], _where(entry)
        if not proven:
            shown = f"no fall of {truth} from its best point beyond the noise ({paired}drop {interval(drop)})"
            lines.append((False, f"{arm}: {shown}{where}."))
            continue
        change, high, told = _since_best(results, entry)
        moved = "" if change is None else f" while {proxy_of(entry)} {'rose' if change >= 0 else 'fell'} by {told}"
        text = f"{arm}: {truth} fell by {interval(drop)} from its best point ({paired}drop){moved}{where}: "
        lines.append((True, text + _verdict(entry, change, high)))
    return lines


def proxy_of(entry: Mapping[str, Any]) -> str:
    """What a row's proxy is to its arm: DPO and what an implicit reward selects never optimized the shared one."""
    name = f" {clean(entry['proxy'])}" if entry.get("proxy") else ""
    return f"the shared reward model{name}" if entry.get("proxy_role") == "shared" else f"its proxy{name}"


def _verdict(entry: Mapping[str, Any], change: float | None, high: float | None) -> str:
    """What a proven fall of the truth says of the proxy, which moved by `change`, at most by `high`."""
    own = entry.get("proxy_role") != "shared"
    # What falls together with its proxy was not led astray by it.
    if change is not None and change < 0:
        if high is None or high >= 0:
            return "the proxy's fall is not beyond the noise, so it neither saw this nor was misled."
        return f"it got worse by {'its own proxy' if own else 'that reward model'} too."
    if entry.get("goodhart") is False:
        return "the proxy's rise is within the noise, so this alone is not over-optimization."
    return "over-optimized." if own else "that reward model, which it did not optimize, is misled."


def _where(entry: Mapping[str, Any]) -> str:
    """`` (onset at KL 1.2 [0.9, 1.6], fitted peak at KL 1.4 [1.1, 1.9])``, as far as known."""
    parts = [
        f"{name} at KL {interval(one)}"
        for name, field in (("onset", "onset_kl"), ("fitted peak", "peak_kl"))
        if (one := entry.get(field) or {}).get("value") is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _since_best(results: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[float | None, float | None, str]:
    """How far the proxy moved since the best point, at most, and as text; of older results from the frontier."""
    since = entry.get("proxy_since_peak") or {}
    if since.get("value") is not None:
        low, high = since.get("low"), since.get("high")
        turned = {"value": abs(since["value"]), "low": low, "high": high}
        if since["value"] < 0:
            turned |= {"low": None if high is None else -high, "high": None if low is None else -low}
        return float(since["value"]), high, interval(turned)
    change = _proxy_since_peak(results, str(entry["arm"]), entry.get("seed"))
    return change, None, "" if change is None else number(abs(change))


def _proxy_since_peak(results: Mapping[str, Any], arm: str, seed: int | None) -> float | None:
    points = [
        (point["gold_reward"]["value"], (point.get("proxy_reward") or {}).get("value"))
        for point in results.get("frontier") or ()
        if point["arm"] == arm
        and point.get("selector", "own") == "own"
        and not str(point["label"]).endswith("(test)")  # other prompts than the points along the way
        and point.get("step") != 0
        and (seed is None or point.get("seed") in (seed, None))
        and (point.get("gold_reward") or {}).get("value") is not None
    ]
    if not points:
        return None
    _, at_best = max(points, key=lambda point: float(point[0]))
    _, at_last = points[-1]
    return None if at_best is None or at_last is None else float(at_last) - float(at_best)


def goodhart_arms(results: Mapping[str, Any]) -> list[str]:
    """Arms in whose rows the proxy rises while the truth falls, both beyond noise."""
    return [clean(entry["arm"]) for entry in turns(results) if entry.get("goodhart") is True]


def pairs_lines(results: Mapping[str, Any]) -> list[str]:
    """Of every two arms whose reward models saw different numbers of pairs: is the turn smaller and later with more?"""
    lines = []
    seeds = len(run_seeds(results))
    whose = (
        "" if seeds >= SEEDS_FOR_METHODS else f", of these checkpoints ({seeds} run seed{'s' if seeds != 1 else ''})"
    )
    for row in results.get("pairs_effect") or ():
        gap = row.get("less_fall") or {}
        if gap.get("value") is None:
            continue
        low, high = gap.get("low"), gap.get("high")
        smaller = "yes" if low is not None and low > 0 else "no, larger" if high is not None and high < 0 else None
        smaller = smaller and smaller + whose
        later = {True: "yes", False: "no, earlier"}.get(row.get("turns_later"))
        ranges = [_kl_range(row.get(name)) for name in ("best_kl_fewer", "best_kl_more")]
        lines.append(
            f"{clean(row['more'])} ({row['pairs_more']} pairs) against {clean(row['fewer'])} ({row['pairs_fewer']}): "
            f"gold falls less by {interval(gap)} (smaller turn: {smaller or 'not resolved'}); best gold at KL "
            f"{ranges[1]} against {ranges[0]} (later turn: {later or 'not resolved'})."
        )
    return [*lines, *_learning_lines(results)]


def _learning_lines(results: Mapping[str, Any]) -> list[str]:
    """Reward by number of training pairs, what is missing to the largest number, and kinds against each other."""
    lines = []
    for curve in results.get("learning_curves") or ():
        for point in curve["points"]:
            text = f"{clean(point['arm'])} on {point['pairs']} pairs: gain over sft {interval(point['gain'])}"
            if point.get("shortfall"):
                text += f", short of {clean(curve['points'][-1]['arm'])} by {interval(point['shortfall'])}"
            lines.append(text + ".")
    lines += [
        f"{clean(gap['a'])} less {clean(gap['b'])}, both on {gap['pairs']} pairs: {interval(gap['difference'])}."
        for gap in results.get("learning_gaps") or ()
    ]
    return lines


def _kl_range(kl: Sequence[float | None] | None) -> str:
    if not kl:
        return "-"
    return f"{number(max(0.0, kl[0] or 0.0))} to {'the end' if kl[1] is None else number(max(0.0, kl[1]))}"


# ------------------------------------------------------------------------------------------- matched KL, areas


def matched_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of every arm's reward at a few KLs in common; empty without curves."""
    own = [row for row in results.get("matched_kl") or () if row.get("against") is None]
    known = [row for row in own if (row.get("estimate") or {}).get("value") is not None]
    if not known:
        return [], []
    kls = _spread(sorted({float(row["kl"]) for row in known}))
    shown = {(row["arm"], float(row["kl"])): row["estimate"] for row in known}
    arms = dict.fromkeys(row["arm"] for row in own)
    kinds = {row["arm"]: row.get("kl_kind") for row in own}
    header = ["arm", *(f"KL {number(kl)}" for kl in kls)]
    rows = [
        [clean(arm) + (" (KL bound)" if kinds[arm] == "bound" else ""), *(interval(shown.get((arm, kl))) for kl in kls)]
        for arm in arms
    ]
    return header, rows


def _spread(kls: Sequence[float]) -> list[float]:
    """At most `MOST_KLS` of the KLs, evenly over them, the last one in."""
    if len(kls) <= MOST_KLS:
        return list(kls)
    step = (len(kls) - 1) / (MOST_KLS - 1)
    return [kls[round(i * step)] for i in range(MOST_KLS)]


def beside_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of selected policies beside best-of-n's curve at the policies' own KL, on the same prompts."""
    rows = [
        [f"{clean(row['arm'])} less {clean(row['against'])}", number(row["kl"]), interval(found)]
        for row in results.get("matched_kl") or ()
        if row.get("against") is not None
        and (row.get("kl_kind"), row.get("prompt_set")) == ("mixed", "test")
        and (found := row.get("estimate") or {}).get("value") is not None
    ]
    return (["selected policy less best-of-n at its KL", "KL", "difference"], rows) if rows else ([], [])


def area_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of mean reward over KL: every arm, then the differences; empty without curves."""
    rows = []
    for row in results.get("frontier_area") or ():
        name = clean(row["arm"]) + (f" less {clean(row['against'])}" if row.get("against") else "")
        found = row.get("estimate") or {}
        reach = "-" if row.get("kl_to") is None else f"0 to {number(row['kl_to'])}"
        shown = interval(found) if found.get("value") is not None else clean(found.get("method") or "-")
        rows.append([name, reach, shown, clean(row.get("kl_kind") or "")])
    rows.sort(key=lambda row: " less " in row[0])
    return (["arm", "KL", "mean over KL", "kind of KL"], rows) if rows else ([], [])


def turn_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of over-optimization: what fell, what rose, where, and whether it is Goodhart's."""
    rows = []
    for entry in turns(results):
        flag = {True: "YES", False: "no"}.get(entry.get("goodhart"), "-")  # type: ignore[arg-type]
        fields = ("drop_from_peak", "proxy_since_peak", "onset_kl", "gap")
        rows.append(
            [turning_arm(entry), clean(entry.get("truth", "gold")), *(interval(entry.get(f)) for f in fields), flag]
        )
    header = ["arm", "truth", "fall from best", "proxy since", "onset, KL", "gap (SD)", "Goodhart"]
    return (header, rows) if rows else ([], [])


def fit_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Gao's forms, or why they are not fitted."""
    rows = []
    forms = {"bon": "d (a - b d)", "rl": "d (a - b log d)"}
    for entry in results.get("overoptimization") or ():
        alpha = entry.get("alpha") or {}
        name = [turning_arm(entry), forms.get(str(entry["form"]), clean(entry["form"]))]
        if alpha.get("value") is None:
            rows.append([*name, clean(alpha.get("method") or "-"), "", "", "", ""])
            continue
        fields = [interval(entry.get(field)) for field in ("alpha", "beta", "peak_kl")]
        p = entry.get("lack_of_fit_p")
        rows.append([*name, *fields, number(entry.get("residual_rms")), "-" if p is None else number(p)])
    header = ["arm", "form", "alpha", "beta", "peak, KL", "residual", "p of the fit"]
    return (header, rows) if rows else ([], [])
