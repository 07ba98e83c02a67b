"""What a comparison did not establish: too little power, too few seeds, controls that failed, estimates refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.report import wording
from workbench.report.decision import settle_sentence
from workbench.report.markup import escape, table
from workbench.report.wording import MISSING, interval, number

NAMED = 4  # refused estimates named by reason; the others are counted
# What tells the entries of a list in results.json apart.
_IDENTITY = (
    "arm",
    "a",
    "b",
    "against",
    "set",
    "label",
    "reward",
    "form",
    "selector",
    "judge",
    "name",
    "seed",
    "step",
    "kl",
)
_NUMBERS = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_SKIPPED = ("disagreements", "stages", "match", "decision")
_COMPARED = {"gold_gain": (0.0, "gain in gold"), "proxy_gain": (0.0, "gain in proxy")}


def section(results: Mapping[str, Any]) -> str:
    """`## What was not established`: there is always something, the scope at least."""
    parts = [_scope(results), _open(results), _controls(results), _refused(results)]
    return "\n\n".join(["## What was not established", *(part for part in parts if part)])


def _scope(results: Mapping[str, Any]) -> str:
    lines = []
    caveat = wording.seeds_caveat(results)
    if caveat:
        lines.append(caveat)
    found = results.get("decision") or {}
    if found.get("more"):
        lines.append(settle_sentence(found["more"]))
    lines += [f"{label} was no candidate: {why}" for label, why in (found.get("excluded") or {}).items()]
    arms = results.get("arms") or {}
    lines += [f"{label} diverged: {arm['diverged']}" for label, arm in arms.items() if arm.get("diverged")]
    if all((arm.get("gold_reward") or {}).get("value") is None for arm in arms.values()):
        lines.append("No gold reward: nothing here measures quality but the judges that are named.")
    tuning = [c for c in (results.get("match") or {}).get("checks") or () if c.get("name") == "same_tuning_budget"]
    if any(check.get("ok") == "not_applicable" for check in tuning):
        lines.append("Nothing was tuned: an arm may do better, or worse, with other settings.")
    return "\n".join(f"- {escape(_stop(line))}" for line in dict.fromkeys(lines))


def _stop(line: str) -> str:
    return line if line.endswith((".", "!", "?")) else f"{line}."


# ------------------------------------------------------------------------------------------ power


def _open(results: Mapping[str, Any]) -> str:
    """Comparisons whose interval holds "no difference", with what they could have missed."""
    known = [one for one in comparisons(results) if one[2].get("value") is not None]
    rows = [
        [escape(name), escape(what), interval(one), number(one.get("minimum_detectable_effect"))]
        for name, what, one, null in known
        if _holds(one, null)
    ]
    if not known:
        return ""
    text = f"{len(rows)} of {len(known)} comparisons cannot be told from no difference." if rows else \
        f"Each of {len(known)} comparisons can be told from no difference."  # fmt: skip
    text += " Detectable: the smallest true difference that this many prompts and seeds find with 80% power"
    text += f" ({_power(known)}); a smaller one may be there." if _power(known) else "; a smaller one may be there."
    head = "### Differences too small for this much data"
    return f"{head}\n\n{text}" + (
        f"\n\n{table(('comparison', 'what', 'estimate', 'detectable'), rows)}" if rows else ""
    )


def _power(known: Sequence[tuple[str, str, Mapping[str, Any], float]]) -> str:
    """``win rate by gold 0.02 to 0.04, gain in gold 0.15 to 0.19``."""
    found: dict[str, list[float]] = {}
    for _, what, one, _ in known:
        if one.get("minimum_detectable_effect") is not None:
            found.setdefault(what, []).append(one["minimum_detectable_effect"])
    ends = {what: list(dict.fromkeys(map(number, (min(some), max(some))))) for what, some in found.items()}
    return ", ".join(f"{escape(what)} {' to '.join(both)}" for what, both in ends.items())


def comparisons(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], float]]:
    """(who, what, estimate, value of no difference) of every planned comparison."""
    for label, arm in (results.get("arms") or {}).items():
        for rate in arm.get("win_rates") or ():
            yield f"{label} against {rate['baseline']}", f"win rate by {rate['judge']}", rate, 0.5
        for field, (null, words) in _COMPARED.items():
            if arm.get(field):
                yield f"{label} against sft", words, arm[field], null
    for duel in results.get("head_to_head") or ():
        one = dict(duel["win_rate"]) | {"minimum_detectable_effect": duel.get("minimum_detectable_effect")}
        yield f"{duel['a']} against {duel['b']}", f"win rate by {duel.get('judge', '')}", one, 0.5


def _holds(one: Mapping[str, Any], null: float) -> bool:
    low, high = one.get("low"), one.get("high")
    return (low is None or low <= null) and (high is None or high >= null)


# ------------------------------------------------------------------------------------------ controls


def _controls(results: Mapping[str, Any]) -> str:
    rows = []
    for check in (results.get("match") or {}).get("checks") or ():
        if check.get("ok") is not True:
            state = "**FAILED**" if check.get("ok") is False else "not applicable"
            rows.append([escape(f"certificate: {check.get('name')}"), state, escape(check.get("detail") or "")])
    for name, why in (results.get("judging_incomplete") or {}).items():
        rows.append([escape(f"judge {name}"), "**did not finish**", escape(why)])
    for name, judge in (results.get("judges") or {}).items():
        for field, words in (("uneven", "**withheld**"), ("lineage", "not independent")):
            if judge.get(field):
                rows.append([escape(f"judge {name}"), words, escape(judge[field])])
    for label, arm in (results.get("arms") or {}).items():
        rows += [[escape(f"{label}: {words}"), "**suspect**", told] for words, told in _length(arm)]
    if not rows:
        return ""
    listed = table(("control", "state", "detail"), rows).replace("---:|", "---|")
    return f"### Controls that failed or do not apply\n\n{listed}"


def _length(arm: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whether length alone would do as well as the arm's headline, and nothing is left of it at equal length."""
    rate = arm.get("win_rate") or {}
    longest = next((one for one in arm.get("null_win_rates") or () if one.get("judge") == "null/longest"), None)
    if not longest or rate.get("low") is None or longest.get("value") is None or longest["value"] < rate["low"]:
        return []
    controlled = arm.get("win_rate_length_controlled") or {}
    if controlled.get("low") is not None and controlled["low"] > 0.5:
        return []
    told = f"a judge that counts characters gives {interval(longest)}, {wording.clean(rate['judge'])} {interval(rate)}"
    return [("length", escape(told))]


# ------------------------------------------------------------------------------------------ refused


def _refused(results: Mapping[str, Any]) -> str:
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, method in refused(results):
        kinds.setdefault(_NUMBERS.sub("#", method), []).append((path, method))
    if not kinds:
        return ""
    rows = []
    for found in sorted(kinds.values(), key=lambda found: -len(found)):
        paths = list(dict.fromkeys(path for path, _ in found))
        rest = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        alike = " (and alike, with other numbers)" if len({method for _, method in found}) > 1 else ""
        rows.append([escape(found[0][1] + alike), str(len(found)), escape("; ".join(paths[:NAMED]) + rest)])
    text = "An estimate that the data do not carry is left out rather than guessed."
    listed = table(("why", "estimates", "which"), rows).replace("---:|---:|", "---:|---|")
    return f"### Estimates that were refused\n\n{text}\n\n{listed}"


def refused(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(where, why) of every estimate in results.json that has no value."""
    for name, part in results.items():
        if name not in _SKIPPED:
            yield from _walk(part, (name,))


def _walk(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(part, Mapping):
        if "value" in part and "method" in part:
            if part["value"] is None:
                yield (
                    " ".join(one for one in path if one != "estimate").replace("_", " "),
                    wording.clean(part["method"]) or MISSING,
                )
            return
        for name, one in part.items():
            yield from _walk(one, (*path, str(name)))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for one in part:
            told = ", ".join(_named(one)) if isinstance(one, Mapping) else ""
            yield from _walk(one, (*path, told) if told else path)


def _named(one: Mapping[str, Any]) -> list[str]:
    found = [(name, one[name]) for name in _IDENTITY if isinstance(one.get(name), str | int | float)]
    return [f"{name} {number(value)}" if name in ("kl", "seed", "step") else str(value) for name, value in found]
