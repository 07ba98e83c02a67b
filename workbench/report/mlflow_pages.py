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


def comparison_page(results: Mapping[str, Any], links: Links) -> str:
    """A comparison's run: where to look, the verdict in a paragraph, the arms, the certificate.

    MLflow folds it after a few lines, so the links come first.
    """
    told = wording.decision_line(results) or wording.verdict(results)
    ok, line = wording.certificate_line(results)
    state = f'<span style="color:{"green" if ok else "red"}">{escape(line)}</span>'
    return "\n\n".join((f"{state} {_links(links)}", f"**{escape(told)}**", arms(results), certificate(results)))


def arm_page(results: Mapping[str, Any], label: str, links: Links) -> str:
    """An arm's run: where it stands in the decision, where its responses are, its numbers with intervals."""
    parts = [f"**{escape(arm_line(results, label))}**", _links(links)]
    rows = [[escape(name), escape(value)] for name, value in arm_rows(results, label)]
    parts.append(table(("", "value [95% interval]"), rows).replace("---:|", "---|"))
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
        return f"{name} diverged: {arm['diverged']}."
    if label in (found.get("excluded") or {}):
        return f"{name} was no candidate: {found['excluded'][label]}."
    if label in (found.get("arms") or ()):
        among = [other for other in found["arms"] if other != label]
        words = {"winner": "won", "equivalent": "is equivalent to", "undecided": "is not told apart from"}
        told = words.get(found["verdict"], "is among those left:")
        return f"{name} {told} {', '.join(among)}".strip() + "."
    if found.get("verdict") in ("winner", "equivalent", "undecided"):
        return f"{name} is beaten by {', '.join(found['arms'])}."
    return f"{name}."


def _links(links: Links) -> str:
    return " · ".join(f"[{escape(words)}]({address})" for words, address in links)
