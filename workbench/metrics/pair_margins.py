"""Pairs of responses with the margins of both rewards: what every figure about their agreement is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.metrics.estimates import Array, Index, Labels, Values, as_values, group_index

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PairMargins:
    """M pairs; every margin is first minus second.

    Args:
        implicit, explicit: (M,) nats; NaN = unscored.
        prompts: (M,) prompt of each pair.
        seeds: (M,) run seed of each pair; None with one run seed.
        truth: (M,) > 0 where the first is better, < 0 the second, 0 a tie; None without.
        truth_kind: "label" or "gold".
        gold: (M,) gold margin; None without gold.
        fresh: (M,) 1 where annotators who are asked anew prefer the first, else 0; None where nobody can be asked.
        tokens: (M,) difference in length.
        mean_tokens, mean_kl: (M,) means of the two responses' lengths and of their log-ratios to the SFT, nats.
        per_token: (M,) margin of the implicit reward per token.
        first, second: (M,) ids of the two responses, or pair ids.
    """

    implicit: Array
    explicit: Array
    prompts: Sequence[Any]
    seeds: Sequence[int] | None = None
    truth: Array | None = None
    truth_kind: str | None = None
    gold: Array | None = None
    fresh: Array | None = None
    tokens: Array | None = None
    mean_tokens: Array | None = None
    mean_kl: Array | None = None
    per_token: Array | None = None
    first: Sequence[str] | None = None
    second: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.implicit)

    def where(self, keep: Mask) -> PairMargins:
        """The pairs where `keep` (M,) is true."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                changed[field.name] = value[keep]
            elif value is not None and not isinstance(value, str):
                changed[field.name] = [one for one, k in zip(value, keep, strict=True) if k]
        return replace(self, **changed)

    def against_gold(self) -> PairMargins:
        """The pairs with the gold margin as the truth."""
        return replace(self, truth=self.gold, truth_kind="gold")


def pairs_within(prompts: Labels, seeds: Labels | None) -> tuple[Index, Index, list[Index]]:
    """All pairs of samples of the same prompt and run seed.

    Args:
        prompts, seeds: (N,) of each sample.

    Returns:
        first (M,), second (M,) row numbers, and the rows of each group of samples.
    """
    run: Labels = [0] * len(prompts) if seeds is None else seeds
    index, groups = group_index(list(zip(prompts, run, strict=True)))
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index, minlength=len(groups)))[:-1]) if len(groups) else []
    pairs = [np.stack(np.triu_indices(len(rows), 1), axis=1) for rows in members]
    first, second = (
        np.concatenate([r[p[:, i]] for r, p in zip(members, pairs, strict=True)] or [order]) for i in (0, 1)
    )
    return first, second, members


def pairs_of_samples(
    implicit: Values,
    explicit: Values,
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] | None = None,
    gold: Values | None = None,
    tokens: Values | None = None,
    kl: Values | None = None,
    ids: Sequence[str] | None = None,
) -> PairMargins:
    """All pairs of samples of the same prompt (and run seed), with gold as the truth where there is one.

    Args:
        implicit, explicit, gold: (N,) reward of each sample; None or NaN = unscored.
        prompts, seeds, ids: (N,).
        tokens: (N,) length of each response, stop token included.
        kl: (N,) log-ratio of the response to the SFT, nats.
    """
    x, y = as_values(implicit), as_values(explicit)
    first, second, _ = pairs_within(prompts, seeds)

    def differ(values: Values | None) -> Array | None:
        found = None if values is None else as_values(values)
        return None if found is None else found[first] - found[second]

    def middle(values: Values | None) -> Array | None:
        found = None if values is None else as_values(values)
        return None if found is None else (found[first] + found[second]) / 2

    margin = differ(gold)
    return PairMargins(
        implicit=x[first] - x[second],
        explicit=y[first] - y[second],
        prompts=[prompts[i] for i in first],
        seeds=None if seeds is None else [seeds[i] for i in first],
        truth=margin,
        truth_kind=None if gold is None else "gold",
        gold=margin,
        tokens=differ(tokens),
        mean_tokens=middle(tokens),
        mean_kl=middle(kl),
        per_token=None if tokens is None else differ(x / np.maximum(as_values(tokens), 1.0)),
        first=None if ids is None else [ids[i] for i in first],
        second=None if ids is None else [ids[i] for i in second],
    )
