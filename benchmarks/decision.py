"""How often the decision of a comparison is wrong, and how often it is made. Prints one JSON object.

    python benchmarks/decision.py [--worlds N] [--workers K] [--seed S] [--only TEXT] > decision.json
    python benchmarks/decision.py --markdown decision.json

Every cell draws worlds with known win rates: each arm's gold at a prompt is its quality, plus what its run seed makes
of it, plus noise, and the workbench's own tests decide. Counted are: a wrong winner (an arm that another one equals or
beats), a false equivalence (two arms called equivalent whose true difference is the margin or more), a false exclusion
(an arm said to be beaten that is not worse). `settled`: of the undecided worlds, how many a fresh one with as many more
prompts as were asked for decides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from workbench.decision import Pair, leader, more_prompts, settle, what_is_left
from workbench.metrics.estimates import wilson
from workbench.metrics.win_rate import Wins, compare
from workbench.results_base import E

MARGIN = 0.03
FLIPS = 1_000
OUTCOMES = ("winner", "equivalent", "undecided")
WRONG = ("wrong winner", "false equivalence", "false exclusion")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of world.

    Args:
        rates: True win rate of the best arm over each other one.
        n: Prompts.
        seeds: Run seeds.
        seed_sd: Standard deviation of an arm's quality between run seeds, in standard deviations of gold.
        about_methods: Whether the truth is that of the methods; else of the checkpoints drawn.
    """

    rates: tuple[float, ...]
    n: int = 256
    seeds: int = 1
    seed_sd: float = 0.0
    about_methods: bool = True

    @property
    def name(self) -> str:
        """All that sets it apart."""
        told = f"best over the others {', '.join(f'{rate:g}' for rate in self.rates)}; n={self.n} seeds={self.seeds}"
        told += f" seed_sd={self.seed_sd:g}" if self.seed_sd else ""
        return told + ("" if self.about_methods else ", about the checkpoints")


def cells() -> list[Cell]:
    """The whole study."""
    shapes = (
        (0.5, 0.5, 0.85),  # three equal arms above the SFT
        (0.5, 0.6, 0.85),  # two equal ones
        (0.5 + MARGIN, 0.85),  # two that differ by just the margin
        (0.5 + 2 * MARGIN, 0.6, 0.85),  # a best one
        (0.51, 0.85),  # a difference that does not matter
        (0.5,) * 5 + (0.85,),  # six equal ones
    )
    designs = ((1, 0.0), (2, 0.1), (5, 0.0), (5, 0.1), (10, 0.1))
    found = [Cell(rates=rates, seeds=seeds, seed_sd=sd) for rates in shapes for seeds, sd in designs]
    found += [Cell(rates=rates, n=2000, seeds=seeds) for rates in shapes[:5] for seeds in (1, 5)]
    # One run seed of methods that vary between seeds: what "checkpoints, not methods" is about.
    found += [Cell(rates=(0.5, 0.85), seed_sd=0.1, about_methods=told) for told in (True, False)]
    return found


def decide_one(cell: Cell, n: int, rng: np.random.Generator) -> tuple[str, list[str], int | None]:
    """(verdict, what is wrong with it, prompts asked for) in one world.

    Gold of arm a at a prompt in a seed: quality_a + seed_a + noise of standard deviation 1, so the true win rate of a
    over b is Phi((quality_a - quality_b) / sqrt(2 + 2 seed_sd^2)).
    """
    arms = len(cell.rates) + 1
    spread = math.sqrt(2 + 2 * cell.seed_sd**2)
    quality = np.array([0.0, *(-spread * special.ndtri(rate) for rate in cell.rates)])
    shift = cell.seed_sd * rng.standard_normal((arms, 1, cell.seeds))
    difficulty = 0.5 * rng.standard_normal((arms, n, 1))  # an arm's own with each prompt, the same in every seed
    noise = math.sqrt(0.75) * rng.standard_normal((arms, n, cell.seeds))
    gold = quality[:, None, None] + shift + difficulty + noise
    if cell.about_methods:
        true_gap = (quality[:, None] - quality[None, :]) / spread
    else:
        now = quality + shift.mean(axis=(1, 2))
        true_gap = (now[:, None] - now[None, :]) / math.sqrt(2)
    truth = special.ndtr(true_gap)
    labels = [str(arm) for arm in range(arms)]
    prompts = tuple(str(p) for p in range(n) for _ in range(cell.seeds))
    seeds = tuple(s for _ in range(n) for s in range(cell.seeds))
    pairs = []
    for a, b in itertools.combinations(range(arms), 2):
        wins = Wins(prompts=prompts, seeds=seeds, wins=(gold[a] > gold[b]).astype(float).ravel(), n_unscored=0)
        found = compare(wins, rng, FLIPS)
        pairs.append(
            Pair(a=labels[a], b=labels[b], win_rate=E.of(found.win_rate), p_value=found.p_value, seeds=cell.seeds)
        )
    settled = settle(pairs, MARGIN)
    left = what_is_left(labels, settled)
    kept = [int(label) for label in left.arms]
    rest = [arm for arm in range(arms) if arm not in kept]
    wrong = []
    if any(truth[a, b] <= 0.5 for a in kept for b in rest):
        wrong.append("false exclusion")
        wrong += ["wrong winner"] if left.verdict == "winner" else []
    if left.verdict == "equivalent" and any(
        abs(truth[a, b] - 0.5) >= MARGIN - 1e-9 for a, b in itertools.combinations(kept, 2)
    ):
        wrong.append("false equivalence")
    asked = None
    if left.verdict == "undecided":
        first = leader(left.arms, settled)
        wanted = [more_prompts(one.pair, MARGIN, len(pairs)) for one in left.open if first in (one.pair.a, one.pair.b)]
        asked = max((one for one in wanted if one is not None), default=None)
    return left.verdict, wrong, asked


def run_cell(job: tuple[int, Cell, int, int]) -> dict[str, Any]:
    """One cell, by its place in the study."""
    place, cell, worlds, seed = job
    told, wrong, settled, tried = Counter[str](), Counter[str](), 0, 0
    for world in range(worlds):
        rng = np.random.default_rng([seed, place, world])
        verdict, faults, asked = decide_one(cell, cell.n, rng)
        told[verdict] += 1
        wrong.update(faults)
        if asked is not None and cell.seeds == 1 and asked < 20_000 and tried < 50:
            tried += 1
            settled += decide_one(cell, cell.n + asked, rng)[0] != "undecided"
    shares = {name: told[name] / worlds for name in OUTCOMES}
    errors = {}
    for name in WRONG:
        interval = wilson(wrong[name], worlds)
        errors[name] = {"share": interval.value, "low": interval.low, "high": interval.high}
    again = {"settled": settled / tried if tried else None, "settled_worlds": tried}
    passes = all(errors[name]["low"] <= 0.05 for name in WRONG)
    return {"cell": cell.name, **asdict(cell), "worlds": worlds, **shares, **errors, **again, "passes": passes}


def markdown(found: dict[str, Any]) -> str:
    """The table of docs/statistics.md."""
    header = ("world", *WRONG, "winner", "equivalent", "undecided")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for one in found["cells"]:
        cells = [f"{one[name]['share']:.3f}" for name in WRONG] + [f"{one[name]:.2f}" for name in OUTCOMES]
        lines.append("| " + " | ".join([one["cell"], *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        return
    jobs = [
        (place, cell, options.worlds, options.seed) for place, cell in enumerate(cells()) if options.only in cell.name
    ]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        rows = pool.map(run_cell, jobs, chunksize=1)
    asked = sum(row["settled_worlds"] for row in rows)
    done = sum((row["settled"] or 0) * row["settled_worlds"] for row in rows)
    summary = {"cells": len(rows), "failing": [row["cell"] for row in rows if not row["passes"]]}
    summary |= {"settled_with_what_was_asked_for": done / asked if asked else None, "asked": asked}
    print(json.dumps({"margin": MARGIN, "summary": summary, "cells": rows}, indent=1))


if __name__ == "__main__":
    main()
