"""results.json, schema 1: what `workbench compare --json` prints and every later page reads.

Numbers are finite or null, never NaN. Field names are the schema; beyond the ones that every reader may rely on there
are a few more, each described where it stands. `emit_json_schema()` gives the JSON schema of the file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import Field, StrictBool, ValidationError, model_validator

from workbench.errors import DataError
from workbench.results_agreement import Agreement, AgreementPoint, Disagreement, Generalization
from workbench.results_annotators import Annotators
from workbench.results_base import KL, Compared, CostRecord, Count, E, Model, Probability, WinRate
from workbench.results_crossed import Decomposition
from workbench.results_curves import FrontierArea, FrontierPoint, MatchedKL, Overoptimization, PairsEffect
from workbench.results_decision import Decision
from workbench.results_diversity import Diversity
from workbench.results_learning import LearningCurve, LearningGap
from workbench.results_models import ModelSource
from workbench.results_tilt import TiltDifference, TiltPoint
from workbench.results_tuning import TuningLedger

SCHEMA: Literal[1] = 1
JudgeKind = Literal["llm", "reward_model", "human"]


class Check(Model):
    """One line of the match certificate."""

    name: str
    ok: StrictBool | Literal["not_applicable"]
    detail: str


class Match(Model):
    """The match certificate; `ok` is false as soon as one check is false."""

    ok: StrictBool
    checks: list[Check]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.ok != all(check.ok is not False for check in self.checks):
            raise ValueError(f"ok is {self.ok}, but the checks say otherwise")
        return self


class Seeds(Model):
    data: int
    sft: int
    eval: int
    runs: list[int] = Field(min_length=1)


class Mlflow(Model):
    tracking_uri: str | None
    experiment: str | None
    run_id: str | None


class RewardModelQuality(Model):
    """How well one reward model orders held-out pairs. Ties count half in the accuracies."""

    accuracy: E = Field(description="Against the label of the pair")
    accuracy_gold: E | None = Field(description="Against the gold of the pairs; null where they have none")
    ece: E = Field(description="Expected calibration error of sigmoid(margin), debiased, equal-mass bins")
    brier: E = Field(description="Mean squared error of sigmoid(margin) as a probability")
    tie_rate: E = Field(description="Share of pairs with equal scores; near 1 the model is constant")


class JudgeQuality(Model):
    """How a judge beside gold and proxy did, over all arms and run seeds; who won stands with the arms."""

    kind: JudgeKind
    pairs: Count
    identical: Count = Field(description="Pairs of equal texts: ties that nobody was asked about")
    asked: Count = Field(description="Verdicts asked for: two a pair where both orders are shown")
    scored: Count
    unscored: dict[str, Count] = Field(description="Reason -> verdicts that did not come; never a loss or a tie")
    ties: E = Field(description="Share of scored verdicts that are ties")
    flip_rate: E = Field(description="Share of pairs whose verdict reverses when the order does")
    first_shown_preferred: E = Field(description="Share of verdicts for the response shown first; 0.5: no bias")
    models: list[str] = Field(default_factory=list, description="Model ids that the endpoint reported")
    annotators: list[str] = Field(default_factory=list)
    requests: Count | None = None
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    usd: float | None = None
    null_model: E | None = Field(
        default=None,
        description="Win rate of a constant answer that tries to talk the judge over, in the first run seed; near 0: "
        "it holds",
    )
    null_first: E | None = Field(
        default=None,
        description="Win rate of the arms if the response shown first always won: 0.5 where both orders were shown, "
        "else how far the order could decide",
    )
    other_items: Count = Field(
        default=0, description="Filled-in rows of a sheet that are about none of these pairs, most in one comparison"
    )
    lineage: str | None = Field(default=None, description="Why a reward model is no independent judge; null: it may be")
    uneven: str | None = Field(
        default=None, description="Why its win rates are withheld: what is unscored differs by arm; null: it does not"
    )


class ArmCost(Model):
    own: CostRecord = Field(description="The arm's own stages")
    with_upstream: CostRecord = Field(description="With all that it stands on: SFT, pairs, reward model")
    side_by_side: bool = Field(default=False, description="Stages ran in parallel: wall_s is not comparable")
    answer: CostRecord | None = Field(default=None, description="One answer at inference, mean over prompts")


class Selected(Model):
    """The checkpoint that the figures are about, and the rule that chose it."""

    checkpoint: str
    step: int | None = None
    rule: Literal["last", "best"]
    metric: str | None = None
    split: str | None = None
    oracle: bool = Field(default=False, description="Chosen by the gold reward, which no user has")


class BySeed(Model):
    """One arm in one run seed; null where the run diverged before there was anything to measure."""

    seed: int
    selected: str | None = None
    selection: Selected | None = None
    gold_reward: E | None = None
    proxy_reward: E | None = None
    own_objective: E | None = None
    seq_kl: KL | None = None
    win_rate: WinRate | None = None
    response_tokens: E | None = None
    eos_rate: E | None = None
    diverged: str | None = None


class Arm(Model):
    """One arm over all run seeds. A diverged arm stays in the table, with null where nothing could be measured."""

    kind: str = Field(description="sft, ppo, rloo, grpo, dpo or best_of_n")
    selected: str | None = Field(description="Name of the checkpoint, in the first run seed; null for sft")
    selection: Selected | None = Field(default=None, description="How it was chosen; each seed's is in by_seed")
    gold_reward: E | None = Field(description="Mean of the true reward on test prompts; null where none is known")
    gold_gain: Compared | None = Field(
        default=None, description="gold_reward less sft's, paired by prompt; null for sft"
    )
    proxy_reward: E | None = Field(description="Score of the shared reward model; null without one")
    proxy_gain: Compared | None = Field(
        default=None, description="proxy_reward less sft's, paired by prompt; null for sft"
    )
    own_objective: E | None = Field(
        description="What this arm itself optimized, on its own samples: ppo, rloo, grpo and best_of_n the score of "
        "their reward (without the KL penalty), dpo beta times seq_kl, the mean of its implicit reward; null for sft"
    )
    seq_kl: KL | None = Field(description="Nats from sft, whole responses; best-of-n's is a bound")
    win_rate: WinRate | None = Field(description="The headline: first judge, against sft; null for sft itself")
    win_rates: list[WinRate] = Field(description="Against sft, by every judge")
    win_rate_length_controlled: E | None = Field(
        default=None, description="win_rate with the difference in length held at 0; null where it cannot be known"
    )
    null_win_rates: list[WinRate] = Field(
        default_factory=list,
        description="What judges that know nothing make of the same samples: null/longest, null/first, null/constant",
    )
    diversity: Diversity | None = Field(default=None, description="How different its samples are from each other")
    by_annotator: dict[str, E] = Field(
        default_factory=dict, description="The arm as each annotator sees it; `annotators.kind` says what it is"
    )
    minority_win_rate: E | None = Field(
        default=None, description="Expected win rate against sft among the minority annotators' labels; null: not known"
    )
    minority_gap: Compared | None = Field(
        default=None, description="Expected win rate by the other annotators less minority_win_rate, paired by prompt"
    )
    response_tokens: E | None = Field(description="Mean length of a response")
    eos_rate: E | None = Field(description="Share of responses that end by themselves")
    diverged: str | None = Field(description="Why training stopped early; null when it did not")
    by_seed: list[BySeed] = Field(default_factory=list)
    cost: ArmCost

    @model_validator(mode="after")
    def _measured(self) -> Self:
        missing = [name for name in ("seq_kl", "response_tokens", "eos_rate") if getattr(self, name) is None]
        if self.diverged is None and missing:
            raise ValueError(f"{', '.join(missing)} may be null only in an arm that diverged")
        return self


class HeadToHead(Model):
    """Arm `a` against arm `b`, neither the baseline: win_rate is a's."""

    a: str
    b: str
    judge: str
    win_rate: E
    p_value: Probability | None = Field(description="Of equality; null where there is no interval")
    p_holm: Probability | None = Field(description="p_value corrected over every pair of arms and judge (Holm)")
    p_method: str = ""
    minimum_detectable_effect: float | None = Field(
        default=None, description="Distance from 0.5 that this many prompts and seeds find with 80% power"
    )


class Rating(Model):
    arm: str
    rating: E = Field(description="Bradley-Terry log-odds of beating sft, nats")


class StageRow(Model):
    name: str
    instance: str
    key: str
    cached: bool
    why: str
    wall_s: float | None


class Results(Model):
    """Everything that a comparison found."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    comparison: str = Field(description="The config's name")
    seeds: Seeds
    mlflow: Mlflow | None = Field(description="Where the run is in MLflow")
    report: str | None = Field(description="Path of the report; null when none was written")
    models: list[ModelSource] = Field(default_factory=list, description="Models that came from outside")
    match: Match = Field(description="The match certificate")
    reward_models: dict[str, RewardModelQuality]
    arms: dict[str, Arm] = Field(description="By label; sft, the baseline, is one of them")
    head_to_head: list[HeadToHead] = Field(description="Every two arms, by every judge")
    ranking: list[Rating] = Field(description="All arms on one scale, from their duels")
    frontier: list[FrontierPoint] = Field(description="Checkpoints and n: reward and win rate at their KL")
    matched_kl: list[MatchedKL] = Field(
        default_factory=list, description="Reward of every arm, and difference of every two, at the same KLs"
    )
    frontier_area: list[FrontierArea] = Field(
        default_factory=list, description="The same as means over the KLs that arms have in common"
    )
    overoptimization: list[Overoptimization] = Field(description="Whether gold falls while the proxy rises")
    pairs_effect: list[PairsEffect] = Field(
        default_factory=list, description="Arms whose reward models saw fewer pairs against arms whose saw more"
    )
    learning_curves: list[LearningCurve] = Field(
        default_factory=list, description="Reward by number of training pairs; empty where no arm sees fewer"
    )
    learning_gaps: list[LearningGap] = Field(
        default_factory=list, description="Kinds of arms against each other on equally many pairs"
    )
    tilt: list[TiltPoint] = Field(
        default_factory=list,
        description="What each reward could give at each KL with a perfect optimizer; empty without best-of-n's pools",
    )
    tilt_differences: list[TiltDifference] = Field(
        default_factory=list,
        description="Perfect optimizers of two rewards at the same KL: the explicit less the others, gold less each",
    )
    decomposition: list[Decomposition] = Field(
        default_factory=list, description="Reward and optimizer apart; empty where no arms are crossed"
    )
    agreement: dict[str, Agreement | None] = Field(
        description="heldout, on_policy/sft, on_policy/LABEL, temperature_shift, ood"
    )
    agreement_trajectory: list[AgreementPoint] = Field(
        default_factory=list, description="Each DPO checkpoint's implicit reward against the explicit one"
    )
    generalization: Generalization | None = Field(
        default=None, description="The two rewards away from where they were fitted; null without DPO or another set"
    )
    disagreements: list[Disagreement] = Field(
        default_factory=list, description="The largest few of each set; more are in disagreements.json"
    )
    annotators: Annotators | None = Field(default=None, description="Whose labels `by_annotator` is about")
    judges: dict[str, JudgeQuality] = Field(default_factory=dict, description="Judges beside gold and proxy, by name")
    judging_incomplete: dict[str, str] = Field(
        default_factory=dict, description="Judge -> why it did not finish; its verdicts are kept, the next run goes on"
    )
    decision: Decision | None = Field(default=None, description="What it all comes to, on which evidence")
    tuning: TuningLedger | None = Field(
        default=None, description="What it took to get the arms' settings; null: they are the config's own"
    )
    stages: list[StageRow] = Field(description="What was computed, what was reused, and why")
    warnings: list[str] = Field(default_factory=list, description="What a reader must know before quoting a number")

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "sft" not in self.arms:
            raise ValueError("arms must hold 'sft', the baseline of every comparison")
        named = {n for h in self.head_to_head for n in (h.a, h.b)} | {p.arm for p in self.frontier}
        named |= {r.arm for r in self.ranking} | {o.arm for o in self.overoptimization}
        named |= {n for m in self.matched_kl for n in (m.arm, m.against or m.arm)}
        named |= {n for m in self.frontier_area for n in (m.arm, m.against or m.arm)}
        if unknown := sorted(named - set(self.arms)):
            raise ValueError(f"arms {', '.join(unknown)} are named but not described")
        return self

    def to_json(self) -> str:
        """The file's text: UTF-8, indented, no NaN."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, path: Path) -> None:
        """Writes the file in one step: readers see the old one or the new one, never half of it."""
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(self.to_json() + "\n")
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def emit_json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of results.json, for readers in other languages."""
    found = Results.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "results.json, schema 1"} | {
        name: value for name, value in found.items() if name != "title"
    }


def load_results(path: str | Path) -> Results:
    """Reads and checks a results.json.

    Raises:
        DataError: It is missing, not JSON, of another schema, holds NaN, or a field is wrong: names the field.
    """
    where = str(path)
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise DataError("no such file; give the results.json of a finished comparison", where=where) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=where) from None
    except ValueError as error:  # bad JSON, bad UTF-8, NaN
        raise DataError(f"is not a results.json: {error}", where=where) from None
    if not isinstance(raw, Mapping):
        raise DataError(f"is not a results.json: expected an object, got {type(raw).__name__}", where=where)
    if raw.get("schema") != SCHEMA:
        raise DataError(
            f"has schema {raw.get('schema')!r}, this version reads schema {SCHEMA}; run `workbench compare` again",
            where=where,
        )
    try:
        return Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise DataError(f"field {field}: {first['msg']}{more}; was the file edited?", where=where) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number; missing values are null")
