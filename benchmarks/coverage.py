"""How often the 95% intervals cover the truth, and how often the tests of equality reject it. Prints one JSON object.

    python benchmarks/coverage.py [--worlds N] [--workers K] [--seed S] [--only TEXT] > coverage.json
    python benchmarks/coverage.py --markdown coverage.json

Every cell draws worlds with a known truth and asks the workbench's own estimators. A cell passes when coverage is at
least .937 and, where the bound applies, at most .962; while it is within three standard errors of a bound, more worlds
are drawn, up to four times as many. Failing cells are listed, not hidden. Cells of single samples are also summed up
exactly, over all outcomes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

if __name__ == "__main__":  # started as a file: the folder above is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import coverage_agreement
from workbench.metrics.estimates import cluster_mean, mean_by_cluster, t_test_p, wilson
from workbench.metrics.resampling import bootstrap_bca_by_cluster, sign_flip_p
from workbench.metrics.variance import t_quantile
from workbench.metrics.win_rate import Judged, win_rate
from workbench.types import Estimate

LOWEST, HIGHEST = 0.937, 0.962
ALPHA = 0.05
PROMPT_SHARE = 0.3  # of the latent variance between prompts, where a prompt has several samples or seeds


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of world.

    Args:
        kind: "share" and "mean" (coverage of an interval), "arms" (of a win rate of two arms), "bootstrap" (of a
            correlation), those of coverage_agreement.py (about two rewards), "sign-flip" and "crossed" (level of a
            test of equality).
        n: Prompts.
        p: True share; for means the truth is 0.
        ties: Share of comparisons that tie.
        samples: Values a prompt (and run seed); 0: 1 to 8, drawn anew.
        seeds: Run seeds, crossed with the prompts.
        seed_sd: Standard deviation between run seeds: of the share at p = 0.5, or of the mean.
        shape: Distribution of continuous values.
    """

    kind: str
    n: int
    p: float = 0.5
    ties: float = 0.0
    samples: int = 1
    seeds: int = 1
    seed_sd: float = 0.0
    shape: str = ""

    @property
    def name(self) -> str:
        """All that sets it apart."""
        parts = [self.kind, f"n={self.n}"]
        parts += [f"p={self.p:g}"] if self.kind in ("share", "arms") else []
        parts += [f"ties={self.ties:g}"] if self.ties else []
        parts += [f"samples={self.samples or '1-8'}"] if self.samples != 1 else []
        parts += [f"seeds={self.seeds}", f"seed_sd={self.seed_sd:g}"] if self.seeds > 1 else []
        return " ".join([*parts, *([self.shape] if self.shape else [])])

    @property
    def is_level(self) -> bool:
        """Whether a test's level is measured, and not an interval's coverage."""
        return self.kind in ("sign-flip", "crossed")

    @property
    def slow(self) -> bool:
        """Whether a world takes milliseconds: at most 2,000 are drawn."""
        return self.kind in ("arms", "bootstrap", "chance") or (self.kind == "sign-flip" and bool(self.shape))

    @property
    def upper_applies(self) -> bool:
        """Whether too much coverage (a level too low) fails the cell.

        Not where few losses or few untied prompts make the outcomes discrete, and not below five run seeds, whose
        intervals are wide by design (variance.py).
        """
        if self.kind == "sign-flip" and not self.shape:
            return self.n * (1 - self.ties) / 4 >= 10
        discrete = self.kind in ("share", "arms") and self.n * self.p * (1 - self.p) < 10
        return not discrete and (self.seeds == 1 or self.seeds >= 5)


_SEEDED = (("accuracy-difference", 0.0), ("accuracy-difference", 0.1), ("two-sets", 0.1), ("slope", 0.0))


def cells() -> list[Cell]:
    """The whole study."""
    sizes, shares = (50, 200, 1000), (0.5, 0.8, 0.97)
    grid = [(n, p) for n in sizes for p in shares]
    found = [Cell(kind="share", n=n, p=p, ties=t * (1 - p)) for n, p in grid for t in (0.0, 0.5, 1.5)]
    for n, p in grid:
        found += [Cell(kind="share", n=n, p=p, ties=t * (1 - p), samples=k) for t, k in ((0.0, 4), (1.0, 4), (0.0, 0))]
        found += [Cell(kind="share", n=n, p=p, seeds=5, seed_sd=sd) for sd in (0.0, 0.03, 0.1)]
        found += [Cell(kind="share", n=n, p=p, ties=1 - p, samples=4, seeds=5, seed_sd=0.03)]
    found += [Cell(kind="share", n=200, seeds=s, seed_sd=sd) for s in (2, 3, 10) for sd in (0.0, 0.03, 0.1)]
    found += [Cell(kind="arms", n=n, p=p, samples=4) for n, p in ((50, 0.8), (200, 0.5))]
    found += [Cell(kind="mean", n=n, shape=shape) for n in sizes for shape in ("normal", "t3", "exponential")]
    found += [Cell(kind="mean", n=n, seeds=5, seed_sd=sd, shape="normal") for n in sizes for sd in (0.0, 0.05, 0.5)]
    found += [Cell(kind="bootstrap", n=n, shape="correlation .8") for n in (50, 200)]
    found += [Cell(kind="bootstrap", n=200, seeds=5, shape="correlation .8")]
    found += [
        Cell(kind=kind, n=n, samples=k) for kind in coverage_agreement.KINDS for n, k in ((100, 1), (400, 1), (128, 6))
    ]
    found += [Cell(kind=kind, n=200, seeds=5, seed_sd=sd) for kind, sd in _SEEDED]
    found += [Cell(kind="sign-flip", n=n, ties=t) for n in sizes for t in (0.0, 0.5, 0.9)]
    found += [Cell(kind="sign-flip", n=n, shape=shape) for n in sizes for shape in ("normal", "t3")]
    found += [Cell(kind="crossed", n=n, seeds=5, seed_sd=sd) for n in sizes for sd in (0.0, 0.1)]
    return found


# ---------------------------------------------------------------------------------------------------- worlds


def _layout(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Prompt and run seed of every value."""
    counts = rng.integers(1, 9, size=cell.n) if cell.samples == 0 else np.full(cell.n, cell.samples)
    prompts = np.repeat(np.arange(cell.n), counts)
    if cell.seeds == 1:
        return prompts, None
    return np.tile(prompts, cell.seeds), np.repeat(np.arange(cell.seeds), len(prompts))


def _shares(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Wins, ties and losses from a latent normal with a part by prompt and by seed, so that their mean is p exactly."""
    prompts, seeds = _layout(cell, rng)
    between = PROMPT_SHARE if len(prompts) > cell.n else 0.0
    drift = (cell.seed_sd / float(stats.norm.pdf(0))) ** 2
    latent = np.sqrt(between) * rng.normal(size=cell.n)[prompts]
    latent = latent + np.sqrt(1 - between - drift) * rng.normal(size=len(prompts))
    if seeds is not None:
        latent = latent + np.sqrt(drift) * rng.normal(size=cell.seeds)[seeds]
    win, tie = special.ndtri(cell.p - cell.ties / 2), special.ndtri(cell.p + cell.ties / 2)
    return (1.0 * (latent < win) + 1.0 * (latent < tie)) / 2, prompts, seeds


def _means(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Continuous values of mean 0; with seeds, prompts and noise of unit variance."""
    prompts, seeds = _layout(cell, rng)
    if seeds is not None:
        parts = rng.normal(size=cell.n)[prompts] + cell.seed_sd * rng.normal(size=cell.seeds)[seeds]
        return parts + rng.normal(size=len(prompts)), prompts, seeds
    draw = {"normal": rng.standard_normal, "t3": lambda n: rng.standard_t(3, n), "exponential": rng.exponential}
    if cell.shape == "exponential":
        return rng.exponential(size=cell.n) - 1, prompts, None
    return draw[cell.shape](cell.n), prompts, None


@cache
def _single(wins: int, ties: int, losses: int) -> tuple[Estimate, float]:
    """The interval of single samples, which their counts decide, and the width of Wilson's."""
    values = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    plain = wilson(float(values.sum()), len(values))
    return mean_by_cluster(values, np.arange(len(values)), proportion=True), plain.high - plain.low


def _width(estimate: Estimate) -> float:
    return estimate.high - estimate.low if estimate.low is not None and estimate.high is not None else np.nan


def _intervals(cell: Cell, rng: np.random.Generator, worlds: int) -> Iterator[tuple[float, Estimate, float]]:
    """(truth, interval, width of the plain interval for as many independent values) of each world."""
    for _ in range(worlds):
        if cell.kind == "share" and cell.samples == cell.seeds == 1:
            chances = (cell.p - cell.ties / 2, cell.ties, 1 - cell.p - cell.ties / 2)
            yield cell.p, *_single(*(int(count) for count in rng.multinomial(cell.n, chances)))
        elif cell.kind == "share":
            values, prompts, seeds = _shares(cell, rng)
            plain = wilson(float(values.sum()), len(values))
            yield cell.p, mean_by_cluster(values, prompts, None, seeds, proportion=True), plain.high - plain.low
        elif cell.kind == "mean":
            values, prompts, seeds = _means(cell, rng)
            plain_width = 2 * t_quantile(np.inf) * values.std(ddof=1) / np.sqrt(len(values))
            yield 0.0, mean_by_cluster(values, prompts, None, seeds), float(plain_width)
        elif cell.kind == "arms":
            yield _arms(cell, rng)
        elif cell.kind in coverage_agreement.KINDS:
            truth, found = coverage_agreement.interval(cell.kind, cell.n, cell.samples, cell.seeds, cell.seed_sd, rng)
            yield truth, found, np.nan
        else:
            yield 0.8, _correlation(cell, rng), np.nan


def _arms(cell: Cell, rng: np.random.Generator) -> tuple[float, Estimate, float]:
    """Two arms with normal scores; the prompt decides how far the first is ahead."""
    ahead = special.ndtri(cell.p) * np.sqrt(2.5) + np.sqrt(0.5) * rng.normal(size=(cell.n, 1))
    first, second = rng.normal(size=(cell.n, cell.samples)) + ahead, rng.normal(size=(cell.n, cell.samples))
    found = win_rate(*(Judged(scores={str(i): row for i, row in enumerate(side)}) for side in (first, second)))
    plain = wilson((found.value or 0.0) * cell.n, cell.n)
    return cell.p, found, plain.high - plain.low


def _correlation(cell: Cell, rng: np.random.Generator) -> Estimate:
    def statistic(rows: Any, w: np.ndarray) -> np.ndarray:
        w = w / w.sum(axis=1, keepdims=True)
        x, y = (rows[name] - w @ rows[name][:, None] for name in "xy")
        return (w * x * y).sum(axis=1) / np.sqrt((w * x * x).sum(axis=1) * (w * y * y).sum(axis=1))

    prompts, seeds = _layout(cell, rng)
    x = rng.normal(size=len(prompts))
    y = 0.8 * x + 0.6 * rng.normal(size=len(prompts))
    return bootstrap_bca_by_cluster(statistic, {"x": x, "y": y}, prompts, rng, 300, seeds=seeds, bounds=(-1.0, 1.0))


def _p_value(cell: Cell, rng: np.random.Generator) -> float | None:
    """Of equality, which holds."""
    if cell.kind == "crossed":
        values, prompts, seeds = _shares(cell, rng)
        return t_test_p(cluster_mean(values, prompts, None, seeds), 0.5)
    values = (_means if cell.shape else _shares)(cell, rng)[0]
    return sign_flip_p(values - (0.0 if cell.shape else 0.5), rng, 500)


# ---------------------------------------------------------------------------------------------------- cells


def measure(cell: Cell, worlds: int, seed: int, longest: int = 4) -> dict[str, Any]:
    """Coverage (or level) of one cell.

    Args:
        cell: The kind of world.
        worlds: Drawn at first; as many again, up to `longest` times, while a bound is within three standard errors.
        seed: Of all draws; a cell's own does not depend on the other cells.
    """
    started = time.monotonic()
    hits: list[np.ndarray] = []
    if cell.slow:
        worlds, longest = min(worlds, 2000), 1
    for chunk in range(longest):
        key = [seed, chunk, *cell.name.encode()]
        rng = np.random.default_rng(key)
        if cell.is_level:
            found = [(p is not None and p <= ALPHA, 0.0, 0.0, 0.0, 0.0) for p in _draws(cell, rng, worlds)]
        else:
            found = [_row(*world) for world in _intervals(cell, rng, worlds)]
        hits.append(np.array(found, dtype=np.float64))
        rows = np.concatenate(hits)
        rate = float(rows[:, 0].mean())
        se = float(np.sqrt(max(rate * (1 - rate), 1 / len(rows)) / len(rows)))
        if all(abs(rate - bound) > 3 * se for bound in _bounds(cell)):
            break
    result: dict[str, Any] = {"name": cell.name, **asdict(cell), "worlds": len(rows), "se": round(se, 5)}
    result["level" if cell.is_level else "coverage"] = round(rate, 5)
    judged = rate
    if cell.kind == "sign-flip" and not cell.shape and not cell.ties:
        judged, result["why"] = exact_level(cell)
        result["exact_level"] = round(judged, 5)
    if not cell.is_level:
        result["missed_above"], result["missed_below"] = (round(float(rows[:, i].mean()), 5) for i in (1, 2))
        result["width"] = round(float(np.nanmean(rows[:, 3])), 5)
        plain = float(np.nanmean(rows[:, 4])) if np.isfinite(rows[:, 4]).any() else None
        result["width_to_plain"] = None if plain is None else round(float(np.nanmean(rows[:, 3])) / plain, 4)
        above, below = result["missed_above"], result["missed_below"]
        if max(above, below) > 1.3 * min(above, below):
            result["why"] = f"skewed: the truth is above the interval in {above:.3f}, below it in {below:.3f} of worlds"
        if cell.kind == "share" and cell.samples == cell.seeds == 1:
            judged, result["why"] = exact(cell)
            result["exact_coverage"] = round(judged, 5)
    bounds = _bounds(cell)
    result["upper_applies"] = cell.upper_applies
    result["bounds"] = [round(bound, 4) for bound in bounds]
    result["ok"] = _within(cell, judged)
    result["decided"] = judged != rate or all(abs(judged - bound) > 2 * se for bound in bounds)
    if result["ok"]:
        result.pop("why", None)
    return result | {"wall_s": round(time.monotonic() - started, 1)}


def _draws(cell: Cell, rng: np.random.Generator, worlds: int) -> Iterator[float | None]:
    return (_p_value(cell, rng) for _ in range(worlds))


def _row(truth: float, found: Estimate, plain: float) -> tuple[float, float, float, float, float]:
    """Covered, truth above, truth below, width, plain width. Without an interval the truth is not covered."""
    if found.low is None or found.high is None:
        return 0.0, 0.0, 0.0, np.nan, plain
    above, below = truth > found.high + 1e-12, truth < found.low - 1e-12
    return float(not above and not below), float(above), float(below), _width(found), plain


def _bounds(cell: Cell) -> list[float]:
    if cell.is_level:
        return [1 - LOWEST, *([1 - HIGHEST] if cell.upper_applies else [])]
    return [LOWEST, *([HIGHEST] if cell.upper_applies else [])]


def _within(cell: Cell, rate: float) -> bool:
    covered = 1 - rate if cell.is_level else rate
    return covered >= LOWEST and (covered <= HIGHEST or not cell.upper_applies)


def exact(cell: Cell) -> tuple[float, str]:
    """Coverage of single samples summed over all outcomes, and what other coverage a like interval could have."""
    chances = (cell.p - cell.ties / 2, cell.ties, 1 - cell.p - cell.ties / 2)
    total, accepted = 0.0, {}
    # Outcomes of less than 1e-10 are left out: together below 1e-5, counted as not covered.
    ties = np.flatnonzero(stats.binom.pmf(np.arange(cell.n + 1), cell.n, cell.ties) > 1e-10)
    for t in (int(t) for t in ties):
        losses = np.arange(cell.n - t + 1)
        mass = stats.multinomial.pmf(
            np.stack([cell.n - t - losses, np.full_like(losses, t), losses], axis=1), cell.n, chances
        )
        for loss in np.flatnonzero(mass > 1e-10):
            found = _single(cell.n - t - int(loss), t, int(loss))[0]
            if found.low - 1e-12 <= cell.p <= found.high + 1e-12:
                total += float(mass[loss])
                accepted[t, int(loss)] = float(mass[loss])
    why = ""
    if cell.ties == 0:
        losses_in = [loss for _, loss in accepted]
        low, high = min(losses_in), max(losses_in)
        less = total - accepted[0, low] - accepted[0, high]
        more = total + float(sum(stats.binom.pmf([low - 1, high + 1], cell.n, 1 - cell.p)))
        why = (
            f"discrete: {low} to {high} losses accepted cover {total:.4f}; one less on either side {less:.4f}, one "
            f"more {more:.4f}"
        )
    return total, why


def exact_level(cell: Cell) -> tuple[float, str]:
    """Level of the sign-flip test without ties, and what it would be with one more outcome rejected on either side."""
    wins = np.arange(cell.n // 2, cell.n + 1)
    outcomes = (np.repeat([0.5, -0.5], [int(k), cell.n - int(k)]) for k in wins)
    rejected = np.array([(sign_flip_p(one, np.random.default_rng(0)) or 1.0) <= ALPHA for one in outcomes])
    mass = 2 * stats.binom.pmf(wins, cell.n, 0.5)
    least = int(wins[rejected].min())
    level = float(mass[rejected].sum())
    fewer = level - float(mass[wins == least].sum())
    return (
        level,
        f"discrete: {least} wins or more rejected on either side {level:.4f}; one win more asked for {fewer:.4f}",
    )


# ---------------------------------------------------------------------------------------------------- output


def _run(job: tuple[Cell, int, int]) -> dict[str, Any]:
    return measure(*job)


def study(found: list[Cell], worlds: int, seed: int, workers: int) -> dict[str, Any]:
    """All cells, with those that fail listed."""
    started = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    jobs = sorted(((cell, worlds, seed) for cell in found), key=lambda job: -job[0].n * job[0].seeds)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for number, result in enumerate(pool.imap_unordered(_run, jobs), 1):
            results[result["name"]] = result
            print(f"[{number}/{len(jobs)}] {result['name']}: {_rate(result):.4f} ok={result['ok']}", file=sys.stderr)
    ordered = [results[cell.name] for cell in found]
    return {
        "nominal": 0.95,
        "lowest": LOWEST,
        "highest": HIGHEST,
        "worlds": worlds,
        "seed": seed,
        "cells": ordered,
        "failing": [{"name": one["name"], "why": one.get("why", "")} for one in ordered if not one["ok"]],
        "undecided": [result["name"] for result in ordered if not result["decided"]],
        "ok": all(result["ok"] for result in ordered),
        "workers": workers,
        "wall_s": round(time.monotonic() - started, 1),
    }


def _rate(result: dict[str, Any]) -> float:
    return float(next(result[key] for key in ("exact_level", "level", "exact_coverage", "coverage") if key in result))


def markdown(found: dict[str, Any]) -> str:
    """The study as a table."""
    lines = [
        "| cell | worlds | coverage (tests: level) | Monte Carlo se | width to plain | upper bound applies | ok |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in found["cells"]:
        rate = f"{cell.get('level', cell.get('coverage')):.4f}"
        summed = cell.get("exact_level", cell.get("exact_coverage"))
        rate += "" if summed is None else f" (exact {summed:.4f})"
        width = "" if cell.get("width_to_plain") is None else f"{cell['width_to_plain']:.2f}"
        verdict = "yes" if cell["ok"] else "**no**"
        verdict += "" if cell["decided"] else ", within noise"
        applies = "yes" if cell["upper_applies"] else "no"
        lines.append(
            f"| {cell['name']} | {cell['worlds']} | {rate} | {cell['se']:.4f} | {width} | {applies} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the study, or prints the table of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000, help="worlds a cell, at first (default 2000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--markdown", type=Path, metavar="JSON", help="print the table of a finished study")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [cell for cell in cells() if options.only in cell.name]
    print(json.dumps(study(chosen, options.worlds, options.seed, options.workers), indent=1))


if __name__ == "__main__":
    main()
