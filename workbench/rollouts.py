"""What the arms that train on their own samples share: which prompts, the EOS rule, diagnostics, what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from workbench import objectives
from workbench.errors import DivergenceError, IntegrityError

RATIO_TOLERANCE = 1e-3  # cached and full forward passes differ in the last bits


def prompt_rows(available: int, update: int, size: int, seed: int) -> list[int]:
    """Rows of update `update`: consecutive slices of an endless sequence of seeded permutations."""
    rows: list[int] = []
    position = update * size
    while len(rows) < size:
        epoch, offset = divmod(position, available)
        shuffled = np.random.default_rng([seed, 17, epoch]).permutation(available)
        taken = shuffled[offset : offset + size - len(rows)].tolist()
        rows.extend(taken)
        position += len(taken)
    return rows


def rollout_seed(seed: int, update: int) -> int:
    """Of the samples of update `update`, so that resuming needs no state."""
    return seed + 7919 * (update + 1)


def check_ratio(largest_log_ratio: float, dtype: str) -> None:
    """Refuses a first minibatch whose ratio to the rollout is not 1: only float32 can tell rounding from a fault.

    Raises:
        IntegrityError: It is off by more than RATIO_TOLERANCE.
    """
    if dtype == "float32" and largest_log_ratio > RATIO_TOLERANCE:
        raise IntegrityError(
            f"the ratio of the first minibatch is off 1 by {largest_log_ratio:.2e}; the model has other "
            "log-probabilities with a cache than without: its positions or masks are wrong for sampling and training "
            "alike"
        )


def apply_eos_rule(score: Tensor, finished: Tensor, rule: str, penalty: float) -> Tensor:
    """(B,) scores after the documented rule for responses without a stop id.

    none: the score stands (for tasks that cut responses short); replace: the score becomes -penalty; subtract: the
    penalty is taken off.
    """
    if rule == "replace":
        return torch.where(finished, score, torch.full_like(score, -penalty))
    if rule == "subtract":
        return torch.where(finished, score, score - penalty)
    return score


def check_reward_varies(score: Tensor) -> None:
    """Refuses a reward that says the same of everything.

    Raises:
        DivergenceError: Its standard deviation over the first rollout is about 0.
    """
    spread = float(score.std())
    if not spread > 1e-6:
        raise DivergenceError(
            f"the reward gives all responses of the first rollout one score (standard deviation {spread:.1e}); "
            "the policy would learn noise: look at the reward model's accuracy, its learning rate and its data"
        )


def rollout_figures(
    score: Tensor, finished: Tensor, logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor
) -> dict[str, float]:
    """Diagnostics of B responses at the rollout temperature; scoring.py measures the KL that is reported.

    Args:
        score: (B,) after the EOS rule.
        finished: (B,) bool, True where a stop id was drawn.
        logprobs, ref_logprobs: (B, R) of the policy as it sampled, and of the reference.
        response_mask: (B, R) bool.
    """
    zero = torch.zeros_like(logprobs)
    k1 = torch.where(response_mask, objectives.kl_k1(logprobs, ref_logprobs), zero).sum(1)
    k3 = torch.where(response_mask, objectives.kl_k3(logprobs, ref_logprobs), zero).sum(1)
    return {
        "score": float(score.mean()),
        "score_sd": float(score.std()),
        "seq_kl": float(k1.mean()),
        "seq_kl_k3": float(k3.mean()),
        "seq_kl_se": float(k1.std() / math.sqrt(len(k1))),
        "response_tokens": float(response_mask.sum(1).float().mean()),
        "eos_rate": float(finished.float().mean()),
    }


def guard(
    values: Mapping[str, float], update: int, *, max_seq_kl: float | None, min_entropy: float | None = None
) -> None:
    """Stops what has left the finite or the useful range.

    Raises:
        DivergenceError: A number is not finite, KL passed its ceiling, or entropy fell below its floor.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is {value} at update {update}")
    if max_seq_kl is not None and values["seq_kl"] > max_seq_kl:
        raise DivergenceError(
            f"KL to the reference is {values['seq_kl']:.1f} nats a sequence (k1), over the ceiling max_seq_kl = "
            f"{max_seq_kl}, at update {update}; raise kl_coef or lower learning_rate"
        )
    if min_entropy is not None and values.get("entropy", math.inf) < min_entropy:
        raise DivergenceError(
            f"the policy's entropy is {values['entropy']:.3f} nats a token, under the floor min_entropy = "
            f"{min_entropy}, at update {update}: it says nearly one thing; raise kl_coef or lower learning_rate"
        )


def check_kl_sign(values: Mapping[str, float], update: int) -> None:
    """Stops where KL is negative beyond noise, which no policy's own samples give.

    Raises:
        DivergenceError: It is more than 4 standard errors below 0.
    """
    if values["seq_kl"] < -4.0 * values["seq_kl_se"] and values["seq_kl"] < -1e-3:
        raise DivergenceError(
            f"KL to the reference is {values['seq_kl']:.3f}, more than 4 standard errors below 0, at update {update}: "
            "samples and log-probabilities do not belong to the same policy"
        )
