"""Numbers and sentences as people read them: shared by the terminal and the markdown report."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.results_base import SEEDS_FOR_METHODS

_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, links, clipboard
    r"|\x1b[P^_X][^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # DCS and its kin
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colors, cursor, erasing
    r"|\x1b[ -/]*[0-~]?"
)
MISSING = "-"


def clean(text: object) -> str:
    """Text that cannot drive a terminal: escape sequences, control and direction characters removed.

    Tabs and line ends become a space each; generated text, labels and messages all go through here.
    """
    plain = _ESCAPE_SEQUENCES.sub("", str(text))
    kept = (" " if char in "\n\r\t\u2028\u2029" else char for char in plain)
    return "".join(char for char in kept if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co"))


def number(value: object, digits: int = 3) -> str:
    """A number as people read it: two decimals below 1, `digits` significant digits above: 0.71, 12.3, 1840, 0.0042."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return MISSING
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.{digits - 1}e}"
    whole_digits = math.floor(math.log10(size)) if size >= 1 else 0
    places = digits + 1 if 0 < size < 0.01 else max(0, digits - 1 - whole_digits)
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``0.71 [0.68, 0.74]``; open above: ``17 [14, ∞)``; without ends the value alone; ``-`` without a value."""
    if not estimate or estimate.get("value") is None:
        return MISSING
    text = number(estimate["value"], digits)
    low, high = estimate.get("low"), estimate.get("high")
    if low is None:
        return text
    if high is None:
        return f"{text} [{number(low, digits)}, ∞)"
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def p_text(value: object) -> str:
    """A p-value: ``0.042``, ``< 0.001``."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def kl_text(estimate: Mapping[str, Any] | None) -> str:
    """A KL with its kind: measured ones plain, a bound with ``≤``."""
    text = interval(estimate)
    if estimate and estimate.get("kl_kind") == "bound" and text != MISSING:
        return f"≤ {number(estimate.get('value'))}"
    return text


def seconds(value: object) -> str:
    """``12 ms``, ``8.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    if 0 < value < 0.1:
        return f"{1000 * value:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: object) -> str:
    """``950``, ``12.3k``, ``4.5M``, ``1.2G``."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def run_seeds(results: Mapping[str, Any]) -> list[int]:
    """The run seeds of a comparison."""
    return list((results.get("seeds") or {}).get("runs") or [])


def seeds_caveat(results: Mapping[str, Any]) -> str | None:
    """What the number of seeds allows to be said; None when it allows a verdict on methods."""
    seeds = len(run_seeds(results))
    if seeds >= SEEDS_FOR_METHODS:
        return None
    if seeds <= 1:
        return "One run seed: this compares checkpoints, not methods."
    return f"{seeds} run seeds: a verdict on methods needs at least {SEEDS_FOR_METHODS}."


def certificate_line(results: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the match certificate holds, and a sentence that says so with counts."""
    match = results.get("match") or {}
    checks: Sequence[Mapping[str, Any]] = match.get("checks") or ()
    passed, failed = sum(c.get("ok") is True for c in checks), sum(c.get("ok") is False for c in checks)
    idle = len(checks) - passed - failed
    rest = f", {idle} not applicable" if idle else ""
    if match.get("ok") is True and not failed:
        return True, f"Match certificate holds: {passed} checks passed{rest}."
    return (
        False,
        f"Match certificate FAILED: {failed} of {len(checks)} checks failed{rest}. The arms are not comparable.",
    )


def failed_checks(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, detail) of each failed check."""
    checks = (results.get("match") or {}).get("checks") or ()
    return [(clean(c.get("name")), clean(c.get("detail") or "")) for c in checks if c.get("ok") is False]


def cost_text(cost: Mapping[str, Any] | None) -> str:
    """CPU time, and GPU time where there is any: ``1 min 15 s``, ``40.0 s + GPU 8 min 02 s``."""
    if not cost:
        return MISSING
    text = seconds(cost.get("cpu_s"))
    gpu = cost.get("gpu_s") or 0.0
    return f"{text} + GPU {seconds(gpu)}" if gpu > 0 else text


def checkpoint_text(arm: Mapping[str, Any]) -> str:
    """Which checkpoint an arm's figures are about: ``last``, ``step 50 (best proxy_reward)``; an oracle is marked."""
    text = clean(arm.get("selected") or MISSING)
    rule = arm.get("selection") or {}
    if rule.get("rule") == "best":
        text += f" (best {clean(rule.get('metric') or '')})"
    return text + (" ORACLE" if rule.get("oracle") else "")


def gains(arms: Mapping[str, Any]) -> str | None:
    """What each arm gained over sft in gold (else in proxy), paired by prompt; None where nothing is known."""
    for field, what in (("gold_gain", "gold"), ("proxy_gain", "proxy")):
        shown = {label: arm[field] for label, arm in arms.items() if (arm.get(field) or {}).get("value") is not None}
        if shown:
            told = "; ".join(
                f"{clean(label)} {interval(gain)} (detectable {number(gain.get('minimum_detectable_effect'))})"
                for label, gain in shown.items()
            )
            return f"gain in {what} over sft, paired by prompt: {told}"
    return None


def rates_against(arms: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(arm, win rate) of every arm against the baseline: by each judge, then with length held equal, then by the null
    judge that prefers the longer text."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for label, arm in arms.items():
        rates = arm.get("win_rates") or ()
        found += [(label, rate) for rate in rates]
        controlled = arm.get("win_rate_length_controlled")
        if controlled and rates:
            judge = f"{rates[0]['judge']}, length controlled"
            found.append((label, controlled | {"baseline": rates[0]["baseline"], "judge": judge}))
        found += [(label, rate) for rate in arm.get("null_win_rates") or () if rate["judge"] == "null/longest"]
    return found


def is_null(rate: Mapping[str, Any]) -> bool:
    """Whether a judge that knows nothing gave this rate."""
    return str(rate.get("judge", "")).startswith("null/")


def judge_text(rate: Mapping[str, Any]) -> str:
    """A judge as people read it."""
    return "longer text wins" if rate.get("judge") == "null/longest" else str(rate.get("judge", ""))


def baseline_and_judge(results: Mapping[str, Any]) -> str | None:
    """``against sft, judged by gold``: what the win rates of the arms' rows mean."""
    named = {
        (clean(rate["baseline"]), clean(rate["judge"]))
        for arm in (results.get("arms") or {}).values()
        if (rate := arm.get("win_rate"))
    }
    return "; ".join(f"against {baseline}, judged by {judge}" for baseline, judge in sorted(named)) or None


def verdict(results: Mapping[str, Any]) -> str:
    """The outcome in two or three sentences, with intervals and without more than the data carry."""
    ok, line = certificate_line(results)
    if not ok:
        return f"No verdict. {line}"
    arms = {
        label: arm for label, arm in (results.get("arms") or {}).items() if arm.get("kind") != "sft" and label != "sft"
    }
    field, what = ("win_rate", "win rate")
    if not any((arm.get(field) or {}).get("value") is not None for arm in arms.values()):
        field, what = ("gold_reward", "gold reward")
    if not any((arm.get(field) or {}).get("value") is not None for arm in arms.values()):
        why = "no judge's verdicts can be used" if results.get("judges") else "no gold and no judge"
        field, what = ("proxy_reward", f"proxy reward ({why}: this is what was optimized, not quality)")
    rated = sorted(
        (
            (arm[field]["value"], label)
            for label, arm in arms.items()
            if (arm.get(field) or {}).get("value") is not None
        ),
        reverse=True,
    )
    if not rated:
        return "No arm has a score."
    best = rated[0][1]
    against = baseline_and_judge(results) if field == "win_rate" else None
    head = f"{clean(best)} has the highest {what}: {interval(arms[best][field])}" + (
        f" ({against})." if against else "."
    )
    return " ".join(
        part
        for part in (
            head,
            _against_others(results, best, [label for _, label in rated[1:]]),
            _divergence(arms),
            seeds_caveat(results),
        )
        if part
    )


def decision_line(results: Mapping[str, Any]) -> str | None:
    """The decision's sentence; None in files that have none."""
    found = results.get("decision")
    return f"Decision: {clean(found['sentence'])}" if found else None


def _divergence(arms: Mapping[str, Any]) -> str:
    fallen = [f"{clean(label)} ({clean(arm['diverged'])})" for label, arm in arms.items() if arm.get("diverged")]
    return f"Diverged: {', '.join(fallen)}." if fallen else ""


def _against_others(results: Mapping[str, Any], best: str, others: Sequence[str]) -> str:
    clear, open_ = list[str](), list[str]()
    for other in others:
        duel = _duel(results, best, other)
        if duel is None:
            continue
        value, low, high, p_holm = duel
        text = f"{clean(other)} ({number(value)} [{number(low)}, {number(high)}]"
        text += f", Holm p {p_text(p_holm)})" if p_holm is not None else ")"
        decided = low is not None and low > 0.5 and (p_holm is None or p_holm < 0.05)
        (clear if decided else open_).append(text)
    sentences = []
    if clear:
        sentences.append(f"Head to head it beats {', '.join(clear)}.")
    if open_:
        sentences.append(f"Head to head it is not distinguishable from, or not better than, {', '.join(open_)}.")
    return " ".join(sentences)


def _duel(
    results: Mapping[str, Any], best: str, other: str
) -> tuple[float, float | None, float | None, float | None] | None:
    """(win rate of `best` over `other`, low, high, Holm p), whichever way round it was recorded.

    By gold wherever it judges: the proxy is what some arms were trained on.
    """
    judges = [entry.get("judge") for entry in results.get("head_to_head") or ()]
    judge = next((one for one in judges if one != "proxy"), judges[0] if judges else None)
    for entry in results.get("head_to_head") or ():
        rate = entry["win_rate"]
        if rate.get("value") is None or {entry["a"], entry["b"]} != {best, other} or entry.get("judge") != judge:
            continue
        low, high = rate.get("low"), rate.get("high")
        if entry["a"] == best:
            return rate["value"], low, high, entry.get("p_holm")
        return (
            1 - rate["value"],
            None if high is None else 1 - high,
            None if low is None else 1 - low,
            entry.get("p_holm"),
        )
    return None
