"""Log-probabilities from hidden states, a chunk at a time: the same numbers and gradients as from whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.ml_helpers import CPU, PAD, build_world
from workbench import head_logprobs as module
from workbench.batching import make_batch
from workbench.head_logprobs import head_logprobs, plain_head
from workbench.models import load_policy
from workbench.objectives import token_entropy, token_logprobs


def case(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(23, 6, generator=generator, dtype=dtype).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = nn.Linear(6, 11, bias=bias, dtype=dtype)
    ids = torch.randint(11, (23,), generator=generator)
    return hidden, head, ids, torch.randn(23, generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("elements", [11, 40, 10_000])  # a row, some rows, all rows at a time
def test_values_and_gradients_equal_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, bias: bool, temperature: float, elements: int
) -> None:
    monkeypatch.setattr(module, "_ELEMENTS", {"cpu": elements})
    monkeypatch.setattr(module, "_ROWS", 1)
    results = []
    for chunked in (True, False):
        hidden, head, ids, weights = case(torch.float32, bias)
        if chunked:
            logprobs, entropy = head_logprobs(hidden, head, ids, temperature, with_entropy=True)
        else:
            logits = head(hidden)
            logprobs, entropy = token_logprobs(logits, ids, temperature), token_entropy(logits, temperature)
        assert entropy is not None
        (logprobs * weights).sum().backward()
        found = [logprobs, entropy, hidden.grad, *(one.grad for one in head.parameters())]
        results.append([one.detach() for one in found if one is not None])
    for chunked_one, whole in zip(*results, strict=True):
        assert torch.allclose(chunked_one, whole, atol=1e-5)


def test_the_gradient_passes_a_finite_difference_check() -> None:
    hidden, head, ids, _ = case(torch.float64, True)

    def total(states: torch.Tensor) -> torch.Tensor:
        return head_logprobs(states, head, ids)[0].double()

    assert torch.autograd.gradcheck(total, (hidden,), eps=1e-3, atol=2e-3)  # values come back in float32


def test_a_frozen_head_gets_no_gradient_and_entropy_has_none() -> None:
    hidden, head, ids, _ = case(torch.float32, False)
    head.requires_grad_(False)
    logprobs, entropy = head_logprobs(hidden, head, ids, with_entropy=True)
    assert entropy is not None
    assert not entropy.requires_grad
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_no_tensor_of_tokens_by_vocabulary_is_kept_for_the_backward_pass(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    world = build_world(tmp_path_factory.mktemp("world"))
    model = load_policy(world.model, CPU, trainable=True)
    head = plain_head(model)
    assert head is not None
    batch = make_batch([[30, 31]] * 4, [[32] * 8] * 4, PAD)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    states = torch.randn(32, head.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head_logprobs(states, head, batch.tokens)
    assert max(kept) < 32 * head.out_features
