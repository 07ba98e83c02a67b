"""The mathematics of the arms: hand-computed numbers, brute-force definitions, and garbage in padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench import objectives as o

GARBAGE = [math.nan, math.inf, -math.inf, 1e9]
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def dirty(values: Tensor, garbage: float) -> Tensor:
    """`values` with `garbage` wherever the mask is False."""
    return torch.where(MASK, values, torch.full_like(values, garbage))


# ------------------------------------------------------------------------------------------- preference losses


def test_bradley_terry_loss_by_hand() -> None:
    loss = o.bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert float(loss) == pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2)


def test_bradley_terry_margin_is_an_offset_inside_the_loss() -> None:
    loss = o.bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1.5]))
    assert float(loss) == pytest.approx(math.log(2))


def test_dpo_with_a_likelihood_term_by_hand() -> None:
    """Responses of 2 and 1 tokens: the term is the mean of the three, not the mean of the two means."""
    logprobs = torch.tensor([[-1.0, -2.0], [-6.0, float("nan")]])
    mask = torch.tensor([[True, True], [True, False]])
    given = (torch.tensor([-7.0, -7.0]), torch.tensor([-4.0, -4.0]), torch.tensor([-5.0, -5.0]), 0.5)
    plain = o.dpo_loss(torch.tensor([-3.0, -6.0]), *given)
    assert o.nll_loss(logprobs, mask).item() == pytest.approx(3.0)
    assert o.dpo_nll_loss(logprobs, mask, *given, 0.25).item() == pytest.approx(plain.item() + 0.75)
    assert o.dpo_nll_loss(logprobs, mask, *given, 0.0).item() == pytest.approx(plain.item())


def test_dpo_loss_by_hand() -> None:
    # log-ratios +1 and -2, beta .5: margin 1.5
    loss = o.dpo_loss(torch.tensor([-3.0]), torch.tensor([-7.0]), torch.tensor([-4.0]), torch.tensor([-5.0]), 0.5)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.5)))


def test_losses_survive_large_differences() -> None:
    assert float(o.bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4]))) == pytest.approx(2e4)


# ------------------------------------------------------------------------------------------- log-probabilities, KL


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_divide_the_logits_by_the_temperature(temperature: float) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    weights = [math.exp(x / temperature) for x in (2.0, 0.0, -1.0)]
    found = o.token_logprobs(logits, torch.tensor([2]), temperature)
    assert float(found) == pytest.approx(math.log(weights[2] / sum(weights)), abs=1e-6)


def test_token_logprobs_are_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = o.token_logprobs(logits, torch.tensor([1, 3]))
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.log_softmax(logits.float(), -1)[[0, 1], [1, 3]], atol=1e-6)


def test_entropy_of_a_uniform_distribution_is_log_v() -> None:
    assert float(o.token_entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8))
    logits = torch.tensor([[0.0, math.log(3.0)]])
    probabilities = [x / (1 + 3**2) for x in (1, 9)]  # at temperature 1/2
    expected = -sum(p * math.log(p) for p in probabilities)
    assert float(o.token_entropy(logits, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_k1_and_k3_are_unbiased_and_only_k1_may_be_negative() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = float((p * (p / q).log()).sum())
    k1, k3 = o.kl_k1(p.log(), q.log()), o.kl_k3(p.log(), q.log())
    assert float((p * k1).sum()) == pytest.approx(exact, abs=1e-6)
    assert float((p * k3).sum()) == pytest.approx(exact, abs=1e-6)
    assert float(k1.min()) < 0 <= float(k3.min())
    assert float(k3[1]) == pytest.approx(0.5 / 0.2 - 1 - math.log(0.5 / 0.2), abs=1e-6)


# ------------------------------------------------------------------------------------------- masked statistics


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_padding_changes_no_mean_and_no_whitening(garbage: float) -> None:
    values = torch.tensor([[1.0, 2.0, 6.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    assert float(o.masked_mean(dirty(values, garbage), MASK)) == 3.0
    white = o.masked_whiten(dirty(values, garbage), MASK)
    assert torch.equal(white, o.masked_whiten(values, MASK))
    assert torch.equal(white[~MASK], torch.zeros(4))


def test_whitening_gives_mean_0_and_variance_1_over_the_mask_alone() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0, 50.0], [3.0, 50.0, 50.0, 50.0]])
    kept = o.masked_whiten(values, MASK)[MASK]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kept.var()) == pytest.approx(1, abs=1e-5)
    # by hand: mean 3, squared deviations 4 + 1 + 9 + 0 over 3
    assert kept.tolist() == pytest.approx([x / math.sqrt(14 / 3) for x in (-2, -1, 3, 0)], abs=1e-6)


def test_statistics_of_nothing_and_of_one_are_finite() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert float(o.masked_mean(torch.full((1, 3), math.nan), nothing)) == 0.0
    one = torch.tensor([[True, False, False]])
    assert o.masked_whiten(torch.tensor([[5.0, math.nan, 1.0]]), one).tolist() == [[0.0, 0.0, 0.0]]
    assert o.explained_variance(torch.ones(1, 3), torch.ones(1, 3), one) is None


# ------------------------------------------------------------------------------------------- rewards and advantages


def test_rewards_are_minus_kl_coef_k1_and_the_score_at_the_last_token_that_counts() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    ref = torch.tensor([[-1.5, -1.0, -3.0, 0.0], [-2.0, 0.0, 0.0, 0.0]])
    rewards = o.shaped_rewards(torch.tensor([10.0, -4.0]), logprobs, ref, MASK, 0.2)
    assert rewards.flatten().tolist() == pytest.approx([-0.1, 0.2, 10.0, 0.0, -4.2, 0.0, 0.0, 0.0])


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.2, 0.1]])
    found = o.gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95)
    # deltas -.3, -.1, .9
    assert found.advantages[0].tolist() == pytest.approx([0.41725, 0.755, 0.9])
    assert found.returns[0].tolist() == pytest.approx([0.91725, 0.955, 1.0])


def test_the_terminal_reward_is_inside_the_returns() -> None:
    rewards = o.shaped_rewards(torch.tensor([10.0, -4.0]), torch.zeros(2, 4), torch.zeros(2, 4), MASK, 0.1)
    found = o.gae(rewards, torch.full((2, 4), 0.3), MASK, 1.0, 1.0)
    assert found.returns.tolist() == pytest.approx(torch.tensor([[10.0] * 3 + [0], [-4.0, 0, 0, 0]]))


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[list[float], list[float], int, float, float]:
    length = draw(st.integers(1, 7))
    numbers = st.lists(st.floats(-5, 5, width=32), min_size=length, max_size=length)
    unit = st.floats(0, 1)
    return draw(numbers), draw(numbers), draw(st.integers(0, 3)), draw(unit), draw(unit)


@settings(max_examples=60, deadline=None)
@given(trajectories())
def test_gae_equals_its_definition(case: tuple[list[float], list[float], int, float, float]) -> None:
    rewards, values, padding, gamma, lam = case
    length = len(rewards)
    after = [*values[1:], 0.0]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
    wide = [[*row, *[math.nan] * padding] for row in (rewards, values)]
    mask = torch.tensor([[True] * length + [False] * padding])
    found = o.gae(torch.tensor([wide[0]]), torch.tensor([wide[1]]), mask, gamma, lam)
    assert found.advantages[0].tolist() == pytest.approx(expected + [0.0] * padding, abs=1e-3)
    returns = [a + v for a, v in zip(expected, values, strict=True)]
    assert found.returns[0].tolist() == pytest.approx(returns + [0.0] * padding, abs=1e-3)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_padding_changes_no_reward_and_no_advantage(garbage: float) -> None:
    torch.manual_seed(0)
    logprobs, ref, values = torch.randn(3, 2, 4).unbind(0)
    score = torch.tensor([1.0, 2.0])
    clean = o.shaped_rewards(score, logprobs, ref, MASK, 0.1)
    assert torch.equal(o.shaped_rewards(score, dirty(logprobs, garbage), dirty(ref, garbage), MASK, 0.1), clean)
    expected, found = o.gae(clean, values, MASK), o.gae(dirty(clean, garbage), dirty(values, garbage), MASK)
    assert torch.equal(found.advantages, expected.advantages)
    assert torch.equal(found.returns, expected.returns)
    assert o.explained_variance(dirty(values, garbage), dirty(expected.returns, garbage), MASK) == (
        o.explained_variance(values, expected.returns, MASK)
    )


# ------------------------------------------------------------------------------------------- PPO's losses


def test_policy_loss_clips_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.0]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0, 2.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    found = o.ppo_policy_loss(ratio.log(), torch.zeros(1, 5), advantages, mask, 0.2)
    # clipped where it would gain (1.5 up, .5 down), not where it would lose
    assert float(found.loss) == pytest.approx((-1.2 + 0.8 + 1.5 - 0.5 - 2.0) / 5)
    assert float(found.clip_fraction) == pytest.approx(2 / 5)


def test_value_loss_clips_by_hand() -> None:
    values, old, returns = torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    found = o.ppo_value_loss(values, old, returns, torch.ones(1, 2, dtype=torch.bool), 0.2)
    # clipped to .2: (1.8)^2 > 1; inside the clip: .01 both
    assert float(found.loss) == pytest.approx(0.5 * (3.24 + 0.01) / 2)
    assert float(found.clip_fraction) == pytest.approx(0.5)


Loss = Callable[[Tensor, Tensor, Tensor], o.ClippedLoss]
LOSSES: dict[str, Loss] = {
    "policy": lambda new, old, other: o.ppo_policy_loss(new, old, other, MASK, 0.2),
    "value": lambda new, old, other: o.ppo_value_loss(new, old, other, MASK, 0.2),
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_garbage_in_padding_changes_no_loss_and_no_gradient(loss: Loss, garbage: float) -> None:
    torch.manual_seed(1)
    new, old, other = torch.randn(3, 2, 4).unbind(0)
    clean = new.clone().requires_grad_()
    expected = loss(clean, old, other)
    expected.loss.backward()
    soiled = dirty(new, garbage).requires_grad_()
    found = loss(soiled, dirty(old, garbage), dirty(other, garbage))
    found.loss.backward()
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.clip_fraction, expected.clip_fraction)
    assert clean.grad is not None
    assert soiled.grad is not None
    assert torch.equal(soiled.grad, clean.grad)
    assert torch.equal(soiled.grad[~MASK], torch.zeros(4))


def test_losses_weigh_every_token_alike_not_every_sequence() -> None:
    advantages = torch.tensor([[1.0, 1.0, 1.0, 9.0], [5.0, 9.0, 9.0, 9.0]])
    zero = torch.zeros(2, 4)
    assert float(o.ppo_policy_loss(zero, zero, advantages, MASK, 0.2).loss) == pytest.approx(-8 / 4)


def test_explained_variance_of_perfect_useless_and_constant_values() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert o.explained_variance(returns + 7, returns, mask) == pytest.approx(1.0)
    assert o.explained_variance(torch.zeros(1, 3), returns, mask) == pytest.approx(0.0)
    assert o.explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert o.explained_variance(returns, torch.ones(1, 3), mask) is None


# ------------------------------------------------------------------------------------------- adaptive KL


@pytest.mark.parametrize(
    ("seq_kl", "expected"),
    [(12.0, 0.1 * 1.0128), (6.0, 0.1), (6.6, 0.1 * 1.0064), (0.0, 0.1 * 0.9872), (-3.0, 0.1 * 0.9872)],
)
def test_adaptive_kl_by_hand(seq_kl: float, expected: float) -> None:
    # target 6, horizon 10 000, 640 episodes: error 1, clipped to .2, moves the coefficient by .2 x .064
    found = o.adapted_kl_coef(0.1, seq_kl, target=6.0, horizon=10_000, clip=0.2, episodes=640)
    assert found == pytest.approx(expected)


def test_adaptive_kl_holds_its_target_on_a_simple_response() -> None:
    coefs = [0.5]
    for _ in range(3000):
        coefs.append(o.adapted_kl_coef(coefs[-1], 1.2 / coefs[-1], target=6.0, horizon=10_000, clip=0.2, episodes=128))
    assert 1.2 / coefs[-1] == pytest.approx(6.0, rel=0.01)
    assert all(b <= a for a, b in pairwise(coefs))
