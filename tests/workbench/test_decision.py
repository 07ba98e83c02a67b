"""The decision: what is claimed, what is not, what would settle it, and the sentence that says so."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from pydantic import ValidationError
from results_example import cost, estimate
from results_example import results as example

from workbench.config import AnswerCost
from workbench.config import Decision as Rule
from workbench.decide import decide
from workbench.decision import Pair, leader, more_prompts, more_seeds, p_equivalence, settle, what_is_left
from workbench.metrics.variance import half_width_of
from workbench.report.decision import settle_sentence
from workbench.results import Results
from workbench.results_base import E
from workbench.results_decision import Decision


def rate(value: float, prompt_se: float = 0.01, seed_se: float | None = None, n: int = 256, seeds: int = 5) -> E:
    parts = ((prompt_se**2, n - 1.0), *(() if seed_se is None else ((seed_se**2, seeds - 1.0),)))
    half = half_width_of(parts)
    return E(
        value=value,
        low=value - half,
        high=value + half,
        n=n,
        method="cluster wilson-t",
        prompt_se=prompt_se,
        seed_se=seed_se,
    )


def pair(a: str, b: str, value: float, p: float | None = None, **errors: Any) -> Pair:
    seeds = errors.get("seeds", 5)
    found = rate(value, **errors)
    z = abs(value - 0.5) / max(errors.get("prompt_se", 0.01), 1e-9)
    return Pair(a=a, b=b, win_rate=found, p_value=math.erfc(z / math.sqrt(2)) if p is None else p, seeds=seeds)


def left(pairs: list[Pair], margin: float = 0.03) -> tuple[str, tuple[str, ...]]:
    names = list(dict.fromkeys(name for one in pairs for name in (one.a, one.b)))
    found = what_is_left(names, settle(pairs, margin))
    return found.verdict, found.arms


def test_a_winner_beats_everyone() -> None:
    assert left([pair("a", "b", 0.6), pair("a", "c", 0.7), pair("b", "c", 0.5)]) == ("winner", ("a",))
    # The other way round it was written down.
    assert left([pair("b", "a", 0.4), pair("a", "c", 0.7), pair("b", "c", 0.5)]) == ("winner", ("a",))


def test_beating_all_but_one_is_no_win() -> None:
    verdict, arms = left([pair("a", "b", 0.6), pair("a", "c", 0.51, prompt_se=0.02), pair("b", "c", 0.4)])
    assert (verdict, set(arms)) == ("undecided", {"a", "c"})


def test_equivalent_ones_must_all_be_shown_to_be() -> None:
    tight = {"prompt_se": 0.005}
    verdict, arms = left([pair("a", "b", 0.505, **tight), pair("a", "c", 0.7), pair("b", "c", 0.7)])
    assert (verdict, set(arms)) == ("equivalent", {"a", "b"})
    assert left([pair("a", "b", 0.505, prompt_se=0.03), pair("a", "c", 0.7), pair("b", "c", 0.7)])[0] == "undecided"
    # Chained: a ~ b, b ~ c, but a and c are not within the margin of each other.
    chain = [pair("a", "b", 0.52, prompt_se=0.004, p=0.2), pair("b", "c", 0.52, prompt_se=0.004, p=0.2)]
    assert left([*chain, pair("a", "c", 0.54, prompt_se=0.02, p=0.2)])[0] == "undecided"


def test_significant_but_small_is_a_win_that_says_so() -> None:
    settled = settle([pair("a", "b", 0.51, prompt_se=0.003)], 0.03)
    assert (settled[0].outcome, settled[0].small) == ("better", True)
    # In a circle of small wins nobody wins, but all are within the margin.
    circle = [pair("a", "b", 0.51, prompt_se=0.003), pair("b", "c", 0.51, prompt_se=0.003)]
    assert left([*circle, pair("c", "a", 0.51, prompt_se=0.003)])[0] == "equivalent"


def test_holm_is_over_all_candidates() -> None:
    weak = pair("a", "b", 0.53, p=0.03)
    assert settle([weak], 0.02)[0].outcome == "better"
    many = [weak, *(pair(f"x{i}", f"y{i}", 0.5, p=0.9) for i in range(4))]
    assert settle(many, 0.02)[0].outcome == "open"


def test_a_pair_that_nobody_compared_keeps_both() -> None:
    pairs = [pair("a", "c", 0.7), pair("b", "c", 0.7)]
    assert what_is_left(["a", "b", "c"], settle(pairs, 0.03)).verdict == "undecided"


def test_equivalence_is_the_90_percent_interval_inside_the_margin() -> None:
    for value in (0.5, 0.51, 0.52):
        for se in (0.004, 0.008, 0.012, 0.02):
            one = pair("a", "b", value, prompt_se=se)
            half = half_width_of(one.parts, 0.95)
            inside = abs(value - 0.5) + half < 0.03
            p = p_equivalence(one, 0.03)
            assert p is not None
            assert (p < 0.05) == inside
    assert p_equivalence(pair("a", "b", 0.53, prompt_se=0.01), 0.03) == pytest.approx(0.5)


def test_no_variance_is_no_proof_of_equality() -> None:
    few = E(value=0.5, low=0.35, high=0.65, n=30, method="wilson on clusters by prompt", prompt_se=0.0)
    many = E(value=0.5, low=0.49, high=0.51, n=9000, method="wilson on clusters by prompt", prompt_se=0.0)
    for found, outcome in ((few, "open"), (many, "equivalent")):
        one = Pair(a="a", b="b", win_rate=found, p_value=1.0, seeds=1)
        assert p_equivalence(one, 0.03) is None
        assert settle([one], 0.03)[0].outcome == outcome


def test_more_follows_the_formula() -> None:
    one = pair("a", "b", 0.54, prompt_se=0.02, seeds=1)
    more = more_prompts(one, 0.03, 1)
    assert more is not None
    # Power of a two-sided test: SE at n' prompts must be the difference over (1.96 + 0.84).
    assert 256 + more == pytest.approx(256 * (0.02 * 2.8016 / 0.04) ** 2, rel=0.02)
    assert more_seeds(one, 0.03, 1) is None  # one seed says nothing of seeds
    stricter = more_prompts(one, 0.03, 10)
    assert stricter is not None
    assert stricter > more


def test_more_of_the_wrong_kind_is_refused() -> None:
    seeds_matter = pair("a", "b", 0.54, prompt_se=0.005, seed_se=0.05, seeds=5)
    assert more_prompts(seeds_matter, 0.03, 1) is None
    assert more_seeds(seeds_matter, 0.03, 1) is not None
    prompts_matter = pair("a", "b", 0.54, prompt_se=0.05, seed_se=0.005, seeds=5)
    assert more_prompts(prompts_matter, 0.03, 1) is not None
    assert more_seeds(prompts_matter, 0.03, 1) is None


def test_more_may_show_equivalence_instead() -> None:
    level = pair("a", "b", 0.501, prompt_se=0.02, seeds=1)
    more = more_prompts(level, 0.03, 1)
    assert more is not None
    assert more < 10_000
    assert leader(["b", "a"], settle([level], 0.03)) == "a"


# --------------------------------------------------------------------------------------------- from results.json


def whole(runs: int = 1, **wins: float) -> Results:
    """A comparison of ppo, dpo and best_of_n with the given win rates (ppo_dpo=0.6), 0.7 over sft unless given."""
    data = copy.deepcopy(example(list(range(runs))))
    duels = []
    for a, b in (("ppo", "dpo"), ("ppo", "best_of_n"), ("dpo", "best_of_n")):
        value = wins.get(f"{a}_{b}", 0.5)
        found = rate(value, 0.01, 0.005 if runs > 1 else None, seeds=runs).model_dump()
        p = math.erfc(abs(value - 0.5) / 0.012 / math.sqrt(2))
        duels.append({"a": a, "b": b, "judge": "gold", "win_rate": found, "p_value": p, "p_holm": p})
    data["head_to_head"] = duels
    for label, arm in data["arms"].items():
        arm["cost"]["answer"] = cost(0.012) | {"tokens_generated": 360 if label == "best_of_n" else 24}
        if label != "sft":
            found = rate(wins.get(label, 0.7), 0.01, seeds=runs).model_dump()
            arm["win_rates"] = [found | {"baseline": "sft", "judge": "gold", "p_value": 1e-9}]
            arm["win_rate"] = arm["win_rates"][0]
    return Results.model_validate(data)


def test_one_seed_decides_about_checkpoints_only() -> None:
    found = decide(whole(ppo_dpo=0.6, ppo_best_of_n=0.6), Rule(), "gold")
    assert (found.verdict, found.arms, found.scope) == ("winner", ["ppo"], "checkpoints")
    assert "these checkpoints" in found.sentence
    assert "4 more run seeds" in found.sentence
    assert "0.60 [0.58, 0.62]" in found.sentence
    five = decide(whole(5, ppo_dpo=0.6, ppo_best_of_n=0.6), Rule(), "gold")
    assert (five.verdict, five.scope) == ("winner", "methods")
    assert "checkpoints" not in five.sentence


def test_keeping_the_sft_may_win() -> None:
    found = decide(whole(ppo=0.4, dpo=0.4, best_of_n=0.4), Rule(), "gold")
    assert (found.verdict, found.arms) == ("winner", ["sft"])
    assert "No arm is worth training" in found.sentence


def test_undecided_says_what_would_settle_it() -> None:
    found = decide(whole(ppo_dpo=0.52, ppo_best_of_n=0.6, dpo_best_of_n=0.6), Rule(), "gold")
    assert (found.verdict, set(found.arms)) == ("undecided", {"ppo", "dpo"})
    assert found.more is not None
    assert found.more.seeds is None
    assert found.more.prompts is not None
    assert f"bout {found.more.prompts} more prompts" in found.sentence
    assert "how many seeds it takes is not known from one" in found.sentence
    five = decide(whole(5, ppo_dpo=0.52, ppo_best_of_n=0.6, dpo_best_of_n=0.6), Rule(), "gold")
    assert five.more is not None
    assert five.more.seeds is not None or "seeds alone will not do" in five.more.reason
    circle = {"seeds": None, "prompts": None, "reason": "the candidates beat each other in a circle"}
    assert settle_sentence(circle) == "The candidates beat each other in a circle."
    assert settle_sentence(circle | {"reason": "to tell a from b"}) == (
        "It is not known how much more it takes to tell a from b."
    )
    assert settle_sentence({"seeds": 3, "prompts": 40, "reason": "to tell a from b"}) == (
        "About 3 more run seeds or about 40 more prompts to tell a from b."
    )


def test_equivalent_names_the_cheapest() -> None:
    wide = Rule(margin=0.1)
    data = whole().model_dump(mode="json", by_alias=True)

    def told(*tokens: int) -> str:
        for label, count in zip(("ppo", "dpo", "best_of_n"), tokens, strict=True):
            data["arms"][label]["cost"]["answer"]["tokens_generated"] = count
        found = decide(Results.model_validate(data), wide, "gold")
        assert (found.verdict, found.arms) == ("equivalent", ["ppo", "dpo", "best_of_n"])
        assert "beats sft" in found.sentence
        return found.sentence

    assert "The cheapest to serve is dpo, by more than a factor of 1.1" in told(40, 24, 360)
    # No interval tells whether 25 is more than 24.
    assert "The cheapest to serve are ppo and dpo, alike within a factor of 1.1" in told(25, 24, 360)
    assert "cost alike to serve" in told(25, 24, 26)


def test_the_serving_budget_excludes_with_the_number() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6, dpo_best_of_n=0.6)
    found = decide(data, Rule(max_kl=20.0), "gold")  # ppo 38, dpo 19 up to 19.95
    assert found.arms == ["dpo"]
    assert "limit of 20.0" in found.excluded["ppo"]
    # An interval that reaches over the limit does not keep it.
    assert "may be above" in decide(data, Rule(max_kl=19.5), "gold").excluded["dpo"]
    # Best-of-n's bound is an upper end already.
    assert decide(data, Rule(max_kl=1.9), "gold").arms == ["best_of_n"]
    assert "bound" in decide(data, Rule(max_kl=1.0), "gold").excluded["best_of_n"]
    cheap = decide(data, Rule(max_cost_per_answer=AnswerCost(tokens=50)), "gold")
    assert cheap.excluded == {"best_of_n": "one answer costs 360 tokens, the limit is 50.0"}
    assert "at most 50.0 tokens an answer" in cheap.sentence


def test_a_plain_number_is_tokens() -> None:
    assert Rule.model_validate({"max_cost_per_answer": 50}).max_cost_per_answer == AnswerCost(tokens=50)
    for wrong in ({"margin": 0}, {"margin": 0.5}, {"max_kl": 0}, {"max_cost_per_answer": {}}, {"margins": 0.1}):
        with pytest.raises(ValidationError):
            Rule.model_validate(wrong)


def changed(data: Results, **update: Any) -> Results:
    return Results.model_validate(data.model_dump(mode="json", by_alias=True) | update)


def test_nothing_is_decided_on_arms_that_were_not_matched() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    failed = {"ok": False, "checks": [{"name": "same_pairs", "ok": False, "detail": "1987, 1990"}]}
    found = decide(changed(data, match=failed), Rule(), "gold")
    assert (found.verdict, found.arms, found.evidence) == ("none", [], [])
    assert "same_pairs" in found.sentence


def test_nothing_is_decided_by_the_proxy_or_an_unfinished_judge() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    assert "proxy" in decide(data, Rule(), "proxy").sentence
    unfinished = changed(data, judging_incomplete={"people": "12 of 40 rows are filled in"})
    found = decide(unfinished, Rule(), "people")
    assert found.verdict == "none"
    assert "12 of 40" in found.sentence
    assert decide(unfinished, Rule(), "gold").verdict == "winner"  # the one that decides is gold


def test_nothing_is_decided_by_an_uneven_judge() -> None:
    data = whole(ppo_dpo=0.6).model_dump(mode="json", by_alias=True)
    judge = {
        "kind": "llm", "pairs": 10, "identical": 0, "asked": 20, "scored": 18, "unscored": {"refused": 2},
        "ties": estimate(0.1), "flip_rate": estimate(0.1), "first_shown_preferred": estimate(0.5),
        "uneven": "unscored pairs differ by arm (ppo 10%, dpo 0%)",
    }  # fmt: skip
    found = decide(Results.model_validate(data | {"judges": {"gpt": judge}}), Rule(), "gpt")
    assert found.verdict == "none"
    assert "ppo 10%" in found.sentence


def test_nothing_is_decided_by_a_judge_of_the_proxys_lineage() -> None:
    data = whole(ppo_dpo=0.6).model_dump(mode="json", by_alias=True)
    judge = {
        "kind": "reward_model", "pairs": 10, "identical": 0, "asked": 10, "scored": 10, "unscored": {},
        "ties": estimate(0.1), "flip_rate": estimate(0.0), "first_shown_preferred": estimate(0.5),
        "lineage": "this judge has the trunk of proxy, tensor by tensor",
    }  # fmt: skip
    found = decide(Results.model_validate(data | {"judges": {"big": judge}}), Rule(), "big")
    assert found.verdict == "none"
    assert "trunk of proxy" in found.sentence
    judge["lineage"] = None
    alone = decide(Results.model_validate(data | {"judges": {"big": judge}}), Rule(), "big")
    assert "not independent" not in alone.sentence


def test_checkpoints_that_gold_chose_are_called_an_oracles() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6).model_dump(mode="json", by_alias=True)
    assert "racle" not in decide(Results.model_validate(data), Rule(), "gold").sentence
    data["arms"]["ppo"]["selection"] |= {"rule": "best", "metric": "gold_reward", "oracle": True}
    found = decide(Results.model_validate(data), Rule(), "gold").sentence
    assert "Oracle: gold, which no user has, chose the checkpoints of ppo, and judged them too." in found


def test_an_arm_that_diverged_is_not_eligible() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6, dpo_best_of_n=0.6).model_dump(mode="json", by_alias=True)
    data["arms"]["ppo"]["diverged"] = "KL 270 (step 40)"
    found = decide(Results.model_validate(data), Rule(), "gold")
    assert found.arms == ["dpo"]
    assert found.excluded["ppo"] == "diverged: KL 270 (step 40)"


def test_a_judge_that_saw_the_baseline_only_cannot_choose_between_arms() -> None:
    found = decide(changed(whole(), head_to_head=[]), Rule(), "gold")
    assert found.verdict == "undecided"
    assert found.more is not None
    assert found.more.prompts is None
    assert "opponents: all" in found.more.reason


def test_matched_kl_is_said_where_it_was_measured() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    assert "could not be matched" in decide(data, Rule(), "gold").sentence

    def gap(arm: str, against: str, kl: float, value: float) -> dict[str, Any]:
        where = {"reward": "gold_reward", "kl_kind": "mixed", "prompt_set": "mixed"}
        return {"arm": arm, "against": against, "kl": kl, "estimate": estimate(value, 0.1), **where}

    rows = [gap("ppo", "dpo", 1.0, 0.5), gap("ppo", "dpo", 5.0, -0.3), gap("best_of_n", "ppo", 1.5, 0.05)]
    found = decide(changed(data, matched_kl=rows), Rule(), "gold")
    assert found.verdict == "winner"  # it went farther; that is what the sentence must not hide
    assert "behind dpo (-0.30 [-0.40, -0.20] at 5.00 nats, the largest compared that both reach" in found.sentence
    assert "not told apart from best_of_n (-0.05 [-0.15, 0.05] at 1.50 nats" in found.sentence
    assert found.sentence.count("that both reach, bound, unpaired)") == 2


def matched_row(arm: str, against: str, kl: float, value: float, half: float = 0.1, **where: str) -> dict[str, Any]:
    place = {"reward": "gold_reward", "kl_kind": "mc_k1", "prompt_set": "validation"} | where
    return {"arm": arm, "against": against, "kl": kl, "estimate": estimate(value, half), **place}


def test_a_paired_row_on_test_prompts_is_told_rather_than_an_unpaired_one_at_more_kl() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    curve = matched_row("ppo", "best_of_n", 3.0, 0.4, kl_kind="mixed", prompt_set="mixed")
    paired = matched_row("ppo", "best_of_n", 1.7, -0.3, kl_kind="mixed", prompt_set="test")
    found = decide(changed(data, matched_kl=[paired, curve]), Rule(), "gold").sentence
    assert "behind best_of_n (-0.30 [-0.40, -0.20] at 1.70 nats, ppo's own KL, bound)" in found
    assert "3.00 nats" not in found


def test_matched_kl_is_corrected_over_the_arms_that_are_told() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    sure, edge = matched_row("ppo", "dpo", 3.0, 0.105), matched_row("ppo", "best_of_n", 3.0, 0.105)
    assert "ppo is ahead of dpo (" in decide(changed(data, matched_kl=[sure]), Rule(), "gold").sentence
    both = decide(changed(data, matched_kl=[sure, edge]), Rule(), "gold").sentence  # p = 0.04 each, two of them
    assert "ppo is not told apart from dpo (" in both
    assert "ahead of" not in both


def test_the_file_holds_it() -> None:
    data = whole(ppo_dpo=0.6, ppo_best_of_n=0.6)
    found = decide(data, Rule(), "gold")
    again = Results.model_validate_json(data.model_copy(update={"decision": found}).to_json())
    assert again.decision == found
    assert isinstance(again.decision, Decision)
    six = {frozenset((one.a, one.b)) for one in found.evidence}
    assert len(six) == len(found.evidence) == 6  # three arms and the SFT
