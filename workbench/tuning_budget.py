"""What an arm's trials count against its budget: what they cost, and something for those that cost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.tuning_measure import Trial, new_costs, spent_in
from workbench.types import Cost

BARREN_IN_A_ROW = 10


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Args:
    amount: What counts, in the budget's unit.
    free: Trials that added no cost; each counts as much as the ones before it did on average.
    exhausted: The last trials cost nothing and tried nothing new: more of them would never use the budget up.
    """

    amount: float
    free: int
    exhausted: bool


def counted(unit: str, trials: Iterable[tuple[Mapping[str, Any], Trial]]) -> Counted:
    """What ended trials count against a budget.

    A trial adds no cost where other trials made all its stages (best-of-n's pool, settings tried before) or where it
    did not start (settings that do not fit). Uncounted, such trials would let an arm try forever.

    Args:
        unit: trials, seconds or tokens.
        trials: (settings, record) of each, by number.
    """
    charged: set[str] = set()
    tried: list[Mapping[str, Any]] = []
    total, extra, free, barren = Cost(), 0.0, 0, 0
    for place, (params, trial) in enumerate(trials):
        before = spent_in(unit, place, total)
        total = total.plus(new_costs(trial.costs, charged))
        if spent_in(unit, place + 1, total) > before:
            barren = 0
        else:
            free += 1
            extra += (before + extra) / place if place else 0.0
            new = trial.status != "failed" and params not in tried and before + extra > 0
            barren = 0 if new else barren + 1
        tried.append(params)
    return Counted(
        amount=spent_in(unit, len(tried), total) + extra, free=free, exhausted=barren >= BARREN_IN_A_ROW
    )  # fmt: skip
