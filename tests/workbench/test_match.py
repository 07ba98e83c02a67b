"""The match certificate: a matched set passes, and each check can be broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from workbench.digests import prompt_order_digest, prompt_set_digest
from workbench.match import certificate
from workbench.match_facts import Decoding, KLMeasure, Numerics, RewardLineage, Selection, Side, Tokenization
from workbench.match_tuning import Tuning
from workbench.results import Match
from workbench.types import Cost

SFT, OTHER, PAIRS, POLICY = "a" * 64, "b" * 64, "d" * 64, "f" * 64
SPLITS = {"train": ["p1", "p2", "p3"], "validation": ["p4"], "test": ["p5", "p6"], "ood": ["p7"]}
COST = Cost(wall_s=10, cpu_s=9)
NAMES = [
    "one_sft",
    "same_reference",
    "evaluated_policy",
    "reward_lineage",
    "critic_lineage",
    "same_parametrization",
    "same_pairs",
    "same_labels",
    "disjoint_splits",
    "same_eval_prompts",
    "same_decoding",
    "same_tokenizer",
    "same_numerics",
    "same_selection",
    "same_kl",
    "same_tuning_budget",
    "cost_recorded",
]


def matched() -> dict[str, Side]:
    """sft and three arms with every fact recorded and equal."""
    sft = Side(
        label="sft",
        kind="sft",
        sft_tensors=SFT,
        splits={split: prompt_set_digest(ids) for split, ids in SPLITS.items()},
        eval_prompts={"test": prompt_order_digest(SPLITS["test"]), "ood": prompt_order_digest(SPLITS["ood"])},
        decoding=Decoding(temperature=1.0, top_p=1.0, max_response_tokens=48),
        tokenization=Tokenization(tokenizer="c" * 64, template="none", stop_ids=(1,)),
        numerics=Numerics(dtype="float32", device="cpu", threads=1),
        own_cost=COST,
        total_cost=COST,
    )
    arm = replace(
        sft,
        reference_tensors=SFT,
        evaluated_reference_tensors=SFT,
        parametrization="full",
        pair_rows=PAIRS,
        filter="e" * 64,
        consumed_labels="9" * 64,
        expected_labels="9" * 64,
        label_use="majority labels",
        selection=Selection(rule="last"),
        kl=KLMeasure(estimator="mc_k1", temperature=1.0, top_p=1.0, code="scoring@1"),
        total_cost=COST.plus(COST),
    )
    reward = RewardLineage(name="main", sft_tensors=SFT)
    bound = KLMeasure(estimator="bound", temperature=1.0, top_p=1.0, code="bound")
    return {
        "sft": sft,
        "ppo": replace(
            arm,
            label="ppo",
            kind="ppo",
            reward=reward,
            critic_sft_tensors=SFT,
            rollout_prompts=prompt_set_digest(SPLITS["train"]),
            selected_tensors=POLICY,
            evaluated_tensors=POLICY,
        ),
        "dpo": replace(arm, label="dpo", kind="dpo", selected_tensors=POLICY, evaluated_tensors=POLICY),
        "best_of_n": replace(arm, label="best_of_n", kind="best_of_n", reward=reward, kl=bound, selection=None),
    }


def made(sides: dict[str, Side], **options: object) -> Match:
    return certificate(list(sides.values()), **({"split_prompts": SPLITS, "train_pairs": PAIRS} | options))  # type: ignore[arg-type]


def verdicts(match: Match) -> dict[str, object]:
    return {check.name: check.ok for check in match.checks}


def test_a_matched_set_passes_and_untuned_is_no_tick() -> None:
    found = made(matched())
    assert [check.name for check in found.checks] == NAMES
    assert found.ok
    assert verdicts(found) == dict.fromkeys(NAMES, True) | {"same_tuning_budget": "not_applicable"}
    details = {check.name: check.detail for check in found.checks}
    assert "a" * 12 in details["one_sft"]
    assert "a" * 13 not in details["one_sft"]


def test_run_seeds_are_sides_of_their_own() -> None:
    sides = [replace(side, seed=seed) for side in matched().values() for seed in (0, 1)]
    assert certificate(sides, SPLITS, train_pairs=PAIRS).ok
    broken = [replace(s, sft_tensors=OTHER) if s.name == "ppo[seed=1]" else s for s in sides]
    found = certificate(broken, SPLITS, train_pairs=PAIRS)
    assert "ppo[seed=1]" in next(c.detail for c in found.checks if c.name == "one_sft")


Change = Callable[[Side], Side]
TUNED = Tuning(trials=20, spent=COST)
BEST = Selection(rule="best", metric="proxy_reward", split="validation")


def kl(**change: object) -> Change:
    return lambda s: replace(s, kl=replace(s.kl, **change))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("check", "label", "change"),
    [
        ("one_sft", "dpo", lambda s: replace(s, sft_tensors=OTHER)),
        ("one_sft", "best_of_n", lambda s: replace(s, sft_tensors=None)),
        ("same_reference", "dpo", lambda s: replace(s, reference_tensors=OTHER)),
        ("same_reference", "ppo", lambda s: replace(s, reference_tensors=None)),
        ("same_reference", "dpo", lambda s: replace(s, evaluated_reference_tensors=OTHER)),
        ("same_reference", "best_of_n", lambda s: replace(s, evaluated_reference_tensors=None)),
        ("evaluated_policy", "ppo", lambda s: replace(s, evaluated_tensors=OTHER)),
        ("evaluated_policy", "dpo", lambda s: replace(s, selected_tensors=None)),
        ("reward_lineage", "ppo", lambda s: replace(s, reward=RewardLineage(name="main", sft_tensors=OTHER))),
        ("reward_lineage", "best_of_n", lambda s: replace(s, reward=RewardLineage(name="main", sft_tensors=None))),
        ("reward_lineage", "ppo", lambda s: replace(s, reward=None)),
        ("critic_lineage", "ppo", lambda s: replace(s, critic_sft_tensors=OTHER)),
        ("critic_lineage", "ppo", lambda s: replace(s, critic_sft_tensors=None)),
        ("same_parametrization", "dpo", lambda s: replace(s, parametrization="lora rank 4 alpha 8 on all-linear")),
        ("same_parametrization", "best_of_n", lambda s: replace(s, parametrization=None)),
        ("same_pairs", "dpo", lambda s: replace(s, pair_rows=OTHER)),
        ("same_pairs", "dpo", lambda s: replace(s, pair_rows=None)),
        ("same_pairs", "dpo", lambda s: replace(s, filter=OTHER)),
        ("disjoint_splits", "ppo", lambda s: replace(s, splits={})),
        ("disjoint_splits", "ppo", lambda s: replace(s, rollout_prompts=OTHER)),
        ("same_kl", "dpo", kl(fault="more than 4 standard errors below 0")),
        ("disjoint_splits", "ppo", lambda s: replace(s, splits=dict(s.splits) | {"train": OTHER})),
        ("same_eval_prompts", "ppo", lambda s: replace(s, eval_prompts={"test": prompt_order_digest(["p6", "p5"])})),
        ("same_eval_prompts", "dpo", lambda s: replace(s, eval_prompts={})),
        ("same_decoding", "sft", lambda s: replace(s, decoding=replace(s.decoding, temperature=0.7))),
        ("same_decoding", "ppo", lambda s: replace(s, decoding=None)),
        ("same_tokenizer", "dpo", lambda s: replace(s, tokenization=replace(s.tokenization, stop_ids=(1, 2)))),
        ("same_tokenizer", "dpo", lambda s: replace(s, tokenization=replace(s.tokenization, template="chatml"))),
        ("same_tokenizer", "dpo", lambda s: replace(s, tokenization=None)),
        ("same_numerics", "ppo", lambda s: replace(s, numerics=replace(s.numerics, threads=2))),
        ("same_numerics", "ppo", lambda s: replace(s, numerics=replace(s.numerics, dtype="bfloat16"))),
        ("same_numerics", "ppo", lambda s: replace(s, numerics=replace(s.numerics, device="cuda"))),
        ("same_selection", "ppo", lambda s: replace(s, selection=BEST)),
        ("same_selection", "ppo", lambda s: replace(s, selection=None)),
        ("same_kl", "ppo", kl(temperature=0.7)),
        ("same_kl", "dpo", kl(top_p=0.9)),
        ("same_kl", "dpo", kl(code="trainer-log")),
        ("same_kl", "dpo", kl(estimator="bound")),
        ("same_kl", "best_of_n", kl(temperature=0.7)),
        ("same_kl", "ppo", lambda s: replace(s, kl=None)),
        ("same_tuning_budget", "ppo", lambda s: replace(s, tuning=TUNED)),
        ("cost_recorded", "best_of_n", lambda s: replace(s, own_cost=None)),
        ("cost_recorded", "dpo", lambda s: replace(s, own_cost=Cost())),
        ("cost_recorded", "dpo", lambda s: replace(s, total_cost=Cost(wall_s=1))),
    ],
)
def test_each_check_breaks_alone_and_names_the_arm(check: str, label: str, change: Change) -> None:
    sides = matched()
    sides[label] = change(sides[label])
    found = made(sides)
    assert not found.ok
    assert [c.name for c in found.checks if c.ok is False] == [check]
    detail = next(c.detail for c in found.checks if c.name == check)
    assert label in detail
    if sides[label] != matched()[label] and OTHER in repr(sides[label]):
        assert OTHER[:12] in detail  # both digests are shown


def test_a_prompt_in_two_splits_fails_and_is_named() -> None:
    leaking = SPLITS | {"test": ["p5", "p2"]}
    sides = {
        label: replace(side, splits={s: prompt_set_digest(ids) for s, ids in leaking.items()})
        for label, side in matched().items()
    }
    found = made(sides, split_prompts=leaking)
    assert [c.name for c in found.checks if c.ok is False] == ["disjoint_splits"]
    assert "p2" in next(c.detail for c in found.checks if c.name == "disjoint_splits")
    assert verdicts(made(matched(), split_prompts=None))["disjoint_splits"] is False


def test_best_needs_validation_and_a_selector_that_does_not_judge() -> None:
    def chosen_by(selection: Selection, judges: tuple[str, ...]) -> tuple[object, str]:
        sides = {k: replace(s, selection=selection) if k in ("ppo", "dpo") else s for k, s in matched().items()}
        found = made(sides, judges=judges)
        return next((c.ok, c.detail) for c in found.checks if c.name == "same_selection")

    assert chosen_by(BEST, ("gold",))[0] is True
    assert chosen_by(BEST, ("gold", "proxy"))[0] is False
    assert chosen_by(replace(BEST, split="test"), ("gold",))[0] is False
    ok, detail = chosen_by(replace(BEST, metric="gold_reward"), ("gold",))
    assert ok is True
    assert "oracle" in detail


def test_tuning_must_be_equal_and_its_compute_written_down() -> None:
    tuned = {k: s if k == "sft" else replace(s, tuning=TUNED) for k, s in matched().items()}
    assert verdicts(made(tuned))["same_tuning_budget"] is True
    more = tuned | {"dpo": replace(tuned["dpo"], tuning=Tuning(trials=50, spent=COST))}
    assert verdicts(made(more))["same_tuning_budget"] is False
    unspent = tuned | {"dpo": replace(tuned["dpo"], tuning=Tuning(trials=20, spent=None))}
    assert verdicts(made(unspent))["same_tuning_budget"] is False


def test_what_no_arm_has_is_not_applicable() -> None:
    sides = {k: s for k, s in matched().items() if k in ("sft", "dpo")}
    found = made(sides)
    assert found.ok
    assert verdicts(found)["critic_lineage"] == "not_applicable"
    assert verdicts(found)["reward_lineage"] == "not_applicable"
    alone = verdicts(made({"sft": matched()["sft"]}))
    assert alone["same_pairs"] == alone["same_parametrization"] == "not_applicable"


def test_a_diverged_arm_may_lack_evaluation_but_not_its_start() -> None:
    sides = matched()
    gone = replace(sides["ppo"], diverged="KL 270", eval_prompts={}, decoding=None, selection=None, kl=None)
    assert made(sides | {"ppo": gone}).ok
    assert (
        verdicts(made(sides | {"ppo": replace(gone, decoding=replace(sides["dpo"].decoding, top_p=0.5))}))[  # type: ignore[type-var]
            "same_decoding"
        ]
        is False
    )
    for name, fact in (("one_sft", "sft_tensors"), ("same_pairs", "pair_rows"), ("cost_recorded", "own_cost")):
        assert verdicts(made(sides | {"ppo": replace(gone, **{fact: None})}))[name] is False


def test_nothing_recorded_fails_everything_that_concerns_the_arm() -> None:
    found = verdicts(certificate([matched()["sft"], Side(label="ppo", kind="ppo")], None, train_pairs=None))
    assert {name for name, ok in found.items() if ok is not False} == {"same_tuning_budget"}


def test_digests_tell_order_and_boundaries_apart() -> None:
    assert prompt_set_digest(["a", "b"]) == prompt_set_digest(["b", "a", "a"])
    assert prompt_order_digest(["a", "b"]) != prompt_order_digest(["b", "a"])
    assert prompt_order_digest(["ab", "c"]) != prompt_order_digest(["a", "bc"])


def test_sides_need_different_names() -> None:
    with pytest.raises(ValueError, match="different names"):
        certificate([matched()["sft"]] * 2, SPLITS, train_pairs=PAIRS)
    with pytest.raises(ValueError, match="different names"):
        certificate([], SPLITS, train_pairs=PAIRS)


def test_the_wrong_split_in_every_trainer_is_seen() -> None:
    """Equal between the arms is not enough: all of them could have trained on the test split."""
    sides = {label: replace(s, pair_rows=OTHER) if s.pair_rows else s for label, s in matched().items()}
    assert verdicts(made(sides))["same_pairs"] is False
    assert verdicts(made(matched(), train_pairs=None))["same_pairs"] is False
