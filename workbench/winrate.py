"""`workbench winrate`: from judgments to win rates, raw and at equal length, a ranking and circular triples.

Judges are never pooled: every figure is one judge's. Within a judge both orders of a pair are averaged (a pair of which
an asked order is unscored is unscored), then annotators, then a prompt's pairs; prompts weigh the same. An unscored
verdict is counted and is neither a loss nor a tie. Which of two systems is the baseline: the one that is named with
--baseline; else the one that meets the most systems; else the one that stands first in the files (AlpacaEval's
output_1).

Response ids of the form `seed=K/...`, as `workbench compare` writes them, are run seeds: intervals then carry the
variance of prompts and of seeds, as in results.json.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

import numpy as np

from workbench.errors import ConfigError
from workbench.judging.summary import JudgeSummary, pair_preferences, summarize
from workbench.metrics.estimates import Array, holm
from workbench.metrics.length_control import LengthControl, control_together
from workbench.metrics.ranking import components, intransitive_triples, ranking
from workbench.metrics.win_rate import Wins, compare
from workbench.results_base import E
from workbench.types import Estimate, Judgment
from workbench.verdicts import uneven_missingness
from workbench.winrate_records import LengthDetails, RatingRow, SystemRow, WinRates

_SEED = re.compile(r"seed=(-?\d+)/")
_OTHER_ORDER: dict[str, Literal["first_shown_first", "second_shown_first"]] = {
    "first_shown_first": "second_shown_first",
    "second_shown_first": "first_shown_first",
}


@dataclass(frozen=True, kw_only=True)
class _Duel:
    """One judge's comparisons of two systems; rows (prompt, seed)."""

    judge: str
    name: str
    baseline: str
    wins: Wins
    lengths: Array  # (N, 2): system, baseline; NaN where a scored pair does not say
    asked: int
    summary: JudgeSummary
    swapped: bool  # some pair was shown in both orders


def win_rates(
    judgments: Sequence[Judgment], *, baseline: str | None = None, seed: int = 0, n_resamples: int = 500
) -> WinRates:
    """Every figure of `workbench winrate`.

    Args:
        judgments: Of any number of judges and systems, each naming its systems (`judgment_files.read_judgments`).
        baseline: The system that others are compared with and that has rating 0; None = see the top of this file.
        seed: Of folds and resampling. Each figure has its own generator, so that none depends on which others are made.
        n_resamples: Bootstrap draws.

    Raises:
        ConfigError: No judgment names the baseline.
        ValueError: A judgment stands twice.
    """
    names = sorted({str(name) for one in judgments for name in (one.first, one.second)})
    if baseline is not None and baseline not in names:
        near = get_close_matches(baseline, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"no judgment names the baseline {baseline!r}{hint} The systems are {', '.join(names)}.")
    duels = [duel for judge in sorted({one.judge for one in judgments}) for duel in _duels(judge, judgments, baseline)]
    controlled = _controlled(duels, seed, n_resamples)
    rows = [_row(duel, controlled[place], seed) for place, duel in enumerate(duels)]
    adjusted = holm([row.p_value for row in rows])
    ratings, apart = _ratings(duels, baseline, seed, n_resamples)
    triples = [intransitive_triples(pairs) for pairs in _pairs_by_judge(duels).values()]
    return WinRates(
        systems=[row.model_copy(update={"p_holm": p}) for row, p in zip(rows, adjusted, strict=True)],
        ranking=ratings,
        intransitive_triples=sum(found.intransitive for found in triples),
        intransitive_beyond_noise=sum(found.beyond_noise for found in triples),
        triples_judged=sum(found.judged for found in triples),
        warnings=[*_warnings(duels), *apart],
    )


# ------------------------------------------------------------------------------------------ who met whom


def _duels(judge: str, judgments: Sequence[Judgment], baseline: str | None) -> Iterator[_Duel]:
    mine = [one for one in judgments if one.judge == judge]
    met = {frozenset((str(one.first), str(one.second))) for one in mine}
    degree = Counter(name for pair in met for name in pair)
    firsts = Counter(str(one.first) for one in mine)

    def as_baseline(name: str) -> tuple[bool, int, int, str]:
        return name == baseline, degree[name], firsts[name], name

    for pair in sorted(met, key=sorted):
        under, over = sorted(pair, key=as_baseline)
        yield _duel(judge, under, over, [one for one in mine if {one.first, one.second} == pair])


def _duel(judge: str, name: str, baseline: str, judgments: Sequence[Judgment]) -> _Duel:
    """One pair's table: prompt-level wins of `name` over `baseline` and mean lengths."""
    oriented = [one if one.second == name else _turned(one) for one in judgments]
    cells: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    unscored = 0
    for pair in pair_preferences(oriented):
        cell = cells.setdefault((pair.prompt_id, _seed_of(pair.second_id)), [])
        if math.isnan(pair.preference):
            unscored += 1
            continue
        lengths = (pair.second_length, pair.first_length)
        system, other = (math.nan if length is None else float(length) for length in lengths)
        cell.append((pair.preference, system, other))
    places = sorted(cells)
    table = np.array(
        [np.mean(cells[place], axis=0) if cells[place] else np.full(3, math.nan) for place in places], dtype=np.float64
    ).reshape(len(places), 3)
    shown = Counter((one.prompt_id, one.annotator, one.first_id, one.second_id) for one in oriented)
    return _Duel(
        judge=judge,
        name=name,
        baseline=baseline,
        wins=Wins(
            prompts=tuple(prompt for prompt, _ in places),
            seeds=tuple(run for _, run in places),
            wins=table[:, 0],
            n_unscored=unscored,
        ),
        lengths=table[:, 1:],
        asked=len({(one.prompt_id, one.first_id, one.second_id) for one in oriented}),
        summary=summarize(oriented),
        swapped=max(shown.values()) > 1,
    )


def _turned(one: Judgment) -> Judgment:
    """The same verdict with the systems named in the other order."""
    return replace(
        one,
        first=one.second,
        second=one.first,
        first_id=one.second_id,
        second_id=one.first_id,
        first_length=one.second_length,
        second_length=one.first_length,
        preference=None if one.preference is None else 1 - one.preference,
        order=_OTHER_ORDER[one.order],
    )


def _seed_of(response_id: str) -> int:
    found = _SEED.match(response_id)
    return int(found[1]) if found else 0


def _pairs_by_judge(duels: Sequence[_Duel]) -> dict[str, dict[tuple[str, str], Wins]]:
    pairs: dict[str, dict[tuple[str, str], Wins]] = {}
    for duel in duels:
        pairs.setdefault(duel.judge, {})[duel.name, duel.baseline] = duel.wins
    return pairs


# ------------------------------------------------------------------------------------------ figures


def _controlled(duels: Sequence[_Duel], seed: int, n_resamples: int) -> dict[int, LengthControl]:
    """Length control of each duel; systems that meet one baseline by one judge share the instruction difficulty."""
    found: dict[int, LengthControl] = {}
    together: dict[tuple[str, str], list[int]] = {}
    for place, duel in enumerate(duels):
        scored = ~np.isnan(duel.wins.wins)
        lacking = int(np.isnan(duel.lengths[scored]).any(axis=1).sum())
        if lacking:
            why = f"{lacking} of {int(scored.sum())} scored prompts have judgments without response lengths"
            none = Estimate(
                value=None, low=None, high=None, n=len(set(duel.wins.prompts)), n_unscored=duel.wins.n_unscored,
                method=f"refused: {why}",
            )  # fmt: skip
            found[place] = LengthControl(estimate=none, refused=why)
        else:
            together.setdefault((duel.judge, duel.baseline), []).append(place)
    for places in together.values():
        results = control_together(
            [duels[place].wins for place in places],
            [duels[place].lengths[:, 0] - duels[place].lengths[:, 1] for place in places],
            np.random.default_rng([seed, 1]),
            n_resamples=n_resamples,
        )
        found |= dict(zip(places, results, strict=True))
    return found


def _row(duel: _Duel, controlled: LengthControl, seed: int) -> SystemRow:
    found = compare(duel.wins, np.random.default_rng([seed, 2]))
    scored = duel.wins.wins[~np.isnan(duel.wins.wins)]
    by_prompt: dict[str, list[float]] = {}
    for prompt, win in zip(duel.wins.prompts, duel.wins.wins, strict=True):
        if not math.isnan(win):
            by_prompt.setdefault(prompt, []).append(float(win))
    means = np.array([np.mean(values) for values in by_prompt.values()])
    lengths = duel.lengths[~np.isnan(duel.wins.wins)]
    known = bool(len(lengths)) and not np.isnan(lengths).any()
    return SystemRow(
        name=duel.name,
        baseline=duel.baseline,
        judge=duel.judge,
        win_rate=E.of(found.win_rate),
        standard_error=float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None,
        win_rate_length_controlled=E.of(controlled.estimate),
        n_wins=int((scored > 0.5).sum()),
        n_losses=int((scored < 0.5).sum()),
        n_ties=int((scored == 0.5).sum()),
        n_unscored=duel.wins.n_unscored,
        mean_length=float(lengths[:, 0].mean()) if known else None,
        mean_length_baseline=float(lengths[:, 1].mean()) if known else None,
        p_value=found.p_value,
        p_holm=None,
        p_method=found.p_method,
        minimum_detectable_effect=found.minimum_detectable_effect,
        flip_rate=E.of(duel.summary.flip_rate) if duel.swapped else None,
        first_shown_preferred=E.of(duel.summary.first_shown_preferred) if duel.swapped else None,
        length_control=LengthDetails(
            coefficient=None if controlled.coefficient is None else E.of(controlled.coefficient),
            strength=controlled.strength,
            difficulty_strength=controlled.difficulty_strength,
            longer=controlled.longer,
            rate=controlled.rate,
            rate_unregularized=controlled.rate_unregularized,
            rate_range=controlled.rate_range,
            flags=list(controlled.flags),
            refused=controlled.refused,
        ),
    )


def _ratings(
    duels: Sequence[_Duel], baseline: str | None, seed: int, n_resamples: int
) -> tuple[list[RatingRow], list[str]]:
    """Ratings of each judge's connected systems, and what to say about those that nothing connects."""
    rows: list[RatingRow] = []
    notes = []
    for judge, pairs in _pairs_by_judge(duels).items():
        sets = components(pairs)
        if len(sets) > 1:
            told = "; ".join(", ".join(names) for names in sets)
            notes.append(f"{judge}: no comparison connects these systems, so they are ranked apart: {told}")
        degree = Counter(name for pair in pairs for name in pair)
        as_baseline = Counter(over for _, over in pairs)
        for number, names in enumerate(sets):
            zero = max(names, key=lambda name: (name == baseline, degree[name], as_baseline[name], name))
            inside = {pair: won for pair, won in pairs.items() if pair[0] in names and pair[1] in names}
            if not inside:  # its only comparisons are unscored
                continue
            rng = np.random.default_rng([seed, 3])
            rated = ranking(inside, rng, baseline=zero, n_resamples=n_resamples)
            rows += [RatingRow(name=one.arm, judge=judge, component=number, rating=one.rating) for one in rated]
    return rows, notes


def _warnings(duels: Sequence[_Duel]) -> Iterator[str]:
    counts: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for duel in duels:
        if duel.wins.n_unscored:
            share = duel.wins.n_unscored / duel.asked
            yield (
                f"{duel.name} against {duel.baseline} by {duel.judge}: {duel.wins.n_unscored} of {duel.asked} pairs "
                f"({share:.1%}) have no verdict and are left out"
            )
        counts.setdefault((duel.judge, duel.baseline), {})[duel.name] = (duel.wins.n_unscored, duel.asked)
    for (judge, _), by_system in counts.items():
        if why := uneven_missingness(by_system):
            yield f"{judge}: {why.partition(':')[0]}: do not compare these win rates"
