"""A trained model's card in markdown: what it is, how to load it, numbers with intervals, data, certificate, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.report import limits, wording
from workbench.report.markup import escape, table
from workbench.report.mlflow_pages import arm_line, arm_rows
from workbench.report.wording import interval

LOADERS = {"policy": "AutoModelForCausalLM", "reward_model": "AutoModelForSequenceClassification"}
QUALITY = {
    "accuracy": "accuracy on held-out pairs",
    "accuracy_gold": "accuracy against gold",
    "ece": "calibration error",
    "brier": "Brier score",
    "tie_rate": "share of ties",
}


def model_card(
    results: Mapping[str, Any], label: str, kind: str, alias: str, facts: Mapping[str, str], place: str
) -> str:
    """The card.

    Args:
        results: results.json, schema 1.
        label: Arm or reward model.
        kind: policy or reward_model.
        alias: Under which it is registered.
        facts: What -> digest or name.
        place: Folder of the weights in the home.
    """
    if kind == "policy":
        rows, told = arm_rows(results, label), arm_line(results, label)
    else:
        quality = (results.get("reward_models") or {}).get(label) or {}
        rows = [(words, interval(quality.get(field))) for field, words in QUALITY.items() if quality.get(field)]
        told = f"Reward model {label}: its scores order responses; only differences mean anything."
    _, certificate = wording.certificate_line(results)
    caveat = wording.seeds_caveat(results)
    registered = f"models:/{results['comparison']}@{alias}"
    parts = [
        f"# {escape(results['comparison'])}: {escape(label)}",
        f"**{escape(told)}** {escape(certificate)} {escape(caveat or '')}".strip(),
        table(("", "value [95% interval]"), [[escape(name), escape(value)] for name, value in rows]).replace(
            "---:|", "---|"
        ),
        f"```python\nfrom transformers import {LOADERS[kind]}\n{LOADERS[kind]}.from_pretrained("
        f'"HOME/{place}")  # HOME: the folder of --home; registered as {registered}\n```',
        table(
            ("made from", "sha256, or name"), [[escape(name), f"`{value}`"] for name, value in facts.items()]
        ).replace("---:|", "---|"),
        limits.section(results),
    ]
    return "\n\n".join(parts) + "\n"
