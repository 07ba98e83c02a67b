"""Diversity of a policy's samples: what a mean reward does not show when a policy says one thing only.

Texts are token ids of the one tokenizer that all arms share, so no language is favored. Every function gives one value
a prompt, whose plain mean is the estimate and whose spread over prompts is its variance; where the estimate is no mean
over prompts (pairs of prompts, a ratio), the value is the linearized one (Hajek's projection, Taylor's series).

    distinct_n          different n-grams per n-gram, in a sample of equal size for every arm. The share falls as the
                        text grows (Liu et al. 2022), so a longer-winded arm looks less diverse: here it is the expected
                        number in a random draw of m n-grams without replacement, exact, m the same for all.
    self_bleu           mean BLEU-4 of each sample of a prompt against its other samples; 1: all the same
    similarity_within   mean Jaccard index of the bigram sets of two samples of one prompt
    similarity_between  the same of two prompts: a policy that answers everything alike
    entropy_per_token   -log p per token on own samples at temperature 1, nats: the policy's entropy rate

Source: Li et al. 2016 (distinct-n); Liu et al. 2022, arXiv:2202.13587 (its dependence on length); Hurlbert 1971
(rarefaction); Zhu et al. 2018, arXiv:1802.01886 (self-BLEU); Papineni et al. 2002 (BLEU).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse, special

from workbench.metrics.estimates import Array

Tokens = Sequence[int]
ByPrompt = Mapping[str, Sequence[Tokens]]
"""prompt -> its samples."""

_BLEU_ORDER = 4
_ROWS_AT_ONCE = 256


def grams(tokens: Tokens, n: int) -> Counter[tuple[int, ...]]:
    """n-grams of one text with their counts."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def gram_totals(samples: ByPrompt, n: int) -> dict[str, int]:
    """prompt -> how many n-grams its samples have together."""
    return {prompt: sum(max(0, len(one) - n + 1) for one in texts) for prompt, texts in samples.items()}


def distinct(samples: ByPrompt, n: int, size: Mapping[str, int]) -> dict[str, float]:
    """Expected share of different n-grams among `size` drawn from a prompt's samples; NaN where size is 0.

    Args:
        samples: prompt -> its samples.
        n: Length of the n-grams; none spans two samples.
        size: prompt -> how many are drawn, at most as many as there are; the same for every arm.
    """
    found = {}
    for prompt, texts in samples.items():
        counted = sum((grams(one, n) for one in texts), Counter[tuple[int, ...]]())
        found[prompt] = rarefied(np.array(list(counted.values()), dtype=np.float64), size[prompt])
    return found


def rarefied(counts: Array, size: int) -> float:
    """Expected kinds in a draw of `size` without replacement, over `size`.

    Args:
        counts: (K,) how often each kind is there.
        size: At most their sum.

    Source: Hurlbert 1971: sum over kinds of 1 - C(N - c, m) / C(N, m).
    """
    if size == 0:
        return math.nan
    total = float(counts.sum())
    if size > total:
        raise ValueError(f"cannot draw {size} of {total:.0f}")
    left = total - counts - size  # below 0: the kind cannot be missed
    missed = np.where(
        left >= 0,
        np.exp(
            special.gammaln(total - counts + 1)
            - special.gammaln(np.maximum(left, 0) + 1)
            - special.gammaln(total + 1)
            + special.gammaln(total - size + 1)
        ),
        0.0,
    )
    return float((1 - missed).sum()) / size


def self_bleu(samples: ByPrompt) -> dict[str, float]:
    """Mean BLEU-4 of each sample against the prompt's others; NaN with fewer than two samples."""
    found = {}
    for prompt, texts in samples.items():
        counted = [[grams(one, n) for n in range(1, _BLEU_ORDER + 1)] for one in texts]
        lengths = [len(one) for one in texts]
        rates = [_bleu(counted, lengths, place) for place in range(len(texts))] if len(texts) > 1 else [math.nan]
        found[prompt] = sum(rates) / len(rates)
    return found


def _bleu(counted: Sequence[Sequence[Counter[tuple[int, ...]]]], lengths: Sequence[int], place: int) -> float:
    """BLEU of one sample against all others, counts clipped at the largest of any; a precision of 0 becomes half a
    match, so that short samples do not count as wholly different."""
    others = [other for other in range(len(lengths)) if other != place]
    logs = []
    for order in range(_BLEU_ORDER):
        mine = counted[place][order]
        total = mine.total()
        if not total:  # shorter than n tokens
            break
        matched = sum(min(c, max(counted[other][order][gram] for other in others)) for gram, c in mine.items())
        logs.append(math.log((matched or 0.5) / total))
    if not logs:  # two empty texts are alike
        return float(all(lengths[other] == 0 for other in others))
    closest = min((lengths[other] for other in others), key=lambda length: (abs(length - lengths[place]), length))
    brevity = min(0.0, 1 - closest / lengths[place])
    return min(1.0, math.exp(brevity + sum(logs) / len(logs)))


def similarity(samples: ByPrompt) -> tuple[dict[str, float], dict[str, float]]:
    """Jaccard index of bigram sets: of two samples of a prompt, and of samples of two prompts.

    Args:
        samples: prompt -> its samples. The beginning and the end of a text count as tokens.

    Returns:
        (prompt -> mean over its pairs, NaN below two samples; prompt -> linearized mean over pairs of prompts, NaN
        where there is one prompt).
    """
    prompts = list(samples)
    owner = np.array([place for place, prompt in enumerate(prompts) for _ in samples[prompt]], dtype=np.int64)
    table = _incidence([one for prompt in prompts for one in samples[prompt]])
    sizes = np.asarray(table.sum(axis=1)).ravel()
    members = np.bincount(owner, minlength=len(prompts)).astype(np.float64)
    within, between = np.zeros(len(prompts)), np.zeros(len(prompts))
    for start in range(0, len(owner), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        shared = (table[rows] @ table.T).toarray()
        index = shared / (sizes[rows, None] + sizes - shared)
        same = owner[rows, None] == owner
        np.add.at(within, owner[rows], np.where(same, index, 0).sum(axis=1) - 1)  # less the text with itself
        np.add.at(between, owner[rows], np.where(same, 0, index).sum(axis=1))
    pairs_within = members * (members - 1)
    pairs_between = members * (members.sum() - members)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(pairs_within > 0, within / pairs_within, math.nan)
        outside = np.where(pairs_between > 0, between / pairs_between, math.nan)
    # A mean over pairs of prompts varies twice as much with each prompt as its own mean does (Hoeffding 1948).
    outside = 2 * outside - np.nanmean(outside) if len(prompts) > 1 else outside
    return dict(zip(prompts, inside.tolist(), strict=True)), dict(zip(prompts, outside.tolist(), strict=True))


def _incidence(texts: Sequence[Tokens]) -> sparse.csr_matrix:
    """(R, G) one where text r has bigram g; every text has at least one, its beginning."""
    columns: dict[tuple[int, ...], int] = {}
    found: list[int] = []
    ends = [0]
    for one in texts:
        found += [columns.setdefault(gram, len(columns)) for gram in grams((-1, *one, -2), 2)]
        ends.append(len(found))
    ones = np.ones(len(found))
    return sparse.csr_matrix((ones, np.array(found), np.array(ends)), shape=(len(texts), len(columns)))


def entropy_per_token(seq_logprobs: Mapping[str, Sequence[float]], tokens: Mapping[str, Array]) -> dict[str, float]:
    """Linearized ratio -sum(log p) / sum(tokens), nats a token.

    Args:
        seq_logprobs: prompt -> log-probability of each sample under the policy that drew it, at temperature 1.
        tokens: prompt -> length of each, the stop token included.
    """
    surprise = {prompt: -float(np.sum(values)) for prompt, values in seq_logprobs.items()}
    length = {prompt: float(np.sum(tokens[prompt])) for prompt in surprise}
    mean = sum(length.values()) / max(len(length), 1)
    if mean == 0:
        return dict.fromkeys(surprise, math.nan)
    rate = sum(surprise.values()) / sum(length.values())
    return {prompt: rate + (surprise[prompt] - rate * length[prompt]) / mean for prompt in surprise}
