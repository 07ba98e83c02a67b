"""The decision in plain English: every clause is one of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.config_base import BASELINE
from workbench.config_decision import Decision as Rule
from workbench.decision import ALPHA, SEEDS_FOR_METHODS
from workbench.metrics.estimates import holm
from workbench.metrics.variance import Part, half_width_of, t_quantile, two_sided_p
from workbench.report.decision import settle_sentence
from workbench.report.wording import interval, kl_text, number, p_text
from workbench.results import Results
from workbench.results_base import E
from workbench.results_curves import MatchedKL
from workbench.results_decision import Decision, DecisionPair

MOST_NAMED = 3  # a sentence, not a table
ALIKE = 1.1  # costs of an answer have no interval: less than this factor apart they are told as alike


def sentence(decision: Decision, results: Results, rule: Rule) -> str:
    """What was decided, on which evidence, at what KL and cost, and about what."""
    clauses = {"winner": _winner, "equivalent": _equivalent, "undecided": _undecided}
    told = clauses[decision.verdict](decision)
    parts = [
        f"Among {'these checkpoints' if decision.scope == 'checkpoints' else 'the methods'} {told}",
        _price(decision, results),
        decision.matched_kl,
        _oracle(decision, results),
        _budget(decision, rule),
        _scope(len(results.seeds.runs)),
    ]
    return " ".join(part for part in parts if part)


def refusal_sentence(reason: str, excluded: Mapping[str, str]) -> str:
    """Why there is no decision."""
    told = "; ".join(f"{label}: {why}" for label, why in excluded.items())
    return f"No decision: {reason}." + (f" Not eligible: {told}." if told else "")


def _winner(decision: Decision) -> str:
    best = decision.arms[0]
    seen = {_other(pair, best): _for(pair, best) for pair in decision.evidence if best in (pair.a, pair.b)}
    closest = min(seen, key=lambda label: seen[label][0])
    rest = len(seen) - 1
    others = f" and {rest} more by a larger win rate" if rest else ""
    pair = next(one for one in decision.evidence if {one.a, one.b} == {best, closest})
    text = f"{best} wins: judged by {decision.judge} on {pair.win_rate.n} prompts it beats {closest} "
    text += f"({seen[closest][1]}, Holm p {p_text(pair.p_holm)}){others}."
    if best == BASELINE:
        text += " No arm is worth training."
    small = [_other(one, best) for one in decision.evidence if best in (one.a, one.b) and one.small]
    if small:
        text += f" Its lead over {_list(small)} is real but smaller than the margin of {number(decision.margin)}."
    return text


def _equivalent(decision: Decision) -> str:
    among = [one for one in decision.evidence if {one.a, one.b} <= set(decision.arms)]
    widest = max(among, key=lambda one: abs((one.win_rate.value or 0.5) - 0.5))
    beaten = [label for label in decision.eligible if label not in decision.arms]
    text = f"{_list(decision.arms)} are equivalent: judged by {decision.judge} on {widest.win_rate.n} prompts, their "
    text += f"win rates against each other are within {number(decision.margin)} of 0.5 (90% intervals; the largest "
    text += f"difference is {widest.a} over {widest.b}, {interval(widest.win_rate.model_dump())})."
    return text + (f" Each of them beats {_list(beaten)}." if beaten else "")


def _undecided(decision: Decision) -> str:
    first = decision.arms[0]
    beaten = [label for label in decision.eligible if label not in decision.arms]
    open_ = [one for one in decision.evidence if {one.a, one.b} <= set(decision.arms) and one.outcome == "open"]
    text = f"it is undecided between {_list(decision.arms)}, judged by {decision.judge}"
    mine = [one for one in open_ if first in (one.a, one.b)]
    if mine:
        closest = min(mine, key=lambda one: _for(one, first)[0])
        text += f" on {closest.win_rate.n} prompts: {first} is in front, but over {_other(closest, first)} it has "
        text += f"{_for(closest, first)[1]}, neither better than chance nor shown to be within "
        text += f"{number(decision.margin)} of 0.5{f' (and so with {len(mine) - 1} more)' if len(mine) > 1 else ''}"
    text += f". Each of them beats {_list(beaten)}." if beaten else "."
    return text + (f" {settle_sentence(decision.more.model_dump())}" if decision.more is not None else "")


def _price(decision: Decision, results: Results) -> str:
    """KL and cost of those that are left, and of the one that a winner beats by least."""
    shown = [*decision.arms[:MOST_NAMED], *_runner_up(decision)]
    told = []
    for label in shown:
        arm = results.arms[label]
        answer = arm.cost.answer
        told.append(
            f"{label} {kl_text(arm.seq_kl.model_dump() if arm.seq_kl else None)} nats from sft"
            + (f" and {answer.tokens_generated} tokens an answer" if answer else "")
        )
    text = f"KL and cost: {'; '.join(told)}."
    if decision.verdict == "equivalent":
        priced = {label: answer for label in decision.arms if (answer := results.arms[label].cost.answer) is not None}
        if len(priced) == len(decision.arms):
            text += _cheapest({label: answer.tokens_generated for label, answer in priced.items()})
    return text


def _cheapest(tokens: Mapping[str, int]) -> str:
    """Who is the cheapest to serve by more than the factor that counts as alike."""
    least = min(tokens.values())
    first = [label for label, count in tokens.items() if count < ALIKE * least or count == least]
    told = f"within a factor of {ALIKE:g} in tokens an answer"
    if len(first) == len(tokens):
        return f" They cost alike to serve ({told})."
    if len(first) > 1:
        return f" The cheapest to serve are {_list(first)}, alike {told}."
    return f" The cheapest to serve is {first[0]}, by more than a factor of {ALIKE:g} in tokens an answer."


def _oracle(decision: Decision, results: Results) -> str:
    """Whether gold, which no user has, chose the checkpoints that are compared."""
    arms = {label: results.arms[label].selection for label in decision.eligible}
    chosen = [label for label, one in arms.items() if one is not None and one.oracle]
    if not chosen:
        return ""
    judged = ", and judged them too" if decision.judge == "gold" else ""
    return f"Oracle: gold, which no user has, chose the checkpoints of {_list(chosen)}{judged}."


def _runner_up(decision: Decision) -> list[str]:
    """The candidate that the winner beats by least."""
    if decision.verdict != "winner":
        return []
    best = decision.arms[0]
    seen = {_other(one, best): _for(one, best)[0] for one in decision.evidence if best in (one.a, one.b)}
    return [min(seen, key=lambda label: seen[label])]


def _budget(decision: Decision, rule: Rule) -> str:
    limits = [f"at most {number(rule.max_kl)} nats"] if rule.max_kl is not None else []
    if rule.max_cost_per_answer is not None:
        units = {"tokens": "tokens", "cpu_s": "CPU s", "gpu_s": "GPU s", "flops": "operations"}
        given = rule.max_cost_per_answer.model_dump(exclude_none=True)
        limits += [f"at most {number(most)} {units[name]} an answer" for name, most in given.items()]
    text = f"Serving budget: {', '.join(limits)}." if limits else ""
    told = "; ".join(f"{label} ({why})" for label, why in decision.excluded.items())
    return " ".join(part for part in (text, f"Not eligible: {told}." if told else "") if part)


def _scope(seeds: int) -> str:
    if seeds >= SEEDS_FOR_METHODS:
        return f"{seeds} run seeds: this is about the methods at these settings and pairs, untuned ones included."
    more = SEEDS_FOR_METHODS - seeds
    named = "One run seed: this is" if seeds == 1 else f"{seeds} run seeds: this is"
    return f"{named} no verdict on the methods, which takes {more} more run seed{'s'[: more > 1]}."


def matched_text(results: Results, arm: str, eligible: Sequence[str]) -> str:
    """What is known of an arm against every other candidate at equal KL, tests corrected over those others (Holm)."""
    others = [label for label in eligible if label not in (arm, BASELINE)]
    if arm == BASELINE or not others:
        return ""
    rows = [one for one in results.matched_kl if one.against is not None and one.reward == "gold_reward"]
    found = {other: row for other in others if (row := _matched_row(rows, arm, other)) is not None}
    if not found:
        return "KL could not be matched: no other candidate has a gold reward at a KL that this one has too."
    seeds = len(results.seeds.runs)
    corrected = holm([_p_of_zero(row.estimate, seeds) for row in found.values()])
    told: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
    for (other, row), p in zip(found.items(), corrected, strict=True):
        gap = row.estimate.model_dump()
        if row.arm != arm:
            low, high = (None if end is None else -end for end in (gap["high"], gap["low"]))
            gap |= {"value": -gap["value"], "low": low, "high": high}
        sure = p is not None and p < ALPHA and (gap["low"] > 0 or gap["high"] < 0)
        where = "not told apart from" if not sure else "ahead of" if gap["low"] > 0 else "behind"
        told[where].append(f"{other} ({interval(gap)} at {_matched_where(row)})")
    named = [f"{words} {', '.join(names)}" for words, names in told.items() if names]
    text = f"At matched KL (gold, 95% intervals, tests corrected over the arms named) {arm} is {'; '.join(named)}."
    missing = len(others) - len(found)
    rest = "1 other" if missing == 1 else f"{missing} others"
    return text + (f" It could not be matched with {rest}." if missing else "")


def _matched_row(rows: Sequence[MatchedKL], arm: str, other: str) -> MatchedKL | None:
    """Of two arms' rows the one told: paired on test prompts where there is one, then the largest KL."""
    at = [one for one in rows if {one.arm, one.against} == {arm, other} and one.estimate.value is not None]
    on_test = [one for one in at if one.prompt_set == "test"]
    return max(on_test or at, key=lambda one: one.kl, default=None)


def _matched_where(row: MatchedKL) -> str:
    """The KL of a row, whose it is, and what keeps it from being a plain paired difference."""
    own = (row.kl_kind, row.prompt_set) == ("mixed", "test")  # a selected policy beside best-of-n's curve
    whose = f"{row.arm}'s own KL" if own else "the largest compared that both reach"
    apart = {"bound": row.kl_kind != "mc_k1", "unpaired": row.prompt_set == "mixed"}
    return ", ".join([f"{number(row.kl)} nats", whose, *(word for word, is_so in apart.items() if is_so)])


def _p_of_zero(gap: E, seeds: int) -> float | None:
    """p of "the difference is 0" by the errors that its 95% interval was made of; None without an interval."""
    if gap.value is None or gap.low is None or gap.high is None:
        return None
    half = (gap.high - gap.low) / 2
    found: list[Part] = [(gap.prompt_se**2, gap.n - 1.0)] if gap.prompt_se and gap.n > 1 else []
    found += [(gap.seed_se**2, seeds - 1.0)] if gap.seed_se and seeds > 1 else []
    parts = tuple(found) or (((half / t_quantile(float("inf"))) ** 2, float("inf")),)
    # What else is in the interval (an error that is neither prompts' nor seeds') widens all quantiles alike.
    return two_sided_p(parts, abs(gap.value) * half_width_of(parts) / half) if half > 0 else None


def _for(pair: DecisionPair, arm: str) -> tuple[float, str]:
    """(win rate of an arm over its opponent, the same in words)."""
    rate = pair.win_rate.model_dump()
    value = pair.win_rate.value
    assert value is not None
    if pair.a == arm:
        return value, interval(rate)
    low, high = (None if end is None else 1 - end for end in (pair.win_rate.high, pair.win_rate.low))
    return 1 - value, interval(rate | {"value": 1 - value, "low": low, "high": high})


def _other(pair: DecisionPair, arm: str) -> str:
    return pair.b if pair.a == arm else pair.a


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
