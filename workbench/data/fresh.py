"""Fresh labels: the configured annotators asked anew about given pairs, as they were asked about the training pairs.

A reward that was fitted to annotators' labels says how likely they are to prefer a response; whether it does is
measured against labels of theirs that nothing was fitted to. They need gold and lengths alone, so responses of any
policy can be labeled, not only the held-out pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.data.annotators import Floats, annotators_from_config, label_pairs


def fresh_labels(
    gold_margins: Floats,
    word_margins: Floats,
    annotators: Sequence[Mapping[str, Any]],
    labels_per_pair: int,
    rng: np.random.Generator,
) -> Floats:
    """(M,) 1.0 where the annotators prefer the first of the pair, else 0.0; NaN where the gold margin is unknown.

    Which response an annotator sees first is drawn anew for each label, so a bias of position cancels.

    Args:
        gold_margins: (M,) gold of the first less gold of the second.
        word_margins: (M,) words of the first less words of the second.
        annotators: Config blocks, as in `data.annotators`.
        labels_per_pair: Annotators asked about a pair; the majority decides, as for the training pairs.
        rng: Seeded generator.
    """
    known = ~np.isnan(gold_margins)
    zeros = np.zeros_like(gold_margins)
    labels = label_pairs(
        np.where(known, gold_margins, 0.0), zeros, word_margins, zeros, annotators_from_config(annotators),
        labels_per_pair, rng,
    )  # fmt: skip
    return np.where(known, labels.a_chosen.astype(np.float64), np.nan)
