"""Log-probabilities of given tokens straight from hidden states, a chunk of rows at a time.

A language model's logits are the largest tensor of a training step: tokens x vocabulary, kept once more for the
gradient. Here they exist for a chunk at a time, in the forward and again in the backward pass; what is kept is one
number a token. The gradient is exact: d log p(y) / d logits = onehot(y) - p.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}  # of one chunk of logits: 1 MiB stays in a core's cache; 256 MiB fill a GPU
_ROWS = 64  # at least: with fewer, reading the head's weight costs more than multiplying by it
_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def head_logprobs(
    hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float = 1.0, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token under softmax(head(hidden) / temperature).

    Args:
        hidden: (N, H) states that predict the tokens.
        head: The model's output embedding, (V, H).
        ids: (N,) int64.
        temperature: Divides the logits.
        with_entropy: Also the entropy of each distribution, without a gradient.

    Returns:
        (N,) float32 nats, and (N,) entropies in nats or None.
    """
    chunk = max(_ROWS, _ELEMENTS.get(hidden.device.type, 2**20) // head.weight.shape[0])
    compute: Any = _HeadLogprobs.apply
    logprobs, entropy = compute(hidden, head.weight, head.bias, ids, temperature, with_entropy, chunk)
    return logprobs, entropy if with_entropy else None


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float,
        with_entropy: bool, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count = len(ids)
        logprobs, total = (torch.empty(count, dtype=torch.float32, device=hidden.device) for _ in range(2))
        entropy = torch.empty(count if with_entropy else 0, dtype=torch.float32, device=hidden.device)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, bias, temperature)
            total[part] = torch.logsumexp(logits, dim=-1)
            logprobs[part] = logits.gather(1, ids[part].unsqueeze(1)).squeeze(1) - total[part]
            if with_entropy:
                probs = torch.exp(logits - total[part].unsqueeze(1))
                # A token of probability 0 adds nothing, though its logit may be -inf.
                entropy[part] = total[part] - torch.where(probs > 0, probs * logits, 0.0).sum(1)
        ctx.save_for_backward(hidden, weight, bias, ids, total)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, total = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.zeros_like(weight) if to_weight else None
        grad_bias = torch.zeros_like(bias) if to_bias else None
        for start in range(0, len(ids), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            slope = _logits(hidden[part], weight, bias, ctx.temperature)
            slope.sub_(total[part].unsqueeze(1)).exp_().mul_(-grad[part].unsqueeze(1))
            slope.scatter_add_(1, ids[part].unsqueeze(1), grad[part].unsqueeze(1))
            slope = slope.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, hidden[part])
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias).float()
    return logits.div_(temperature) if temperature != 1.0 else logits


def plain_head(model: Any) -> nn.Linear | None:
    """The output embedding if the model's logits are just that layer of its last hidden state; else None.

    Some models scale or cap their logits after it (Gemma 2, Cohere, Granite). Tried once on two tokens and remembered.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    if model not in _PLAIN:
        with torch.no_grad():
            ids = torch.tensor([[1, 2]], device=head.weight.device)
            logits = model(input_ids=ids, use_cache=False).logits
            own = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
            _PLAIN[model] = bool(torch.equal(logits, own))  # to the bit: a cap far above the logits changes the last
    return head if _PLAIN[model] else None
