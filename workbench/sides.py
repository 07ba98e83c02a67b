"""The facts of each side of the match certificate, from what the stages wrote about what they loaded and consumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.config_labels import GIVEN
from workbench.data.label_use import LABELS_FILE
from workbench.data.subset import subset_rows
from workbench.data.turned import train_digests
from workbench.evidence import Artifacts
from workbench.label_targets import expected_digest
from workbench.match_facts import (
    HARD_LABELS,
    ONLINE,
    TRAINED,
    Decoding,
    Kind,
    KLMeasure,
    Numerics,
    RewardLineage,
    Selection,
    Side,
    Tokenization,
)
from workbench.match_tuning import Tuning
from workbench.packed import PackedPairs, read_packed_prompts
from workbench.results_tuning import TuningLedger
from workbench.types import Cost


def read_side(
    artifacts: Artifacts,
    label: str,
    run: int,
    arm: Mapping[str, Any] | None,
    *,
    seeded: bool,
    kl_fault: str | None = None,
    subsets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Side:
    """One arm's facts in one run seed; `arm` is its config block, None for the SFT.

    Args:
        seeded: There are several run seeds, so the side's name carries its own.
        kl_fault: Why the measured KL cannot be one, or None.
        subsets: Reward model or dpo arm -> {"pairs", "seeds": run -> seed}, of those that the config gives fewer pairs.
    """
    declared = declared_subset(artifacts, subsets or {}, label, arm, run)
    kind: Kind = arm["kind"] if arm is not None else "sft"
    generations = artifacts.json(label, run, "generations", "facts.json")
    apart = next((role for role in ("kl", "kl_pool") if artifacts.has(label, run, role)), None)
    measured = artifacts.json(label, run, apart, "facts.json") if apart is not None else generations
    decoding = generations["decoding"]
    training = artifacts.json(label, run, "policy", "index.json") if kind in TRAINED else None
    return Side(
        label=label,
        kind=kind,
        seed=run if seeded else None,
        diverged=training["diverged"]["reason"] if training is not None and training["diverged"] else None,
        splits=generations["splits"],
        eval_prompts={"test": generations["prompts"]},
        decoding=Decoding(
            temperature=decoding["temperature"],
            top_p=decoding["top_p"],
            max_response_tokens=decoding["max_response_tokens"],
            sampler=decoding.get("sampler", "workbench"),
        ),
        tokenization=Tokenization(
            tokenizer=generations["policy_tokenizer"],
            template=generations["template"],
            stop_ids=tuple(decoding["stop_ids"]),
        ),
        numerics=Numerics(**generations["numerics"]),
        evaluated_reference_tensors=measured["reference_tensors"],
        declared_pairs=declared[0] if declared is not None else None,
        declared=declared[1] if declared is not None else "",
        **_label_use(artifacts, subsets or {}, label, arm, run, generations),
        kl=KLMeasure(
            estimator="bound" if kind == "best_of_n" else "mc_k1",
            temperature=measured["decoding"]["temperature"],
            top_p=measured["decoding"]["top_p"],
            code=measured["kl_estimator"],
            fault=kl_fault,
        ),
        **_lineage(artifacts, label, run, kind, arm, generations, training, subsets or {}),
    )


def _lineage(
    artifacts: Artifacts,
    label: str,
    run: int,
    kind: str,
    arm: Mapping[str, Any] | None,
    generations: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    subsets: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Where weights, reference, reward and pairs came from, by kind of arm."""
    if arm is None:
        return {"sft_tensors": generations["policy_tensors"], "reference_tensors": generations["reference_tensors"]}
    if training is None:
        selector = generations["selector_facts"]
        return {
            "sft_tensors": generations["policy_tensors"],
            "reference_tensors": generations["reference_tensors"],
            "reward": _reward(arm["reward"], selector["sft_tensors"], selector),
            "parametrization": _parametrization(selector),
            "pair_rows": _pairs_behind(artifacts, arm["reward"], run, selector["consumed_pairs"], subsets),
            "filter": selector["pairs_filter"],
        }
    facts = training["facts"]
    selected = artifacts.json(label, run, "selected", "selected.json")
    best = selected["rule"] == "best"
    found = {
        "sft_tensors": facts["sft_tensors"],
        "reference_tensors": facts["reference_tensors"],
        "parametrization": _parametrization(facts),
        "pair_rows": _pairs_behind(artifacts, _learner(label, arm), run, facts["consumed_pairs"], subsets),
        "filter": facts["pairs_filter"],
        "selected_tensors": next(
            one["tensors"] for one in training["checkpoints"] if one["name"] == selected["checkpoint"]
        ),
        "evaluated_tensors": generations["policy_tensors"],
        "rollout_prompts": facts.get("rollout_prompts"),
        "selection": Selection(rule=selected["rule"], metric=selected["metric"], split="validation" if best else None),
    }
    if kind in ONLINE:
        judge = _reward_facts(artifacts, arm["reward"], run)
        external = bool(judge.get("external"))
        if not external and _parametrization(judge) != found["parametrization"]:
            found["parametrization"] += f", its reward model {_parametrization(judge)}"
        found["reward"] = _reward(arm["reward"], facts["reward_trunk_start"], judge)
    if kind == "ppo":
        # The critic must start from the reward model: equal tensors share its lineage, others stand for themselves.
        same = facts["critic_tensors"] == facts["reward_tensors"]
        found["critic_sft_tensors"] = facts["reward_trunk_start"] if same else facts["critic_tensors"]
    if kind == "dpo" and (source := arm.get("labels", GIVEN)) != GIVEN:
        judge = _reward_facts(artifacts, source, run)
        behind = _pairs_behind(artifacts, source, run, judge["consumed_pairs"], subsets)
        found["reward"] = _reward(source, judge["sft_tensors"], judge, behind)
        told = artifacts.json(label, run, "relabeled", "facts.json")
        found["labels"] = f"{source} by {told['rule']}, {told['turned']} of {told['pairs']} turned"
    return found


def _reward(
    name: str, sft_tensors: str | None, facts: Mapping[str, Any], pair_rows: str | None = None
) -> RewardLineage:
    """A reward's lineage; its facts say whether it is apart from those that start from the SFT on these pairs."""
    return RewardLineage(
        name=name, sft_tensors=sft_tensors, pair_rows=pair_rows, external=bool(facts.get("external")),
        base=bool(facts.get("base")),
    )  # fmt: skip


def _reward_facts(artifacts: Artifacts, name: str, run: int) -> Mapping[str, Any]:
    """What the training of a reward wrote: a reward model's, or that of the DPO arm whose implicit reward it is."""
    path = artifacts.inputs.get(f"reward/{name}/{run}") or artifacts.path(name, run, "policy")
    facts: Mapping[str, Any] = json.loads((path / "index.json").read_text(encoding="utf-8"))["facts"]
    return facts


def _pairs_behind(
    artifacts: Artifacts,
    source: str,
    run: int,
    consumed: str | None,
    subsets: Mapping[str, Mapping[str, Any]] | None = None,
) -> str | None:
    """Digest of the pairs behind a reward or a DPO arm; where it declares other labels, with every turn undone.

    Both digests come from the ids of the relabeled pairs: what was consumed must be them, and only then are they
    taken for the pairs that they were made of. The data's own labels in their place fail as any other pairs do.
    """
    if not artifacts.has(source, run, "relabeled"):
        return consumed
    folder, subset = artifacts.path(source, run, "relabeled"), (subsets or {}).get(source)
    rows = subset_rows(PackedPairs(folder), subset["pairs"], subset["seeds"][str(run)]) if subset else None
    made, restored = train_digests(folder, rows)
    return restored if consumed == made else f"{consumed} in place of the declared {made}"


def _parametrization(facts: Mapping[str, Any]) -> str:
    """What a stage trained; one that has no adapters need not say so."""
    trained: str = facts.get("parametrization", "full")
    return trained


def split_prompts(artifacts: Artifacts) -> dict[str, list[str]]:
    """split -> prompt ids as packed; a training pair on a prompt of another split puts that prompt into both."""
    splits: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    for row in read_packed_prompts(artifacts.inputs["prompts"]):
        splits.setdefault(row["split"], []).append(row["prompt_id"])
        home[row["prompt_id"]] = row["split"]
    for line in (artifacts.inputs["pairs"] / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        if home.get(pair["prompt_id"], pair["split"]) != pair["split"]:
            splits.setdefault(pair["split"], []).append(pair["prompt_id"])
    return splits


def to_json(side: Side) -> dict[str, Any]:
    """A side as plain JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(side)))
    return plain


def from_json(value: Mapping[str, Any], *, own: Cost, total: Cost) -> Side:
    """A side as `to_json` wrote it, with the costs that only the driver knows."""
    parts = {
        "reward": RewardLineage, "decoding": Decoding, "numerics": Numerics, "selection": Selection, "kl": KLMeasure,
    }  # fmt: skip
    fields = dict(value)
    for name, kind in parts.items():
        if fields[name] is not None:
            fields[name] = kind(**fields[name])
    token = fields["tokenization"]
    fields["tokenization"] = Tokenization(**(token | {"stop_ids": tuple(token["stop_ids"])})) if token else None
    return Side(**(fields | {"own_cost": own, "total_cost": total}))


def with_tuning(side: Side, ledger: TuningLedger | None) -> Side:
    """A side with what was spent on its settings, and on those of the reward or arm that it stands on; as it is where
    the ledger does not know the arm."""
    if ledger is None or side.label not in ledger.arms:
        return side
    upstream = {name: _tuning(ledger, name) for name in ledger.behind.get(side.label, []) if name in ledger.arms}
    tuning = dataclasses.replace(
        _tuning(ledger, side.label),
        behind={name: one for name, one in upstream.items() if name not in ledger.declared},
        declared={name: one for name, one in upstream.items() if name in ledger.declared},
    )
    return dataclasses.replace(side, tuning=tuning)


def _tuning(ledger: TuningLedger, label: str) -> Tuning:
    """One line of the ledger."""
    arm, budget = ledger.arms[label], ledger.budget
    return Tuning(
        trials=arm.trials, spent=arm.spent.cost(), budget=f"{budget.amount:g} {budget.unit}", met=arm.met,
        rule=ledger.rule, amount=None if budget.unit == "trials" else budget.amount, used=arm.used,
        largest=arm.largest,
    )  # fmt: skip


def declared_subset(
    artifacts: Artifacts,
    subsets: Mapping[str, Mapping[str, Any]],
    label: str,
    arm: Mapping[str, Any] | None,
    run: int,
) -> tuple[str, str] | None:
    """Digest and words of the pairs that the config gives to an arm or the reward behind it, recomputed; None: all."""
    subset = subsets.get(_learner(label, arm))
    if subset is None:
        return None
    pairs = PackedPairs(artifacts.inputs["pairs"])
    rows = subset_rows(pairs, subset["pairs"], subset["seeds"][str(run)])
    return pairs.ids_digest(rows), f"{len(rows)} of {len(pairs.split_rows('train'))} training pairs"


def _learner(label: str, arm: Mapping[str, Any] | None) -> str:
    """Who trained on pairs for an arm: a dpo arm itself, else the reward that it names."""
    block = arm or {}
    return label if block.get("kind") == "dpo" else str(block.get("reward", ""))


def _label_use(
    artifacts: Artifacts,
    subsets: Mapping[str, Mapping[str, Any]],
    label: str,
    arm: Mapping[str, Any] | None,
    run: int,
    generations: Mapping[str, Any],
) -> dict[str, Any]:
    """Labels that an arm's signal was trained on, as its trainer gathered them, and as the artifacts say they are."""
    if arm is None:
        return {}
    learner = _learner(label, arm)
    facts = generations["selector_facts"] if arm["kind"] == "best_of_n" else _reward_facts(artifacts, learner, run)
    relabeled = artifacts.has(learner, run, "relabeled")
    folder = artifacts.path(learner, run, "relabeled") if relabeled else artifacts.inputs["pairs"]
    subset = subsets.get(learner)
    asked = (subset["pairs"], subset["seeds"][str(run)]) if subset else None
    told = folder / LABELS_FILE
    return {
        "consumed_labels": facts.get("consumed_labels"),
        "expected_labels": _expected_labels(folder, asked),
        "label_use": json.loads(told.read_text(encoding="utf-8"))["told"] if told.exists() else HARD_LABELS,
    }


@lru_cache(maxsize=64)
def _expected_labels(folder: Path, asked: tuple[int, int] | None) -> str:
    """Digest of the labels that a trainer on all training pairs, or on a subset of (count, seed), must consume."""
    pairs = PackedPairs(folder)
    return expected_digest(folder, subset_rows(pairs, *asked) if asked else pairs.split_rows("train"))
