"""What MLflow's pages say in words, as markdown: a comparison, its arms. From results.json alone.

`{experiment_id}` and `{run_id:REF}` in links are filled in by `workbench.tracking_mlflow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.config_base import BASELINE
from workbench.report import wording
from workbench.report.markup import escape, table
from workbench.report.summary import arms, certificate
from workbench.report.wording import interval

Links = Sequence[tuple[str, str]]  # words, address
_OUTCOMES = {
    "better": "beats",
    "equivalent": "is equivalent to",
    "open": "is not told apart from",
    "worse": "is beaten by",
}
_TURNED = {"better": "worse", "worse": "better"}
PLAIN = "---|---|"  # columns of words: set left


def comparison_page(results: Mapping[str, Any], links: Links) -> str:
    """A comparison's run: where to look, the verdict in a paragraph, the arms, the certificate.

    MLflow folds it after a few lines, so the links come first.
    """
    told = wording.decision_line(results) or wording.verdict(results)
    first, _, rest = told.partition(". ")
    ok, line = wording.certificate_line(results)
    state = escape(line) if ok else f"❌ **{escape(line)}**"  # MLflow shows no colors
    verdict = f"**{escape(first.removesuffix('.'))}.** {escape(rest)}".strip()
    return "\n\n".join((f"{state} {_links(links)}", verdict, arms(results), certificate(results)))


def arm_page(results: Mapping[str, Any], label: str, links: Links) -> str:
    """An arm's run: where it stands in the decision, where its responses are, its numbers with intervals."""
    parts = [f"**{escape(arm_line(results, label))}**", _links(links)]
    rows = [[escape(name), escape(value)] for name, value in arm_rows(results, label)]
    parts.append(table(("", "value [95% interval]"), rows, PLAIN))
    caveat = wording.seeds_caveat(results)
    return "\n\n".join(parts + ([escape(caveat)] if caveat else []))


def arm_rows(results: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    """An arm's numbers in words; what is not known is left out."""
    arm, against = results["arms"][label], wording.baseline_and_judge(results)
    cost = arm.get("cost") or {}
    rows = [
        ("win rate" + (f" ({against})" if against else ""), interval(arm.get("win_rate"))),
        ("gold reward", interval(arm.get("gold_reward"))),
        (f"gold gain over {BASELINE}", interval(arm.get("gold_gain"))),
        ("proxy reward", interval(arm.get("proxy_reward"))),
        ("KL from the reference, nats", wording.kl_text(arm.get("seq_kl"))),
        ("tokens a response", interval(arm.get("response_tokens"))),
        ("cost, own", wording.cost_text(cost.get("own"))),
        ("cost, with all that it stands on", wording.cost_text(cost.get("with_upstream"))),
        ("cost of one answer", wording.cost_text(cost.get("answer"))),
        ("checkpoint", wording.checkpoint_text(arm)),
    ]
    return [(name, value) for name, value in rows if value not in ("", wording.MISSING)]


def arm_line(results: Mapping[str, Any], label: str) -> str:
    """Where an arm stands in the decision, in a sentence."""
    found, arm = results.get("decision") or {}, results["arms"][label]
    name = f"{label} ({arm['kind']})" if arm["kind"] != label else label
    if arm.get("diverged"):
        return f"{name} diverged: {arm['diverged'].removesuffix('.')}."
    if label in (found.get("excluded") or {}):
        return f"{name} was no candidate: {found['excluded'][label].removesuffix('.')}."
    if label in (found.get("arms") or ()):
        return f"{name} {'won' if found['verdict'] == 'winner' else _among(found, label)}."
    if found.get("verdict") in ("winner", "equivalent", "undecided"):
        return f"{name} is beaten by {', '.join(found['arms'])}."
    return f"{name}."


def _among(found: Mapping[str, Any], label: str) -> str:
    """An arm against the others that are left: also between these some may beat others, in a circle."""
    seen = {
        other: outcome
        for one in found.get("evidence") or ()
        for mine, other, outcome in (
            (one["a"], one["b"], one["outcome"]),
            (one["b"], one["a"], _TURNED.get(one["outcome"], one["outcome"])),
        )
        if mine == label
    }
    groups: dict[str, list[str]] = {outcome: [] for outcome in _OUTCOMES}
    for other in found["arms"]:
        if other != label:
            alike = found["verdict"] == "equivalent"
            groups["equivalent" if alike else seen.get(other, "open")].append(other)
    return "; ".join(f"{_OUTCOMES[outcome]} {', '.join(others)}" for outcome, others in groups.items() if others)


def _links(links: Links) -> str:
    return " · ".join(f"[{escape(words)}]({address})" for words, address in links)
