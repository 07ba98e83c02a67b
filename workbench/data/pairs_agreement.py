"""How far the labels of a run's pairs agree, for a warning before anything is trained on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np

from workbench.data.records_io import PAIRS_FILE
from workbench.metrics import krippendorff
from workbench.metrics.estimates import Array
from workbench.metrics.resampling import Rows, bootstrap_bca_by_cluster
from workbench.results_base import E

MOST_PAIRS: Final = 20_000  # the file is in the order of hashes, so that the first ones are a sample


def alpha_of_pairs(folder: Path) -> E | None:
    """Krippendorff's alpha of the labels of a pairs artifact; None where no pair has those of two annotators. Several
    labels of one annotator are one opinion, a tie where they are even, as in the dashboard.

    Args:
        folder: With pairs.jsonl.
    """
    counts, prompts = [], []
    with (folder / PAIRS_FILE).open(encoding="utf-8") as file:
        for line in file:
            if '"annotations": []' in line:  # most files have none: no need to parse them
                continue
            row = json.loads(line)
            lead: Counter[str] = Counter()  # of each annotator: labels for the first response less those for the second
            for one in row["annotations"]:
                lead[one["annotator"]] += 1 if one["prefers_first"] else -1
            if len(lead) > 1:
                sides = list(lead.values())
                counts.append((sum(one < 0 for one in sides), sides.count(0), sum(one > 0 for one in sides)))
                prompts.append(row["prompt_id"])
            if len(counts) == MOST_PAIRS:
                break
    if not counts:
        return None
    table = np.array(counts, dtype=np.float64)

    def statistic(rows: Rows, weights: Array) -> Array:
        summed = np.einsum("bn,nij->bij", weights, rows["o"])
        return krippendorff.alpha(summed, np.arange(3.0), "nominal", mirrored=True)

    found = bootstrap_bca_by_cluster(
        statistic, {"o": krippendorff.coincidences(table)}, prompts, np.random.default_rng(0), bounds=(-1.0, 1.0)
    )
    return E.of(found)
