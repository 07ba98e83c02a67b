"""Pairs with both rewards' margins, read from the artifacts: held-out labelled ones and all pairs of samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.data.fresh import fresh_labels
from workbench.data.records_io import read_pairs
from workbench.data.simulate import count_words
from workbench.evidence import Responses
from workbench.measure_scope import Figure, Scope
from workbench.metrics.estimates import Array
from workbench.metrics.pair_margins import PairMargins, pairs_of_samples
from workbench.packed import PackedPairs
from workbench.types import PreferencePair


class PairReader:
    """Reads pairs once; rows in an order of their own, so that no resampled figure hangs on the order of files."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.several = len(scope.seeds) > 1

    def margins(self, split: str) -> dict[str, list[Any]]:
        """Columns of held-out pairs, all run seeds below each other, with their "seed"."""
        columns: dict[str, list[Any]] = {"seed": []}
        for run in self.scope.seeds:
            found = self.scope.artifacts.json(BASELINE, run, "margins", "margins.json")
            kept = [row for row, name in enumerate(found["split"]) if name == split]
            kept.sort(key=lambda row: found["pair_id"][row])
            for name, values in found.items():
                columns.setdefault(name, []).extend(values[row] for row in kept)
            columns["seed"] += [run] * len(kept)
        return columns

    @cached_property
    def golds(self) -> dict[str, dict[str, float]] | None:
        """pair_id -> {"chosen", "rejected"} in gold; None where the pairs are not simulated."""
        path = self.scope.artifacts.inputs["raw_pairs"] / "scores.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @cached_property
    def texts(self) -> dict[str, PreferencePair]:
        """Every pair with its texts, by id."""
        return {pair.pair_id: pair for pair in read_pairs(self.scope.artifacts.inputs["raw_pairs"])}

    @cached_property
    def lengths(self) -> dict[str, tuple[int, int]]:
        """pair_id -> tokens of chosen and rejected, stop token included."""
        packed = PackedPairs(self.scope.artifacts.inputs["pairs"])
        rows = (index for split in ("validation", "test", "ood") for index in packed.split_rows(split))
        return {packed.meta(i)["pair_id"]: (len(packed.row(i)[1]), len(packed.row(i)[2])) for i in rows}

    def gold_margins(self, pair_ids: Sequence[str]) -> Array | None:
        """(M,) gold of chosen less gold of rejected."""
        gold = self.golds
        return None if gold is None else np.array([gold[one]["chosen"] - gold[one]["rejected"] for one in pair_ids])

    def held_out(self, split: str) -> PairMargins | None:
        """Labelled pairs of a split, chosen first; None where it has none."""
        columns = self.margins(split)
        ids: list[str] = columns.get("pair_id", [])
        if not ids or self.scope.implicit is None:
            return None
        lengths = np.array([self.lengths[one] for one in ids], dtype=np.float64)
        pairs = PairMargins(
            implicit=np.array(columns[f"implicit/{self.scope.implicit}"], dtype=np.float64),
            explicit=np.array(columns[f"proxy/{self.scope.proxy}"], dtype=np.float64),
            prompts=columns["prompt_id"],
            seeds=columns["seed"] if self.several else None,
            truth=np.ones(len(ids)),
            truth_kind="label",
            gold=self.gold_margins(ids),
            tokens=lengths[:, 0] - lengths[:, 1],
            mean_tokens=lengths.mean(axis=1),
            per_token=self._per_token(split, columns, lengths),
            first=ids,
            second=ids,
        )
        return replace(pairs, fresh=self._asked_about_pairs(ids))

    def _per_token(self, split: str, columns: dict[str, list[Any]], lengths: Array) -> Array | None:
        """Margins per token: each side's implicit reward by its own length. Validation pairs need none."""
        label = self.scope.implicit
        assert label is not None
        if split == "validation":
            return None
        rewards: dict[tuple[int, str], tuple[float, float]] = {}
        for one in self.scope.arms[label]:
            assert one.selected is not None
            found = self.scope.artifacts.json(label, one.seed, "checkpoints", "checkpoints.json")
            point = next(p for p in found["points"] if p["name"] == one.selected["checkpoint"])
            sides = zip(found["pair_id"], point["chosen"], point["rejected"], strict=True)
            rewards |= {(one.seed, name): (chosen, rejected) for name, chosen, rejected in sides}
        both = np.array([rewards[key] for key in zip(columns["seed"], columns["pair_id"], strict=True)])
        apart = both / np.maximum(lengths, 1.0)
        margins: Array = apart[:, 0] - apart[:, 1]
        return margins

    def _asked_about_pairs(self, ids: Sequence[str]) -> Array | None:
        """A fresh label for each pair, the same in every run seed: it is the pair that is asked about."""
        if not self.scope.annotators or self.golds is None:
            return None
        distinct = sorted(set(ids))
        margins = self.gold_margins(distinct)
        assert margins is not None
        words = [count_words(self.texts[one].chosen) - count_words(self.texts[one].rejected) for one in distinct]
        labels = self._ask(margins, np.array(words, dtype=np.float64), 0)
        by_id = dict(zip(distinct, labels.tolist(), strict=True))
        return np.array([by_id[one] for one in ids])

    def _ask(self, gold: Array, words: Array, number: int) -> Array:
        scope = self.scope
        return fresh_labels(
            gold, words, scope.annotators, scope.labels_per_pair, scope.rng(Figure.FRESH_LABELS, number)
        )

    def of_samples(self, samples: Sequence[tuple[int, Responses]]) -> PairMargins:
        """All pairs of samples of the same prompt and run seed, gold as the truth where there is one."""

        def joined(name: str) -> Array:
            return np.concatenate([one.columns[name] for _, one in samples])

        prompts = [prompt for _, one in samples for prompt in one.prompts]
        seeds = [run for run, one in samples for _ in one.prompts]
        pairs = pairs_of_samples(
            joined(f"implicit/{self.scope.implicit}"),
            joined(f"proxy/{self.scope.proxy}"),
            prompts,
            seeds=seeds if self.several else None,
            gold=joined("gold") if self.scope.has_gold else None,
            tokens=joined("response_tokens"),
            kl=joined("seq_kl"),
            ids=[name for _, one in samples for name in one.ids],
        )
        if not self.scope.annotators or pairs.gold is None:
            return pairs
        # The words of a pair, by the same pairing as its other columns.
        words = pairs_of_samples(joined("response_words"), joined("response_words"), prompts, seeds=seeds).implicit
        return replace(pairs, fresh=self._ask(pairs.gold, words, 1))
