"""From a trial's artifacts to its score, and from scores to a choice: means, fresh seeds, the winner's curse.

Everything is paired: all trials of all arms answer the same validation prompts, so a difference is a mean over prompts
of differences. Numpy and scipy alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.config_tuning import REWARD_MODEL, Objective
from workbench.evidence import Artifacts
from workbench.metrics.best_of_n import bound_kl
from workbench.metrics.estimates import cluster_mean, interval_of_mean, mean_by_cluster, means_within
from workbench.results import JudgeKind
from workbench.results_base import KL, Compared, E
from workbench.types import Cost
from workbench.verdicts import Verdicts

Scores = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial in one run seed came to.

    Args:
        status: complete, pruned, failed (diverged, died twice, or settings that do not fit each other); from a worker
            also died (a stage of its own ran out of memory or was killed), which is tried once more.
        scores: prompt -> value of the objective there; empty where it did not get that far.
        kl: prompt -> KL in nats a response, or None; `bound`: best-of-n's, by its formula.
        reason: Why it is not complete.
        costs: key of each stage it is charged for -> its cost; a key is charged once for an arm.
        policy: Key of the stage that trains (or selects), for its curves; None where it is not known.
        warning: What went wrong beside it, as a checkpoint that could not be scored.
    """

    status: str
    scores: Scores = field(default_factory=dict)
    kl: Scores = field(default_factory=dict)
    bound: float | None = None
    reason: str | None = None
    costs: Mapping[str, Cost] = field(default_factory=dict)
    policy: str | None = None
    warning: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        plain = {
            name: getattr(self, name) for name in ("status", "scores", "kl", "bound", "reason", "policy", "warning")
        }
        return plain | {"costs": {key: vars(cost) for key, cost in self.costs.items()}}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Trial:
        """Back from `to_json`."""
        return cls(**{**plain, "costs": {key: Cost(**cost) for key, cost in plain["costs"].items()}})


def measured(
    inputs: Mapping[str, Path],
    label: str,
    run: int,
    arms: Mapping[str, Mapping[str, Any]],
    proxy: str,
    objective: Objective,
    judge_kind: JudgeKind | None,
) -> tuple[dict[str, float | None], dict[str, float | None], float | None]:
    """Scores and KL by prompt of one trial.

    Args:
        inputs: `LABEL/RUN/ROLE` -> folder, and `reward/NAME/RUN`.
        arms: Config blocks by label.
        judge_kind: Of the objective's judge, where it is no scorer.

    Returns:
        prompt -> objective; prompt -> KL; best-of-n's bound.
    """
    artifacts = Artifacts(inputs)
    if label == REWARD_MODEL:
        return _accuracy(artifacts.json(label, run, "margins", "margins.json"), f"proxy/{proxy}"), {}, None
    arm = artifacts.arm(label, run, arms[label], proxy)
    sft = artifacts.arm(BASELINE, run, None, proxy)
    if objective.metric == "win_rate":
        assert objective.judge is not None
        judges: dict[str, JudgeKind] = {objective.judge: judge_kind} if judge_kind is not None else {}
        verdicts = Verdicts(artifacts, {BASELINE: [sft], label: [arm]}, judges, proxy)
        wins = verdicts.over_baseline(objective.judge, label, [arm])
        scores = {str(p): _number(w) for p, w in zip(wins.prompts, wins.wins.tolist(), strict=True)}
    else:
        scores = _by_prompt(*arm.values("gold" if objective.metric == "gold_reward" else f"proxy/{proxy}"))
    if arm.kind == "best_of_n":
        assert arm.n is not None
        return scores, {}, bound_kl(arm.n)
    return scores, _by_prompt(*arm.values("seq_kl")), None


def _by_prompt(values: Any, prompts: Sequence[str]) -> dict[str, float | None]:
    means, names = means_within(values, prompts)
    return {str(name): _number(mean) for name, mean in zip(names, means.tolist(), strict=True)}


def _accuracy(margins: Mapping[str, Any], column: str) -> dict[str, float | None]:
    """Share of a prompt's validation pairs that are ordered as labeled, ties half."""
    right = [0.5 * (1 + float(np.sign(margin))) for margin in margins[column]]
    return _by_prompt(np.array(right), margins["prompt_id"])


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------- estimates


def score_of(trials: Mapping[int, Scores], *, proportion: bool) -> E:
    """Mean over prompts, and over run seeds where there are several.

    Args:
        trials: run seed -> scores by prompt.
        proportion: The objective is a share (win rate, accuracy).
    """
    values, prompts, seeds = _long(trials)
    found = mean_by_cluster(values, prompts, None, seeds if len(trials) > 1 else None, proportion=proportion)
    return E.of(found)


def kl_of(trials: Mapping[int, Scores], bound: float | None) -> KL | None:
    """KL in nats a response; best-of-n's is a bound and has no interval. None where nothing has one."""
    if bound is not None:
        return KL(value=bound, low=None, high=None, n=0, method="log n - (n - 1)/n", kl_kind="bound")
    values, prompts, seeds = _long(trials)
    if not values:
        return None
    found = mean_by_cluster(values, prompts, None, seeds if len(trials) > 1 else None)
    return KL.of(found, kl_kind="mc_k1")


def gain_of(better: Mapping[int, Scores], worse: Mapping[int, Scores]) -> Compared:
    """Difference of two settings in the same run seeds, paired by prompt."""
    values, prompts, seeds = [], [], []
    for run in sorted(better.keys() & worse.keys()):
        for prompt, value in better[run].items():
            other = worse[run].get(prompt)
            values.append(None if value is None or other is None else value - other)
            prompts.append(prompt)
            seeds.append(run)
    mean = cluster_mean(values, prompts, None, seeds if len(set(seeds)) > 1 else None)
    return Compared.of(interval_of_mean(mean), minimum_detectable_effect=mean.detectable_effect())


def curse_of(searched: Scores, fresh: Mapping[int, Scores]) -> Compared:
    """Winner's curse: the score by which a setting won the search less its scores on fresh seeds, paired by prompt.

    The fresh seeds had no part in choosing it, so this difference is not biased by the choice; above 0, the search
    flattered its winner.
    """
    return gain_of(dict.fromkeys(fresh, searched), fresh)


def _long(trials: Mapping[int, Scores]) -> tuple[list[float | None], list[str], list[int]]:
    rows = [(value, prompt, run) for run, scores in trials.items() for prompt, value in scores.items()]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def feasible(kl: KL | None, max_kl: float | None) -> bool:
    """Whether a setting keeps within the KL that the objective allows."""
    return max_kl is None or kl is None or kl.value is None or kl.value <= max_kl


def violation(kl: KL | None, max_kl: float | None) -> float:
    """How far a setting's KL passes the limit, nats; at most 0 where it does not."""
    return -1.0 if max_kl is None or kl is None or kl.value is None else kl.value - max_kl


# ---------------------------------------------------------------------------------------------------- budget


def new_costs(costs: Mapping[str, Cost], charged: set[str]) -> Cost:
    """Cost of the stages that this arm has not been charged for yet; they are from now on."""
    total = Cost()
    for key, cost in costs.items():
        if key not in charged:
            charged.add(key)
            total = total.plus(cost)
    return total


def spent_in(unit: str, trials: int, cost: Cost) -> float:
    """What was spent, in the budget's unit."""
    if unit == "trials":
        return float(trials)
    return float(cost.tokens_trained + cost.tokens_generated) if unit == "tokens" else seconds_of(cost)


def seconds_of(cost: Cost) -> float:
    """Measured compute: seconds of the GPU where one was used, else of the CPU."""
    return cost.gpu_s or cost.cpu_s


def identity_of(study: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a record belongs to, whatever database numbered the trial: the study's name and the settings."""
    text = json.dumps([study, params], sort_keys=True, separators=(",", ":"))
    return {"study": study, "params": dict(params), "digest": hashlib.sha256(text.encode()).hexdigest()}


def write_trial(path: Path, trial: Trial, study: str, params: Mapping[str, Any]) -> None:
    """Writes a trial's record in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    plain = trial.to_json() | {"of": identity_of(study, params)}
    aside.write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")
    aside.replace(path)


def read_trial(path: Path, study: str, params: Mapping[str, Any]) -> Trial | None:
    """A trial's record; None where there is none, or where it is another study's or of other settings."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    of = plain.pop("of", None) or {}
    return Trial.from_json(plain) if of.get("digest") == identity_of(study, params)["digest"] else None
