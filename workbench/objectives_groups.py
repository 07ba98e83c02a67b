"""Losses and advantages of RLOO and GRPO, as pure functions: what TRL's trainers are tested against.

Rows of one prompt stand together: (B,) values are B / group prompts of `group` responses each. Shapes, masks and KL
estimators are those of `workbench.objectives`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workbench.objectives import kl_k1, kl_k3, masked_mean

EPS = 1e-4  # TRL's, added to a group's deviation


def penalized_scores(
    score: Tensor, logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor, kl_coef: float
) -> Tensor:
    """(B,) what RLOO maximizes: the score minus kl_coef times k1 summed over the response.

    Args:
        score: (B,) the reward model's score of the whole response.
        logprobs, ref_logprobs: (B, R) at the rollout temperature.
        response_mask: (B, R) bool.
        kl_coef: Reward units per nat.

    Source: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740): the whole response is one action.
    """
    k1 = kl_k1(logprobs, ref_logprobs)
    return score - kl_coef * torch.where(response_mask, k1, torch.zeros_like(k1)).sum(1)


def leave_one_out_advantages(rewards: Tensor, group: int) -> Tensor:
    """(B,) each reward minus the mean of the other rewards of its group; their sum over a group is 0.

    Args:
        rewards: (B,).
        group: Responses per prompt, at least 2.

    Source: Kool et al. 2019 (https://openreview.net/forum?id=r1lgTGL5DE); Ahmadian et al. 2024.
    """
    table = rewards.view(-1, group)
    others = (table.sum(1, keepdim=True) - table) / (group - 1)
    return (table - others).view(-1)


def group_normalized_advantages(
    rewards: Tensor, group: int, scale: Literal["group", "batch", "none"] = "group"
) -> Tensor:
    """(B,) each reward minus its group's mean, over the (n - 1) standard deviation of the group or of the batch.

    Source: Shao et al. 2024, section 4.1.2 (https://arxiv.org/abs/2402.03300); none: Liu et al. 2025
    (https://arxiv.org/abs/2503.20783).
    """
    table = rewards.view(-1, group)
    centered = table - table.mean(1, keepdim=True)
    if scale == "none":
        return centered.view(-1)
    deviation = table.std(1, keepdim=True) if scale == "group" else rewards.std()
    return (centered / (deviation + EPS)).view(-1)


def rloo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor, clip: float) -> Tensor:
    """Clipped surrogate on the ratio of whole responses, averaged over responses; at ratio 1 REINFORCE's gradient.

    Args:
        logprobs, old_logprobs: (B, R).
        advantages: (B,).

    Source: TRL's RLOOTrainer (https://huggingface.co/docs/trl/rloo_trainer); the paper's is the case of ratio 1.
    """
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, torch.zeros_like(logprobs)).sum(1)
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages).mean()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip: float,
    kl_coef: float,
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo",
    tokens: float | None = None,
    longest: int | None = None,
) -> Tensor:
    """Clipped surrogate per token plus kl_coef times k3, the latter weighted by the ratio.

    k3 as a loss has the gradient of the wrong KL; times the ratio, its gradient is that of KL(policy || reference) of
    the next token (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556).

    Args:
        logprobs, old_logprobs, ref_logprobs: (B, R).
        advantages: (B,), the same for every token of a response.
        clip, kl_coef: Of the config.
        loss: dapo: mean over tokens; grpo: mean over each response's tokens, then over responses; dr_grpo: sum over
            tokens by B times `longest`.
        tokens: dapo: tokens of an average minibatch, where the batch is split; None: those of this one.
        longest: dr_grpo: the longest response allowed.

    Source: Shao et al. 2024, eq. 3; Yu et al. 2025, section 3.3 (https://arxiv.org/abs/2503.14476).
    """
    zero = torch.zeros_like(logprobs)
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, zero)
    ratio, gain = log_ratio.exp(), advantages.unsqueeze(1)
    surrogate = -torch.minimum(ratio * gain, ratio.clamp(1.0 - clip, 1.0 + clip) * gain)
    per_token = torch.where(response_mask, surrogate + kl_coef * ratio * kl_k3(logprobs, ref_logprobs), zero)
    if loss == "grpo":
        return (per_token.sum(1) / response_mask.sum(1)).mean()
    if loss == "dr_grpo":
        assert longest is not None
        return per_token.sum() / (len(advantages) * longest)
    return masked_mean(per_token, response_mask) if tokens is None else per_token.sum() / tokens
