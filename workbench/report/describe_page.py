"""What `workbench data describe` found as one HTML page, and its figures as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.report import svg
from workbench.report.markup import escape, table
from workbench.report.prose import prose
from workbench.report.shell import page, safe, section
from workbench.report.wording import interval, number

ROLES = ("prompt", "chosen", "rejected")


def describe_page(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: What `workbench.data.describe.describe` returned.
    """
    drawn = figures(found)
    sections = [("summary", "Summary", _summary(found))]
    if found["pairs"]:
        sections += [
            ("splits", "Splits", _splits(found)),
            ("lengths", "Lengths", _lengths(found, drawn)),
            ("win", "Does the longer one win?", _win(found, drawn)),
            ("topics", "Topics", _topics(found, drawn)),
            ("vocabulary", "Vocabulary", _vocabulary(found)),
            ("margins", "Margins", _margins(found, drawn)),
            ("labels", "Labels", _labels(found)),
        ]
    kept = [one for one in sections if one[2]]
    return page(
        title="What the preference data hold", kicker=found["source"], style=svg.STYLE,
        body="".join(section(*one) for one in kept), nav=[(name, words) for name, words, _ in kept],
    )  # fmt: skip


def figures(found: Mapping[str, Any]) -> dict[str, str]:
    """name -> SVG of every figure that there are data for."""
    if not found["pairs"]:
        return {}
    drawn = {}
    for unit, roles in found["lengths"].items():
        prompt, edges = roles["prompt"]["histogram"], roles["chosen"]["histogram"]["edges"]
        drawn[f"lengths_{unit}_prompt"] = svg.histogram(
            prompt["edges"], [("prompt", prompt["counts"])], title=f"Prompts' length in {unit}", unit=unit
        )
        series = [(role, roles[role]["histogram"]["counts"]) for role in ("chosen", "rejected")]
        drawn[f"lengths_{unit}"] = svg.histogram(edges, series, title=f"Responses' length in {unit}", unit=unit)
    drawn["win_by_length"] = svg.curve(
        [_point(one) for one in found["win_by_length"]], title="Share of pairs whose longer response is chosen",
        x="words by which one response is longer",
    )  # fmt: skip
    topics = (found["topics"] or {}).get("topics") or []
    if topics:
        rows = [
            (
                ", ".join(one["words"][:4]),
                [
                    svg.Dot(label=split, value=e["value"], low=e["low"], high=e["high"])
                    for split, e in one["shares"].items()
                ],
            )
            for one in topics
        ]
        drawn["topics"] = svg.grouped(rows, title="Share of each topic among the prompts of each split")
    if found["margins"]:
        margins = found["margins"]["histogram"]
        drawn["margins"] = svg.histogram(
            margins["edges"],
            [("pairs", margins["counts"])],
            title="Target margins",
            unit="target margin",
            last_open=False,
        )
    return drawn


def _point(one: Mapping[str, Any]) -> svg.Dot:
    last = one["to_words"]
    label = f"{one['from_words']}-{last}" if last else f"{one['from_words']}+"
    wins = one["longer_wins"]
    return svg.Dot(label=label, value=wins["value"], low=wins["low"], high=wins["high"], note=f"n={one['pairs']:,}")


def _summary(found: Mapping[str, Any]) -> str:
    cards = [("rows", f"{found['rows']:,}", ""), ("usable pairs", f"{found['pairs']:,}", "")]
    if found["pairs"]:
        cards += [
            ("prompts", f"{found['prompts']:,}", f"{found['pairs'] / found['prompts']:.2f} pairs each"),
            ("longer is chosen", interval(found["longer_chosen"]["characters"]), "of pairs, in characters"),
            ("different words", f"{found['vocabulary']['different_words']:,}", f"of {found['vocabulary']['words']:,}"),
        ]
    shown = "".join(
        f"<div><dt>{safe(name)}</dt><dd>{safe(value)}<small>{safe(more)}</small></dd></div>"
        for name, value, more in cards
    )
    lines = [f"- {escape(one['message'])}" for one in found["findings"]]
    errors = "Rows that cannot be used, and are not described:\n\n" + "\n".join(lines) if lines else ""
    formats = ", ".join(f"{escape(name)} ({count:,})" for name, count in found.get("formats", {}).items())
    return f'<dl class="cards">{shown}</dl>' + prose(
        "\n\n".join(filter(None, [f"Formats: {formats}." if formats else "", errors]))
    )


def _splits(found: Mapping[str, Any]) -> str:
    rows = [[name, f"{one['pairs']:,}", f"{one['prompts']:,}"] for name, one in found["splits"].items()]
    return prose(table(("split", "pairs", "prompts"), rows))


def _lengths(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    parts = []
    for unit, roles in found["lengths"].items():
        rows = []
        for role in ROLES:
            points = roles[role]["percentiles"]
            cells = [f"{points[share]:,}" for share in ("0", "5", "25", "50", "75", "95", "100")]
            rows.append([role, interval(roles[role]["mean"]), *cells])
        parts.append(prose(f"### {unit.capitalize()}"))
        parts += [_figure(svg_, "") for name, svg_ in drawn.items() if name.startswith(f"lengths_{unit}")]
        parts.append(prose(table(("", "mean", "least", "5%", "25%", "median", "75%", "95%", "most"), rows)))
    return "".join(parts)


def _figure(figure: str | None, words: str) -> str:
    caption = f"<figcaption>{safe(words)}</figcaption>" if words else ""
    return f"<figure>{figure}{caption}</figure>" if figure else ""


def _win(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    rows = [[unit, interval(one)] for unit, one in found["longer_chosen"].items()]
    text = "Share of pairs whose longer response is the chosen one, equal lengths half. A reward model can learn this "
    text += "share from length alone: read win rates at equal length where it is far from a half."
    caption = "Share of pairs whose longer response is chosen, with 95% intervals; dashed: a half."
    return _figure(drawn.get("win_by_length"), caption) + prose(table(("longer in", "is chosen"), rows) + "\n\n" + text)


def _topics(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    topics = found["topics"]
    if not topics:
        return ""
    rows = [
        [escape(", ".join(one["words"])), f"{one['prompts']:,}", *(interval(e) for e in one["shares"].values())]
        for one in topics["topics"]
    ]
    splits = list(topics["topics"][0]["shares"]) if rows else []
    stable = topics["stability"]
    lines = [
        f"{escape(topics['method'])}. {escape(topics['limits'])}",
        ""
        if stable is None
        else f"Another seed agrees with these topics to {number(stable)} (adjusted Rand index: 1 the "
        "same topics, 0 chance). " + ("Read them as one of many ways to cut the prompts." if stable < 0.7 else ""),
    ]
    return _figure(drawn.get("topics"), "Share of prompts by split, with 95% intervals.") + prose(
        "\n\n".join(filter(None, [table(("words", "prompts", *splits), rows) if rows else "", *lines]))
    )


def _vocabulary(found: Mapping[str, Any]) -> str:
    words = found["vocabulary"]
    rows = [
        [split, f"{one['different_words']:,}", f"{one['different_in_train']:.1%}", f"{one['words_in_train']:.1%}"]
        for split, one in words["coverage"].items()
    ]
    header = ("split", "different words", "of these in train", "of all words in train")
    most = ", ".join(f"{escape(word)} {count:,}" for word, count in words["most_frequent"].items())
    text = f"{words['different_words']:,} different words, {words['once']:.0%} of them once. Most frequent: {most}."
    return prose("\n\n".join(filter(None, [table(header, rows) if rows else "", text])))


def _margins(found: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    margins = found["margins"]
    if not margins:
        return ""
    text = f"{margins['pairs']:,} pairs have a target margin, mean {interval(margins['mean'])} nats; "
    text += f"{margins['negative']:,} of them below 0."
    return _figure(drawn.get("margins"), "") + prose(text)


def _labels(found: Mapping[str, Any]) -> str:
    labels = found["annotations"]
    if not labels:
        return ""
    rows = [[f"{count} labels", f"{pairs:,}"] for count, pairs in labels["labels_per_pair"].items()]
    text = f"{labels['labels']:,} labels by {labels['annotators']:,} annotators; `workbench data annotators` says how "
    text += "far they agree."
    return prose(table(("pairs with", "pairs"), rows) + "\n\n" + text)
