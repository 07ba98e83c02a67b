"""The numbers of two comparisons side by side: every difference with an interval, or the reason why there is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from workbench.config_judges import CONNECTION
from workbench.results_base import E
from workbench.versus_base import INDEPENDENT, PAIRED, Difference, Run

# Field of an arm -> what it is of a sample, for the covariance over prompts.
ARM_FIELDS = {
    "gold_reward": "gold_reward",
    "gold_gain": "gold_reward",
    "proxy_reward": "proxy_reward",
    "proxy_gain": "proxy_reward",
    "seq_kl": "seq_kl",
    "response_tokens": "response_tokens",
    "eos_rate": "finished",
}
AGREEMENT_FIELDS = ("agreement", "implicit_accuracy", "explicit_accuracy")


def numbers(a: Run, b: Run, paired: bool) -> Iterator[Difference]:
    refused = {judge: unlike(a, b, judge) for judge in ("gold", "proxy")}
    for label, arm in a.results["arms"].items():
        other = b.results["arms"].get(label)
        if other is None:
            continue
        yield from _win_rates(a, b, label, arm, other, paired, refused)
        for field, of_sample in ARM_FIELDS.items():
            if not arm.get(field) and not other.get(field):
                continue
            reason = refused.get(field.partition("_")[0])
            correlation = _correlation(a, b, label, of_sample, None, gain=field.endswith("gain")) if paired else None
            both = (arm.get(field), other.get(field))
            found = difference(*both, a, b, correlation, reason)
            yield Difference(of=label, figure=field, a=_e(both[0]), b=_e(both[1]), difference=found)
    for name, field in itertools.product(a.results["agreement"], AGREEMENT_FIELDS):
        one, other = ((run.results["agreement"].get(name) or {}).get(field) for run in (a, b))
        if one and other:
            yield Difference(of=name, figure=field, a=_e(one), b=_e(other), difference=difference(one, other, a, b))
    for name in a.results["reward_models"]:
        one, other = ((run.results["reward_models"].get(name) or {}).get("accuracy") for run in (a, b))
        if one and other:
            yield Difference(of=f"reward model {name}", figure="accuracy", a=_e(one), b=_e(other),
                             difference=difference(one, other, a, b))  # fmt: skip


def unlike(a: Run, b: Run, judge: str) -> str | None:
    """Why what this judge says in the two runs cannot be subtracted; None: it is the same one. Unknown is not the same.

    Args:
        judge: `proxy`, `gold`, or a judge of the configs.
    """
    if judge == "proxy":
        keys = [run.keys("reward_model") for run in (a, b)]
        if not keys[0] or not keys[1]:
            return "refused: a run does not say which reward model it had"
        told = "refused: the runs' reward models differ, and their scores have no zero or unit in common"
        return None if keys[0] == keys[1] else told
    if a.config is None or b.config is None:
        return f"refused: a run kept no config.json, so nobody knows whether both had the same {judge}"
    if judge == "gold":
        same = a.config.get("gold") == b.config.get("gold") and _digest(a, "gold") == _digest(b, "gold")
        return None if same else "refused: the runs' gold rewards differ"
    blocks = [_asked(run.config or {}, judge) for run in (a, b)]
    return None if blocks[0] == blocks[1] else f"refused: the runs' judges named {judge} differ"


def _digest(run: Run, role: str) -> str | None:
    """Digest of a model's files; None where it is none from outside."""
    return next((one["digest"] for one in run.results.get("models") or () if one["role"] == role), None)


def _asked(config: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """What a judge is, without how it is reached and how much it is asked."""
    block = (config.get("judges") or {}).get(judge) or {}
    return {name: value for name, value in block.items() if name not in {*CONNECTION, "pairs_per_prompt", "opponents"}}


def _win_rates(
    a: Run,
    b: Run,
    label: str,
    arm: Mapping[str, Any],
    other: Mapping[str, Any],
    paired: bool,
    refused: Mapping[str, str | None],
) -> Iterator[Difference]:
    theirs = {rate["judge"]: rate for rate in other["win_rates"]}
    for rate in arm["win_rates"]:
        judge = rate["judge"]
        if judge in theirs:
            reason = refused[judge] if judge in refused else unlike(a, b, judge)
            correlation = _correlation(a, b, label, "", judge, gain=False) if paired else None
            yield Difference(of=label, figure="win_rate", judge=judge, a=_e(rate), b=_e(theirs[judge]),
                             difference=difference(rate, theirs[judge], a, b, correlation, reason))  # fmt: skip


def _e(estimate: Mapping[str, Any] | None) -> E | None:
    return None if estimate is None else E(**{name: estimate[name] for name in E.model_fields if name in estimate})


def _correlation(a: Run, b: Run, label: str, field: str, judge: str | None, *, gain: bool) -> float | None:
    """Of the two runs' means by prompt; None where fewer than three prompts have both, or nothing varies.

    The noise of a few samples a prompt makes it smaller than that of the prompts' own values: the interval is at most
    too wide.
    """
    one, other = (run.by_prompt(label, field, judge, gain=gain) for run in (a, b))
    shared = [prompt for prompt in one if prompt in other]
    x, y = (np.array([side[prompt] for prompt in shared]) for side in (one, other))
    if len(shared) < 3 or not np.ptp(x) or not np.ptp(y):
        return None
    found = float(np.corrcoef(x, y)[0, 1])
    return 1.0 if found > 1 - 1e-9 else max(-1.0, found)  # the same samples: no difference at all


def difference(
    one: Mapping[str, Any] | None,
    other: Mapping[str, Any] | None,
    a: Run,
    b: Run,
    correlation: float | None = None,
    refused: str | None = None,
) -> E:
    """B less A, with a 95% interval.

    Args:
        one, other: The estimates of A and of B.
        correlation: Of the two runs' means by prompt: what they share; None: nothing is known to be shared.
        refused: Why they cannot be compared.

    Source: unpaired, the square-and-add interval that keeps the ends' asymmetry: Zou and Donner 2008,
    doi:10.1002/sim.3095; paired, var(B - A) = var A + var B - 2 r sd A sd B over prompts, degrees of freedom by Welch
    and Satterthwaite.
    """
    values = [None if e is None else e.get("value") for e in (one, other)]
    n = min((e["n"] for e in (one, other) if e), default=0)
    if refused or one is None or other is None or values[0] is None or values[1] is None:
        return _none(n, refused or "refused: one of the runs has no value")
    gap = float(values[1] - values[0])
    parts = _parts(one, other)
    if correlation is not None and parts:
        # The prompts' part alone is shared: training and sampling of two runs are drawn apart.
        (first, seeds_a), (second, seeds_b) = parts
        prompts = max(0.0, first**2 + second**2 - 2 * correlation * first * second)
        seeds = [(se**2, _degrees(run)) for se, run in ((seeds_a, a), (seeds_b, b)) if se > 0]
        whole = prompts + sum(variance for variance, _ in seeds)
        weight = prompts**2 / max(1, n - 1) + sum(variance**2 / degrees for variance, degrees in seeds)
        half = float(stats.t.ppf(0.975, whole**2 / weight)) * math.sqrt(whole) if weight > 0 else 0.0
        return E(value=gap, low=gap - half, high=gap + half, n=n, method=f"{PAIRED}, t")
    ends = [e.get(end) for e in (one, other) for end in ("low", "high")]
    if any(end is None for end in ends):
        return E(value=gap, low=None, high=None, n=n, method="no interval: one of the runs has none")
    low = math.hypot(values[1] - ends[2], ends[1] - values[0])
    high = math.hypot(ends[3] - values[1], values[0] - ends[0])
    return E(value=gap, low=gap - low, high=gap + high, n=n, method=f"{INDEPENDENT}, square-and-add of the intervals")


def _none(n: int, why: str) -> E:
    return E(value=None, low=None, high=None, n=n, method=why)


def _parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(standard error by prompts, by run seeds) of A and of B; empty where one is not known."""
    if one.get("prompt_se") is None or other.get("prompt_se") is None:
        return []
    return [(float(e["prompt_se"]), float(e.get("seed_se") or 0.0)) for e in (one, other)]


def _degrees(run: Run) -> int:
    return max(1, len(run.results["seeds"]["runs"]) - 1)
