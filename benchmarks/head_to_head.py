"""The whole comparison twice in one run: by the workbench, and by the scripts that a user would write today.

    pip install --no-deps --target DIR trl==1.12.0
    python benchmarks/head_to_head.py --json --against-trl DIR [--config quickstart] [--scale S] [--repeats R]
        [--order ours-first|theirs-first] [--their-threads probe|1|2] [--out FILE]
        [--markdown docs/performance.md]

Ours is `workbench compare` on a fresh home, with its certificate, intervals, figures and MLflow. Theirs are the scripts
in `benchmarks/scripts_today/`, one process after the other: SFT, pairs (sampled and labeled), reward model, DPO for
each beta, PPO by TRL 1.12, best-of-n, evaluation. Each loads and tokenizes for itself and makes its own reference pass.
Both do equal numbers of steps and samples, counted from what they left; a run that did not is an error. What is data
and not work (prompts, the SFT corpus, the tokenizer, untrained weights) is written out for the scripts before their
clock starts; ours makes it inside its own time. Sampling and labeling pairs is work, and counts on both sides.

The scripts run at the number of threads that is best for each, found by a short probe (not timed). Without
--against-trl both sides leave PPO out. --scale 0.1 is for a quick try: imports weigh ten times more there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fill_performance import fill
from benchmarks.head_to_head_plan import (
    critical_path,
    export,
    make_plan,
    read_records,
    scaled,
    scripts,
    step_of,
    work_of_ours,
    work_of_theirs,
)
from benchmarks.metered import Spent, metered
from benchmarks.slopes import of_repeats
from pipelines.compare import prepare
from workbench.config import Comparison, load_config
from workbench.store import Store

ROOT = Path(__file__).parents[1]
GOAL = 0.6
PROBE_SCALE = 0.03
ENDS = ("value", "low", "high")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


def check(done: Spent, what: str, errors: Path, fine: tuple[int, ...] = (0,)) -> None:
    """Ends the benchmark where a side failed.

    Raises:
        SystemExit: With the last lines of what it said.
    """
    if done.code not in fine:
        tail = errors.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{what} ended with {done.code}:\n{tail}")


def run_ours(comparison: Comparison, folder: Path) -> tuple[Spent, dict[str, dict[str, Any]], dict[str, Any]]:
    """`workbench compare` as a subprocess on a fresh home; what it took, the records of its stages, its win rates."""
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(comparison.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "workbench.cli", "compare", str(config), "--home", str(folder / "home"), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    errors = folder / "stderr.txt"
    done = metered(command, env=environment, stdout=folder / "stdout.json", stderr=errors)
    check(done, "workbench compare", errors, (0, 4, 5))  # tiny trials may diverge or fail a check, and still count
    arms = json.loads((folder / "stdout.json").read_text())["arms"]
    rates = {label: [arm["win_rate"][end] for end in ENDS] for label, arm in arms.items() if arm["win_rate"]}
    return done, read_records(folder / "home"), rates


def run_theirs(
    plan: Mapping[str, Any], folder: Path, threads: Mapping[str, int]
) -> tuple[dict[str, Spent], dict[str, dict[str, Any]]]:
    """The scripts, one after the other; what each took, and what each reported."""
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    spent, reports = {}, {}
    for name, script in scripts(plan):
        say(f"  {name}: {threads[name]} thread(s)")
        environment = dict(os.environ) | {
            "OMP_NUM_THREADS": str(threads[name]), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        errors = folder / f"{name}.stderr"
        command = [sys.executable, str(ROOT / "benchmarks" / "scripts_today" / script), str(path), name]
        spent[name] = metered(command, env=environment, stdout=folder / f"{name}.stdout", stderr=errors)
        check(spent[name], script, errors)
        reports[name] = json.loads((folder / f"{name}.json").read_text())
    return spent, reports


def prepared(comparison: Comparison, folder: Path, trl: Path | None) -> dict[str, Any]:
    """The plan of a comparison, with its data written out."""
    graph = prepare(comparison, Store.open(folder / "graph"))
    return make_plan(comparison, graph, export(graph, folder / "data")) | {"trl112": str(trl)}


def probe(raw: Mapping[str, Any], folder: Path, trl: Path | None, cores: int) -> dict[str, Any]:
    """Seconds of work (imports left out) of each script at 1 thread and at one for each core, at a small scale."""
    small = Comparison.model_validate(scaled(raw, PROBE_SCALE, with_ppo=trl is not None))
    plan = prepared(small, folder, trl)
    tried: dict[str, dict[str, float]] = {name: {} for name, _ in scripts(plan)}
    for threads in sorted({1, cores}):
        say(f"probe: scripts at {threads} thread(s), scale {PROBE_SCALE}")
        _, reports = run_theirs(plan, folder / f"threads-{threads}", dict.fromkeys(tried, threads))
        for name, report in reports.items():
            tried[name][str(threads)] = round(report["work_s"], 2)
    return {
        "scale": PROBE_SCALE,
        "work_s": tried,
        "best": {n: int(min(t, key=t.__getitem__)) for n, t in tried.items()},
    }


def once(comparison: Comparison, plan: Mapping[str, Any], folder: Path, threads: Any, order: str) -> dict[str, Any]:
    """One run of both sides."""
    load = os.getloadavg()[0]
    for side in ("ours", "theirs") if order == "ours-first" else ("theirs", "ours"):
        say(f"{side}:")
        if side == "ours":
            ours, records, rates = run_ours(comparison, folder / "ours")
            say(f"  {ours.wall_s:.1f} s wall, {ours.cpu_s:.1f} s CPU")
        else:
            theirs, reports = run_theirs(plan, folder / "theirs", threads)
            say(f"  {sum(one.wall_s for one in theirs.values()):.1f} s wall")
    return {
        "order": order,
        "load_before": round(load, 2),
        "ours": told_ours(ours, records, comparison) | {"win_rates": rates},
        "theirs": told_theirs(theirs, reports, threads),
        "work": compared_work(work_of_ours(records, plan), work_of_theirs(reports, plan)),
        "ratio_wall": ours.wall_s / sum(one.wall_s for one in theirs.values()),
        "ratio_cpu": ours.cpu_s / sum(one.cpu_s for one in theirs.values()),
    }


def told_ours(done: Spent, records: Mapping[str, Mapping[str, Any]], comparison: Comparison) -> dict[str, Any]:
    """Our side: total, by step, and what no schedule of these stages could go below."""
    steps: dict[str, dict[str, float]] = {}
    for record in records.values():
        row = steps.setdefault(step_of(record), {"stages": 0, "stage_wall_s": 0.0, "cpu_s": 0.0})
        row["stages"] += 1
        row["stage_wall_s"] += record["cost"]["wall_s"]
        row["cpu_s"] += record["cost"]["cpu_s"]
    in_stages = sum(row["cpu_s"] for row in steps.values())
    chain, names = critical_path(records)
    resources = comparison.resources
    return {
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "exit_code": done.code,
        "workers": resources.workers,
        "threads": resources.threads,
        "steps": steps,
        "outside_stages_cpu_s": done.cpu_s - in_stages,
        "critical_path_s": chain,
        "critical_path": names,
        "stages_over_workers_s": sum(row["stage_wall_s"] for row in steps.values()) / resources.workers,
        "peak_memory_mb": max(record["cost"]["peak_memory_bytes"] for record in records.values()) / 1e6,
    }


def told_theirs(spent: Mapping[str, Spent], reports: Mapping[str, Any], threads: Mapping[str, int]) -> dict[str, Any]:
    """The scripts: total and by step."""
    steps = {
        name: {
            "wall_s": one.wall_s, "cpu_s": one.cpu_s, "imports_s": reports[name]["imports_s"],
            "threads": threads[name],
        }
        for name, one in spent.items()
    }  # fmt: skip
    return {
        "wall_s": sum(one.wall_s for one in spent.values()),
        "cpu_s": sum(one.cpu_s for one in spent.values()),
        "processes": len(spent),
        "steps": steps,
        "win_rates": reports["evaluate"]["win_rates"],
    }


def compared_work(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[dict[str, Any]]:
    """Counts of both sides, row by row."""
    return [
        {"what": what, "ours": ours.get(what), "theirs": theirs.get(what), "equal": ours.get(what) == theirs.get(what)}
        for what in dict.fromkeys([*ours, *theirs])
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All repeats, the order alternating."""
    cores = len(os.sched_getaffinity(0))
    raw = load_config(options.config).model_dump(mode="json")
    trl: Path | None = options.against_trl
    if trl is None:
        say("no --against-trl: PPO is left out on both sides")
    comparison = Comparison.model_validate(scaled(raw, options.scale, with_ppo=trl is not None))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        plan = prepared(comparison, folder / "plan", trl)
        found = probe(raw, folder / "probe", trl, cores) if options.their_threads == "probe" else None
        threads = found["best"] if found else dict.fromkeys(dict(scripts(plan)), int(options.their_threads))
        orders = ["ours-first", "theirs-first"]
        if options.order == orders[1]:
            orders.reverse()
        runs = []
        for number in range(options.repeats):
            (folder / str(number)).mkdir()
            runs.append(once(comparison, plan, folder / str(number), threads, orders[number % 2]))
    return {
        "benchmark": "head_to_head",
        "config": comparison.name,
        "scale": options.scale,
        "with_ppo": trl is not None,
        "cores": cores,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"trl for PPO": trl_version(trl)},
        "probe": found,
        "runs": runs,
        "ratio_wall": of_repeats([one["ratio_wall"] for one in runs], geometric=True),
        "ratio_cpu": of_repeats([one["ratio_cpu"] for one in runs], geometric=True),
        "goal": GOAL,
        "equal_work": all(row["equal"] for one in runs for row in one["work"]),
    }


def trl_version(folder: Path | None) -> str | None:
    """Version of the TRL that a folder holds."""
    found = importlib.metadata.distributions(path=[str(folder)]) if folder else ()
    return next((one.version for one in found if one.metadata["Name"] == "trl"), None)


def told(figures: Mapping[str, Any]) -> str:
    """What people read."""
    from workbench.report.wording import interval

    lines = []
    for run in figures["runs"]:
        lines.append(f"{run['order']}, load {run['load_before']}")
        sides = {side: run[side] for side in ("ours", "theirs")}
        lines += [f"    {side}: {one['wall_s']:.1f} s wall, {one['cpu_s']:.1f} s CPU" for side, one in sides.items()]
    lines.append(f"wall, ours over theirs: {interval(figures['ratio_wall'])} (goal {figures['goal']})")
    lines.append(f"CPU, ours over theirs: {interval(figures['ratio_cpu'])}")
    return "\n".join([*lines, f"equal numbers of steps and samples: {figures['equal_work']}"])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("quickstart"))
    parser.add_argument("--against-trl", type=Path, metavar="DIR", help="folder that holds TRL 1.12")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--order", choices=["ours-first", "theirs-first"], default="ours-first")
    parser.add_argument("--their-threads", choices=["probe", "1", "2"], default="probe")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="fill this page's tables")
    options = parser.parse_args(arguments)
    if not 0.0 < options.scale <= 1.0:
        parser.error(f"--scale {options.scale}: expected more than 0 and at most 1")
    if options.against_trl is not None and trl_version(options.against_trl) is None:
        parser.error(
            f"--against-trl {options.against_trl}: no trl there; pip install --no-deps --target DIR trl==1.12.0"
        )
    return options


def main() -> None:
    """The command."""
    options = parse()
    figures = measure(options)
    text = json.dumps(figures, indent=1)
    if options.out:
        options.out.write_text(text)
    if options.markdown:
        fill(options.markdown, figures)
    print(text if options.json else told(figures))
    if not figures["equal_work"]:
        rows = [row for run in figures["runs"] for row in run["work"] if not row["equal"]]
        unequal = ", ".join(f"{row['what']}: {row['ours']} against {row['theirs']}" for row in rows)
        sys.exit(f"the two sides did not do the same work: {unequal}")


if __name__ == "__main__":
    main()
