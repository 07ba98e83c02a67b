"""The tables of docs/findings.md, from results.json alone (`fill_docs.py` fills them in)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.report import wording_curves
from workbench.report.agreement import optimized_loses
from workbench.report.decision import DIVERSITY, OUTCOMES
from workbench.report.wording import interval, number, p_text

NOT_MEASURED = "Not in these results: run the comparison again.\n"
TILT_ROWS = 6
ACCURACIES = ("implicit_accuracy", "explicit_accuracy", "accuracy_difference")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOT_MEASURED
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _estimate(value: Any) -> str:
    return "–" if not value or value.get("value") is None else interval(value)


def decision(results: Any) -> str:
    """The sentence that the comparison ends with."""
    found = results.get("decision")
    return f"> {found['sentence']}\n" if found else NOT_MEASURED


def evidence(results: Any) -> str:
    """What the decision stands on."""
    rows = [
        [
            f"{one['a']} : {one['b']}",
            _estimate(one["win_rate"]),
            p_text(one["p_holm"]),
            p_text(one["p_equivalence"]),
            OUTCOMES.get(one["outcome"], one["outcome"]) + (", by less than the margin" if one["small"] else ""),
        ]
        for one in (results.get("decision") or {}).get("evidence") or ()
    ]
    return _table(("pair", "win rate of the first", "p of equality (Holm)", "p of the margin", "so"), rows)


def diversity(results: Any) -> str:
    """Diversity of every arm's samples."""
    arms = {label: arm["diversity"] for label, arm in results["arms"].items() if arm.get("diversity")}
    rows = [[label, *(_estimate(one[name]) for name in DIVERSITY)] for label, one in arms.items()]
    return _table(("arm", *DIVERSITY.values()), rows)


def diversity_change(results: Any) -> str:
    """The same less the SFT's, paired by prompt."""
    rows = [
        [label, *(_estimate(arm["diversity"]["against_sft"].get(name)) for name in DIVERSITY)]
        for label, arm in results["arms"].items()
        if (arm.get("diversity") or {}).get("against_sft")
    ]
    return _table(("arm less sft", *DIVERSITY.values()), rows)


def annotators(results: Any) -> str:
    """The arms as each annotator sees them."""
    about = results.get("annotators") or {}
    arms = {label: arm for label, arm in results["arms"].items() if arm.get("by_annotator")}
    if about.get("kind") is None:
        return f"Not known: {about['reason']}.\n" if about.get("reason") else NOT_MEASURED
    rows = [
        [
            name + (" (minority)" if name in about["minority"] else ""),
            _estimate(about["leave_one_out"].get(name)),
            *(_estimate(arm["by_annotator"].get(name)) for arm in arms.values()),
        ]
        for name in dict.fromkeys([*about["leave_one_out"], *(n for arm in arms.values() for n in arm["by_annotator"])])
    ]
    if about["minority"] and about["kind"] == "expected_win_rate":
        rows.append(["the others less the minority", "–", *(_estimate(arm["minority_gap"]) for arm in arms.values())])
    return _table(("annotator", "agrees with the others", *arms), rows)


def tilt(results: Any) -> str:
    """What each reward could give at each KL with a perfect optimizer, where the weights rest on enough candidates."""
    rows = []
    points = results.get("tilt") or ()
    for reward in dict.fromkeys(one["reward"] for one in points):
        mine = sorted(
            (one for one in points if one["reward"] == reward and one["seq_kl"]["value"] is not None),
            key=lambda one: float(one["seq_kl"]["value"]),
        )
        step = max(1, -(-len(mine) // TILT_ROWS))
        rows += [
            [
                one["reward"],
                number(one["beta"]),
                _estimate(one["seq_kl"]),
                _estimate(one["gold_gain"]),
                _estimate(one["proxy_reward"]),
                number(one["ess"]),
            ]
            for one in [*mine[:-1:step], *mine[-1:]]
        ]
    header = ("reward", "beta", "KL of its optimum", "gold over the SFT's", "proxy", "effective samples")
    return _table(header, rows)


def tilt_differences(results: Any) -> str:
    """Perfect optimizers of two rewards at the same KL, paired by prompt."""
    rows = [
        [
            f"{one['reward']} less {one['against']}",
            number(one["kl"]),
            str(one["gold_gain"]["n"]),
            _estimate(one["gold_gain"]),
        ]
        for one in results.get("tilt_differences") or ()
    ]
    return _table(("perfect optimizers", "KL", "prompts", "difference in gold"), rows)


def decomposition(results: Any) -> str:
    """The gap between RM+PPO and DPO in parts, and the effects of the crossed design."""
    rows = []
    for one in results.get("decomposition") or ():
        where = "selected" if one["at"] == "selected" else f"KL {number(one['kl'])}"
        what = one["measure"] + (f" by {one['judge']}" if one.get("judge") else "")
        rows += [
            [what, where, f"{effect['effect']}: {effect['name']}", _estimate(effect["difference"])]
            for effect in one["effects"]
        ]
        if gap := one.get("gap"):
            rows.append([what, where, f"{gap['a']} less {gap['b']}", _estimate(gap["total"])])
            if gap.get("relabeling"):
                rows.append([what, where, "of which relabeling", _estimate(gap["relabeling"])])
            for split in gap["splits"]:
                rows += [
                    [what, where, f"of which {part}, {split['order']}", _estimate(split[part])]
                    for part in ("reward", "optimizer")
                ]
    return _table(("measure", "at", "contrast", "difference"), rows)


def agreement_sets(results: Any) -> str:
    """Both rewards on every set, beside chance; against gold where it is known."""
    rows = []
    for name, entry in (results.get("agreement") or {}).items():
        if not entry:
            continue
        truth = entry.get("against_gold") or entry
        rows.append(
            [
                name,
                str(entry["agreement"]["n"]),
                _estimate(entry["agreement"]),
                _estimate(truth.get("chance")),
                _estimate((entry.get("standardized") or {}).get("agreement")),
                *(_estimate(truth.get(field)) for field in ACCURACIES),
            ]
        )
    header = ("pairs", "prompts", "agreement", "chance", "standardized", "implicit accuracy", "explicit accuracy")
    return _table((*header, "explicit - implicit"), rows)


def shifts(results: Any) -> str:
    """What each reward loses away from the SFT's samples, and whether an optimized one loses more."""
    rows = [
        [
            one["set"],
            one.get("optimized") or "–",
            str(one["difference_change"]["n"]),
            *(_estimate(one[field]) for field in ("implicit_change", "explicit_change", "difference_change")),
            optimized_loses(one),
        ]
        for one in (results.get("generalization") or {}).get("shifts") or ()
    ]
    changes = ("change of implicit accuracy", "of explicit accuracy", "of explicit - implicit")
    return _table(("pairs", "policy optimized", "prompts", *changes, "the optimized reward loses"), rows)


def calibration(results: Any) -> str:
    """Slopes of the label on the margin, before and after temperature."""
    rows = []
    for name, entry in (results.get("agreement") or {}).items():
        found = (entry or {}).get("calibration")
        for side in ("implicit", "explicit") if found else ():
            values = [
                found.get(f"{side}_slope"),
                found.get(f"{side}_ece"),
                (found.get("tempered") or {}).get(f"{side}_slope"),
            ]
            rows.append([f"{name}, {side}", found["labels"], str(found[f"{side}_ece"]["n"]), *map(_estimate, values)])
    return _table(("pairs, reward", "labels", "prompts", "slope", "ECE", "slope after temperature"), rows)


def length(results: Any) -> str:
    """Rank correlation of margins with length beyond gold, and agreement by the token."""
    rows = []
    for name, entry in (results.get("agreement") or {}).items():
        if found := (entry or {}).get("length"):
            each = (entry.get("per_token") or {}).get("agreement")
            values = (found.get("implicit_given_gold"), found.get("explicit_given_gold"), entry["agreement"], each)
            rows.append([name, str(found["implicit"]["n"]), *map(_estimate, values)])
    return _table(("pairs", "prompts", "implicit, given gold", "explicit, given gold", "agreement", "per token"), rows)


def pairs(results: Any) -> str:
    """Of every two arms of one kind whose rewards saw different numbers of pairs: fall and best point."""
    lines = [f"- {line}" for line in wording_curves.pairs_lines(results)]
    return "\n".join(lines) + "\n" if lines else NOT_MEASURED


def learning(results: Any) -> str:
    """What each kind of arm gains from how many pairs, and the kinds against each other on equally many."""
    curves = {one["kind"]: {point["pairs"]: point for point in one["points"]} for one in results["learning_curves"]}
    kinds = {point["arm"]: kind for kind, points in curves.items() for point in points.values()}
    gaps: dict[tuple[str, str], dict[int, Any]] = {}
    for one in results["learning_gaps"]:
        gaps.setdefault((kinds[one["a"]], kinds[one["b"]]), {})[one["pairs"]] = one["difference"]
    rows = []
    for count in sorted({count for points in curves.values() for count in points}):
        points = [found.get(count) for found in curves.values()]
        accuracy = next((one["reward_model_accuracy"] for one in points if one and one["reward_model_accuracy"]), None)
        gained = [f"{_estimate(one['gain'])} (KL {number(one['seq_kl']['value'])})" if one else "–" for one in points]
        missing = [_estimate(one["shortfall"]) if one else "–" for one in points]
        apart = [_estimate(found.get(count)) for found in gaps.values()]
        rows.append([f"{count:,}", _estimate(accuracy), *gained, *missing, *apart])
    names = [kind.upper() for kind in curves]
    header = ["pairs", "reward model's accuracy", *names, *(f"{name}, short of all" for name in names)]
    return _table([*header, *(f"{a.upper()} less {b.upper()}" for a, b in gaps)], rows)


def generalization(results: Any) -> str:
    """Whether the implicit reward is the worse one out of distribution."""
    found = results.get("generalization")
    if not found:
        return NOT_MEASURED
    holds = {True: "It holds here", False: "It does not hold here"}.get(found["holds"], "Unresolved here")
    told = f"{found['statement']} ({found['source']}). {holds}: {found['reason']}. "
    told += f"Difference of differences, {found['out_of_distribution']} less {found['in_distribution']}: "
    return told + f"{_estimate(found['difference'])}.\n"


def overoptimization(results: Any) -> str:
    """What the report says of each arm's line."""
    lines = [f"- {line}" for _, line in wording_curves.overoptimization_lines(results)]
    return "\n".join(lines) + "\n" if lines else NOT_MEASURED


FINDINGS: dict[str, Callable[[Any], str]] = {
    "decision": decision,
    "evidence": evidence,
    "diversity": diversity,
    "diversity-change": diversity_change,
    "annotators": annotators,
    "tilt": tilt,
    "tilt-differences": tilt_differences,
    "decomposition": decomposition,
    "generalization": generalization,
    "agreement-sets": agreement_sets,
    "shifts": shifts,
    "calibration": calibration,
    "length": length,
    "pairs": pairs,
    "learning": learning,
    "overoptimization": overoptimization,
}
