"""Gao's two forms of reward against d = sqrt(KL): design, least squares, where they peak, when the data cannot tell.

Both are linear in (alpha, beta). Source: Gao, Schulman & Hilton 2022, eqs. 1-2.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from workbench.metrics.estimates import Array

Form = Literal["bon", "rl"]
MIN_POINTS = 4
MIN_SPREAD = 2.0  # largest d over smallest d: below it the two terms of the form cannot be told apart


def terms(form: Form, d: Array) -> tuple[Array, Array]:
    """What alpha and beta are multiplied with: d and -d^2, or d and -d log d (0 at d = 0)."""
    second = d * d if form == "bon" else d * np.log(np.where(d > 0, d, 1.0))
    return d, -second


def fit(form: Form, d: Array, gain: Array) -> tuple[Array, Array]:
    """Least squares of reward gains on one form.

    Args:
        form: Which.
        d: (..., K) sqrt(KL).
        gain: (..., K) reward less the reference's.

    Returns:
        (..., 2) alpha and beta; (..., K) residuals.
    """
    x, y = terms(form, d)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    xr, yr = (x * gain).sum(-1), (y * gain).sum(-1)
    determinant = xx * yy - xy * xy
    safe = np.where(determinant > 0, determinant, np.nan)
    alpha, beta = (yy * xr - xy * yr) / safe, (xx * yr - xy * xr) / safe
    return np.stack([alpha, beta], axis=-1), gain - alpha[..., None] * x - beta[..., None] * y


def peak_kl(form: Form, coefficients: Array) -> Array:
    """(..., 2) coefficients -> KL at the maximum of the form; inf where it never turns, 0 where it only falls."""
    alpha, beta = coefficients[..., 0], coefficients[..., 1]
    turns = beta > 0
    ratio = alpha / np.where(turns, beta, 1.0)
    d = np.maximum(ratio / 2, 0.0) if form == "bon" else np.exp(np.minimum(ratio - 1, 300.0))
    peak: Array = np.where(turns, d * d, math.inf)
    return peak


def refusal(form: Form, d: Array, prompts: int, min_prompts: int) -> str | None:
    """Why a form is not fitted, or None.

    Args:
        form: Which.
        d: (S, K) sqrt(KL) of each run seed's points.
        prompts: Scored at every point.
        min_prompts: Needed.
    """
    if prompts < min_prompts:
        return f"refused: {prompts} prompts scored at every point, at least {min_prompts} needed"
    for one in d:
        moved = np.unique(np.round(one[one > 0], 6))
        if len(moved) < MIN_POINTS:
            return f"refused: {len(moved)} points with KL above 0, at least {MIN_POINTS} needed"
        if moved[-1] < MIN_SPREAD * moved[0]:
            return f"refused: sqrt(KL) spans {moved[0]:.3g} to {moved[-1]:.3g}, a factor of {MIN_SPREAD:g} needed"
    return None
