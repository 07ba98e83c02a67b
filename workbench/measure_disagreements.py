"""The pairs that the two rewards order in opposite ways with the largest margins, with their texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.config_base import BASELINE
from workbench.data.records_io import read_jsonl
from workbench.measure_rewards import OOD, SHIFTED, Rewards, on_policy
from workbench.measure_scope import Scope, plain
from workbench.metrics.estimates import Array
from workbench.metrics.pair_margins import PairMargins
from workbench.packed import read_packed_prompts
from workbench.results_agreement import Disagreement

DISAGREEMENTS_FILE = "disagreements.json"
LISTED = 20  # of each set, in the file
SHOWN = 3  # of each set, in results.json
_ROLES = {SHIFTED: (BASELINE, "shift"), OOD: (BASELINE, "ood")}


def largest_disagreements(pairs: PairMargins, most: int) -> list[tuple[int, float]]:
    """(row, size) of pairs with margins of opposite sign, largest product first, at most one of a prompt.

    Each margin counts in units of its root mean square in the set: nats of one reward are not nats of the other.
    """

    def unit(values: Array) -> Array:
        scale = float(np.sqrt(np.nanmean(values**2))) if np.any(~np.isnan(values)) else 0.0
        scaled: Array = np.nan_to_num(values / scale) if scale > 0 else np.zeros_like(values)
        return scaled

    product = unit(pairs.implicit) * unit(pairs.explicit)
    found: list[tuple[int, float]] = []
    seen: set[Any] = set()
    for row in np.argsort(product, kind="stable").tolist():
        if product[row] >= 0 or len(found) == most:
            break
        if pairs.prompts[row] not in seen:
            seen.add(pairs.prompts[row])
            found.append((row, float(-product[row])))
    return found


class Disagreements:
    """`disagreements`: a list for the file, and its head for results.json, as plain JSON."""

    def __init__(self, scope: Scope, rewards: Rewards) -> None:
        self.scope, self.rewards = scope, rewards

    def listed(self, most: int = LISTED) -> list[dict[str, Any]]:
        """The largest ones of every set, in the order of the sets."""
        if self.scope.implicit is None:
            return []
        prompts = {
            one["prompt_id"]: one["prompt"] for one in read_packed_prompts(self.scope.artifacts.inputs["prompts"])
        }
        found = []
        for name, pairs in self.rewards.sets.items():
            rows = largest_disagreements(pairs, most)
            texts = self._texts(name, pairs, [row for row, _ in rows])
            found += [
                plain(self._told(name, pairs, row, size, both, prompts))
                for (row, size), both in zip(rows, texts, strict=True)
            ]
        return found

    def _told(
        self, name: str, pairs: PairMargins, row: int, size: float, both: tuple[str, str], prompts: dict[str, str]
    ) -> Disagreement:
        first = bool(pairs.explicit[row] > 0)  # explicit prefers the first, so implicit the second
        sign = 1.0 if first else -1.0
        gold = None if pairs.gold is None or np.isnan(pairs.gold[row]) else float(sign * pairs.gold[row])
        prompt_id = str(pairs.prompts[row])
        return Disagreement(
            set=name,
            seed=self.scope.seeds[0] if pairs.seeds is None else pairs.seeds[row],
            prompt_id=prompt_id,
            prompt=prompts.get(prompt_id, ""),
            explicit_prefers=both[0] if first else both[1],
            implicit_prefers=both[1] if first else both[0],
            explicit_margin=float(sign * pairs.explicit[row]),
            implicit_margin=float(-sign * pairs.implicit[row]),
            gold_margin=gold,
            size=size,
        )

    def _texts(self, name: str, pairs: PairMargins, rows: list[int]) -> list[tuple[str, str]]:
        """First and second response of the rows."""
        assert pairs.first is not None
        assert pairs.second is not None
        if pairs.truth_kind == "label":
            texts = self.rewards.reader.texts
            return [(texts[pairs.first[row]].chosen, texts[pairs.first[row]].rejected) for row in rows]
        label, role = _ROLES.get(name, (name.removeprefix(on_policy("")), "generations"))
        seeds = [self.scope.seeds[0] if pairs.seeds is None else pairs.seeds[row] for row in rows]
        by_seed = {run: self._responses(label, run, role) for run in set(seeds)}
        return [
            (by_seed[run][pairs.first[row]], by_seed[run][pairs.second[row]])
            for run, row in zip(seeds, rows, strict=True)
        ]

    def _responses(self, label: str, run: int, role: str) -> dict[str, str]:
        path = self.scope.artifacts.path(label, run, role) / "generations.jsonl"
        return {one["generation_id"]: one["response"] for one in read_jsonl(path)}


def shown(listed: list[dict[str, Any]], most: int = SHOWN) -> list[dict[str, Any]]:
    """The head of each set, for results.json."""
    counts: dict[str, int] = {}
    kept = []
    for one in listed:
        counts[one["set"]] = counts.get(one["set"], 0) + 1
        if counts[one["set"]] <= most:
            kept.append(one)
    return kept
