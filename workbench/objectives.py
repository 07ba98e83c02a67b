"""Pure tensor mathematics of the arms: the specification that every trainer is tested against.

Conventions: B prompts, R response positions. `response_mask` (B, R) bool is True where a token counts, the EOS
included. Log-probabilities are per token, in nats, float32. Losses fall, rewards rise, KL is +KL(policy||reference).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------------------------------------- preference losses


def preference_loss(difference: Tensor, margin: Tensor | None = None, target: Tensor | None = None) -> Tensor:
    """Mean cross-entropy between the labels and P(chosen preferred) = sigmoid(difference - margin).

        - target log sigmoid(difference - margin) - (1 - target) log sigmoid(margin - difference)

    One loss for reward models and DPO: only what `difference` is differs between the two. It is smallest where the
    difference is margin + log(target / (1 - target)); a smoothed label therefore asks for a finite one.

    Args:
        difference: (B,) reward of the chosen response less the rejected one's, explicit or implicit, in log-odds.
        margin: (B,) offset that the difference must exceed, in log-odds, or None: 0.
        target: (B,) probability that chosen is preferred, in [0, 1], or None: 1.

    Returns:
        Scalar, nats per pair.

    Source: margin: Touvron et al. 2023, eq. 2 (https://arxiv.org/abs/2307.09288), Amini et al. 2024
    (https://arxiv.org/abs/2402.10571); target 1 - eps: https://ericmitchell.ai/cdpo.pdf, eq. 4.
    """
    if margin is not None:
        difference = difference - margin
    if target is None:
        return -F.logsigmoid(difference).mean()
    return -(target * F.logsigmoid(difference) + (1.0 - target) * F.logsigmoid(-difference)).mean()


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, target: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of the labels under Bradley-Terry.

    Args:
        chosen, rejected: (B,) scores of the preferred and the other response.
        margin, target: (B,) as in `preference_loss`, or None.

    Returns:
        Scalar, nats per pair.

    Source: Ouyang et al. 2022, eq. 1 (https://arxiv.org/abs/2203.02155); margin: Touvron et al. 2023, eq. 2.
    """
    return preference_loss(chosen - rejected, margin, target)


def implicit_reward(seq_logprob: Tensor, ref_seq_logprob: Tensor, beta: float) -> Tensor:
    """DPO's reward of a response up to a constant of its prompt: beta (log pi - log pi_ref), shape as given.

    Source: Rafailov et al. 2023, eq. 5 (https://arxiv.org/abs/2305.18290).
    """
    return beta * (seq_logprob - ref_seq_logprob)


def dpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    margin: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Mean sigmoid DPO loss; with a margin ODPO's, with targets below 1 conservative DPO's.

    Args:
        chosen_logprob, rejected_logprob: (B,) sums over the response under the policy.
        ref_chosen, ref_rejected: (B,) the same under the frozen reference.
        beta: Strength of the KL penalty, > 0.
        margin, target: (B,) as in `preference_loss`, or None.

    Returns:
        Scalar, nats per pair.

    Source: Rafailov et al. 2023, eq. 7 (https://arxiv.org/abs/2305.18290); see `preference_loss`.
    """
    chosen, rejected = (
        implicit_reward(chosen_logprob, ref_chosen, beta),
        implicit_reward(rejected_logprob, ref_rejected, beta),
    )
    return preference_loss(chosen - rejected, margin, target)


def nll_loss(logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the tokens that count, over the whole batch: long responses weigh more.

    Args:
        logprobs, response_mask: (B, R) log-probability of each response token, and which of them count.

    Returns:
        Scalar, nats per token.
    """
    return -masked_mean(logprobs, response_mask)


def dpo_nll_loss(
    chosen_logprobs: Tensor,
    chosen_mask: Tensor,
    rejected_logprob: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    nll_coef: float,
    margin: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """DPO with a likelihood term that keeps the chosen responses from losing probability together with the rejected.

    The term is the mean over the batch's chosen tokens, as in TRL's `sft` loss; the paper's is the mean over pairs of
    each response's mean, so a long response weighs more here than there.

    Args:
        chosen_logprobs, chosen_mask: (B, R) of the preferred responses, per token.
        rejected_logprob, ref_chosen, ref_rejected: (B,) sums, as in `dpo_loss`.
        beta: Strength of the KL penalty, > 0.
        nll_coef: Weight of the term, in units of the DPO loss per nat a token; the paper's alpha, 1 there.
        margin, target: (B,) as in `preference_loss`, or None.

    Returns:
        Scalar, nats.

    Source: Pang et al. 2024, "Iterative Reasoning Preference Optimization", eq. 1 (https://arxiv.org/abs/2404.19733).
    """
    chosen = torch.where(chosen_mask, chosen_logprobs, chosen_logprobs.new_zeros(())).sum(1)
    loss = dpo_loss(chosen, rejected_logprob, ref_chosen, ref_rejected, beta, margin, target)
    return loss + nll_coef * nll_loss(chosen_logprobs, chosen_mask)


# ---------------------------------------------------------------------------------------------- masked statistics


def masked_mean(values: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
    """Mean over the entries where `mask` is True; 0 where none is. Padding never reaches it, NaN in padding neither.

    `count` divides instead of the mask's own number: means of the parts of a step then add up to the step's mean.
    """
    kept = torch.where(mask, values, values.new_zeros(()))
    return kept.sum() / (mask.sum().clamp(min=1) if count is None else count)


def masked_whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the masked entries; 0 elsewhere.

    The variance is Bessel-corrected. With fewer than two entries only the mean is removed.
    """
    mean = masked_mean(values, mask)
    centered = torch.where(mask, values - mean, values.new_zeros(()))
    count = mask.sum()
    variance = centered.square().sum() / (count - 1).clamp(min=1)
    return centered * torch.rsqrt(variance + eps) if int(count) > 1 else centered


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token at the stated temperature.

    Args:
        logits: (..., V) of any float dtype; computed in float32.
        ids: (...) token ids.
        temperature: Divides the logits; the sampling temperature in PPO, 1 in scoring.

    Returns:
        (...) float32, nats.
    """
    scaled = logits.float() / temperature
    picked = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return picked - torch.logsumexp(scaled, dim=-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of each position's distribution, (...) from logits (..., V)."""
    logprobs = F.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


# ---------------------------------------------------------------------------------------------- KL estimators


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k1 estimate of KL(policy||reference) per token: unbiased on the policy's samples, may be negative.

    Source: http://joschu.net/blog/kl-approx.html
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k3 estimate per token: unbiased, never negative, lower variance. A diagnostic, never a loss here.

    Source: http://joschu.net/blog/kl-approx.html
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


# ---------------------------------------------------------------------------------------------- PPO


def shaped_rewards(
    score: Tensor, logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor, kl_coef: float
) -> Tensor:
    """Per-token rewards: minus kl_coef times k1 everywhere, plus the score at the last token that counts.

    Args:
        score: (B,) the reward model's score of the whole response.
        logprobs, ref_logprobs: (B, R) at the rollout temperature.
        response_mask: (B, R) bool; each row has at least one True.
        kl_coef: Weight of the penalty, reward units per nat.

    Returns:
        (B, R), 0 where the mask is False.

    Source: Ziegler et al. 2019, eq. 2 (https://arxiv.org/abs/1909.08593).
    """
    rewards = -kl_coef * kl_k1(logprobs, ref_logprobs)
    rewards = torch.where(response_mask, rewards, rewards.new_zeros(()))
    last = response_mask.shape[1] - 1 - response_mask.flip(1).to(torch.int64).argmax(1)
    rewards[torch.arange(rewards.shape[0], device=rewards.device), last] += score
    return rewards


class Advantages(NamedTuple):
    """`advantages` and `returns`, both (B, R), 0 outside the mask."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalised advantage estimation over the tokens that count; the value after the last one is 0.

    Args:
        rewards: (B, R).
        values: (B, R) the critic's value of the state *before* each token.
        response_mask: (B, R) bool, True then False along each row.
        gamma, lam: Discount and trace decay.

    Returns:
        Unwhitened advantages and returns = advantages + values.

    Source: Schulman et al. 2016, eq. 16 (https://arxiv.org/abs/1506.02438).
    """
    length = rewards.shape[1]
    advantages = torch.zeros_like(rewards)
    carried = rewards.new_zeros(rewards.shape[0])
    next_value = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(length)):
        kept = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(kept, delta + gamma * lam * carried, torch.zeros_like(carried))
        next_value = torch.where(kept, values[:, t], torch.zeros_like(next_value))
        advantages[:, t] = carried
    returns = torch.where(response_mask, advantages + values, torch.zeros_like(values))
    return Advantages(advantages, returns)


class ClippedLoss(NamedTuple):
    """`loss` scalar and `clip_fraction`, the share of masked tokens at which the clipped branch is active."""

    loss: Tensor
    clip_fraction: Tensor


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip: float,
    tokens: int | None = None,
) -> ClippedLoss:
    """Clipped surrogate, averaged over the tokens that count. All tensors (B, R); `tokens` as `masked_mean`'s count.

    Source: Schulman et al. 2017, eq. 7 (https://arxiv.org/abs/1707.06347).
    """
    # Padding holds arbitrary numbers: zero the log-ratio there so that exp() cannot make an inf that poisons gradients.
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = masked_mean(torch.maximum(unclipped, clipped), response_mask, tokens)
    return ClippedLoss(loss, masked_mean((clipped > unclipped).float(), response_mask, tokens))


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    clip: float,
    tokens: int | None = None,
) -> ClippedLoss:
    """Half the clipped squared error of the critic, averaged over the tokens that count. All tensors (B, R).

    Source: https://github.com/openai/lm-human-preferences (train_policy.py); see also detail 11 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/
    """
    # Zeroed before the squares: 0 times the derivative of a NaN in padding would still be NaN.
    zero = torch.zeros_like(values)
    values, old_values, returns = (torch.where(response_mask, one, zero) for one in (values, old_values, returns))
    # Not old + (values - old).clamp(): its rounding would count values as clipped that were not.
    clipped_values = torch.clamp(values, old_values - clip, old_values + clip)
    plain = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), response_mask, tokens)
    return ClippedLoss(loss, masked_mean((clipped > plain).float(), response_mask, tokens))


def explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; None where the returns do not vary."""
    kept_returns, kept_values = returns[response_mask], values[response_mask]
    variance = kept_returns.var(unbiased=False)
    if kept_returns.numel() < 2 or float(variance) == 0.0:
        return None
    return float(1.0 - (kept_returns - kept_values).var(unbiased=False) / variance)


def adapted_kl_coef(
    kl_coef: float, seq_kl: float, *, target: float, horizon: float, clip: float, episodes: int
) -> float:
    """One step of the proportional controller of the KL coefficient.

    Args:
        kl_coef: Current coefficient.
        seq_kl: Measured KL per sequence, nats.
        target: KL to hold, nats per sequence.
        horizon: Episodes over which a full error doubles the coefficient.
        clip: Bound on the relative error.
        episodes: Episodes of this update.

    Source: Ziegler et al. 2019, section 2.2 (https://arxiv.org/abs/1909.08593).
    """
    error = min(max(seq_kl / target - 1.0, -clip), clip)
    return kl_coef * (1.0 + error * episodes / horizon)
