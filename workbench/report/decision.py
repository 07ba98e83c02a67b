"""The decision as people read it, and what stands beside it: diversity, and the arms as each annotator sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.report import wording
from workbench.report.markup import escape, table
from workbench.report.wording import interval, p_text

DIVERSITY = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "similarity_within": "alike within",
    "similarity_between": "alike between",
    "entropy_per_token": "entropy",
}
IN_TERMINAL = ("distinct_2", "self_bleu", "entropy_per_token")
OUTCOMES = {
    "better": "the first is better",
    "worse": "the second is better",
    "equivalent": "equivalent",
    "open": "open",
}


def decision(results: Mapping[str, Any]) -> str:
    """What the report ends with."""
    found = results.get("decision")
    if not found:
        return ""
    rows = [
        [
            f"{escape(one['a'])} against {escape(one['b'])}",
            interval(one["win_rate"]),
            p_text(one.get("p_holm")),
            p_text(one.get("p_equivalence")),
            OUTCOMES[one["outcome"]] + (", by less than the margin" if one.get("small") else ""),
        ]
        for one in found.get("evidence") or ()
    ]
    parts = ["## Decision", f"**{escape(found['sentence'])}**"]
    if rows:
        parts.append(table(("pair", "win rate of the first", "p of equality (Holm)", "p of the margin", "so"), rows))
        parts.append(
            f"Judge: {escape(found['judge'])}. Margin: {wording.number(found['margin'])}. Equivalent: two one-sided "
            "tests at 5% each. sft stands for training no arm at all."
        )
    return "\n\n".join(parts)


def diversity(results: Mapping[str, Any]) -> str:
    """How different each arm's samples are from each other."""
    shown = {label: arm["diversity"] for label, arm in (results.get("arms") or {}).items() if arm.get("diversity")}
    if not shown:
        return ""
    rows = [[escape(label), *(interval(one.get(name)) for name in DIVERSITY)] for label, one in shown.items()]
    changes = [
        [f"{escape(label)} less sft", *(interval(one["against_sft"].get(name)) for name in DIVERSITY)]
        for label, one in shown.items()
        if one.get("against_sft")
    ]
    size = next(iter(shown.values())).get("tokens_compared")
    text = "Distinct-n: share of different n-grams among the samples of a prompt, "
    text += f"{wording.number(size)} tokens of them in every arm. Self-BLEU: each sample against the prompt's others. "
    text += "Alike: Jaccard index of the bigrams of two samples of one prompt (within) or of two (between). Entropy: "
    text += "nats a token, at temperature 1."
    return f"## Diversity\n\n{table(('arm', *DIVERSITY.values()), [*rows, *changes])}\n\n{text}"


def annotators(results: Mapping[str, Any]) -> str:
    """The arms as each annotator sees them, the minority's last."""
    about = results.get("annotators") or {}
    names = list(about.get("leave_one_out") or {})
    arms = {label: arm for label, arm in (results.get("arms") or {}).items() if arm.get("by_annotator")}
    names += [name for arm in arms.values() for name in arm["by_annotator"] if name not in names]
    if not names:
        return f"## By annotator\n\nNot known: {escape(about['reason'])}." if about.get("reason") else ""
    expected = about.get("kind") == "expected_win_rate"
    minority = list(about.get("minority") or ())
    rows = [
        [
            escape(name) + (" (minority)" if name in minority else ""),
            interval((about.get("leave_one_out") or {}).get(name)),
            *(interval(arm["by_annotator"].get(name)) for arm in arms.values()),
        ]
        for name in names
    ]
    if expected and minority:
        gaps = (interval(arm.get("minority_gap")) for arm in arms.values())
        rows.append(["the others less the minority", wording.MISSING, *gaps])
    header = ("annotator", "agrees with the others", *(escape(label) for label in arms))
    what = "Expected win rate against sft by each annotator's own preference probabilities, both orders of every pair."
    if not expected:
        what = "Share of each annotator's held-out labels that the arm's own reward orders the same way, ties half."
    text = f"{what} The minority agree least with the majority of the others. A noisier annotator is nearer to 0.5 "
    text += "whatever the arm: compare arms within a row."
    if about.get("reason"):
        text += f" No minority: {escape(about['reason'])}."
    return f"## By annotator\n\n{table(header, rows)}\n\n{text}"


def diversity_rows(arms: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """(columns, rows) of the terminal's table: diversity, and the minority's win rate where it is known."""
    minority = any(arm.get("minority_win_rate") for arm in arms.values())
    columns = ["arm", *(DIVERSITY[name] for name in IN_TERMINAL), *(["minority's win rate"] if minority else [])]
    rows = [
        [label, *(interval(arm["diversity"].get(name)) for name in IN_TERMINAL)]
        + ([interval(arm.get("minority_win_rate"))] if minority else [])
        for label, arm in arms.items()
        if arm.get("diversity")
    ]
    return columns, rows


def settle_sentence(more: Mapping[str, Any]) -> str:
    """About how much more would settle what is open, or why that is not known: `decision.more`."""
    units = (("seeds", "run seeds"), ("prompts", "prompts"))
    wanted = [f"about {more[unit]} more {words}" for unit, words in units if more.get(unit) is not None]
    text = str(more["reason"])
    if text.startswith("to "):
        text = f"{' or '.join(wanted) or 'it is not known how much more it takes'} {text}"
    return f"{text[0].upper()}{text[1:]}."
