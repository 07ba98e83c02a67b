"""The decision in plain English: every clause is one of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.config_base import BASELINE
from workbench.config_decision import Decision as Rule
from workbench.decision import SEEDS_FOR_METHODS
from workbench.report.wording import interval, kl_text, number, p_text
from workbench.results import Results
from workbench.results_decision import Decision, DecisionPair

MOST_NAMED = 3  # a sentence, not a table


def sentence(decision: Decision, results: Results, rule: Rule) -> str:
    """What was decided, on which evidence, at what KL and cost, and about what."""
    clauses = {"winner": _winner, "equivalent": _equivalent, "undecided": _undecided}
    told = clauses[decision.verdict](decision)
    parts = [
        f"Among {'these checkpoints' if decision.scope == 'checkpoints' else 'the methods'} {told}",
        _price(decision, results),
        decision.matched_kl,
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
    if decision.more is not None:
        wanted = [
            f"about {count} more {what}"
            for count, what in ((decision.more.seeds, "run seeds"), (decision.more.prompts, "prompts"))
            if count is not None
        ]
        head = f"{' or '.join(wanted)} " if wanted else "it is not known how much more it takes "
        text += f" {head[0].upper()}{head[1:]}{decision.more.reason}."
    return text


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
            cheapest = min(priced, key=lambda label: priced[label].tokens_generated)
            text += f" The cheapest to serve is {cheapest}."
    return text


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
    """What is known of an arm against every other candidate at equal KL."""
    others = [label for label in eligible if label not in (arm, BASELINE)]
    if arm == BASELINE or not others:
        return ""
    rows = [one for one in results.matched_kl if one.against is not None and one.reward == "gold_reward"]
    told: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
    missing = 0
    for other in others:
        at = [one for one in rows if {one.arm, one.against} == {arm, other} and one.estimate.value is not None]
        if not at:
            missing += 1
            continue
        last = max(at, key=lambda one: one.kl)
        gap = last.estimate.model_dump()
        if last.arm != arm:
            low, high = (None if end is None else -end for end in (gap["high"], gap["low"]))
            gap |= {"value": -gap["value"], "low": low, "high": high}
        sure = gap["low"] is not None and (gap["low"] > 0 or gap["high"] < 0)
        where = "not told apart from" if not sure else "ahead of" if gap["low"] > 0 else "behind"
        told[where].append(f"{other} ({interval(gap)} at {number(last.kl)} nats)")
    found = [f"{words} {', '.join(names)}" for words, names in told.items() if names]
    if not found:
        return "KL could not be matched: no other candidate has a gold reward at a KL that this one has too."
    text = f"At matched KL (gold, at the largest KL that both reach, 95% intervals) {arm} is {'; '.join(found)}."
    rest = "1 other" if missing == 1 else f"{missing} others"
    return text + (f" It could not be matched with {rest}." if missing else "")


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
