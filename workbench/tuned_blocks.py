"""What tuned values depend on besides the values: what an arm stands on, and every setting that was not varied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from workbench.config import Comparison
from workbench.config_tuning import REWARD_MODEL
from workbench.results_tuning import TunedArm

EVALUATION = ("max_response_tokens", "temperature", "top_p")  # of every rollout, candidate and score


def sources(comparison: Comparison, label: str) -> list[str]:
    """Names of the reward models and arms that an arm's reward or labels come from, the nearest first."""
    found: list[str] = []
    while (arm := comparison.arms.get(label)) is not None:
        named = [str(getattr(arm, name)) for name in ("reward", "labels") if hasattr(arm, name)]
        known = [one for one in named if one in comparison.arms or one in comparison.reward_models]
        if not known or known[0] in found:
            break
        label = known[0]
        found.append(label)
    return found


def behind(comparison: Comparison, tuned: Collection[str]) -> dict[str, list[str]]:
    """Arm -> what it stands on and was tuned too, as the ledger names it: the proxy is `reward_model`."""
    found = {}
    for label in comparison.arms:
        names = [REWARD_MODEL if one == comparison.proxy else one for one in sources(comparison, label)]
        if tuned_too := [one for one in names if one in tuned]:
            found[label] = tuned_too
    return found


def untuned(comparison: Comparison, arms: Mapping[str, TunedArm]) -> dict[str, str]:
    """Place in the config -> digest of its value, of all that the trials of these arms had and did not vary.

    Args:
        arms: What was tuned, with its trials.
    """
    policies = [label for label in arms if label in comparison.arms]
    wanted = dict.fromkeys(name for label in policies for name in [label, *sources(comparison, label)])
    if policies or REWARD_MODEL in arms:
        wanted[comparison.proxy] = None
    found: dict[str, str] = {}
    for name in wanted:
        is_arm = name in comparison.arms
        block = comparison.arms[name] if is_arm else comparison.reward_models[name]
        varied = _varied(arms.get(name if is_arm or name != comparison.proxy else REWARD_MODEL))
        place = f"{'arms' if is_arm else 'reward_models'}.{name}"
        fields = block.model_dump(mode="json")
        if comparison.selection.rule == "last":  # then what else is kept on the way changes nothing
            fields = {field: value for field, value in fields.items() if not field.startswith("checkpoint_")}
        skipped = {f"{place}.{one}" for one in varied}
        found |= {where: text for where, text in _flat(fields, place) if where not in skipped}
    if policies:
        evaluation = comparison.evaluation.model_dump(mode="json")
        found |= _flat({name: evaluation[name] for name in EVALUATION}, "evaluation")
        found |= _flat(comparison.selection.model_dump(mode="json"), "selection")
    return {where: hashlib.sha256(text.encode()).hexdigest()[:16] for where, text in found.items()}


def _varied(arm: TunedArm | None) -> set[str]:
    """Settings that a trial had; what follows from best-of-n's n follows."""
    names = {name for row in arm.rows for name in row.params} if arm is not None else set[str]()
    return names | ({"report_n", "pool"} if "n" in names else set())


def _flat(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from _flat(one, f"{place}.{name}")
    else:
        yield place, json.dumps(value, sort_keys=True)
