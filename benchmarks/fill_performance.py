"""Fills the tables of docs/performance.md from what `head_to_head.py`, `scaling.py` and
`tracking_overhead.py` measured.

    python benchmarks/fill_performance.py FILE.json... [--page docs/performance.md]

A table stands between `<!-- BENCHMARK:TABLE -->` and `<!-- end -->`; the tables are the functions below.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.report.wording import interval as estimate
from workbench.report.wording import number, seconds

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- ([\w-]+):([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def machine(figures: Mapping[str, Any]) -> str:
    """One sentence on where and how it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items() if version)
    told = f"{figures['cores']} cores; {versions}."
    if "scale" not in figures:
        return f"{figures['repeats']} repeats; load before the run {figures['load_before']}; {told}\n"
    loads = ", ".join(str(run["load_before"]) for run in figures["runs"])
    orders = ", ".join(run["order"] for run in figures["runs"])
    part = "" if figures["scale"] == 1.0 else f" at scale {figures['scale']}: a try, not the result"
    ppo = "" if figures["with_ppo"] else " Without PPO on either side."
    return f"Config {figures['config']}{part}; {orders}; load before each run {loads}; {told}{ppo}\n"


def sides(figures: Mapping[str, Any]) -> str:
    """Wall and CPU time of both sides, run by run, and the ratios."""
    rows = []
    for run in figures["runs"]:
        ours, theirs = run["ours"], run["theirs"]
        rows += [
            ["wall", seconds(ours["wall_s"]), seconds(theirs["wall_s"]), number(run["ratio_wall"])],
            ["CPU", seconds(ours["cpu_s"]), seconds(theirs["cpu_s"]), number(run["ratio_cpu"])],
        ]
    for name, field in (("wall, all runs", "ratio_wall"), ("CPU, all runs", "ratio_cpu")):
        rows.append([name, "", "", estimate(figures[field])])
    return table(("", "workbench", "scripts", "ratio"), rows)


def steps(figures: Mapping[str, Any]) -> str:
    """Seconds by step, of the last run."""
    ours, theirs = (figures["runs"][-1][side] for side in ("ours", "theirs"))
    names = [*theirs["steps"], *(name for name in ours["steps"] if name not in theirs["steps"])]
    rows = []
    for name in names:
        mine, other = ours["steps"].get(name), theirs["steps"].get(name)
        rows.append(
            [
                name,
                seconds(mine["stage_wall_s"]) if mine else "–",
                seconds(mine["cpu_s"]) if mine else "–",
                seconds(other["wall_s"]) if other else "–",
                seconds(other["cpu_s"]) if other else "–",
                seconds(other["imports_s"]) if other else "–",
                str(other["threads"]) if other else "–",
            ]
        )
    rows.append(["outside stages", "–", seconds(ours["outside_stages_cpu_s"]), "–", "–", "–", "–"])
    header = ("step", "stages, wall", "stages, CPU", "script, wall", "script, CPU", "of it imports", "threads")
    return table(header, rows)


def floors(figures: Mapping[str, Any]) -> str:
    """What our wall time could not go below with these stages."""
    ours = figures["runs"][-1]["ours"]
    path = " → ".join(ours["critical_path"])
    return (
        table(
            ("", "seconds"),
            [
                ["wall time", number(ours["wall_s"])],
                ["longest chain of stages that wait for each other", number(ours["critical_path_s"])],
                [f"sum of stages over {ours['workers']} workers", number(ours["stages_over_workers_s"])],
            ],
        )
        + f"\nThe chain: {path}.\n"
    )


def work(figures: Mapping[str, Any]) -> str:
    """Steps and samples of both sides."""
    rows = [[row["what"], str(row["ours"]), str(row["theirs"])] for row in figures["runs"][-1]["work"]]
    return table(("", "workbench", "scripts"), rows)


def found(figures: Mapping[str, Any]) -> str:
    """Win rates against each side's own SFT: both did the task, not only its steps."""
    ours, theirs = (figures["runs"][-1][side]["win_rates"] for side in ("ours", "theirs"))
    names = ("value", "low", "high")
    rows = [
        [label, *(estimate(dict(zip(names, side[label], strict=True))) for side in (ours, theirs))]
        for label in ours
        if label in theirs
    ]
    return table(("win rate against SFT, judged by gold", "workbench", "scripts"), rows)


def threads(figures: Mapping[str, Any]) -> str:
    """What the probe found for each script."""
    if figures["probe"] is None:
        return "No probe was made.\n"
    tried = figures["probe"]["work_s"]
    counts = list(next(iter(tried.values())))
    rows = [[name, *(seconds(one[count]) for count in counts)] for name, one in tried.items()]
    return table(("script", *(f"{count} thread(s)" for count in counts)), rows)


def growth(figures: Mapping[str, Any]) -> str:
    """Exponents and memory of every stage on every axis."""
    rows = []
    for one in figures["axes"].values():
        for line, stage in one["stages"].items():
            peaks = [sum(column) / len(column) for column in zip(*stage["above_idle_mb"], strict=True)]
            rows.append(
                [
                    f"{one['unit']}, {one['sizes'][0]} to {one['sizes'][-1]}",
                    line,
                    estimate(stage["exponent"]),
                    estimate(stage["exponent_upper"]),
                    stage["linear_or_better"],
                    f"{number(peaks[0])} to {number(peaks[-1])}",
                    estimate(stage["memory_kb_per_unit"]),
                    stage["memory_flat"],
                ]
            )
    header = (
        "what grows", "stage", "exponent", "of the three largest", "linear or better", "peak above idle, MB",
        "kB per unit", "flat",
    )  # fmt: skip
    return table(header, rows)


def overhead(figures: Mapping[str, Any]) -> str:
    """What tracking adds to a comparison."""
    rows = [
        ["wall time with tracking, of that without", estimate(figures["ratio_wall"], digits=4)],
        ["the same at one speed of the machine", estimate(figures["ratio_at_one_speed"], digits=4)],
        ["processor time of the stages, of that without", estimate(figures["ratio_stages_cpu"], digits=4)],
        ["seconds inside tracking calls that the comparison waits for", estimate(figures["waited_s"])],
        ["of these after the last stage", estimate(figures["after_last_stage_s"])],
        ["seconds inside tracking calls beside the workers", estimate(figures["beside_workers_s"])],
        ["seconds inside tracking calls beside the drawing of figures", estimate(figures["beside_drawing_s"])],
        ["CPU seconds of all of them", estimate(figures["cpu_s"])],
    ]
    return table(("", f"{figures['repeats']} repeat(s) of {figures['config']}"), rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "machine": machine, "sides": sides, "steps": steps, "floors": floors, "work": work, "threads": threads,
    "found": found, "growth": growth, "overhead": overhead,
}  # fmt: skip


def fill(page: Path, figures: Mapping[str, Any]) -> int:
    """Rewrites the tables of one benchmark on a page; returns how many there were."""
    filled = 0

    def made(block: re.Match[str]) -> str:
        nonlocal filled
        if block[2] != figures["benchmark"]:
            return block[0]
        filled += 1
        return block[1] + TABLES[block[3]](figures) + block[4]

    page.write_text(BLOCK.sub(made, page.read_text(encoding="utf-8")), encoding="utf-8")
    return filled


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    for file in options.files:
        figures = json.loads(file.read_text())
        print(f"{figures['benchmark']}: {fill(options.page, figures)} tables")


if __name__ == "__main__":
    main()
