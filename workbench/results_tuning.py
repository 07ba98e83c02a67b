"""tuning.json, what `workbench tune` finds, and the ledger that a comparison with tuned values carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from workbench.errors import DataError
from workbench.results_base import KL, Compared, CostRecord, Count, E, Model

State = Literal["complete", "pruned", "failed"]
Setting = bool | int | float | str | None


class TrialRow(Model):
    number: Count
    state: State
    params: dict[str, Setting]
    value: E | None = Field(description="The objective on validation, in the search's run seed; null if not complete")
    seq_kl: KL | None = None
    feasible: bool = Field(description="KL within the objective's max_kl; true where there is no limit")
    reason: str | None = Field(default=None, description="Why it was pruned or failed")
    intermediate: dict[str, float] = Field(default_factory=dict, description="Scores of its checkpoints, by step")
    spent: CostRecord = Field(description="Its own stages that no earlier trial of this arm had made")


class Repeated(Model):
    """A setting on fresh run seeds, which had no part in finding it."""

    number: Count
    params: dict[str, Setting]
    value: E | None = Field(description="Mean over prompts and fresh seeds; null where a seed's run diverged")
    seq_kl: KL | None
    feasible: bool
    reason: str | None = None


class Best(Model):
    number: Count
    params: dict[str, Setting]
    value: E = Field(
        description="Of choosing like this: each fresh seed scores what the other fresh seeds chose; without repeats "
        "the search's own, which the search flatters"
    )
    selected: bool = Field(
        default=True,
        description="value and gain are from the seeds that chose it, which flatters it (one fresh seed, no repeats)",
    )
    held_out: dict[str, Count] = Field(
        default_factory=dict, description="Fresh seed -> number of the setting that the other fresh seeds chose"
    )
    seq_kl: KL | None
    feasible: bool = Field(description="false: no setting kept within max_kl; this one passes it least")
    search_value: E


class BestSoFar(Model):
    """The best feasible setting after so much was spent."""

    trials: Count
    seconds: float = Field(description="Measured compute up to here: GPU seconds, CPU seconds without a GPU")
    number: Count
    value: float


class TunedArm(Model):
    """One arm's sweep."""

    kind: str
    study: str
    metric: str = Field(description="What its trials are scored by, on validation")
    trials: Count = Field(description="Ended trials: complete, pruned and failed")
    complete: Count
    pruned: Count
    failed: Count
    met: bool = Field(description="The whole budget was spent, or there was nothing left to spend it on (`exhausted`)")
    free: Count = Field(
        default=0, description="Trials that added no cost; against the budget each counts as the earlier ones' mean"
    )
    exhausted: str | None = Field(default=None, description="Why it ended before its budget was spent")
    best: Best | None = Field(description="null: no trial is complete")
    default: Repeated | None = Field(default=None, description="The config's own values, on the same seeds as best")
    gain: Compared | None = Field(
        default=None,
        description="best less default, paired by prompt; each fresh seed scores what the others chose, unless "
        "best.selected",
    )
    winners_curse: Compared | None = Field(
        default=None, description="The search's winner: its score there less its score on fresh seeds, paired by prompt"
    )
    repeated: list[Repeated] = Field(default_factory=list)
    spent: CostRecord = Field(description="Trials and repeats; what arms share (SFT, reward model) is not in it")
    spent_trials: CostRecord
    spent_repeats: CostRecord
    best_so_far: list[BestSoFar] = Field(default_factory=list)
    pareto: list[Count] = Field(default_factory=list, description="Trials that none beats in score and KL")
    importance: dict[str, float] = Field(default_factory=dict, description="Share of the score's variance by setting")
    rows: list[TrialRow]


class OrderAt(Model):
    """Arms from best to worst, had the search ended here."""

    at: float
    order: list[str]


class Budgeted(Model):
    unit: Literal["trials", "seconds", "tokens"]
    amount: float


class TunedObjective(Model):
    metric: str
    judge: str | None
    max_kl: float | None
    split: Literal["validation"] = "validation"
    prompts: Count
    oracle: bool = Field(description="Scored by gold, which no user has")


class TuningResults(Model):
    """The whole file."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    study: str = Field(description="Name of the tuning; each arm's study is NAME/LABEL")
    comparison: str
    storage: str
    objective: TunedObjective
    budget: Budgeted
    rule: str = Field(description="Sampler, pruner, seeds and selection: the same for every arm")
    seeds: list[int] = Field(description="Run seed of the search, then those of the repeats")
    upstream: str = Field(description="Digest of what the tuned values belong to: model, data, gold, SFT")
    untuned: dict[str, str] | None = Field(
        default=None,
        description="Digest of each setting that was not varied, by its place in the config; null: an older version's",
    )
    arms: dict[str, TunedArm]
    order_by_trials: list[OrderAt] = Field(default_factory=list)
    order_by_seconds: list[OrderAt] = Field(default_factory=list)
    order_default: list[str] = Field(default_factory=list, description="Arms by the default's score on fresh seeds")
    order_tuned: list[str] = Field(default_factory=list, description="Arms by the chosen setting's")
    left_out: dict[str, str] = Field(
        default_factory=dict, description="Arms that an earlier command tuned with another budget or rule, and why"
    )
    mlflow: dict[str, Any] = Field(default_factory=dict)
    figures: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False, allow_nan=False)


class TunedBy(Model):
    """One arm's line in the ledger."""

    study: str
    trials: Count
    complete: Count
    pruned: Count
    failed: Count
    met: bool
    params: dict[str, Setting]
    spent: CostRecord
    used: float | None = Field(default=None, description="What the search took, in the budget's unit")
    largest: float | None = Field(default=None, description="The most that one trial took of it")
    feasible: bool | None = Field(
        default=None, description="false: no setting kept within max_kl, this one passes it least; null: none chosen"
    )


class TuningLedger(Model):
    """What it took to get the values that a comparison was run with."""

    study: str
    budget: Budgeted
    rule: str
    objective: TunedObjective
    arms: dict[str, TunedBy]
    behind: dict[str, list[str]] = Field(
        default_factory=dict, description="Arm -> tuned reward model and arms that its reward or labels come from"
    )
    declared: list[str] = Field(
        default_factory=list, description="Of those, the ones that the config declares: named, and not charged"
    )
    warnings: list[str] = Field(default_factory=list, description="What tuning.json warns of")


def ledger_of(found: TuningResults) -> TuningLedger:
    """The ledger of a tuning; an arm without a chosen setting keeps the config's values, and says so by no params."""
    arms = {
        label: TunedBy(
            study=arm.study, trials=arm.trials, complete=arm.complete, pruned=arm.pruned, failed=arm.failed,
            met=arm.met, params=arm.best.params if arm.best is not None else {}, spent=arm.spent,
            used=_in_unit(found.budget.unit, arm, arm.spent_trials),
            largest=max((_in_unit(found.budget.unit, arm, row.spent) for row in arm.rows), default=0.0),
            feasible=arm.best.feasible if arm.best is not None else None,
        )
        for label, arm in found.arms.items()
    }  # fmt: skip
    nothing = [
        f"{label}: no trial was completed; it has the config's own settings."
        for label, arm in found.arms.items()
        if arm.best is None
    ]
    return TuningLedger(
        study=found.study, budget=found.budget, rule=found.rule, objective=found.objective, arms=arms,
        warnings=[*found.warnings, *nothing],
    )  # fmt: skip


def _in_unit(unit: str, arm: TunedArm, spent: CostRecord) -> float:
    """What was spent in the budget's unit; seconds are the GPU's where the search used one."""
    if unit == "trials":
        return float(arm.trials) if spent is arm.spent_trials else 1.0
    if unit == "tokens":
        return float(spent.tokens_trained + spent.tokens_generated)
    return spent.gpu_s if arm.spent_trials.gpu_s else spent.cpu_s


def load_tuning(home: Path, name: str) -> TuningResults:
    """Reads the tuning.json of a study by its name, or of a path.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = Path(name) if name.endswith(".json") else home / "tuning" / name / "tuning.json"
    try:
        return TuningResults.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = sorted(one.parent.name for one in (home / "tuning").glob("*/tuning.json"))
        message = f"no such tuning, expected one of {', '.join(known) or '(there is none)'}; run `workbench tune` first"
        raise DataError(message, where=str(path)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"is not a tuning.json: {field}: {first['msg']}", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from None
