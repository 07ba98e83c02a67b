"""How often intervals about curves cover: gold at matched KL, area, drop from the best point. Prints one JSON object.

    python benchmarks/coverage_curves.py [--worlds N] [--seed S] [--only TEXT] > coverage_curves.json
    python benchmarks/coverage_curves.py --markdown coverage_curves.json

Every cell draws worlds whose curves are known and asks the workbench's own estimators. Gold is sqrt(KL), or a turning
curve, plus a level by prompt, a shift by run seed and noise by cell; KL is estimated with noise as well.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.metrics.lines import Line
from workbench.metrics.matched_kl import Curves, area_weights
from workbench.metrics.overoptimization import Start, overoptimization
from workbench.results_base import E

KL = np.array([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 4.0, 6.0])
TURNING = np.array([0.0, 0.7, 1.3, 1.5, 1.6, 1.5, 1.2, 0.4])
READ_AT, REACH = 1.5, 3.0
RESAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of world.

    Args:
        kind: "difference" and "area" (of two arms), "unpaired" (a difference over two sets of prompts), "arm" (one at
            a KL), "drop" (from the best point).
        n: Prompts.
        seeds: Run seeds.
        seed_sd: Standard deviation of a run seed's shift, different in each arm.
    """

    kind: str
    n: int
    seeds: int = 1
    seed_sd: float = 0.0

    @property
    def name(self) -> str:
        """All that sets it apart."""
        seeds = f" seeds={self.seeds} seed_sd={self.seed_sd:g}" if self.seeds > 1 else ""
        return f"{self.kind} n={self.n}{seeds}"


def cells() -> list[Cell]:
    """The whole study."""
    kinds = ("arm", "difference", "unpaired", "area", "drop")
    found = [Cell(kind=kind, n=n) for kind in kinds for n in (50, 128)]
    return found + [Cell(kind=kind, n=128, seeds=5, seed_sd=sd) for kind in kinds for sd in (0.0, 0.2)]


def line(arm: str, gold: np.ndarray, cell: Cell, rng: np.random.Generator, level: np.ndarray, where: str) -> Line:
    """One arm's points in one world."""
    shape = (cell.seeds, cell.n, len(KL))
    shift = cell.seed_sd * rng.normal(size=(cell.seeds, 1, 1)) * np.sqrt(KL) / 2
    values = gold + level[None, :, None] + shift + rng.normal(size=shape)
    return Line(
        arm=arm,
        kl_kind="mc_k1",
        prompt_set="test" if where == "test" else "validation",
        labels=tuple(map(str, KL)),
        prompts=tuple(f"{where}{i}" for i in range(cell.n)),
        seeds=tuple(range(cell.seeds)),
        kl=KL + rng.normal(size=shape) * (KL > 0),
        proxy=values,
        gold=values,
    )


def world(cell: Cell, rng: np.random.Generator) -> tuple[float, E]:
    """(truth, interval) of one world."""
    level = rng.normal(size=cell.n)
    if cell.kind == "drop":
        one = line("a", TURNING, cell, rng, level, "validation")
        zero = np.zeros(one.kl.shape[:2])
        (row,) = overoptimization(one, Start(gold=zero, proxy=zero), ("rl",), rng, resamples=RESAMPLES)
        assert row.drop_from_peak is not None
        return float(TURNING.max() - TURNING[-1]), row.drop_from_peak
    where = "test" if cell.kind == "unpaired" else "validation"
    other = rng.normal(size=cell.n) if cell.kind == "unpaired" else level
    root = np.sqrt(KL)
    a, b = line("a", root, cell, rng, level, "validation"), line("b", 0.7 * root, cell, rng, other, where)
    curves = Curves([a, b], rng, RESAMPLES)
    if cell.kind == "arm":
        return math.sqrt(READ_AT), curves.at("a", READ_AT)
    if cell.kind == "area":
        return 0.3 * 2 / 3 * math.sqrt(REACH), curves.difference("a", "b", *area_weights(REACH), "")
    return 0.3 * math.sqrt(READ_AT), curves.difference("a", "b", np.array([READ_AT]), np.ones(1), "")


def measure(cell: Cell, worlds: int, seed: int) -> dict[str, Any]:
    """Coverage of one cell, and on which side it misses; a world that is refused is drawn anew, and counted."""
    started = time.monotonic()
    rng = np.random.default_rng([seed, *cell.name.encode()])
    above = below = refused = 0
    widths = []
    for _ in range(worlds):
        truth, found = world(cell, rng)
        while found.value is None:  # noise put two points too far apart
            refused += 1
            truth, found = world(cell, rng)
        assert found.low is not None
        assert found.high is not None
        above, below = above + (truth > found.high), below + (truth < found.low)
        widths.append(found.high - found.low)
    rate = 1 - (above + below) / worlds
    return {"name": cell.name, **asdict(cell), "worlds": worlds, "coverage": round(rate, 4)} | {
        "se": round(math.sqrt(max(rate * (1 - rate), 1 / worlds) / worlds), 4),
        "missed_above": round(above / worlds, 4),
        "missed_below": round(below / worlds, 4),
        "width": round(float(np.mean(widths)), 4),
        "refused": refused,
        "wall_s": round(time.monotonic() - started, 1),
    }


def markdown(found: dict[str, Any]) -> str:
    """The study as a table."""
    lines = ["| cell | worlds | coverage | Monte Carlo se | truth above | truth below | mean width |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in found["cells"]:
        numbers = [f"{one[name]:.3f}" for name in ("coverage", "se", "missed_above", "missed_below")]
        lines.append(f"| {one['name']} | {one['worlds']} | {' | '.join(numbers)} | {one['width']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the study, or prints the table of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000, help="worlds a cell (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--markdown", type=Path, metavar="JSON", help="print the table of a finished study")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        return
    found = [measure(cell, options.worlds, options.seed) for cell in cells() if options.only in cell.name]
    print(json.dumps({"nominal": 0.95, "seed": options.seed, "cells": found}, indent=1))


if __name__ == "__main__":
    main()
