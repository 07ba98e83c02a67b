"""From results.json's numbers to the decision that it ends with: who may be served, and whom the judge prefers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from workbench.config_base import BASELINE
from workbench.config_decision import Decision as Rule
from workbench.decision import (
    SEEDS_FOR_METHODS,
    Left,
    Pair,
    Settled,
    leader,
    more_prompts,
    more_seeds,
    settle,
    what_is_left,
)
from workbench.decision_text import matched_text, refusal_sentence, sentence
from workbench.report.wording import number
from workbench.results import Arm, Results
from workbench.results_base import E
from workbench.results_decision import Decision, DecisionPair, More

COSTS = {"tokens": "tokens_generated", "cpu_s": "cpu_s", "gpu_s": "gpu_s", "flops": "flops"}
UNITS = {"tokens": "tokens", "cpu_s": "CPU s", "gpu_s": "GPU s", "flops": "operations"}


def decide(results: Results, rule: Rule, judge: str) -> Decision:
    """The decision of a comparison.

    Args:
        results: Everything but the decision.
        rule: Margin and serving budget.
        judge: The first judge of the config: the one that decides.
    """
    seeds = len(results.seeds.runs)
    scope = "methods" if seeds >= SEEDS_FOR_METHODS else "checkpoints"
    found = {"scope": scope, "judge": judge, "margin": rule.margin}
    if (reason := why_not(results, judge)) is not None:
        return _refused(found, reason, [], {})
    excluded = {label: why for label, arm in results.arms.items() if (why := barred(label, arm, rule, judge))}
    eligible = [label for label in results.arms if label not in excluded]
    if not set(eligible) - {BASELINE}:
        return _refused(found, "no arm is left that may be chosen", eligible, excluded)
    settled = settle(candidate_pairs(results, eligible, judge), rule.margin)
    left = what_is_left(eligible, settled)
    if left.verdict == "undecided":  # the one in front first
        first = leader(left.arms, settled)
        left = replace(left, arms=(first, *(label for label in left.arms if label != first)))
    decision = Decision.model_validate(
        found
        | {
            "verdict": left.verdict,
            "arms": left.arms,
            "eligible": eligible,
            "excluded": excluded,
            "evidence": [
                DecisionPair(
                    a=one.pair.a,
                    b=one.pair.b,
                    win_rate=one.pair.win_rate,
                    p_holm=one.p_holm,
                    p_equivalence=one.p_equivalence,
                    outcome=one.outcome,
                    small=one.small,
                )
                for one in settled
            ],
            "more": what_would_settle(left, settled, rule.margin, seeds) if left.verdict == "undecided" else None,
            "matched_kl": matched_text(results, left.arms[0], eligible) or None,
            "sentence": "-",
        }
    )
    return decision.model_copy(update={"sentence": sentence(decision, results, rule)})


def _refused(found: dict[str, object], reason: str, eligible: list[str], excluded: dict[str, str]) -> Decision:
    told = {"verdict": "none", "arms": [], "eligible": eligible, "excluded": excluded}
    return Decision.model_validate(found | told | {"sentence": refusal_sentence(reason, excluded)})


def why_not(results: Results, judge: str) -> str | None:
    """Why nothing may be decided at all; None where it may."""
    if not results.match.ok:
        failed = ", ".join(check.name for check in results.match.checks if check.ok is False)
        return f"the match certificate failed ({failed}): the arms are not comparable"
    if judge == "proxy":
        return "the first judge is the proxy, the reward model that some arms were trained on or selected by"
    if judge in results.judging_incomplete:
        return f"the first judge, {judge}, did not finish: {results.judging_incomplete[judge]}"
    quality = results.judges.get(judge)
    if quality is not None and quality.lineage is not None:
        return f"the first judge, {judge}, is not independent of what some arms were trained on: {quality.lineage}"
    if quality is not None and quality.uneven is not None:
        return f"the first judge, {judge}, judged unevenly: {quality.uneven}"
    return None


def barred(label: str, arm: Arm, rule: Rule, judge: str) -> str | None:
    """Why an arm may not be chosen; None where it may."""
    if arm.diverged is not None:
        return f"diverged: {arm.diverged}"
    if label != BASELINE and (rate := _over_baseline(arm, judge)).value is None:
        return f"no win rate by {judge}: {rate.method}"
    if rule.max_kl is not None and (why := _too_far(arm, rule.max_kl)) is not None:
        return why
    for name, most in (rule.max_cost_per_answer.model_dump() if rule.max_cost_per_answer else {}).items():
        if most is None:
            continue
        if arm.cost.answer is None:
            return "what one answer costs was not measured"
        cost = getattr(arm.cost.answer, COSTS[name])
        if cost > most:
            return f"one answer costs {number(cost)} {UNITS[name]}, the limit is {number(most)}"
    return None


def _too_far(arm: Arm, most: float) -> str | None:
    """A limit is kept where the upper end of the KL's interval keeps it; best-of-n's bound is an upper end itself."""
    assert arm.seq_kl is not None  # of arms that did not diverge
    kl = arm.seq_kl
    end = kl.value if kl.high is None or kl.kl_kind == "bound" else kl.high
    if end is None:
        return f"its KL is not known: {kl.method}"
    if end <= most:
        return None
    if kl.kl_kind == "bound":
        return f"its KL may be {number(end)} nats (best-of-n's bound), the limit is {number(most)}"
    over = "is" if kl.low is not None and kl.low > most else "may be"
    return f"its KL {over} above the limit of {number(most)} nats: {number(kl.value)}, up to {number(end)}"


def _over_baseline(arm: Arm, judge: str) -> E:
    missing = E(value=None, low=None, high=None, n=0, method="not judged")
    return next((rate for rate in arm.win_rates if rate.judge == judge and rate.baseline == BASELINE), missing)


def candidate_pairs(results: Results, eligible: Sequence[str], judge: str) -> list[Pair]:
    """Every two candidates that the judge compared, arms against sft among them."""
    seeds = len(results.seeds.runs)
    rates: list[tuple[str, str, E, float | None]] = [
        (label, BASELINE, rate, rate.p_value)
        for label in eligible
        if BASELINE in eligible
        for rate in results.arms[label].win_rates
        if rate.judge == judge and rate.baseline == BASELINE
    ]
    rates += [
        (duel.a, duel.b, duel.win_rate, duel.p_value)
        for duel in results.head_to_head
        if duel.judge == judge and {duel.a, duel.b} <= set(eligible) and duel.win_rate.value is not None
    ]
    return [Pair(a=a, b=b, win_rate=_plain(rate), p_value=p, seeds=seeds) for a, b, rate, p in rates]


def _plain(estimate: E) -> E:
    """The estimate without what its subclass adds."""
    return E.model_validate({name: getattr(estimate, name) for name in E.model_fields})


def what_would_settle(left: Left, settled: Sequence[Settled], margin: float, seeds: int) -> More:
    """About how many more seeds or prompts would settle what is open between the leader and the others left."""
    first = left.arms[0]
    mine = [one for one in left.open if first in (one.pair.a, one.pair.b)]
    asked = mine or list(left.open)
    compared = {frozenset((one.pair.a, one.pair.b)) for one in settled}
    missing = [pair for pair in itertools.combinations(left.arms, 2) if frozenset(pair) not in compared]
    if missing:
        named = ", ".join(f"{a} and {b}" for a, b in missing)
        return More(seeds=None, prompts=None, reason=f"the judge never compared {named} (judges: opponents: all does)")
    if not asked:
        return More(
            seeds=None, prompts=None, reason="the candidates beat each other in a circle: more data will not help"
        )
    others = {one.pair.b if one.pair.a == first else one.pair.a for one in asked}
    about = f"{first} from {' and '.join(sorted(others))}" if len(others) == 1 else f"{first} from the others left"
    if not mine:
        about = ", ".join(f"{one.pair.a} from {one.pair.b}" for one in asked)
    wanted_seeds = [more_seeds(one.pair, margin, len(settled)) for one in asked]
    wanted_prompts = [more_prompts(one.pair, margin, len(settled)) for one in asked]
    known_seeds = [one for one in wanted_seeds if one is not None]
    known_prompts = [one for one in wanted_prompts if one is not None]
    reason = f"to tell {about}, or show them equivalent, with 80% power if they differ as estimated"
    if seeds == 1:
        reason += "; how many seeds it takes is not known from one"
    elif len(known_seeds) < len(asked):
        reason += "; seeds alone will not do at these prompts"
    if len(known_prompts) < len(asked):
        reason += "; prompts alone will not do at these seeds"
    return More(
        seeds=max(known_seeds) if len(known_seeds) == len(asked) else None,
        prompts=max(known_prompts) if len(known_prompts) == len(asked) else None,
        reason=reason,
    )
