"""The agreement dashboard as one HTML page, and its figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.report import svg
from workbench.report.markup import escape, table
from workbench.report.prose import prose
from workbench.report.shell import page, safe, section
from workbench.report.wording import MISSING, interval, p_text

KINDS = {
    "pairs": "The two responses of a pair have no order of their own (which one is called chosen comes from the "
    "labels), so chance agreement is taken as even: without ties kappa and alpha are about twice the agreement less "
    "one.",
    "judgments": "The two responses are two systems', so chance agreement follows how often each judge prefers either: "
    "judges who all prefer one system agree often by that alone.",
}
HELP = {
    "alpha_nominal": "Krippendorff's alpha",
    "alpha_ordinal": "Krippendorff's alpha of grades, ordinal",
    "alpha_interval": "Krippendorff's alpha of grades, interval",
    "fleiss_kappa": "Fleiss' kappa",
    "agreement": "raw agreement of two",
    "spearman": "Spearman's correlation of grades",
}


def annotators_page(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: `Annotators` as plain JSON.
    """
    drawn = figures(found)
    sections = [
        ("summary", "Summary", _summary(found)),
        ("overall", "All together", drawn.get("overall", "") + _overall(found)),
        ("annotators", "Each annotator", _annotators(found, drawn)),
        ("between", "Two by two", drawn.get("between", "") + _between(found)),
        ("bias", "Position and length", _bias(found, drawn)),
        ("triples", "Circles", _triples(found)),
        ("relabel", "Pairs to label again", _relabel(found)),
        ("method", "How it was computed", _method(found)),
    ]
    kept = [(name, words, body) for name, words, body in sections if body]
    return page(
        title="Agreement of annotators", kicker=", ".join(map(_name, found["sources"])), style=svg.STYLE,
        body="".join(section(*one) for one in kept), nav=[(name, words) for name, words, _ in kept],
    )  # fmt: skip


def figures(found: Mapping[str, Any]) -> dict[str, str]:
    """name -> SVG of every figure that there are data for."""
    rows, drawn = found["annotators"], {}
    overall = [
        svg.Dot(label=words, **_ends(found["overall"][name]))
        for name, words in HELP.items()
        if found["overall"].get(name)
    ]
    if any(dot.value is not None for dot in overall):
        drawn["overall"] = svg.dots(
            overall, title="Agreement of all annotators", bounds=(-0.2, 1.0), even=0.0, percent=False
        )
    for name, field, words, even in (
        ("leave_one_out", "leave_one_out", "Agreement with the majority of the others", 0.5),
        ("reliability", "reliability", "Estimated chance of the right label", 0.5),
        ("position", "first_shown_preferred", "Labels for the response shown first", 0.5),
        ("length", "longer_preferred", "Labels for the longer response", 0.5),
    ):
        dots = [svg.Dot(label=row["name"], flag=row["name"] in found["retrain"], **_ends(row[field])) for row in rows]
        if any(dot.value is not None for dot in dots):
            drawn[name] = svg.dots(dots, title=words, even=even)
    names = [row["name"] for row in rows]
    if 2 <= len(names) <= 16 and found["between"]:
        cells = [(names.index(one["b"]), names.index(one["a"]), one["kappa"]["value"]) for one in found["between"]]
        drawn["between"] = svg.heat(names, cells, title="Cohen's kappa of every two annotators")
    return drawn


def _ends(estimate: Mapping[str, Any]) -> dict[str, Any]:
    note = "" if estimate["value"] is not None else str(estimate["method"]).removeprefix("refused: ")
    return {"value": estimate["value"], "low": estimate["low"], "high": estimate["high"], "note": note}


def _name(source: str) -> str:
    return Path(source).name


def _summary(found: Mapping[str, Any]) -> str:
    overall = found["overall"]
    alpha, below = overall["alpha_nominal"], found["below_threshold"]
    verdict = "unknown: no two annotators labeled one pair"
    if below is not None:
        verdict = f"below {found['threshold']:g}" if below else f"at least {found['threshold']:g}"
    cards = [
        ("Krippendorff's alpha", interval(alpha), verdict),
        ("raw agreement of two", interval(overall["agreement"]), ""),
        ("labels", f"{found['labels']:,}", f"by {len(found['annotators']):,} annotators"),
        ("pairs", f"{found['pairs']:,}", f"{found['shared']:,} with several annotators"),
        ("pairs to label again", f"{found['relabel_total']:,}", _doubt(found)),
    ]
    shown = "".join(
        f"<div><dt>{safe(name)}</dt><dd>{safe(value)}<small>{safe(more)}</small></dd></div>"
        for name, value, more in cards
    )
    lines = [f"- **{escape(name)}**: {escape('; '.join(why))}" for name, why in found["retrain"].items()]
    people = "Nothing speaks against any annotator beyond noise."
    if lines:
        people = "Talk to these annotators, and look at the guideline, first:\n\n" + "\n".join(lines)
    warnings = "\n".join(f"- {escape(one)}" for one in found["warnings"])
    return f'<dl class="cards">{shown}</dl>' + prose("\n\n".join(filter(None, [warnings, people])))


def _doubt(found: Mapping[str, Any]) -> str:
    fitted = any(row["reliability"]["value"] is not None for row in found["annotators"])
    return f"right with less than {found['relabel_below']:.0%}" if fitted else "whose labels differ"


def _overall(found: Mapping[str, Any]) -> str:
    rows = [
        [escape(words), interval(found["overall"][name]), _n(found["overall"][name]), _why(found["overall"][name])]
        for name, words in HELP.items()
        if found["overall"].get(name)
    ]
    return prose(_table(("figure", "value", "prompts", "note"), rows) + "\n\n" + KINDS[found["kind"]])


def _points(estimate: Mapping[str, Any]) -> str:
    """A difference of two shares in percentage points."""
    ends = [estimate[end] for end in ("low", "high")]
    shown = "" if None in ends else f" [{', '.join(f'{100 * end:+.1f}' for end in ends)}]"
    return MISSING if estimate["value"] is None else f"{100 * estimate['value']:+.1f}{shown}"


def _n(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['n']:,}" if estimate["n"] else MISSING


def _why(estimate: Mapping[str, Any]) -> str:
    return escape(str(estimate["method"]).removeprefix("refused: ")) if estimate["value"] is None else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(header, rows) if rows else ""


def _annotators(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    rows = [
        [
            escape(row["name"]), f"{row['labels']:,}", f"{row['shared']:,}", interval(row["leave_one_out"]),
            _points(row["gap"]), p_text(row["p_holm"]), interval(row["reliability"]),
        ]
        for row in found["annotators"]
    ]  # fmt: skip
    header = ("annotator", "labels", "shared pairs", "with the majority", "gap, points", "p (Holm)", "reliability")
    parts = [
        _captioned(drawn.get("leave_one_out"), "Agreement with the majority of the others; a tied vote counts half.")
    ]
    parts.append(_captioned(drawn.get("reliability"), "Estimated chance of the right label (Dawid and Skene)."))
    text = "Gap: agreement with the majority less that of the others' labels. Reliability takes what most annotators "
    text += "share for the truth: an error that they all make does not show."
    reasons = {_why(row[field]) for row in found["annotators"] for field in ("gap", "reliability")} - {""}
    return "".join(parts) + prose(
        "\n\n".join([_table(header, rows), text, *(f"Not known: {one}." for one in sorted(reasons))])
    )


def _captioned(figure: str | None, words: str) -> str:
    return f"<figure>{figure}<figcaption>{safe(words)}</figcaption></figure>" if figure else ""


def _between(found: Mapping[str, Any]) -> str:
    graded = any(row["spearman"] for row in found["between"])
    rows = [
        [
            escape(f"{row['a']} and {row['b']}"), f"{row['agreement']['n']:,}", interval(row["agreement"]),
            interval(row["kappa"]), *([interval(row["spearman"])] if graded else []),
        ]
        for row in found["between"]
    ]  # fmt: skip
    header = ("annotators", "prompts", "agreement", "Cohen's kappa", *(["Spearman"] if graded else []))
    more = (
        f"{found['between_left_out']} more pairs of annotators share fewer pairs." if found["between_left_out"] else ""
    )
    return prose("\n\n".join(filter(None, [_table(header, rows), more]))) if rows else ""


def _bias(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    rows = [
        [
            escape(row["name"]), interval(row["first_shown_preferred"]), interval(row["longer_preferred"]),
            _points(row["longer_gap"]),
        ]
        for row in found["annotators"]
    ]  # fmt: skip
    header = ("annotator", "prefers shown first", "prefers longer", "longer, points")
    text = (
        "Longer responses may be better: only the last column, on the same pairs as the others, is the annotator's own."
    )
    reasons = {_why(row["first_shown_preferred"]) for row in found["annotators"]} - {""}
    parts = [
        _captioned(drawn.get("position"), "Share of labels for the response that was shown first."),
        _captioned(drawn.get("length"), "Share of labels for the longer response."),
    ]
    lines = [_table(header, rows), text, *(f"Position not known: {one}." for one in sorted(reasons))]
    return "".join(parts) + prose("\n\n".join(lines))


def _triples(found: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(row["name"]),
            f"{row['triples']['judged']:,}",
            f"{row['triples']['circular']:,}",
            interval(row["triples"]["rate"]),
        ]
        for row in found["annotators"]
        if row["triples"]["judged"]
    ]
    text = "Circles (a before b before c before a) among three responses to one prompt, all compared by one annotator "
    text += "without a tie; coin flips give a quarter."
    if not rows:
        return prose(text + " No annotator compared three responses so.")
    return prose(_table(("annotator", "triples", "circles", "share"), rows) + "\n\n" + text)


def _relabel(found: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(f"row {one['row']}" if one["row"] else one["pair"]), f"{one['posterior']:.1%}",
            escape(", ".join(f"{name}: {_vote(vote)}" for name, vote in one["votes"].items())), escape(one["why"]),
        ]
        for one in found["relabel"]
    ]  # fmt: skip
    if not rows:
        return ""
    first = "chosen" if found["kind"] == "pairs" else "first system"
    text = "Chance that the recorded label is right, the most doubtful first "
    text += f"({len(rows)} of {found['relabel_total']:,}). "
    text += f"Votes: + for the {first}, − against, = a tie."
    return prose(text + "\n\n" + _table(("pair", "right with", "votes", "why"), rows))


def _vote(vote: float) -> str:
    return "+" if vote > 0.5 else "−" if vote < 0.5 else "="


def _method(found: Mapping[str, Any]) -> str:
    sampled = found["sampled_prompts"]
    lines = [
        "Intervals are of 95% and by prompt: shares by the clustered Wilson interval, everything else by a seeded "
        "bootstrap that draws prompts. Reliability: Dawid and Skene's model by expectation-maximization.",
        f"Figures are of a seeded sample of {sampled:,} of {found['prompts']:,} prompts." if sampled else "",
        f"`compare` warns before training when alpha is below {found['threshold']:g} (data.min_alpha).",
    ]
    return prose("\n\n".join(filter(None, lines)))
