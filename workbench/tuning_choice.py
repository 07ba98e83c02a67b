"""From an arm's trials to its result: who is repeated, who is chosen, what the budget bought. No optuna, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config_tuning import REWARD_MODEL, Tuning
from workbench.results_base import KL, CostRecord, E
from workbench.results_tuning import Best, BestSoFar, OrderAt, Repeated, TrialRow, TunedArm
from workbench.tuning_measure import (
    Trial,
    curse_of,
    feasible,
    gain_of,
    kl_of,
    new_costs,
    score_of,
    seconds_of,
    violation,
)
from workbench.types import Cost


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """An arm's records.

    Args:
        rows: Its trials, by number; `scores`: number -> the complete ones' records in the search's seed.
        fresh: (number, run seed) -> record of a repeat.
    """

    label: str
    kind: str
    study: str
    rows: Sequence[TrialRow]
    scores: Mapping[int, Trial]
    fresh: Mapping[tuple[int, int], Trial]
    met: bool


def is_share(label: str, tuning: Tuning) -> bool:
    """Whether the objective is a share in [0, 1]."""
    return label == REWARD_MODEL or tuning.objective.metric == "win_rate"


def metric_of(label: str, tuning: Tuning) -> str:
    """What an arm's trials are scored by; a reward model by its accuracy on the validation pairs."""
    return "accuracy" if label == REWARD_MODEL else tuning.objective.metric


def ordered(rows: Sequence[TrialRow], max_kl: float | None) -> list[TrialRow]:
    """Complete trials from best to worst: feasible ones by score, then the others by how little they pass the limit."""
    complete = [row for row in rows if row.value is not None and row.value.value is not None]

    def rank(row: TrialRow) -> tuple[Any, ...]:
        value = row.value.value if row.value is not None else None
        assert value is not None
        return (not row.feasible, 0.0 if row.feasible else violation(row.seq_kl, max_kl), -value, row.number)

    return sorted(complete, key=rank)


def finalists(rows: Sequence[TrialRow], tuning: Tuning) -> list[TrialRow]:
    """Who runs again on fresh seeds: the best few of different settings, and the default."""
    if tuning.repeats.seeds == 0:
        return []
    chosen: list[TrialRow] = []
    for row in ordered(rows, tuning.objective.max_kl):
        if all(row.params != other.params for other in chosen) and len(chosen) < tuning.repeats.top:
            chosen.append(row)
    default = [row for row in rows if row.number == 0 and row.params not in [one.params for one in chosen]]
    return chosen + default if chosen else []


def arm_result(
    sweep: Sweep, tuning: Tuning, importance: Mapping[str, float], pareto: Sequence[int], repeats: Cost
) -> TunedArm:
    """What an arm's sweep comes to.

    Args:
        repeats: Cost of the repeats.
    """
    share, limit = is_share(sweep.label, tuning), tuning.objective.max_kl
    order = ordered(sweep.rows, limit)
    trials = _total(row.spent.cost() for row in sweep.rows)
    seeds = sorted({seed for _, seed in sweep.fresh})
    again = finalists(sweep.rows, tuning)
    repeated = [_repeated(row, sweep, seeds, tuning, share) for row in again] if seeds else []
    whole = {one.number: one for one in repeated if one.value is not None and one.value.value is not None}
    best, gain, curse = None, None, None
    default = next((one for one in repeated if _same(one.number, 0, sweep.rows)), None)
    if order:
        winner = order[0]
        pick = _pick(list(whole.values()), limit, candidates={row.number for row in again}) if whole else None
        row = next(one for one in sweep.rows if one.number == (pick.number if pick else winner.number))
        assert row.value is not None
        finals = [one for one in again if one.number in whole]
        held = held_out(finals, sweep, seeds, tuning) if pick else {}
        scored = [(seed, held.get(seed, row.number)) for seed in seeds] if pick else []
        chosen = {seed: sweep.fresh[n, seed].scores for seed, n in scored if (n, seed) in sweep.fresh}
        best = Best(
            number=row.number, params=row.params, search_value=row.value,
            value=score_of(chosen, proportion=share) if chosen else row.value, selected=not held,
            held_out={str(seed): number for seed, number in held.items()},
            seq_kl=pick.seq_kl if pick else row.seq_kl, feasible=pick.feasible if pick else row.feasible,
        )  # fmt: skip
        if pick is not None and default is not None and default.number in whole:
            gain = gain_of(chosen, _fresh(sweep, default.number))
        if winner.number in whole:
            curse = curse_of(sweep.scores[winner.number].scores, _fresh(sweep, winner.number))
    states = [row.state for row in sweep.rows]
    return TunedArm(
        kind=sweep.kind, study=sweep.study, metric=metric_of(sweep.label, tuning),
        trials=len(states), complete=states.count("complete"),
        pruned=states.count("pruned"), failed=states.count("failed"), met=sweep.met, best=best, default=default,
        gain=gain, winners_curse=curse, repeated=repeated, spent=CostRecord.of(trials.plus(repeats)),
        spent_trials=CostRecord.of(trials), spent_repeats=CostRecord.of(repeats),
        best_so_far=best_so_far(sweep.rows, limit),
        pareto=list(pareto), importance=dict(importance), rows=list(sweep.rows),
    )  # fmt: skip


def _same(number: int, other: int, rows: Sequence[TrialRow]) -> bool:
    params = {row.number: row.params for row in rows}
    return number in params and other in params and params[number] == params[other]


def _fresh(sweep: Sweep, number: int) -> dict[int, Mapping[str, float | None]]:
    return {seed: trial.scores for (one, seed), trial in sweep.fresh.items() if one == number}


def _repeated(row: TrialRow, sweep: Sweep, seeds: Sequence[int], tuning: Tuning, share: bool) -> Repeated:
    """A finalist's fresh score; it has none where one of its seeds diverged."""
    found = {seed: sweep.fresh[row.number, seed] for seed in seeds if (row.number, seed) in sweep.fresh}
    wrong = [f"seed {seed}: {one.reason}" for seed, one in found.items() if one.status != "complete"]
    value: E | None = None
    kl: KL | None = None
    if found and not wrong:
        value = score_of({seed: one.scores for seed, one in found.items()}, proportion=share)
        bound = next(iter(found.values())).bound
        kl = kl_of({seed: one.kl for seed, one in found.items()}, bound)
    return Repeated(
        number=row.number, params=row.params, value=value, seq_kl=kl, reason="; ".join(wrong) or None,
        feasible=not wrong and feasible(kl, tuning.objective.max_kl),
    )  # fmt: skip


def _pick(repeated: list[Repeated], max_kl: float | None, candidates: set[int]) -> Repeated:
    """The finalist with the best fresh score within the KL limit; without one, the one that passes it least."""

    def rank(one: Repeated) -> tuple[Any, ...]:
        value = one.value.value if one.value is not None else None
        assert value is not None
        passed = 0.0 if one.feasible else violation(one.seq_kl, max_kl)
        return (not one.feasible, passed, -value, one.number)

    return min((one for one in repeated if one.number in candidates), key=rank)


def held_out(finals: Sequence[TrialRow], sweep: Sweep, seeds: Sequence[int], tuning: Tuning) -> dict[int, int]:
    """Fresh seed -> finalist that the other fresh seeds choose, so that its score there had no part in choosing it.

    Args:
        finals: Complete on every fresh seed.

    Returns:
        Empty where one seed has to choose among several and to score its choice too.
    """
    if len(finals) == 1:
        return dict.fromkeys(seeds, finals[0].number)
    if len(seeds) < 2:
        return {}
    share = is_share(sweep.label, tuning)
    found = {}
    for seed in seeds:
        others = [one for one in seeds if one != seed]
        scored = [_repeated(row, sweep, others, tuning, share) for row in finals]
        found[seed] = _pick(scored, tuning.objective.max_kl, {row.number for row in finals}).number
    return found


def _total(costs: Any) -> Cost:
    total = Cost()
    for cost in costs:
        total = total.plus(cost)
    return total


def best_so_far(rows: Sequence[TrialRow], max_kl: float | None) -> list[BestSoFar]:
    """The best feasible setting after each trial; trials before the first feasible one have no entry."""
    found: list[BestSoFar] = []
    seconds, best = 0.0, None
    for place, row in enumerate(rows, 1):
        seconds += seconds_of(row.spent.cost())
        value = None if row.value is None or not row.feasible else row.value.value
        if value is not None and (best is None or value > best[1]):
            best = (row.number, value)
        if best is not None:
            found.append(BestSoFar(trials=place, seconds=seconds, number=best[0], value=best[1]))
    return found


def orders(arms: Mapping[str, TunedArm]) -> tuple[list[OrderAt], list[OrderAt]]:
    """How the order of the arms depends on the budget: by trials, and by compute at the first arm's grid."""
    curves = {label: arm.best_so_far for label, arm in arms.items() if label != REWARD_MODEL and arm.best_so_far}
    if len(curves) < 2:
        return [], []

    def order(within: Any) -> list[str] | None:
        last = {label: [one for one in curve if within(one)] for label, curve in curves.items()}
        if any(not one for one in last.values()):
            return None
        return sorted(last, key=lambda label: -last[label][-1].value)

    by_trials = [
        OrderAt(at=count, order=found)
        for count in range(1, max(curve[-1].trials for curve in curves.values()) + 1)
        if (found := order(lambda one, count=count: one.trials <= count)) is not None
    ]
    longest = min(curve[-1].seconds for curve in curves.values())
    grid = sorted({one.seconds for curve in curves.values() for one in curve if one.seconds <= longest})
    by_seconds = [
        OrderAt(at=at, order=found) for at in grid if (found := order(lambda one, at=at: one.seconds <= at)) is not None
    ]
    return by_trials, by_seconds


def order_by(arms: Mapping[str, TunedArm], what: str) -> list[str]:
    """Arms from best to worst by `best` or `default`; empty unless every arm has it."""
    values = {}
    for label, arm in arms.items():
        one = getattr(arm, what)
        if label != REWARD_MODEL:
            values[label] = one.value.value if one is not None and one.value is not None else None
    if any(value is None for value in values.values()):
        return []
    return sorted(values, key=lambda label: -(values[label] or 0.0))


def charge(trial: Trial, charged: set[str]) -> CostRecord:
    """What a trial is charged for; keys that earlier trials of the arm made are not charged again."""
    return CostRecord.of(new_costs(trial.costs, charged))
