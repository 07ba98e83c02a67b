"""tuning.json from the arms' sweeps: with the arms of earlier commands, the orders, and what to be warned of."""

from __future__ import annotations

from pipelines.tune_arm import ArmSweep
from workbench.config import Comparison, Tuning
from workbench.config_tuning import REWARD_MODEL, run_seeds
from workbench.results_tuning import Budgeted, TunedArm, TunedObjective, TuningResults
from workbench.tuned_blocks import untuned
from workbench.tuning_choice import order_by, orders
from workbench.tuning_spaces import upstream_digest


def joined(before: TuningResults, found: dict[str, TunedArm], budget: Budgeted, rule: str) -> dict[str, TunedArm]:
    """With the arms that an earlier command tuned with the same budget and rule; those of another one are left out."""
    same = before.budget == budget and before.rule == rule
    return {label: arm for label, arm in before.arms.items() if same and label not in found} | found


def left_out(before: TuningResults, found: dict[str, TunedArm], budget: Budgeted, rule: str) -> dict[str, str]:
    """Arms that an earlier command tuned and `found` lacks, with the reason."""
    reasons = []
    if before.budget != budget:
        reasons.append(f"with a budget of {before.budget.amount:g} {before.budget.unit}")
    if before.rule != rule:
        reasons.append(f"by another rule ({before.rule})")
    why = f"tuned {' and '.join(reasons)}; tune it again to have it in this file"
    return {
        label: one for label, one in (before.left_out | dict.fromkeys(before.arms, why)).items() if label not in found
    }


def collect(
    comparison: Comparison, name: str, arms: dict[str, ArmSweep], storage: str, before: TuningResults | None
) -> TuningResults:
    """tuning.json but for figures and MLflow; `before`: as an earlier command left it."""
    tuning = comparison.tuning
    assert tuning is not None
    objective = tuning.objective
    found = {label: arm.result() for label, arm in arms.items()}
    budget, rule = Budgeted(unit=tuning.budget.unit, amount=tuning.budget.amount), rule_of(tuning)
    others: dict[str, str] = {}
    if before is not None:
        found = joined(before, found, budget, rule)
        others = left_out(before, found, budget, rule)
    by_trials, by_seconds = orders(found)
    warnings = []
    oracle = objective.scorer == "gold"
    policies = set(found) - {REWARD_MODEL}
    if oracle and policies:
        warnings.append("Settings were chosen by the gold reward: an oracle that no user has.")
    if tuning.pruner.kind == "hyperband" and objective.max_kl is not None and policies:
        warnings.append(
            "hyperband compared scores of checkpoints without their KL: settings beyond max_kl, which score high and "
            "cannot be chosen, may have pruned others. median and wilcoxon compare with trials within the limit."
        )
    if tuning.repeats.seeds == 0:
        warnings.append("No repeats: the best value is the search's own, and the search flatters its winner.")
    if tuning.repeats.seeds == 1:
        warnings.append(
            "One fresh seed: it chose the settings and scores them (marked as selected), which flatters the gain; with "
            "repeats.seeds of 2 or more each seed scores what the others chose."
        )
    if objective.scorer == "proxy" and policies:
        warnings.append("Settings were chosen by the proxy, which PPO, RLOO, GRPO and best-of-n optimize.")
    warnings += [line for arm in arms.values() for line in arm.warnings()]
    warnings += [f"{label} is left out: {why}." for label, why in others.items()]
    warnings += [
        f"{label}: no setting kept within KL {objective.max_kl:g}; the chosen one passes it least."
        for label, arm in found.items()
        if arm.best is not None and not arm.best.feasible
    ]
    return TuningResults(
        schema=1, study=name, comparison=comparison.name, storage=storage,
        objective=TunedObjective(
            metric=objective.metric, judge=objective.judge, max_kl=objective.max_kl, prompts=objective.prompts,
            oracle=oracle,
        ),
        budget=budget, rule=rule,
        seeds=run_seeds(tuning), upstream=upstream_digest(comparison), untuned=untuned(comparison, found), arms=found,
        order_by_trials=by_trials,
        order_by_seconds=by_seconds, order_default=order_by(found, "default"), order_tuned=order_by(found, "best"),
        warnings=warnings, left_out=others,
    )  # fmt: skip


def rule_of(tuning: Tuning) -> str:
    """Sampler, pruner, seeds and selection in words: what must be the same for every arm."""
    repeats = tuning.repeats
    again = f"best {repeats.top} and the default on {repeats.seeds} fresh seeds" if repeats.seeds else "no repeats"
    limit = f" with KL <= {tuning.objective.max_kl:g}" if tuning.objective.max_kl is not None else ""
    what = f"{tuning.objective.metric} by {tuning.objective.scorer}"
    return (
        f"{tuning.sampler} ({tuning.startup} at random), pruner {tuning.pruner.kind}, run seed {tuning.seed}, "
        f"{what}{limit} on {tuning.objective.prompts} validation prompts, {again}"
    )
