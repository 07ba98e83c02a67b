"""The certificate's check of tuning: one budget and one rule for every arm, with all that its settings stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from workbench.types import Cost


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Trials that were spent on an arm's settings and the compute that they took (None = not recorded).

    Args:
        trials: Pruned and failed ones among them.
        spent: All of it, repeats included.
        budget: What every arm was to spend, such as "20 trials" or "600 seconds".
        met: That much was spent.
        rule: Sampler, pruner, seeds and selection in words.
        amount: The budget as a number, in seconds or tokens; None: it is one of trials.
        used: What the search took, in the budget's unit; None: not recorded.
        largest: The most that one trial took of it.
        behind: Tuned reward model or arm that this arm's reward or labels come from -> its own: charged to this arm.
        declared: The same where the config declares it (`tuning.declared`): named, and not charged.
    """

    trials: int
    spent: Cost | None
    budget: str = ""
    met: bool = True
    rule: str = ""
    amount: float | None = None
    used: float | None = None
    largest: float | None = None
    behind: Mapping[str, Tuning] = field(default_factory=dict)
    declared: Mapping[str, Tuning] = field(default_factory=dict)

    @property
    def by_trials(self) -> bool:
        """Whether the budget is a number of trials."""
        return not self.budget or "trials" in self.budget

    @property
    def account(self) -> str:
        """What this arm's settings took of the budget's unit, its tuned reward or teacher included."""
        if self.by_trials:
            return f"{self.trials + sum(one.trials for one in self.behind.values())} trials"
        parts = 1 + len(self.behind)
        return self.budget if parts == 1 else f"{parts} x {self.budget}"


def same_tuning(sides: Mapping[str, Tuning | None]) -> tuple[bool | Literal["not_applicable"], str]:
    """Every arm had the same account under one rule, spent it and no more, and wrote down what it took.

    A budget of trials means as many trials; one of seconds or tokens means that each search took that much and at
    most its largest trial more. A reward model (or an arm) that was tuned counts for every arm that stands on it.

    Args:
        sides: Name of a side -> its tuning; None: not tuned.
    """
    known = {name: one for name, one in sides.items() if one is not None}
    if not known:
        return "not_applicable", "nothing was tuned"
    accounts = _names(known, lambda one: one.account)
    told = "; ".join(f"{what} for {', '.join(names)}" for what, names in accounts.items())
    rules = sorted({one.rule for one in known.values() if one.rule})
    faults = list(_faults(sides, known))
    parts = [told, *faults, *_declared(known), *(f"rule: {rule}" for rule in rules)]
    spent = [f"{name} {one.spent.cpu_s:.0f} CPU s" for name, one in known.items() if one.spent is not None]
    return not faults, "; ".join([*parts, *([f"spent: {', '.join(spent)}"] if spent else [])])


def _faults(sides: Mapping[str, Tuning | None], known: Mapping[str, Tuning]) -> Iterator[str]:
    """What is not equal, or not known."""
    if missing := [name for name, one in sides.items() if one is None]:
        yield f"not recorded for {', '.join(missing)}"
    if len({one.account for one in known.values()}) > 1:
        yield _unequal(known)
    if len({one.rule for one in known.values()}) > 1:
        yield "the rules differ"
    parts = {name: {name: one, **one.behind} for name, one in known.items()}
    every = {part: one for own in parts.values() for part, one in own.items()}
    if short := [name for name, one in every.items() if not one.met]:
        yield f"the budget was not spent for {', '.join(short)}"
    for name, one in every.items():
        if one.by_trials:
            continue
        if one.amount is None or one.used is None or one.largest is None:
            yield f"what the search measured is not recorded for {name}"
        elif one.used > (most := one.amount + one.largest) * (1 + 1e-9):
            yield f"{name} took {one.used:.0f} of {one.budget}, more than its last trial explains ({most:.0f})"
    if unspent := [name for name, one in every.items() if one.spent is None]:
        yield f"compute not recorded for {', '.join(unspent)}"


def _unequal(known: Mapping[str, Tuning]) -> str:
    """Why accounts differ, and what can be done where a tuned reward or arm is the reason."""
    behind = _names(known, lambda one: ", ".join(sorted(one.behind)))
    charged = [f"{', '.join(names)} stand on tuned {what}" for what, names in behind.items() if what]
    if not charged:
        return "the budgets differ"
    remedy = "leave it untuned, or declare the difference in tuning.declared"
    return f"the budgets differ: {'; '.join(charged)}, which counts for them: {remedy}"


def _declared(known: Mapping[str, Tuning]) -> Iterator[str]:
    for what, names in _names(known, lambda one: ", ".join(sorted(one.declared))).items():
        if what:
            first = known[names[0]].declared
            extra = ", ".join(f"{one.trials} trials of {name}" for name, one in sorted(first.items()))
            yield f"DECLARED, not matched: {extra} behind {', '.join(names)}"


def _names(known: Mapping[str, Tuning], fact: Callable[[Tuning], str]) -> dict[str, list[str]]:
    """Fact -> names of the sides that have it, the largest group first."""
    found: dict[str, list[str]] = {}
    for name, one in known.items():
        found.setdefault(fact(one), []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
