"""Can these responses be a policy's own? Held against the policy's probabilities, token by token.

Whatever number f(x) is given to a token x drawn from q, its mean sum q f is told exactly by a forward pass. So over
responses that the policy drew itself, the sum of f(x) - sum q f is a martingale that starts at 0 and whose variance is
known too. Two f, and a count of the same kind:

surprise  f = log q: another temperature, penalties, a cut distribution, another prompt, other weights
leaning   f = log q - log reference: the weights that the policy started from in its place, which is the likeliest
          mistake, and far better seen than by `surprise`: their samples are off by both KLs between the two
repeats   the next sample of a prompt repeats this one, y, with the probability q(y): an answer from a cache, one seed

Nothing has to be sampled for the comparison.
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
RARE: Final = 50.0  # nats in all: a few rare tokens, which a normal distribution does not expect
RARE_LEANING: Final = 10.0  # the same where the two policies are close
TOLERANCE: Final = 0.01  # nats a token: what another precision and other kernels may do
MOST_OUTSIDE: Final = 0.01  # share of tokens outside the nucleus, whose edge is rounded too
FEW: Final = 5  # repeats beyond noise that say nothing yet


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the check found; differences are means over the tokens, in nats.

    Args:
        difference, standard_error: Of `surprise`, if the policy drew the tokens.
        leaning, leaning_error: Of `leaning`; 0 without a reference.
        leaning_expected: Mean of log q - log reference over what the policy would draw: the KL a token, at top-p 1.
        repeats, repeats_expected, repeats_error: Responses that repeat the one before them on the same prompt.
        responses, tokens: Looked at.
        outside: Tokens that top-p should have left out.
    """

    difference: float
    standard_error: float
    leaning: float
    leaning_error: float
    leaning_expected: float
    repeats: int
    repeats_expected: float
    repeats_error: float
    responses: int
    tokens: int
    outside: int

    @property
    def faults(self) -> list[str]:
        """What is beyond noise and rounding, in words."""
        found = []
        if abs(self.difference) > SIGMAS * self.standard_error + RARE / self.tokens + TOLERANCE:
            found.append(
                f"their log-probability under our model is {self.difference:+.3f} nats a token off what the policy's "
                f"own would have (standard error {self.standard_error:.3f})"
            )
        noise = SIGMAS * self.leaning_error + RARE_LEANING / self.tokens
        if abs(self.leaning) > noise + max(0.0, self.leaning_expected) / 2:
            found.append(
                f"less that under the SFT it is {self.leaning:+.4f} nats a token off {self.leaning_expected:.4f} "
                f"(standard error {self.leaning_error:.4f}), as if the SFT had drawn them"
            )
        if self.outside > MOST_OUTSIDE * self.tokens:
            found.append(f"{self.outside} of {self.tokens} tokens are outside top-p")
        if self.repeats > self.repeats_expected + SIGMAS * self.repeats_error + FEW:
            found.append(
                f"{self.repeats} of {self.responses} responses repeat the one before them, expected about "
                f"{self.repeats_expected:.1f}: is there a cache before the server, or one seed for all requests?"
            )
        return found


class _Sum:
    """A martingale's value, variance and expectation so far."""

    def __init__(self) -> None:
        self.off, self.variance, self.expected = 0.0, 0.0, 0.0

    def add(self, f: Tensor, q: Tensor, drawn: Tensor) -> None:
        """Adds f (R, V) of the tokens `drawn` (R, 1) from q (R, V)."""
        mean = (q * f).sum(-1).double()
        self.variance += float(((q * f**2).sum(-1).double() - mean**2).clamp(min=0).sum())
        self.off += float((f.gather(-1, drawn)[:, 0].double() - mean).sum())
        self.expected += float(mean.sum())


@torch.no_grad()
def agreement(
    policy: Any,
    reference: Any | None,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    decoding: Decoding,
    count: int,
) -> Agreement:
    """Holds about `count` of the responses, spread evenly, against the policy.

    Args:
        policy: A causal language model in eval mode.
        reference: What the policy was trained from; None: the policy is that.
        prompts, responses: Token ids, row by row; responses include their stop id.
        decoding: As they should have been drawn.
        count: Responses to look at.
    """
    surprise, leaning = _Sum(), _Sum()
    tokens, outside, repeats, repeated, spread = 0, 0, 0, 0.0, 0.0
    rows = range(0, len(responses), max(1, len(responses) // count))
    for row in rows:
        prompt, response = prompts[row], responses[row]
        log_p = _logprobs(policy, prompt, response, decoding)
        q = nucleus(log_p.exp(), decoding.top_p)
        q = q / q.sum(-1, keepdim=True)
        log_q = torch.where(q > 0, q.log(), torch.zeros_like(q))
        drawn = torch.tensor(response, device=q.device)[:, None]
        own = q.gather(-1, drawn)[:, 0] > 0
        surprise.add(log_q[own], q[own], drawn[own])
        if reference is not None:
            leans = log_p - _logprobs(reference, prompt, response, decoding)
            leaning.add(leans[own], q[own], drawn[own])
        if row + 1 < len(prompts) and prompts[row + 1] == prompt:
            again = float(log_q.gather(-1, drawn).sum().exp()) if bool(own.all()) else 0.0
            repeats += responses[row + 1] == response
            repeated, spread = repeated + again, spread + again * (1 - again)
        tokens, outside = tokens + len(response), outside + int((~own).sum())
    return Agreement(
        difference=surprise.off / tokens,
        standard_error=math.sqrt(surprise.variance) / tokens,
        leaning=leaning.off / tokens,
        leaning_error=math.sqrt(leaning.variance) / tokens,
        leaning_expected=leaning.expected / tokens,
        repeats=repeats,
        repeats_expected=repeated,
        repeats_error=math.sqrt(spread),
        responses=len(rows),
        tokens=tokens,
        outside=outside,
    )


def _logprobs(model: Any, prompt: Sequence[int], response: Sequence[int], decoding: Decoding) -> Tensor:
    """(R, V) log-probabilities at the sampling temperature, before top-p, of each of a response's tokens."""
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
    return torch.log_softmax(logits.float() / decoding.temperature, -1)


def check_agreement(found: Agreement) -> None:
    """Refuses samples that cannot be the policy's own, and says what may be wrong.

    Raises:
        IntegrityError: Something in `found` is further off than chance goes.
    """
    if found.faults:
        raise IntegrityError(
            f"the server's samples are not the policy's ({found.responses} responses, {found.tokens} tokens): "
            f"{'; '.join(found.faults)}. Does it serve these weights, and are temperature, top-p, penalties and the "
            "prompt's special tokens taken as they are sent?",
            where="sampling.server",
        )
