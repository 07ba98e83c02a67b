"""What is told of the agreement of implicit and explicit reward: sections of the report, tables of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.report import wording
from workbench.report.markup import escape, table
from workbench.report.wording import clean, interval

if TYPE_CHECKING:
    from rich.console import Console

Sets = Mapping[str, Mapping[str, Any]]
TEXT = 600  # characters of a text in the report; the whole of it is in disagreements.json


def sections(results: Mapping[str, Any]) -> str:
    """The report's part: how far the two agree, where not, calibration, training, other distributions, examples."""
    sets = {name: entry for name, entry in (results.get("agreement") or {}).items() if entry}
    if not sets:
        return ""
    parts = [
        _main(sets),
        _closeness(sets),
        _calibration(sets),
        _length(sets),
        _buckets(sets),
        _trajectory(results),
        _generalization(results),
        _disagreements(results, list(sets)),
    ]
    return "\n\n".join(["## Implicit against explicit reward", *(part for part in parts if part)])


def _rows(sets: Sets, fields: Sequence[str]) -> list[list[str]]:
    return [[escape(name), *(interval(entry.get(field)) for field in fields)] for name, entry in sets.items()]


def _main(sets: Sets) -> str:
    first = table(
        ("pairs", "agreement", "chance", "kappa", "Spearman of margins", "within prompt", "Kendall"),
        _rows(sets, ("agreement", "chance", "kappa", "spearman_margins", "spearman_within_prompt", "kendall_tau")),
    )
    rows = []
    for name, entry in sets.items():
        fields = ("implicit_accuracy", "explicit_accuracy", "accuracy_difference")
        rows.append([escape(name), entry.get("truth") or "-", *(interval(entry.get(field)) for field in fields)])
        gold = entry.get("against_gold")
        if gold:
            rows.append([escape(name), "gold", *(interval(gold.get(field)) for field in fields)])
    second = table(("pairs", "against", "implicit accuracy", "explicit accuracy", "explicit - implicit"), rows)
    text = "Agreement: share of pairs that DPO's implicit reward and the explicit reward model order the same way, "
    text += "ties half. Chance: what two scorers of these accuracies would agree on if their errors were independent; "
    text += "kappa is 0 there and 1 where they always agree. The difference is paired by pair."
    return f"{first}\n\n{text}\n\n{second}"


def _closeness(sets: Sets) -> str:
    rows = []
    for name, entry in sets.items():
        found = entry.get("standardized")
        if found:
            fields = ("agreement", "implicit_accuracy", "explicit_accuracy")
            rows.append([escape(name), interval(entry.get("agreement")), *(interval(found[field]) for field in fields)])
    if not rows:
        return ""
    reference = next(entry["standardized"]["reference"] for entry in sets.values() if entry.get("standardized"))
    head = ("pairs", "agreement", "agreement, standardized", "implicit accuracy", "explicit accuracy")
    text = f"Standardized: each set's pairs weighted to the gold margins of {escape(reference)}, accuracies against "
    text += "gold. What is left of a fall is not that the pairs are closer."
    return f"### If the pairs were as far apart\n\n{table(head, rows)}\n\n{text}"


def _calibration(sets: Sets) -> str:
    rows = []
    for name, entry in sets.items():
        found = entry.get("calibration")
        if not found:
            continue
        for side in ("implicit", "explicit"):
            after = found.get("tempered") or {}
            rows.append(
                [
                    escape(f"{name}, {side}"),
                    str(found.get("labels", "given")),
                    *(interval(found.get(f"{side}_{figure}")) for figure in ("ece", "brier", "slope")),
                    *(interval(after.get(f"{side}_{figure}")) for figure in ("ece", "slope")),
                ]
            )
    if not rows:
        return ""
    head = ("pairs, reward", "labels", "ECE", "Brier", "slope", "ECE after temperature", "slope after")
    text = "Slope of the label on the margin: 1 calibrated, below 1 overconfident. Fresh labels: the configured "
    text += "annotators asked anew. The temperature is fitted on validation pairs."
    return f"### Calibration\n\n{table(head, rows)}\n\n{text}"


def _length(sets: Sets) -> str:
    rows = []
    for name, entry in sets.items():
        found, each = entry.get("length"), entry.get("per_token") or {}
        if found:
            fields = ("implicit", "explicit", "gold", "implicit_given_gold", "explicit_given_gold")
            rows.append(
                [escape(name), *(interval(found.get(field)) for field in fields), interval(each.get("agreement"))]
            )
    if not rows:
        return ""
    head = ("pairs", "implicit", "explicit", "gold", "implicit, given gold", "explicit, given gold")
    text = "Rank correlation of margins with the difference in length, within a prompt. Last column: agreement of the "
    text += "implicit reward per token."
    return f"### Length\n\n{table((*head, 'agreement per token'), rows)}\n\n{text}"


def _buckets(sets: Sets) -> str:
    parts = []
    for field, title in (
        ("by_gold_gap", "size of the gold margin"),
        ("by_kl", "log-ratio to the SFT, nats"),
        ("by_length", "length, tokens"),
    ):
        rows = []
        for name, entry in sets.items():
            for bucket in entry.get(field) or ():
                shown = [interval(bucket.get(f)) for f in ("agreement", "implicit_accuracy", "explicit_accuracy")]
                rows.append([escape(name), _range(bucket), wording.count(bucket.get("pairs")), *shown])
        if rows:
            head = ("pairs", "from, to", "n", "agreement", "implicit accuracy", "explicit accuracy")
            parts.append(f"### By {title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _range(bucket: Mapping[str, Any]) -> str:
    low, high = bucket.get("low"), bucket.get("high")
    if low is None or high is None:
        return f"below {wording.number(high)}" if low is None else f"{wording.number(low)} and more"
    return f"{wording.number(low)} to {wording.number(high)}"


def _trajectory(results: Mapping[str, Any]) -> str:
    rows = []
    for one in results.get("agreement_trajectory") or ():
        fields = ("agreement", "implicit_accuracy", "accuracy_difference", "seq_margin")
        rows.append([escape(f"{one['arm']}, {one['set']}"), str(one["step"]), *(interval(one.get(f)) for f in fields)])
    if not rows:
        return ""
    head = ("arm, pairs", "step", "agreement", "implicit accuracy", "explicit - implicit", "implicit margin, nats")
    return f"### Over training\n\n{table(head, rows)}"


def _generalization(results: Mapping[str, Any]) -> str:
    found = results.get("generalization")
    if not found:
        return ""
    rows = []
    for one in found.get("shifts") or ():
        fields = ("implicit_change", "explicit_change", "difference", "difference_change")
        kind = f"{one['kind']}, trained on {one['optimized']}" if one.get("optimized") else one["kind"]
        shown = [interval(one.get(field)) for field in fields]
        rows.append([escape(one["set"]), escape(kind), *shown, optimized_loses(one)])
    head = ("pairs", "shift", "implicit accuracy", "explicit accuracy", "explicit - implicit", "its change")
    lines = [f"### Away from where they were fitted\n\n{escape(generalization_line(results) or '')}"]
    if rows:
        text = f"Changes are from {escape(found['reference'])}. The last column: does the reward that the policy "
        text += (
            "optimized lose more accuracy than the other one there, by the 95% interval beside it? Nothing optimized "
        )
        text += "a reward under temperature and prompts."
        lines += [table((*head, "the optimized reward loses"), rows), text]
    return "\n\n".join(lines)


def optimized_loses(shift: Mapping[str, Any]) -> str:
    """Whether the reward that a policy optimized loses more accuracy on its samples than the other reward does."""
    change, optimized = shift.get("difference_change") or {}, shift.get("optimized")
    if optimized is None:
        return wording.MISSING
    low, high = change.get("low"), change.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "unresolved"
    return "more" if (high < 0) == (optimized == "explicit") else "less"


def generalization_line(results: Mapping[str, Any]) -> str | None:
    """One sentence on the statement of Lin et al.; None where it was not put to the test."""
    found = results.get("generalization")
    if not found:
        return None
    words = {True: "holds", False: "does not hold"}
    verdict = words.get(found["holds"], "unresolved") if isinstance(found["holds"], bool) else "unresolved"
    return (
        f"{found['statement']} ({found['source']}): {verdict}; explicit - implicit accuracy, "
        f"{found['out_of_distribution']} less {found['in_distribution']}: {interval(found['difference'])} "
        f"({found['reason']})."
    )


def _disagreements(results: Mapping[str, Any], order: Sequence[str]) -> str:
    found = sorted(results.get("disagreements") or (), key=lambda one: order.index(one["set"]))
    if not found:
        return ""
    blocks = []
    for one in found:
        gold = "" if one.get("gold_margin") is None else f", gold {wording.number(one['gold_margin'])} for explicit's"
        blocks.append(
            f"**{escape(one['set'])}**, prompt: {_text(one['prompt'])}\n\n"
            f"- explicit prefers, by {wording.number(one['explicit_margin'])}{gold}: {_text(one['explicit_prefers'])}\n"
            f"- implicit prefers, by {wording.number(one['implicit_margin'])}: {_text(one['implicit_prefers'])}"
        )
    text = "Largest product of the two margins with opposite signs; more are in disagreements.json."
    return "\n\n".join(["### Disagreements that matter", text, *blocks])


def _text(text: object) -> str:
    """One line of generated text: escaped, cut."""
    line = " ".join(clean(text).split())
    return escape(line if len(line) <= TEXT else line[: TEXT - 1] + "…") or "(empty)"


# ------------------------------------------------------------------------------------------ terminal


def agreement_tables(sets: Sets) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, rows) of the terminal's two tables."""
    shown = {name: entry for name, entry in sets.items() if entry}
    first = ("agreement", "chance", "kappa", "spearman_margins")
    yield (
        "implicit (DPO) against explicit reward",
        ("pairs", "agreement", "chance", "kappa", "Spearman"),
        [[name, *(interval(entry.get(field)) for field in first)] for name, entry in shown.items()],
    )
    second = ("implicit_accuracy", "explicit_accuracy", "accuracy_difference")
    rows = [
        [name, str(entry["truth"]), *(interval(entry.get(field)) for field in second)]
        for name, entry in shown.items()
        if entry.get("truth")
    ]
    if rows:
        yield "accuracy of each", ("pairs", "against", "implicit", "explicit", "explicit - implicit"), rows


def print_agreement(sets: Sets, console: Console) -> None:
    """Prints the tables of `workbench agree`, and calibration where there are labels."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    tables = list(agreement_tables(sets))
    rows = [
        [name, side, *(interval(entry["calibration"].get(f"{side}_{figure}")) for figure in ("ece", "brier", "slope"))]
        for name, entry in sets.items()
        if entry.get("calibration")
        for side in ("implicit", "explicit")
    ]
    if rows:
        tables.append(("calibration against the labels", ("pairs", "reward", "ECE", "Brier", "slope"), rows))
    for title, columns, cells in tables:
        options: dict[str, Any] = {
            "title_justify": "left",
            "title_style": "bold",
            "box": SIMPLE_HEAD,
            "padding": (0, 1, 0, 0),
        }
        shown = Table(title=Text(title), **options)
        shown.add_column(Text(columns[0]), overflow="fold", max_width=22)
        for column in columns[1:]:
            shown.add_column(Text(column), justify="right", no_wrap=True)
        for row in cells:
            shown.add_row(*(Text(clean(cell)) for cell in row))
        console.print(shown)
