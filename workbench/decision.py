"""What a comparison decides: a winner, equivalent arms, or neither yet.

Candidates are the arms that ran through and keep to the serving budget, and the SFT policy itself: not to train on is
a choice too. Two candidates are told apart by their win rate against each other, by the config's first judge:

    better      p of equality below 5%, corrected over all pairs of candidates (Holm), and 0.5 outside the interval
    equivalent  two one-sided tests at 5% each: the 90% interval lies inside 0.5 plus or minus the margin
    open        neither

The smallest set of candidates each of which beats everyone outside of it is what is left. One: the winner. Several, all
pairwise equivalent: equivalent. Else undecided. All claims of one verdict must hold together, so none of them is
tested more mildly for there being several.

What would settle it: SE^2 = prompt_se^2 n / n' + seed_se^2 k / k' with n' prompts and k' run seeds, and the smallest n'
(or k') at which either the difference as estimated would be found, or its equivalence shown, with 80% power.

Source: Schuirmann 1987 (two one-sided tests); Holm 1979; Smith 1973 (the smallest dominating set).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from workbench.metrics.estimates import holm
from workbench.metrics.variance import Part, half_width_of, two_sided_p
from workbench.results_base import SEEDS_FOR_METHODS as SEEDS_FOR_METHODS
from workbench.results_base import E

Outcome = Literal["better", "worse", "equivalent", "open"]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS, MOST_PROMPTS = 1_000, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Win rate of a over b.

    Args:
        win_rate: With the standard errors of prompts and run seeds.
        p_value: Of equality; None without a comparison.
        seeds: Run seeds behind it.
    """

    a: str
    b: str
    win_rate: E
    p_value: float | None
    seeds: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """(variance, degrees of freedom) of prompts and of run seeds; empty where nothing varies."""
        rate = self.win_rate
        found = []
        if rate.prompt_se is not None and rate.n > 1:
            found.append((rate.prompt_se**2, float(rate.n - 1)))
        if rate.seed_se is not None and self.seeds > 1:
            found.append((rate.seed_se**2, float(self.seeds - 1)))
        return tuple(found) if sum(v for v, _ in found) > 0 else ()

    @property
    def gap(self) -> float:
        """Distance of the win rate from 0.5, with its sign."""
        assert self.win_rate.value is not None
        return self.win_rate.value - 0.5


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a pair of candidates came to; `small`: better or worse, but within the margin all the same."""

    pair: Pair
    outcome: Outcome
    p_holm: float | None
    p_equivalence: float | None
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Left:
    """The candidates that nothing outside of them can replace, and the pairs between which it is open."""

    verdict: Literal["winner", "equivalent", "undecided"]
    arms: tuple[str, ...]
    open: tuple[Settled, ...]


def p_equivalence(pair: Pair, margin: float) -> float | None:
    """p of "the win rate is `margin` or more away from 0.5": the larger of two one-sided tests; None without variance.

    Source: Schuirmann 1987.
    """
    if not pair.parts:
        return None
    room = margin - abs(pair.gap)
    p = two_sided_p(pair.parts, abs(room)) / 2
    return p if room > 0 else 1 - p


def settle(pairs: Sequence[Pair], margin: float) -> list[Settled]:
    """Better, worse, equivalent or open, for every pair of candidates; Holm's family is all of them.

    Args:
        pairs: Those that the deciding judge compared, each with a value.
        margin: Distance from 0.5 that counts as no difference.
    """
    found = []
    for pair, corrected in zip(pairs, holm([pair.p_value for pair in pairs]), strict=True):
        rate, p = pair.win_rate, p_equivalence(pair, margin)
        if p is not None:
            alike = p < ALPHA
        else:  # all prompts came out the same: the Wilson interval says how far that goes
            alike = all(end is not None and abs(end - 0.5) < margin for end in (rate.low, rate.high))
        outcome: Outcome = "equivalent" if alike else "open"
        if corrected is not None and corrected < ALPHA and rate.low is not None and rate.high is not None:
            outcome = "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else outcome
        small = alike and outcome in ("better", "worse")
        found.append(Settled(pair=pair, outcome=outcome, p_holm=corrected, p_equivalence=p, small=small))
    return found


def what_is_left(candidates: Sequence[str], settled: Sequence[Settled]) -> Left:
    """The smallest set of candidates each of which beats everyone outside of it, and whether that decides.

    Args:
        candidates: Labels.
        settled: Of every pair that was compared; a pair that was not keeps its two together.
    """
    known = {frozenset((one.pair.a, one.pair.b)): one for one in settled}

    def beats(a: str, b: str) -> bool:
        one = known.get(frozenset((a, b)))
        return one is not None and one.outcome == ("better" if one.pair.a == a else "worse")

    beaten = {a: sum(beats(a, b) for b in candidates if b != a) for a in candidates}
    order = sorted(candidates, key=lambda label: -beaten[label])
    # Such sets lie one inside the other, and each is the first few by the number of those they beat.
    for size in range(1, len(order) + 1):
        inside, outside = order[:size], order[size:]
        if all(beats(a, b) for a in inside for b in outside):
            break
    if size == 1:
        return Left(verdict="winner", arms=(order[0],), open=())
    pairs = [(a, b) for place, a in enumerate(inside) for b in inside[place + 1 :]]
    among = [known[frozenset(pair)] for pair in pairs if frozenset(pair) in known]
    if len(among) == len(pairs) and all(one.outcome == "equivalent" or one.small for one in among):
        return Left(verdict="equivalent", arms=tuple(inside), open=())
    return Left(verdict="undecided", arms=tuple(inside), open=tuple(one for one in among if one.outcome == "open"))


def leader(arms: Sequence[str], settled: Sequence[Settled]) -> str:
    """The one with the highest mean win rate over the others; the first of those that are level."""
    rates: Mapping[str, list[float]] = {label: [] for label in arms}
    for one in settled:
        if one.pair.a in rates and one.pair.b in rates:
            rates[one.pair.a].append(one.pair.gap)
            rates[one.pair.b].append(-one.pair.gap)
    return max(arms, key=lambda label: sum(rates[label]) / len(rates[label]) if rates[label] else -math.inf)


def more_seeds(pair: Pair, margin: float, tests: int) -> int | None:
    """Run seeds to add at the same prompts; None with one seed, whose variance is not known, or where none suffice."""
    if len(pair.parts) < 2:
        return None
    (prompts, prompt_df), (seeds, _) = pair.parts

    def enough(count: int) -> bool:
        return _settles(pair.gap, ((prompts, prompt_df), (seeds * pair.seeds / count, count - 1.0)), margin, tests)

    return _fewest(enough, pair.seeds, MOST_SEEDS)


def more_prompts(pair: Pair, margin: float, tests: int) -> int | None:
    """Prompts to add at the same run seeds; None where nothing varies or none suffice."""
    if not pair.parts:
        return None
    (prompts, _), rest = pair.parts[0], pair.parts[1:]
    n = pair.win_rate.n

    def enough(count: int) -> bool:
        return _settles(pair.gap, ((prompts * n / count, count - 1.0), *rest), margin, tests)

    return _fewest(enough, n, MOST_PROMPTS)


def _settles(gap: float, parts: tuple[Part, ...], margin: float, tests: int) -> bool:
    """Whether a difference as estimated would be found, or its equivalence shown, with 80% power."""
    se = math.sqrt(sum(v for v, _ in parts))
    found = half_width_of(parts, 1 - ALPHA / (2 * tests)) + float(special.ndtri(POWER)) * se
    # An estimate may leave the margin on either side.
    alike = half_width_of(parts, 1 - ALPHA) + float(special.ndtri((1 + POWER) / 2)) * se
    return abs(gap) >= found or margin - abs(gap) >= alike


def _fewest(enough: Callable[[int], bool], now: int, most: int) -> int | None:
    """How many more than `now` are the fewest that are enough, at least one; None: not even `most`."""
    if not enough(most):
        return None
    low, high = now, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - now
