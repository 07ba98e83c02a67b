"""How reliable each annotator is, and what the right label of each pair probably is, without knowing any right label.

Each pair has a hidden right answer (the first or the second response); annotator j gives it with a chance of their own,
independently of the others given the pair. Expectation-maximization finds chances and answers together. A tie counts as
half a label for either side. One label for and one against are added to every chance, so that nobody is perfect.

What it cannot know: an error that most annotators share is taken for the truth, so reliability is agreement with the
consensus that the annotators themselves make, weighted by how well each fits it. With two annotators nobody can tell
who errs; below three the fit is refused by the callers.

Where a pair's responses have no order of their own, each pair stands for itself and its mirror image, which makes both
chances of an annotator equal (the "one-coin" model).

Source: Dawid & Skene 1979; started from the majority vote, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from workbench.metrics.estimates import Array, Index

FEWEST_ANNOTATORS = 3
_PRIOR = 1.0
_STEPS = 200
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Fit:
    """A fit under each of B weightings.

    Args:
        p_first: (B, J, 2) chance that an annotator prefers the first response where the second, and where the first, is
            the right answer.
        prior: (B,) share of units whose right answer is the first response.
        posterior: (N,) chance that the first response is right, under the first weighting.
    """

    p_first: Array
    prior: Array
    posterior: Array

    @property
    def accuracy(self) -> Array:
        """(B, J) chance of the right answer."""
        right: Array = self.prior[:, None] * self.p_first[:, :, 1] + (1 - self.prior[:, None]) * (
            1 - self.p_first[:, :, 0]
        )
        return right


@dataclass(frozen=True)
class Votes:
    """Labels as two sparse matrices (units, annotators): votes for the first and for the second response."""

    first: Any
    second: Any

    @classmethod
    def of(cls, unit: Index, who: Index, value: Array, shape: tuple[int, int]) -> Votes:
        """From labels (L,): unit, annotator, preference for the first in [0, 1]."""
        return cls(*(sparse.csr_matrix((side, (unit, who)), shape=shape) for side in (value, 1 - value)))


def fit(votes: Votes, weights: Array, *, mirrored: bool = False, start: Fit | None = None, steps: int = _STEPS) -> Fit:
    """Expectation-maximization under each weighting of the units.

    Args:
        votes: Labels.
        weights: (B, N) >= 0.
        mirrored: Units have no order of their own; see the top of this file.
        start: Where to begin; None: the majority vote.
        steps: Most iterations.
    """
    posterior = (
        _majority(votes, len(weights)) if start is None else _posterior(votes, start.p_first, start.prior, len(weights))
    )
    p_first = prior = None
    for _ in range(steps):
        p_new, prior = _maximize(votes, weights, posterior, mirrored)
        posterior = _posterior(votes, p_new, prior, len(weights))
        moved = np.inf if p_first is None else float(np.abs(p_new - p_first).max())
        p_first = p_new
        if moved < _TOLERANCE:
            break
    assert p_first is not None
    assert prior is not None
    return Fit(p_first=p_first, prior=prior, posterior=posterior[0])


def _majority(votes: Votes, repeats: int) -> Array:
    """(B, N) share of the votes for the first response."""
    first, second = (np.asarray(side.sum(axis=1)).ravel() for side in (votes.first, votes.second))
    share = (first + 0.5) / (first + second + 1.0)
    found: Array = np.broadcast_to(share, (repeats, len(share)))
    return found


def _maximize(votes: Votes, weights: Array, posterior: Array, mirrored: bool) -> tuple[Array, Array]:
    # (J, B) votes for either side, where the first and where the second response is right
    right, wrong = (weights * posterior).T, (weights * (1 - posterior)).T
    hit, miss = votes.first.T @ right, votes.second.T @ right
    false, reject = votes.first.T @ wrong, votes.second.T @ wrong
    if mirrored:
        hit = reject = hit + reject
        miss = false = miss + false
    of_first = (hit + _PRIOR) / (hit + miss + 2 * _PRIOR)
    of_second = (false + _PRIOR) / (false + reject + 2 * _PRIOR)
    total = np.maximum(weights.sum(axis=1), 1e-300)
    prior = (
        np.full(len(weights), 0.5) if mirrored else np.clip((weights * posterior).sum(axis=1) / total, 1e-6, 1 - 1e-6)
    )
    return np.stack([of_second.T, of_first.T], axis=2), prior


def _posterior(votes: Votes, p_first: Array, prior: Array, repeats: int) -> Array:
    """(B, N) chance that the first response is right."""
    ratio = np.log(p_first[:, :, 1] / p_first[:, :, 0])  # what a vote for the first says, (B, J)
    against = np.log((1 - p_first[:, :, 1]) / (1 - p_first[:, :, 0]))
    logit = (votes.first @ ratio.T + votes.second @ against.T).T + np.log(prior / (1 - prior))[:, None]
    found: Array = 1 / (1 + np.exp(-np.clip(np.broadcast_to(logit, (repeats, logit.shape[1])), -500, 500)))
    return found
