"""Which dpo arm learns from which: labels may come from a reward model or from another dpo arm, never in a circle."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from workbench.config_arms import DPO, Arm
from workbench.config_base import Problem

GIVEN = "given"


def label_problems(arms: Mapping[str, Arm], reward_models: Collection[str]) -> list[Problem]:
    """What is wrong with the `labels` of dpo arms."""
    found: list[Problem] = []
    taken = f"'{GIVEN}' stands for the data's own labels; rename it, so that `labels` is unambiguous"
    found += [((section, GIVEN), taken) for section, names in (("arms", arms), ("reward_models", reward_models))
              if GIVEN in names]  # fmt: skip
    dpo_arms = [label for label, arm in arms.items() if isinstance(arm, DPO)]
    for label in dpo_arms:
        source = labels_of(arms, label)
        if source == GIVEN or source in reward_models:
            continue
        others = ", ".join(one for one in dpo_arms if one != label) or "there is none"
        usable = f"expected {GIVEN}, a reward model ({', '.join(reward_models)}) or another dpo arm ({others})"
        if source not in dpo_arms or source == label:
            found.append((("arms", label, "labels"), f"got '{source}', {usable}"))
        elif label in (chain := teachers(arms, label)):
            around = " -> ".join([label, *chain])
            found.append((("arms", label, "labels"), f"got '{source}', but the labels go round: {around}; {usable}"))
    return found


def labels_of(arms: Mapping[str, Arm], label: str) -> str | None:
    """The `labels` of a dpo arm; None of any other name."""
    arm = arms.get(label)
    return arm.labels if isinstance(arm, DPO) else None


def teachers(arms: Mapping[str, Arm], label: str) -> list[str]:
    """Arms that labeled for this one, for that one and so on; ends at the first that comes a second time."""
    chain: list[str] = []
    source = labels_of(arms, label)
    while source in arms and source not in chain:
        chain.append(str(source))
        source = labels_of(arms, str(source))
    return chain
