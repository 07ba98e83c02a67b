"""What the dashboard's figures ask for: whom to talk to, and what to know before reading on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from scipy import special

from workbench.annotators_records import AnnotatorRow, Overall
from workbench.opinions_table import OpinionTable
from workbench.results_base import E

POSITION_BAND: Final = (0.45, 0.55)
LENGTH_GAP: Final = 0.05
FEWEST: Final = 3  # of two annotators nobody can say whose taste for length is the odd one
_FEW_PROMPTS: Final = 30
_LEVEL: Final = 0.05


def p_of_gap(gap: E, own: E) -> float | None:
    """That the gap between an annotator's own agreement and the others' is 0: normal, by its standard error.

    Resamples of a few labels that are all alike do not spread: there it is no less than the exact binomial of the own
    labels against the others' rate.
    """
    if gap.value is None or not gap.prompt_se:
        return None
    p = float(2 * special.ndtr(-abs(gap.value) / gap.prompt_se))
    if own.value is None or own.n >= _FEW_PROMPTS:
        return p
    rate, right = min(max(own.value - gap.value, 0.0), 1.0), own.value * own.n  # half of a tied vote is right
    if gap.value < 0:  # P(X <= right) of Binomial(n, rate)
        tail = special.betainc(own.n - right, right + 1, 1 - rate)
    else:
        tail = special.betainc(right, own.n - right + 1, rate)
    return max(p, min(1.0, 2 * float(tail)))


def retrain(rows: Sequence[AnnotatorRow]) -> Iterator[tuple[str, list[str]]]:
    """Annotators against whom something stands beyond noise, with what it is.

    Whoever shares pairs with a bad annotator agrees less with others for no fault of their own. Reliability knows whom
    one met: where it is known, it must lie below the median annotator's as well.
    """
    known = [row.reliability.value for row in rows if row.reliability.value is not None]
    middle = statistics.median(known) if known else math.inf
    for row in rows:
        sound = row.reliability.high is not None and row.reliability.high >= middle
        why = [
            *(() if sound else _below(row.gap, row.p_holm)),
            *_outside(row.first_shown_preferred, *POSITION_BAND),
            *(_lengthy(row.longer_gap) if len(rows) >= FEWEST else ()),
        ]
        if why:
            yield row.name, why


def _below(gap: E, p_holm: float | None) -> Iterator[str]:
    if gap.value is None or gap.low is None or gap.high is None:
        return
    if gap.high < 0 and (p_holm is None or p_holm < _LEVEL):
        yield f"agrees less with the others than they do: {_signed(gap)}"


def _outside(shown: E, low: float, high: float) -> Iterator[str]:
    if shown.value is None or shown.low is None or shown.high is None:
        return
    if shown.low > high or shown.high < low:
        ends = f"[{shown.low:.0%}, {shown.high:.0%}]"
        yield f"prefers what is shown first in {shown.value:.0%} {ends} of labels"


def _lengthy(gap: E) -> Iterator[str]:
    if gap.value is None or gap.low is None or gap.high is None:
        return
    if gap.low > LENGTH_GAP or gap.high < -LENGTH_GAP:
        more = "longer" if gap.value > 0 else "shorter"
        yield f"prefers the {more} response more than the others do on the same pairs: {_signed(gap)}"


def _signed(gap: E) -> str:
    return f"{gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]"


def cautions(table: OpinionTable, overall: Overall, threshold: float) -> Iterator[str]:
    """What to know before reading the figures."""
    alpha = overall.alpha_nominal.value
    if alpha is None:
        yield "no two annotators labeled one pair, so nothing is known of their agreement: ask several about some"
    elif alpha < threshold:
        yield f"alpha is {alpha:z.2f}, below {threshold:g}: the labels hardly agree; see docs/data.md"
    if not table.named.all():
        count = int((~table.named[table.who]).sum())
        yield f"{count} of {len(table.who)} labels do not say whose they are: they agree or not, and nobody is to blame"
    if table.opinions.unscored:
        yield f"{table.opinions.unscored} verdicts did not come and are left out"
    if table.opinions.unusable:
        yield f"{table.opinions.unusable} rows cannot be used and are left out: `workbench data check` says why"
    shared = (table.labeled & (table.votes > 1)[:, None]).any(axis=0)
    alone = [name for name, able in zip(table.people, shared, strict=True) if not able]
    if alone and alpha is not None:
        more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
        yield f"who shares no pair with anybody: {', '.join(alone[:10])}{more}"
