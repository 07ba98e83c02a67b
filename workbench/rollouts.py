"""What every arm that trains on its own samples shares: which prompts, the EOS rule, a reward that says something."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DivergenceError


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
