"""A trained model's card in markdown: what it is, how to load it, numbers with intervals, data, certificate, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config_base import BASELINE
from workbench.report import limits, wording
from workbench.report.markup import escape, table
from workbench.report.mlflow_pages import PLAIN, arm_line, arm_rows
from workbench.report.wording import interval, run_seeds

LOADERS = {"policy": "AutoModelForCausalLM", "reward_model": "AutoModelForSequenceClassification"}
QUALITY = {
    "accuracy": "accuracy on held-out pairs",
    "accuracy_gold": "accuracy against gold",
    "ece": "calibration error",
    "brier": "Brier score",
    "tie_rate": "share of ties",
}
OWN = {"win_rate": "win rate", "gold_reward": "gold reward", "proxy_reward": "proxy reward", "seq_kl": "KL"}


def model_card(
    results: Mapping[str, Any], label: str, kind: str, address: str, facts: Mapping[str, str], place: str
) -> str:
    """The card.

    Args:
        results: results.json, schema 1.
        label: Arm or reward model.
        kind: policy or reward_model.
        address: Under which it is registered: models:/NAME@ALIAS.
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
    parts = [
        f"# {escape(results['comparison'])}: {escape(label)}",
        f"**{escape(told)}** {escape(certificate)} {escape(caveat or '')}".strip(),
        table(("", "value [95% interval]"), [[escape(name), escape(value)] for name, value in rows], PLAIN),
        *([several] if (several := _several(results, label)) else []),
        f"```python\nfrom transformers import {LOADERS[kind]}\n{LOADERS[kind]}.from_pretrained("
        f'"HOME/{place}")  # HOME: the folder of --home; registered as {address}\n```',
        table(("made from", "sha256, or name"), [[escape(name), f"`{value}`"] for name, value in facts.items()], PLAIN),
        limits.section(results),
    ]
    return "\n\n".join(parts) + "\n"


def _several(results: Mapping[str, Any], label: str) -> str:
    """With several run seeds the numbers are of all their checkpoints, and the weights are the first one's."""
    seeds = run_seeds(results)
    if len(seeds) < 2 or label == BASELINE:
        return ""
    text = f"These numbers are over run seeds {', '.join(map(str, seeds))}; the weights are run seed {seeds[0]}'s."
    by_seed = ((results.get("arms") or {}).get(label) or {}).get("by_seed") or ()
    own: dict[str, Any] = next((one for one in by_seed if one["seed"] == seeds[0]), {})
    told = [(words, interval(own.get(field))) for field, words in OWN.items()]
    alone = ", ".join(f"{words} {value}" for words, value in told if value != wording.MISSING)
    return text + (f" Alone they have {escape(alone)}." if alone else "")
