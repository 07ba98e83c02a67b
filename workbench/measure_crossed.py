"""Reward and optimizer apart in the measure stage: `decomposition`, at the selected checkpoints and at one KL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from workbench.evidence import ArmRun
from workbench.measure_lines import Lines, sizes_up_to
from workbench.measure_scope import Figure, Scope, plain
from workbench.metrics import matched_kl
from workbench.metrics.crossed import Design, Weights, decompose, design
from workbench.metrics.estimates import Array, cluster_mean, interval_of_mean, mean_by_cluster, means_within
from workbench.metrics.lines import estimate
from workbench.results_base import Compared, E
from workbench.results_crossed import Decomposition
from workbench.verdicts import Verdicts

Table = dict[tuple[str, int], float]  # (prompt, run seed) -> the arm's mean there
Measured = Literal["gold_reward", "proxy_reward"]


def decomposition(scope: Scope, verdicts: Verdicts, lines: Lines, *, withheld: bool) -> list[dict[str, Any]]:
    """Every measure taken apart; empty where no arms are crossed.

    Args:
        scope: The comparison.
        verdicts: For win rates by the first judge.
        lines: For curves of reward by KL.
        withheld: The first judge's missing verdicts could decide: no win rates.
    """
    made = design(scope.blocks, scope.proxy, scope.implicit)
    if made is None:
        return []
    reward: Measured = "gold_reward" if scope.has_gold else "proxy_reward"
    column = "gold" if scope.has_gold else f"proxy/{scope.proxy}"
    diverged = [label for label in made.labels if any(one.diverged for one in scope.arms[label])]
    caveats = [*made.caveats, *(f"{label} diverged: its last good checkpoint stands for it" for label in diverged)]
    named: dict[str, Any] = {"explicit": made.reward, "implicit": made.implicit}
    found = []
    tables = {label: _values(scope.arms[label], column) for label in made.labels}
    found.append(_paired(made, tables, caveats, named | {"measure": reward, "at": "selected"}))
    judge = scope.judges[0]
    if not withheld and judge != "proxy":
        wins = {label: _wins(verdicts, judge, label, scope.arms[label]) for label in made.labels}
        told = named | {"measure": "win_rate", "judge": judge, "at": "selected"}
        found.append(_paired(made, wins, caveats, told, proportion=True))
    if (matched := _matched(scope, made, lines, caveats, named | {"measure": reward, "at": "matched_kl"})) is not None:
        found.append(matched)
    return [plain(one) for one in found]


def _values(runs: list[ArmRun], column: str) -> Table:
    table: Table = {}
    for one in runs:
        means, prompts = means_within(*one.values(column))
        table |= {(str(prompt), one.seed): float(mean) for prompt, mean in zip(prompts, means, strict=True)}
    return table


def _wins(verdicts: Verdicts, judge: str, label: str, runs: list[ArmRun]) -> Table:
    wins = verdicts.over_baseline(judge, label, runs)
    rows = zip(wins.prompts, wins.seeds, wins.wins.tolist(), strict=True)
    return {(prompt, seed): win for prompt, seed, win in rows}


def _paired(
    made: Design, tables: Mapping[str, Table], caveats: list[str], told: dict[str, Any], *, proportion: bool = False
) -> Decomposition:
    """Contrasts within prompts and run seeds, all on the places where every arm is scored: so splits add up."""
    places = list(dict.fromkeys(place for table in tables.values() for place in table))
    prompts, seeds = [prompt for prompt, _ in places], [seed for _, seed in places]
    labels = seeds if len(set(seeds)) > 1 else None
    columns = {label: np.array([table.get(place, math.nan) for place in places]) for label, table in tables.items()}
    unscored = np.isnan(np.stack(list(columns.values()))).any(axis=0)
    columns = {label: np.where(unscored, math.nan, column) for label, column in columns.items()}

    def contrast(weights: Weights) -> Compared:
        values: Array = np.sum([weight * columns[label] for label, weight in weights.items()], axis=0)
        mean = cluster_mean(values, prompts, None, labels)
        return Compared.of(interval_of_mean(mean), minimum_detectable_effect=mean.detectable_effect())

    def value(label: str) -> E:
        return E.of(mean_by_cluster(columns[label], prompts, None, labels, proportion=proportion))

    cells, effects, gap = decompose(made, contrast, value)
    return Decomposition(cells=cells, effects=effects, gap=gap, caveats=caveats, **told)


def _matched(
    scope: Scope, made: Design, lines: Lines, caveats: list[str], told: dict[str, Any]
) -> Decomposition | None:
    """The same at the largest KL that all arms reach, read off each arm's curve; None where curves are missing."""
    found = []
    for label in made.labels:
        if scope.arms[label][0].kind == "best_of_n":
            found.append(lines.pool(label, sizes_up_to(max(scope.blocks[label]["report_n"]))))
        elif (line := lines.trajectory(label)) is not None:
            found.append(line[0])
    curves = matched_kl.Curves(found, scope.rng(Figure.DECOMPOSITION))
    usable = set(curves.usable())
    left_out = [f"{label}: {curves.refused[label]}" for label in curves.lines if label not in usable]
    made = made.only(usable)
    if made.dpo not in usable or not made.crossed:
        return None
    kl = matched_kl.round_down(min(curves.reach[label] for label in made.labels))
    at = np.array([kl])
    read = {label: curves.read(label, at)[:, :, 0] for label in made.labels}

    def prompts_of(labels: list[str]) -> int:
        return min(len(curves.lines[label].prompts) for label in labels)

    def contrast(weights: Weights) -> Compared:
        values: Array = np.sum([weight * read[label] for label, weight in weights.items()], axis=0)
        mixed = len({curves.lines[label].prompt_set for label in weights}) > 1
        if (reason := curves.too_sparse(list(weights), at, np.ones(1))) is not None:
            return Compared(value=None, low=None, high=None, n=prompts_of(list(weights)), method=reason)
        how = "contrast at one KL" + ("; best-of-n on other prompts, so unpaired, and at a bound" if mixed else "")
        made = estimate(values, prompts_of(list(weights)), how)
        return Compared(**made.model_dump())

    def value(label: str) -> E:
        return curves.at(label, kl)

    cells, effects, gap = decompose(made, contrast, value)
    return Decomposition(cells=cells, effects=effects, gap=gap, caveats=[*caveats, *left_out], kl=kl, **told)
