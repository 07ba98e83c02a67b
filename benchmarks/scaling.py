"""How cost and memory grow with pairs, prompts, n and response length. Prints one JSON object.

    python benchmarks/scaling.py --json [--axis pairs]... [--repeats R] [--out FILE]
        [--figure docs/figures/scaling.png] [--markdown docs/performance.md]

Comparisons of the smoke config's tiny model run at several sizes of one thing, all else fixed, one stage at a time.
What is measured is each stage's own record: CPU seconds, and peak memory of its worker process above what a worker
that does nothing holds (torch and TRL are loaded in it). Wall times say nothing on a busy machine and are not looked
at. Each repeat has seeds of its own, so nothing is shared between repeats. Exponents are slopes of log cost on log
size: over all sizes, and over the three largest, where the stages' fixed costs matter least; 1 is linear.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fill_performance import fill
from benchmarks.scaling_axes import AXES, Axis, base
from benchmarks.slopes import exponent, of_repeats
from pipelines.compare import prepare
from workbench.config import load_config
from workbench.executors import run as execute
from workbench.stages import Stage, dependencies
from workbench.store import Store

LINEAR = 1.1  # an exponent up to here is called linear: caches and batches of unequal length cost a few percent
FLAT = 0.1  # memory above an idle worker that grows by at most this share over an axis is called flat
UPPER = 3


def run_size(axis: Axis, size: int, repeat: int) -> dict[str, dict[str, float]]:
    """CPU seconds and peak memory above an idle worker, by stage, of one comparison."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = base()
        axis.change(raw, size, folder)
        raw["seeds"] = {"data": repeat, "sft": repeat, "eval": repeat, "runs": [repeat]}
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        store = Store.open(folder / "home")
        stages = prepare(load_config(path), store).stages
        wanted = {
            line: next(name for name in stages if name == start or name.startswith(start))
            for line, start in axis.stages.items()
        }
        outcome = execute(needed(stages, list(wanted.values())), store)
        outcome.raise_if_failed()
    costs = {instance: record.cost for instance, record in outcome.records.items()}
    # what every worker holds from its start: the least of all that ran in a worker
    idle = min(cost.peak_memory_bytes for instance, cost in costs.items() if not stages[instance].inline)
    return {
        line: {
            "cpu_s": costs[instance].cpu_s,
            "peak_mb": costs[instance].peak_memory_bytes / 1e6,
            "above_idle_mb": (costs[instance].peak_memory_bytes - idle) / 1e6,
        }
        for line, instance in wanted.items()
    }


def needed(stages: Mapping[str, Stage], wanted: Sequence[str]) -> list[Stage]:
    """The wanted stages and all that they stand on, in the graph's order."""
    names, rest = set(wanted), list(wanted)
    while rest:
        before = set(dependencies(stages[rest.pop()])) - names
        names |= before
        rest += before
    return [stage for name, stage in stages.items() if name in names]


def measure_axis(axis: Axis, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """All sizes and repeats of one axis, and what they say about each stage."""
    runs = []
    for repeat in range(repeats):
        row = []
        for size in sizes:
            print(f"{axis.unit}: {size}, repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
            row.append(run_size(axis, size, repeat))
        runs.append(row)
    stages = {}
    for line in axis.stages:
        cpu = np.array([[one[line]["cpu_s"] for one in row] for row in runs])
        above = np.array([[one[line]["above_idle_mb"] for one in row] for row in runs])
        stages[line] = judged(sizes, cpu, above) | {
            "cpu_s": cpu.tolist(),
            "above_idle_mb": above.tolist(),
            "peak_mb": [[one[line]["peak_mb"] for one in row] for row in runs],
        }
    return {"unit": axis.unit, "note": axis.note, "sizes": list(sizes), "stages": stages}


def judged(sizes: Sequence[int], cpu: Any, above: Any) -> dict[str, Any]:
    """Exponents, growth of memory, and the two verdicts of one stage.

    Args:
        sizes: (S,) sizes.
        cpu: (R, S) CPU seconds.
        above: (R, S) peak memory above an idle worker, MB.
    """
    slope = of_repeats([exponent(sizes, row) for row in cpu])
    upper = of_repeats([exponent(sizes[-UPPER:], row[-UPPER:]) for row in cpu])
    grown = of_repeats([float(np.polyfit(sizes, row, 1)[0]) * 1000.0 for row in above])
    share = of_repeats([float(row[-1] / max(row[0], 1.0) - 1.0) for row in above])
    return {
        "exponent": slope,
        "exponent_upper": upper,
        "linear_or_better": at_most(upper, LINEAR),
        "memory_kb_per_unit": grown,
        "memory_growth": share,
        "memory_flat": at_most(share, FLAT),
    }


def at_most(estimate: Mapping[str, Any], limit: float) -> str:
    """Whether an estimate is shown to be at most a limit: by its whole interval, else it is left open."""
    if estimate["low"] is None:
        return "undecided: too few repeats"
    if estimate["high"] <= limit:
        return "yes"
    return "no" if estimate["low"] > limit else "undecided: the interval holds the limit"


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """CPU seconds above, memory below, one column for each axis; readable in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = [("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", (0, (5, 1))), ("P", (0, (3, 1, 1, 1, 1, 1)))]
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
    axes = figures["axes"]
    figure, grid = pyplot.subplots(2, len(axes), figsize=(3.6 * len(axes), 7.6), squeeze=False)
    for column, one in enumerate(axes.values()):
        for number, (line, stage) in enumerate(one["stages"].items()):
            marker, dashes = shapes[number]
            for row, field in enumerate(("cpu_s", "above_idle_mb")):
                values = np.array(stage[field])
                middle = np.median(values, axis=0)
                label = f"{line}, exponent {stage['exponent_upper']['value']:.2f}" if row == 0 else None
                grid[row, column].errorbar(
                    one["sizes"], middle, yerr=np.abs([values.min(0) - middle, values.max(0) - middle]), label=label,
                    marker=marker, linestyle=dashes, color=colors[number], markersize=4, linewidth=1.2, capsize=2,
                )  # fmt: skip
        steepest = max(np.median(np.array(stage["cpu_s"])[:, -1]) for stage in one["stages"].values())
        ends = np.array([one["sizes"][0], one["sizes"][-1]])
        grid[0, column].plot(ends, steepest * ends / ends[-1], color="0.75", linewidth=0.9, zorder=0)
        grid[0, column].set(xscale="log", yscale="log", title=f"{one['unit']}\n({one['note']})")
        grid[0, column].title.set_fontsize(9)
        grid[1, column].set(xscale="log", xlabel=one["unit"])
        handles, labels = grid[0, column].get_legend_handles_labels()
        place = {"loc": "upper left", "bbox_to_anchor": (-0.05, -0.2)}  # below both panels: no line runs through it
        grid[1, column].legend(handles, labels, **place, frameon=False, fontsize=8)
        grid[1, column].set_ylim(bottom=0)
        for cell in grid[:, column]:
            cell.set_xticks(one["sizes"], [str(size) for size in one["sizes"]])
            cell.minorticks_off()
            cell.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("CPU seconds of the stage")
    grid[1, 0].set_ylabel("peak memory above an idle worker, MB")
    figure.suptitle("Cost of stages by size: median and range of repeats; grey: linear", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def told(figures: Mapping[str, Any]) -> str:
    """What people read."""
    from workbench.report.wording import interval

    lines = []
    for one in figures["axes"].values():
        for line, stage in one["stages"].items():
            time = f"exponent {interval(stage['exponent_upper'])}, linear or better: {stage['linear_or_better']}"
            memory = f"memory {stage['memory_growth']['value']:+.0%}, flat: {stage['memory_flat']}"
            lines.append(f"{one['unit']:16s} {line:13s} {time}; {memory}")
    return "\n".join(lines)


def measure(names: Sequence[str], repeats: int, shrink: int = 1) -> dict[str, Any]:
    """Every axis that is asked for, sizes divided by `shrink`."""
    load = os.getloadavg()[0]
    axes = {}
    for name in names:
        sizes = sorted({max(2, size // shrink) for size in AXES[name].sizes})
        axes[name] = measure_axis(AXES[name], sizes, repeats)
    return {
        "benchmark": "scaling",
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "repeats": repeats,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "numpy")},
        "linear_up_to": LINEAR,
        "flat_up_to": FLAT,
        "axes": axes,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", action="append", choices=sorted(AXES), help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this, for a quick try")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="fill this page's tables")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = measure(options.axis or list(AXES), options.repeats, options.shrink)
    text = json.dumps(figures, indent=1)
    if options.out:
        options.out.write_text(text)
    if options.markdown:
        fill(options.markdown, figures)
    if options.figure:
        draw(figures, options.figure)
    print(text if options.json else told(figures))


if __name__ == "__main__":
    main()
