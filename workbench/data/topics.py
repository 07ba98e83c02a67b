"""Topics of prompts: TF-IDF and k-means, seeded, with how far another seed would have found the same ones.

They describe; they are no truth. Bags of words know neither synonyms nor word order; the stop words are English; a
prompt gets one topic, also where it has several or none. Topics are of a seeded sample of at most 20,000 different
prompts, the first 4,000 characters of each.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from workbench.data.check_rows import SplitOf, key_of
from workbench.data.findings import Findings
from workbench.data.formats import Texts
from workbench.data.splits import normalize
from workbench.metrics.estimates import wilson
from workbench.results_base import E
from workbench.types import SPLITS

MOST_PROMPTS: Final = 20_000
MOST_CHARACTERS: Final = 4_000
FEWEST_PER_TOPIC: Final = 10
_TERMS, _WORDS = 20_000, 8
LIMITS: Final = (
    "Bags of words: no synonyms, no word order; English stop words; one topic a prompt. "
    "Different prompts, the first 4,000 characters, at most 20,000 of them."
)


@dataclass(kw_only=True)
class PromptSample:
    """The different prompts with the smallest seeded digests: a sample that does not depend on the order of rows.

    Args:
        split_of: Says where a row belongs.
        seed: Of the sample.
        most: Its size.
    """

    split_of: SplitOf
    seed: int = 0
    most: int = MOST_PROMPTS
    prompts: dict[int, tuple[str, str]] = field(default_factory=dict)  # rank -> (text, split)
    seen: int = 0
    _above: int = 2**63

    def see(self, row: int, texts: Texts) -> None:
        self.seen += 1
        rank = key_of(f"{self.seed} {normalize(texts.prompt)}")
        if rank >= self._above or rank in self.prompts:
            return
        self.prompts[rank] = (texts.prompt[:MOST_CHARACTERS], self.split_of(texts))
        if len(self.prompts) >= 2 * self.most:
            self._cut()

    def finish(self, findings: Findings) -> None:
        self._cut()

    def _cut(self) -> None:
        ranks = sorted(self.prompts)[: self.most]
        self.prompts = {rank: self.prompts[rank] for rank in ranks}
        if len(ranks) == self.most:
            self._above = ranks[-1]


def topics(sample: PromptSample, count: int, seed: int) -> dict[str, Any]:
    """Topics of a sample, largest first, with their shares in each split.

    Args:
        sample: Prompts.
        count: Topics wanted; fewer where there are fewer than ten prompts for each.
        seed: Of k-means; the stability compares it with the next seed.
    """
    rows = [sample.prompts[rank] for rank in sorted(sample.prompts)]
    count = min(count, len(rows) // FEWEST_PER_TOPIC)
    refused = {"prompts": len(rows), "limits": LIMITS, "stability": None, "topics": []}
    if count < 2:
        return refused | {"method": f"refused: {len(rows)} different prompts; two topics take {2 * FEWEST_PER_TOPIC}"}
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import adjusted_rand_score

    # A word in over a third of the prompts ("Human", "Assistant") tells no topics apart, unless there are few.
    reader = TfidfVectorizer(
        max_features=_TERMS, stop_words="english", max_df=max(0.33, 1.2 / count), min_df=2, sublinear_tf=True,
        token_pattern=r"[^\W\d_]{3,}",
    )  # fmt: skip
    try:
        matrix = reader.fit_transform([text for text, _ in rows])
    except ValueError:
        return refused | {"method": "refused: no word stands in two prompts, and in fewer than a third of them"}
    labels = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different rows than topics: the empty ones are left out below
        for one in (seed, seed + 1):
            model = KMeans(count, n_init=3, random_state=one % 2**32, max_iter=100)
            labels.append(model.fit_predict(matrix))
            if one == seed:
                centers = model.cluster_centers_
    terms = reader.get_feature_names_out()
    splits = np.array([split for _, split in rows])
    found = []
    for place in np.argsort(-np.bincount(labels[0], minlength=count), kind="stable"):
        mine = labels[0] == place
        if mine.any():
            best = [at for at in np.argsort(-centers[place], kind="stable")[:_WORDS] if centers[place][at] > 0]
            found.append(
                {
                    "words": [str(terms[at]) for at in best],
                    "prompts": int(mine.sum()),
                    "shares": {
                        split: E.of(
                            wilson(float(mine[splits == split].sum()), int((splits == split).sum()))
                        ).model_dump(mode="json")
                        for split in SPLITS
                        if (splits == split).any()
                    },
                }
            )
    return {
        "prompts": len(rows),
        "method": f"TF-IDF ({len(terms):,} words), k-means with {count} topics, seed {seed}",
        "limits": LIMITS,
        # 1: another seed finds the same topics; 0: no more alike than chance.
        "stability": float(adjusted_rand_score(*labels)),
        "topics": found,
    }
