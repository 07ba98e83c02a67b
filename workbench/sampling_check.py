"""Can these responses be a policy's own? Held against the policy's probabilities, token by token.

For a token x drawn from q, log q(x) has the mean sum q log q, which one forward pass tells exactly. So over responses
that the policy drew itself, the sum of log q(x) - sum q log q is a martingale that starts at 0 and whose variance is
known too; other weights, another temperature, penalties, a cut distribution or another prompt move it. Nothing has to
be sampled for the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from workbench.errors import IntegrityError
from workbench.sampling import Decoding, nucleus

SIGMAS: Final = 5.0
TOLERANCE: Final = 0.01  # nats a token: what another precision and other kernels may do
MOST_OUTSIDE: Final = 0.01  # share of tokens outside the nucleus, whose edge is rounded too


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the check found.

    Args:
        difference: Mean of log q(x) less its expectation, nats a token.
        standard_error: Of the difference, if the policy drew the tokens.
        responses, tokens: Looked at.
        outside: Tokens that top-p should have left out.
    """

    difference: float
    standard_error: float
    responses: int
    tokens: int
    outside: int

    @property
    def ok(self) -> bool:
        """The difference is within noise and rounding."""
        bound = SIGMAS * self.standard_error + TOLERANCE
        return abs(self.difference) <= bound and self.outside <= MOST_OUTSIDE * self.tokens


@torch.no_grad()
def agreement(
    policy: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], decoding: Decoding, count: int
) -> Agreement:
    """Holds about `count` of the responses, spread evenly, against the policy.

    Args:
        policy: A causal language model in eval mode.
        prompts, responses: Token ids, row by row; responses include their stop id.
        decoding: As they should have been drawn.
        count: Responses to look at.
    """
    step = max(1, len(responses) // count)
    total, variance, tokens, outside, rows = 0.0, 0.0, 0, 0, 0
    for prompt, response in list(zip(prompts, responses, strict=True))[::step]:
        found, own = _moments(policy, prompt, response, decoding)
        total += float(found[0])
        variance += float(found[1])
        outside += int((~own).sum())
        tokens, rows = tokens + len(response), rows + 1
    return Agreement(
        difference=total / tokens,
        standard_error=math.sqrt(variance) / tokens,
        responses=rows,
        tokens=tokens,
        outside=outside,
    )


def _moments(
    policy: Any, prompt: Sequence[int], response: Sequence[int], decoding: Decoding
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(sum of log q(x) less expectation, sum of variances) of one response, and (R,) whether q gives its tokens."""
    ids = torch.tensor([[*prompt, *response]], device=policy.device)
    logits = policy(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
    q = nucleus(torch.softmax(logits.float() / decoding.temperature, -1), decoding.top_p)
    q = q / q.sum(-1, keepdim=True)
    log_q = torch.where(q > 0, q.log(), torch.zeros_like(q))
    drawn = torch.tensor(response, device=policy.device)[:, None]
    own = q.gather(-1, drawn)[:, 0] > 0
    mean = (q * log_q).sum(-1).double()
    spread = (q * log_q**2).sum(-1).double() - mean**2
    difference = log_q.gather(-1, drawn)[:, 0].double() - mean
    return (difference[own].sum(), spread[own].sum()), own


def check_agreement(
    policy: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], decoding: Decoding, count: int
) -> Agreement:
    """`agreement`, or an error that says what may be wrong.

    Raises:
        IntegrityError: The responses cannot be the policy's own.
    """
    found = agreement(policy, prompts, responses, decoding, count)
    if not found.ok:
        raise IntegrityError(
            "the server's samples are not the policy's: their log-probability under our model is "
            f"{found.difference:+.3f} nats a token off what the policy's own would have (standard error "
            f"{found.standard_error:.3f}, {found.responses} responses); {found.outside} of {found.tokens} tokens are "
            "outside top-p. Does it serve these weights, and are temperature, top-p, penalties and the prompt's special "
            "tokens taken as they are sent?",
            where="sampling.server",
        )
    return found
