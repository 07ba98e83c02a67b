"""Reward and optimizer apart: contrasts of the cells {explicit, implicit} reward x {PPO, best-of-n, direct}.

Every figure is a sum of cells with weights that add up to 0, taken within a prompt and run seed before anything is
averaged, so that its interval is a paired one. Main effects are means over the other factor's levels that have both
cells; an interaction is a difference of differences. Effects are in the unit of the measure, not standardized.

The gap of RM+PPO to DPO has two ends that differ in reward and in optimizer. DPO optimizes the implicit reward from
labels that people gave; a direct optimizer of a *given* reward has to label pairs by it first (`direct`), and drawing
labels from a fitted reward adds its noise to that of the labels it was fitted to. That step is told apart,

    PPO(explicit) - DPO = [PPO(explicit) - direct(implicit)] + [direct(implicit) - DPO],

as `relabeling`, the second bracket. The first is split by changing the reward first, or the optimizer first,

    [PPO(explicit) - PPO(implicit)] + [PPO(implicit) - direct(implicit)],
    [direct(explicit) - direct(implicit)] + [PPO(explicit) - direct(explicit)],

two ways that agree only without interaction. Both are told, and their mean, which is the Shapley value of two players:
the one split that treats the factors alike, and adds up. Without the cell direct(implicit), DPO itself stands for it.

Source: Shapley 1953; Shorrocks 2013, "Decomposition procedures for distributional analysis" (the Shapley value of a
difference between two states); Ivison et al. 2024 (https://arxiv.org/abs/2406.09279) for the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from workbench.results_base import Compared, E
from workbench.results_crossed import Cell, Effect, Gap, Optimizer, Reward, Split

Weights = dict[str, float]
OPTIMIZERS: tuple[Optimizer, ...] = ("ppo", "best_of_n", "direct")
REWARDS: tuple[Reward, ...] = ("explicit", "implicit")


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which arm is which cell.

    Args:
        cells: (reward, optimizer) -> label; cells may be missing.
        dpo: Label of DPO on the data's own labels, whose implicit reward the implicit one is.
        reward, implicit: Names of the two rewards.
        caveats: Where two cells differ in more than they should.
    """

    cells: Mapping[tuple[Reward, Optimizer], str]
    dpo: str
    reward: str
    implicit: str
    caveats: tuple[str, ...] = ()

    @property
    def crossed(self) -> bool:
        """Whether any figure below can be made."""
        return bool(self.paired()) or bool(gap_weights(self)[1])

    def paired(self) -> list[Optimizer]:
        """Optimizers that both rewards went through."""
        return [one for one in OPTIMIZERS if all((reward, one) in self.cells for reward in REWARDS)]

    @property
    def labels(self) -> list[str]:
        """Every arm in it."""
        return list(dict.fromkeys([*self.cells.values(), self.dpo]))

    def only(self, usable: Mapping[str, Any] | set[str]) -> Design:
        """Without the cells whose arm is not among the usable ones."""
        cells = {place: label for place, label in self.cells.items() if label in usable}
        return Design(cells=cells, dpo=self.dpo, reward=self.reward, implicit=self.implicit, caveats=self.caveats)


def design(blocks: Mapping[str, Mapping[str, Any]], explicit: str, implicit: str | None) -> Design | None:
    """The cells among a comparison's arms, or None where none are crossed.

    Of several arms for one cell, those are taken whose settings its partner shares, else the first by name (blocks come
    sorted).

    Args:
        blocks: label -> config block of the arm.
        explicit: Name of the explicit reward.
        implicit: Label of the DPO arm behind the implicit one.
    """
    if implicit is None:
        return None
    names: dict[str, Reward] = {explicit: "explicit", implicit: "implicit"}
    places: dict[str, Optimizer] = {"ppo": "ppo", "best_of_n": "best_of_n", "dpo": "direct"}
    found: dict[tuple[Reward, Optimizer], list[str]] = {}
    for label, block in blocks.items():
        source = names.get(block["labels" if block["kind"] == "dpo" else "reward"])
        if source is not None and block["kind"] in places:
            found.setdefault((source, places[block["kind"]]), []).append(label)
    cells: dict[tuple[Reward, Optimizer], str] = {}
    caveats = []
    for optimizer in OPTIMIZERS:
        ours, theirs = (found.get((one, optimizer), []) for one in REWARDS)
        alike = [(a, b) for a in ours for b in theirs if not _apart(blocks[a], blocks[b])]
        picked = dict(zip(REWARDS, alike[0], strict=True)) if alike else {}
        for reward, labels in zip(REWARDS, (ours, theirs), strict=True):
            if labels:
                cells[reward, optimizer] = picked.get(reward, labels[0])
        if ours and theirs and not alike:
            told = ", ".join(_apart(blocks[ours[0]], blocks[theirs[0]]))
            caveats.append(f"{ours[0]} and {theirs[0]} differ in more than the reward: {told}")
    named = list(dict.fromkeys([*cells.values(), implicit]))
    prices = {label: blocks[label].get("kl_coef", blocks[label].get("beta")) for label in named}
    priced = {label: price for label, price in prices.items() if price is not None}
    if len(set(priced.values())) > 1:
        text = ", ".join(f"{label} {price:g}" for label, price in priced.items())
        caveats.append(f"kl_coef and beta differ ({text}), so the optima of a row differ too: look at matched KL")
    if ("explicit", "direct") in cells and ("implicit", "direct") not in cells:
        caveats.append(
            f"no dpo arm has labels: {implicit}, so what relabeling alone does is counted as the reward's "
            "where the optimizer is changed first"
        )
    made = Design(cells=cells, dpo=implicit, reward=explicit, implicit=implicit, caveats=tuple(caveats))
    return made if made.crossed else None


def _settings(block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name not in ("reward", "labels")}


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    a, b = _settings(one), _settings(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def mean_of(parts: list[Weights]) -> Weights:
    """The mean of several contrasts."""
    found: Weights = {}
    for part in parts:
        for label, weight in part.items():
            found[label] = found.get(label, 0.0) + weight / len(parts)
    return found


def effect_weights(made: Design) -> list[tuple[Any, str, Weights]]:
    """(effect, name, weights) of every contrast that the cells allow."""

    def less(a: str, b: str) -> Weights:
        return {a: 1.0, b: -1.0}

    found: list[tuple[Any, str, Weights]] = []
    whole = made.paired()
    rewards = {one: less(made.cells["explicit", one], made.cells["implicit", one]) for one in whole}
    found += [("reward", f"explicit over implicit, {one}", weights) for one, weights in rewards.items()]
    if len(whole) > 1:
        found.append(("reward", "explicit over implicit, mean", mean_of(list(rewards.values()))))
    for a, b in combinations(OPTIMIZERS, 2):
        by_reward = {
            reward: less(made.cells[reward, a], made.cells[reward, b])
            for reward in REWARDS
            if (reward, a) in made.cells and (reward, b) in made.cells
        }
        found += [("optimizer", f"{a} over {b}, {reward}", weights) for reward, weights in by_reward.items()]
        if len(by_reward) > 1:
            found.append(("optimizer", f"{a} over {b}, mean", mean_of(list(by_reward.values()))))
            crossed = {**by_reward["explicit"], **{label: -w for label, w in by_reward["implicit"].items()}}
            found.append(("interaction", f"explicit over implicit, {a} over {b}", crossed))
    return found


def gap_weights(made: Design) -> tuple[Weights | None, list[tuple[str, Weights, Weights]]]:
    """Weights of the gap, and (order, reward part, optimizer part) of each split that the cells allow; with the
    relabeling, each adds up to the gap."""
    start = made.cells.get(("explicit", "ppo"))
    if start is None:
        return None, []
    splits: list[tuple[str, Weights, Weights]] = []
    end = made.cells.get(("implicit", "direct"), made.dpo)
    if (middle := made.cells.get(("implicit", "ppo"))) is not None:
        splits.append(("reward first", {start: 1.0, middle: -1.0}, {middle: 1.0, end: -1.0}))
    if (middle := made.cells.get(("explicit", "direct"))) is not None:
        splits.append(("optimizer first", {middle: 1.0, end: -1.0}, {start: 1.0, middle: -1.0}))
    if len(splits) == 2:
        (_, *first), (_, *second) = splits
        splits.append(("mean of both", mean_of([first[0], second[0]]), mean_of([first[1], second[1]])))
    return {start: 1.0, made.dpo: -1.0}, splits


def decompose(
    made: Design, contrast: Callable[[Weights], Compared], value: Callable[[str], E]
) -> tuple[list[Cell], list[Effect], Gap | None]:
    """All cells, contrasts and splits of one measure.

    Args:
        made: The design.
        contrast: Weights by arm -> the weighted sum with its paired interval.
        value: Label -> the arm's own value.
    """
    cells = [
        Cell(reward=reward, optimizer=optimizer, arm=label, value=value(label))
        for (reward, optimizer), label in made.cells.items()
    ]
    effects = [
        Effect(effect=kind, name=name, weights=weights, difference=contrast(weights))
        for kind, name, weights in effect_weights(made)
    ]
    total, splits = gap_weights(made)
    if total is None or not splits:
        return cells, effects, None
    own = made.cells.get(("implicit", "direct"))
    return (
        cells,
        effects,
        Gap(
            a=made.cells["explicit", "ppo"],
            b=made.dpo,
            total=contrast(total),
            splits=[
                Split.model_validate({"order": order, "reward": contrast(reward), "optimizer": contrast(optimizer)})
                for order, reward, optimizer in splits
            ],
            relabeling=None if own is None else contrast({own: 1.0, made.dpo: -1.0}),
        ),
    )
