"""Circular triples within a prompt: a before b, b before c, c before a, by one annotator."""

from __future__ import annotations

import itertools

import numpy as np

from workbench.annotators_records import Triples
from workbench.data.opinions import UNNAMED, Opinions
from workbench.metrics.estimates import Array, Index, mean_by_cluster
from workbench.results_base import E

MOST_RESPONSES = 24  # of one prompt: 2,024 triples


def triples_of(opinions: Opinions, unit: Index, who: Index, value: Array, prompt: Index, person: int | None) -> Triples:
    """Triples of responses of which one annotator judged all three pairs, none of them a tie.

    Args:
        unit, who, value: (L,) labels.
        prompt: (U,) of all units.
        person: Whose; None: everybody's whose labels have a name.
    """
    named = np.array([UNNAMED.fullmatch(name) is None for name in opinions.annotators], dtype=bool)
    keep = (value != 0.5) & (named[who] if person is None else named[who] & (who == person))
    beats: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
    for u, j, v in zip(unit[keep].tolist(), who[keep].tolist(), value[keep].tolist(), strict=True):
        a, b = opinions.responses[u].tolist()
        edges = beats.setdefault((int(prompt[u]), j), {})
        edges[a, b] = edges.get((a, b), 0.0) + v - 0.5
        edges[b, a] = -edges[a, b]
    judged, circular, clusters = 0, 0, []
    values = []
    for (cluster, _), edges in beats.items():
        nodes = sorted({node for pair in edges for node in pair})
        if len(nodes) < 3:
            continue
        for a, b, c in itertools.combinations(nodes[:MOST_RESPONSES], 3):
            sides = [edges.get(pair, 0.0) for pair in ((a, b), (b, c), (c, a))]
            if all(sides):
                judged += 1
                round_about = len({side > 0 for side in sides}) == 1
                circular += round_about
                values.append(float(round_about))
                clusters.append(cluster)
    if not judged:
        none = E(
            value=None, low=None, high=None, n=0,
            method="refused: no three responses to one prompt were all compared by one annotator",
        )  # fmt: skip
        return Triples(judged=0, circular=0, rate=none)
    rate = mean_by_cluster(np.array(values), np.array(clusters), proportion=True)
    return Triples(judged=judged, circular=circular, rate=E.of(rate))
