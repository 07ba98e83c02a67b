"""The match certificate: were the arms given the same start, data, prompts, decoding, numerics, rule and measure?

Each side (an arm, or the sft baseline, in one run seed) states facts that it recomputed from what it loaded or
consumed. A check compares them. A fact that is missing makes its check false, never a tick; a check that concerns no
side is "not_applicable". Facts are compared as they are: nothing here reads a file.

A diverged side must still show where it started and what it consumed (it knew that before its first step) and what it
cost. Facts of the evaluation, the selection and the KL may be missing from it, because nothing of it is compared
there; those it has must match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import Literal

from workbench.digests import prompt_set_digest
from workbench.match_facts import ARMS, ONLINE, TRAINED, Kind, Side
from workbench.match_tuning import same_tuning
from workbench.results import Check, Match

Ok = bool | Literal["not_applicable"]


def certificate(
    sides: Sequence[Side],
    split_prompts: Mapping[str, Collection[str]] | None,
    judges: Sequence[str] = ("gold",),
    *,
    train_pairs: str | None,
) -> Match:
    """All checks over all sides.

    Args:
        sides: Every arm in every run seed, and sft.
        split_prompts: split -> prompt ids (normalised texts share one) as read from the prompts artifact; None = not
            recorded, which fails `disjoint_splits`.
        judges: Judges of the win rates, the headline's first: a checkpoint may not be selected by one of them (but
            for gold, the labelled oracle).
        train_pairs: Digest of the train split's pairs as packed: what every trainer must have consumed; None = not
            recorded, which fails `same_pairs`.

    Returns:
        Match with the checks in a fixed order; ok = no check is false.

    Raises:
        ValueError: No side, or two of one name.
    """
    names = [side.name for side in sides]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected sides with different names, got {names}")
    start = _common_start(sides)
    found: list[tuple[str, tuple[Ok, str]]] = [
        ("one_sft", _same(sides, "sft tensors", lambda s: s.sft_tensors)),
        ("same_reference", _lineage(_of(sides, *ARMS), start, _one_reference)),
        ("evaluated_policy", _evaluated_policy(_of(sides, *TRAINED))),
        (
            "reward_lineage",
            _but_other_bases(
                [s for s in sides if s.kind in (*ONLINE, "best_of_n") or (s.labels and not _labeled_elsewhere(s))],
                lambda own: _lineage(own, start, _reward_start),
            ),
        ),
        ("critic_lineage", _lineage(_of(sides, "ppo"), start, lambda s: s.critic_sft_tensors)),
        ("same_parametrization", _same(_trained_here(sides), "trained", lambda s: s.parametrization)),
        ("same_pairs", _but_external(_of(sides, *ARMS), lambda own: _same_pairs(own, train_pairs))),
        ("same_labels", _but_external(_of(sides, *ARMS), _same_labels)),
        ("disjoint_splits", _disjoint_splits(sides, split_prompts)),
        ("same_eval_prompts", _same(sides, "prompts in order", lambda s: _keyed(s.eval_prompts), evaluated=True)),
        ("same_decoding", _same(sides, "decoding", lambda s: _shown(s.decoding), evaluated=True)),
        ("same_tokenizer", _same(sides, "tokenization", lambda s: _shown(s.tokenization))),
        ("same_numerics", _same(sides, "numerics", lambda s: _shown(s.numerics))),
        ("same_selection", _same_selection(_of(sides, *TRAINED), judges)),
        ("same_kl", _same_kl(_of(sides, *ARMS))),
        ("same_tuning_budget", same_tuning({s.name: s.tuning for s in _of(sides, *ARMS)})),
        ("cost_recorded", _cost_recorded(sides)),
    ]
    checks = [Check(name=name, ok=ok, detail=detail) for name, (ok, detail) in found]
    return Match(ok=all(check.ok is not False for check in checks), checks=checks)


def _of(sides: Sequence[Side], *kinds: Kind) -> list[Side]:
    return [side for side in sides if side.kind in kinds]


def _keyed(digests: Mapping[str, str]) -> str | None:
    return ", ".join(f"{name} {digest}" for name, digest in sorted(digests.items())) or None


def _shown(fact: object | None) -> str | None:
    return None if fact is None else repr(fact).partition("(")[2][:-1]


def _short(value: str) -> str:
    """The value with every SHA-256 in it cut to 12 digits, for reading; comparisons use the whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", value)


def _grouped(sides: Sequence[Side], fact: Callable[[Side], str | None]) -> tuple[dict[str, list[str]], list[str]]:
    """Value -> names of the sides that have it, and the names of those without one."""
    groups: dict[str, list[str]] = {}
    missing = []
    for side in sides:
        value = fact(side)
        if value is None or value == "":
            missing.append(side.name)
        else:
            groups.setdefault(value, []).append(side.name)
    return groups, missing


def _told(groups: Mapping[str, list[str]], missing: Sequence[str]) -> str:
    """`1a2b for sft, dpo; 3c4d for ppo; not recorded for best_of_n`, the largest group first."""
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    parts = [f"{_short(value)} for {', '.join(names)}" for value, names in ordered]
    return "; ".join([*parts, *([f"not recorded for {', '.join(missing)}"] if missing else [])])


def _same(
    sides: Sequence[Side], what: str, fact: Callable[[Side], str | None], *, evaluated: bool = False
) -> tuple[Ok, str]:
    """True when every side has the fact and all are equal. `evaluated`: a diverged side may lack it."""
    if evaluated:
        sides = [s for s in sides if s.diverged is None or fact(s)]
    if not sides:
        return "not_applicable", "no side was evaluated" if evaluated else "no side needs it"
    groups, missing = _grouped(sides, fact)
    if missing or len(groups) > 1:
        return False, f"{what}: {_told(groups, missing)}"
    (value,) = groups
    return True, f"{what}: {_short(value)} for all {len(sides)} side{'s' if len(sides) > 1 else ''}"


def _common_start(sides: Sequence[Side]) -> str | None:
    """The SFT's tensors: what the sft side evaluated, else what most sides started from."""
    known = [s.sft_tensors for s in sides if s.kind == "sft" and s.sft_tensors] or [
        s.sft_tensors for s in sides if s.sft_tensors
    ]
    return max(known, key=known.count) if known else None


def _lineage(sides: Sequence[Side], start: str | None, fact: Callable[[Side], str | None]) -> tuple[Ok, str]:
    """True when the fact of every side is the SFT's digest."""
    if not sides:
        return "not_applicable", "no arm has one"
    if start is None:
        return False, "the SFT's tensors are not recorded, so no lineage can end there"
    groups, missing = _grouped(sides, fact)
    if missing or set(groups) != {start}:
        return False, f"expected sft {_short(start)}: {_told(groups, missing)}"
    return True, f"sft {_short(start)} for {', '.join(side.name for side in sides)}"


def _reward_start(side: Side) -> str | None:
    return None if side.reward is None else side.reward.sft_tensors


def _one_reference(side: Side) -> str | None:
    """The reference of training and evaluation where they are one; a diverged side need not have been evaluated."""
    trained, evaluated = side.reference_tensors, side.evaluated_reference_tensors
    if trained is None or evaluated is None:
        return trained if side.diverged is not None else None
    return trained if trained == evaluated else f"{_short(trained)} in training but {_short(evaluated)} in evaluation"


def _evaluated_policy(sides: Sequence[Side]) -> tuple[Ok, str]:
    """What was evaluated is the checkpoint that was chosen, by the tensors themselves."""
    sides = [s for s in sides if s.diverged is None or s.evaluated_tensors is not None]
    if not sides:
        return "not_applicable", "no trained arm was evaluated"
    wrong = [
        f"{s.name}: chosen {_short(s.selected_tensors or 'not recorded')}, "
        f"evaluated {_short(s.evaluated_tensors or 'not recorded')}"
        for s in sides
        if s.selected_tensors is None or s.selected_tensors != s.evaluated_tensors
    ]
    if wrong:
        return False, "; ".join(wrong)
    return True, ", ".join(f"{s.name} {_short(s.evaluated_tensors or '')}" for s in sides)


def _same_pairs(sides: Sequence[Side], train_pairs: str | None) -> tuple[Ok, str]:
    subsets = [side for side in sides if side.declared_pairs is not None]
    whole = [side for side in sides if side.declared_pairs is None]
    rows, rows_told = (True, "pairs") if subsets and not whole else _same(whole, "pairs", lambda s: s.pair_rows)
    if wrong := [side.name for side in subsets if side.pair_rows != side.declared_pairs]:
        rows, rows_told = False, f"{rows_told}; other pairs than the declared subset for {', '.join(wrong)}"
    declared: dict[str, list[str]] = {}
    for side in subsets:
        declared.setdefault(side.declared, []).append(side.label)
    for told, labels in declared.items():
        rows_told += f"; DECLARED to differ: {', '.join(dict.fromkeys(labels))} on {told}"
    if rows is True and any(side.pair_rows != train_pairs for side in whole):
        rows, rows_told = False, f"{rows_told}, expected the train split's {_short(train_pairs or 'not recorded')}"
    kept, kept_told = _same(sides, "filter", lambda s: s.filter)
    relabeled = [side for side in sides if side.labels]
    taught = [s for s in relabeled if not _labeled_elsewhere(s)]
    if any(s.reward is None or s.reward.pair_rows is None or s.reward.pair_rows != train_pairs for s in taught):
        rows, rows_told = False, f"{rows_told}; labels of a reward that was trained on other pairs"
    turned = "".join(f"; {s.name}: the same pairs, labels of {s.labels}" for s in relabeled)
    return (rows if rows == kept else False), f"{rows_told}; {kept_told}{turned}" if sides else rows_told


def _labeled_elsewhere(side: Side) -> bool:
    """A dpo arm whose labels are those of a reward model that was not trained here: its pairs are still the same."""
    return side.kind == "dpo" and side.reward is not None and side.reward.external


def _trained_here(sides: Sequence[Side]) -> list[Side]:
    """Arms of which something was trained in this comparison: not a choice by a reward model from elsewhere."""
    arms = _of(sides, *ARMS)
    return [s for s in arms if s.kind != "best_of_n" or s.reward is None or not s.reward.external]


def _but_external(sides: Sequence[Side], check: Callable[[Sequence[Side]], tuple[Ok, str]]) -> tuple[Ok, str]:
    """A check of the sides whose reward was trained here; those with another one are declared, not matched.

    A dpo arm stays in it: the pairs that it trains on are ours, whoever labeled them.
    """
    apart = [side for side in sides if side.reward is not None and side.reward.external and side.kind != "dpo"]
    own = [side for side in sides if side not in apart]
    ok, told = check(own) if own or not apart else ("not_applicable", "no arm stands on pairs of this comparison")
    rewards: dict[str, list[str]] = {}
    for side in apart:
        assert side.reward is not None
        rewards.setdefault(f"{side.reward.name} {_short(side.reward.sft_tensors or '')}", []).append(side.name)
    told += "".join(
        f"; DECLARED to differ: {', '.join(names)} on the reward model {name}, which was trained elsewhere on pairs "
        "that are not known"
        for name, names in rewards.items()
    )
    return ok, told


def _but_other_bases(sides: Sequence[Side], check: Callable[[Sequence[Side]], tuple[Ok, str]]) -> tuple[Ok, str]:
    """`_but_external`, with the sides apart whose reward model started from another model than the SFT."""
    apart = [side for side in sides if side.reward is not None and side.reward.base]
    own = [side for side in sides if side not in apart]
    ok, told = _but_external(own, check) if own or not apart else ("not_applicable", "every reward has another base")
    rewards = {f"{side.reward.name} {_short(side.reward.sft_tensors or '')}": side for side in apart if side.reward}
    names = ", ".join(side.name for side in apart)
    return ok, told + (f"; DECLARED to differ: {names} on {', '.join(rewards)}, not the SFT's trunk" if apart else "")


def _same_labels(sides: Sequence[Side]) -> tuple[Ok, str]:
    """Every trainer consumed the labels that the one rule gives its pairs: targets, margins and noise."""
    if not sides:
        return "not_applicable", "no arm was trained on labels"
    wrong = [s.name for s in sides if s.consumed_labels is None or s.consumed_labels != s.expected_labels]
    given = [s for s in sides if not s.labels]
    groups, missing = _grouped(given, lambda s: s.label_use)
    told = _told(groups, missing)
    told += "".join(f"; DECLARED to differ: {s.name} on labels of {s.labels}" for s in sides if s.labels)
    if wrong:
        return False, f"{told}; other labels than these for {', '.join(wrong)}"
    return len(groups) <= 1 and not missing, told


def _disjoint_splits(sides: Sequence[Side], split_prompts: Mapping[str, Collection[str]] | None) -> tuple[Ok, str]:
    """No prompt in two splits, and every side read exactly these splits."""
    if not split_prompts:
        return False, "the prompts of the splits are not recorded"
    sets = {split: set(ids) for split, ids in split_prompts.items()}
    shared = {f"{a}/{b}": sets[a] & sets[b] for a, b in combinations(sets, 2) if sets[a] & sets[b]}
    if shared:
        told = (f"{where}: {len(ids)} prompts, {min(ids)} among them" for where, ids in shared.items())
        return False, f"prompts in two splits: {'; '.join(told)}"
    expected = _keyed({split: prompt_set_digest(ids) for split, ids in sets.items()})
    groups, missing = _grouped(sides, lambda s: _keyed(s.splits))
    if missing or set(groups) != {expected}:
        return False, f"expected {_short(expected or '')}: {_told(groups, missing)}"
    train = prompt_set_digest(sets.get("train", ()))
    rolled, unknown = _grouped(_of(sides, *ONLINE), lambda s: s.rollout_prompts)
    if unknown or set(rolled) - {train}:
        return False, f"rollouts: expected the train split {_short(train)}: {_told(rolled, unknown)}"
    return True, ", ".join(f"{split} {len(ids)} prompts" for split, ids in sets.items()) + ", none in two"


def _same_selection(sides: Sequence[Side], judges: Sequence[str]) -> tuple[Ok, str]:
    """One rule; `best` on validation only, by a scorer that is no judge of the result."""
    ok, told = _same(sides, "selection", lambda s: _shown(s.selection), evaluated=True)
    rule = next((s.selection for s in sides if s.selection is not None), None)
    if ok is not True or rule is None or rule.rule == "last":
        return ok, told
    if rule.metric is None or rule.split != "validation":
        return False, f"{told}: best must be chosen by a named metric on validation"
    if rule.metric == "gold_reward":
        return True, f"{told}; oracle: chosen by gold, which no user has"
    if rule.metric.removesuffix("_reward") in judges:
        return False, f"{told}: the selector is also the judge of the result ({', '.join(judges)})"
    return ok, told


def _same_kl(sides: Sequence[Side]) -> tuple[Ok, str]:
    """mc_k1 by one code path for trained arms, the labelled bound for best-of-n, all at temperature 1 and top-p 1."""
    sides = [s for s in sides if s.diverged is None or s.kl is not None]
    if not sides:
        return "not_applicable", "no arm has a KL"
    wrong = []
    for side in sides:
        allowed = ("bound", "mc_k1") if side.kind == "best_of_n" else ("mc_k1",)
        if side.kl is None:
            wrong.append(f"not recorded for {side.name}")
        elif side.kl.fault is not None:
            wrong.append(f"{side.name}: {side.kl.fault}")
        elif side.kl.estimator not in allowed:
            wrong.append(f"{side.name} has {side.kl.estimator}, expected {allowed[0]}")
        elif side.kl.temperature != 1 or side.kl.top_p != 1:
            wrong.append(
                f"{side.name} at temperature {side.kl.temperature:g}, top-p {side.kl.top_p:g}, expected 1 and 1"
            )
    measured = [s for s in sides if s.kl is not None and s.kl.estimator == "mc_k1"]
    codes, _ = _grouped(measured, lambda s: None if s.kl is None else s.kl.code)
    if len(codes) > 1 or (measured and not codes):
        wrong.append(f"code paths: {_told(codes, [])}")
    if wrong:
        return False, "; ".join(wrong)
    kinds, _ = _grouped(sides, lambda s: None if s.kl is None else s.kl.estimator)
    return True, f"{_told(kinds, [])}; temperature 1, top-p 1" + "".join(f"; {code}" for code in codes)


def _cost_recorded(sides: Sequence[Side]) -> tuple[Ok, str]:
    """Every side has its own cost and the cost with all that it stands on, which cannot be the smaller one."""
    wrong = []
    for side in sides:
        own, total = side.own_cost, side.total_cost
        if own is None or total is None:
            wrong.append(f"{side.name}: not recorded")
        elif own.wall_s <= 0 and side.kind != "sft":  # an adopted SFT has no stage of its own
            wrong.append(f"{side.name}: no time recorded for its own stages")
        elif total.wall_s < own.wall_s or total.cpu_s < own.cpu_s or total.gpu_s < own.gpu_s:
            wrong.append(f"{side.name}: less with upstream stages than without")
    return not wrong, "; ".join(wrong) or f"for all {len(sides)} sides"
