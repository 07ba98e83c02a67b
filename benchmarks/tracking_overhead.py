"""What tracking costs: a comparison with MLflow and the same without it, in turns. Prints one JSON object.

    python -m benchmarks.tracking_overhead [CONFIG] [--repeats 3] [--out overhead.json] [--markdown docs/performance.md]

Each repeat runs CONFIG (default: quickstart) on two fresh homes, with `tracking.enabled: true` and `false`; which one
comes first changes from repeat to repeat. The ratio of wall times carries all that tracking does to a run, and the
machine's noise with it: its speed drifts from run to run. The stages compute the same to the last bit in both, so the
processor time that they took tells how fast the machine was, and the ratio of wall times over the ratio of that time is
what tracking costs at one speed. It leaves out what tracking does to that time itself (caches), which the last ratio
shows. Beside them stands what noise hardly touches: the seconds that the driver spent inside tracking calls that the
comparison waits for, and inside those that go on beside other work (the workers' imports and stages, the drawing of
figures by another process, as long as that takes), and the processor seconds of all of them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fill_performance import fill
from benchmarks.slopes import of_repeats

GOAL = 0.03
LEFT_S = 0.05
# All that pipelines.compare calls: beside the workers, beside the drawing, and what the comparison waits for.
BESIDE = ("__init__", "send_some")
DRAWING = "tell"
WAITED = ("hear", "again", "record_fields", "describe", "finish", "abandon")
CALLS = (*BESIDE, DRAWING, *WAITED)
PACKAGES = ("mlflow", "torch", "transformers", "trl")


def child(config: str, home: Path, tracked: bool) -> dict[str, Any]:
    """One comparison in this process, with a clock around every tracking call."""
    from pipelines import compare
    from pipelines import tracked as tracking
    from workbench.config import load_config
    from workbench.store import Store

    spent, cpu, drawing = dict.fromkeys(CALLS, 0.0), dict.fromkeys(CALLS, 0.0), [0.0]
    inside = [False]

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*arguments: Any, **named: Any) -> Any:
            if inside[0]:
                return call(*arguments, **named)
            inside[0], start, start_cpu = True, time.perf_counter(), time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                inside[0] = False
                spent[name] += time.perf_counter() - start
                cpu[name] += time.process_time() - start_cpu

        return run

    @contextmanager
    def side_process(*arguments: Any, **named: Any) -> Iterator[Callable[[], Any]]:
        with started(*arguments, **named) as result:

            def waited() -> Any:
                start = time.perf_counter()
                try:
                    return result()
                finally:
                    drawing[0] = time.perf_counter() - start

            yield waited

    started = compare.side_process
    compare.side_process = side_process  # type: ignore[assignment]
    for name in CALLS:
        setattr(tracking.Tracking, name, timed(name, getattr(tracking.Tracking, name)))
    comparison = load_config(config, [f"tracking.enabled={str(tracked).lower()}"])
    start = time.perf_counter()
    done = compare.run_comparison(comparison, home=home)
    wall_s = time.perf_counter() - start
    store = Store.open(home)
    made = [store.find(row.key) for row in done.results.stages]
    return {
        "wall_s": wall_s,
        "stages_cpu_s": sum(one.record.cost.cpu_s for one in made if one is not None),
        "tracking_s": spent,
        "tracking_cpu_s": cpu,
        "drawing_waited_s": drawing[0],
        "exit_code": done.exit_code,
        "mlflow_run": done.results.mlflow.run_id,
    }


def one(config: str, home: Path, tracked: bool) -> dict[str, Any]:
    """`child` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.tracking_overhead", config, "--child", str(home)]
    words += ["--tracked"] if tracked else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["exit_code"]:
        sys.exit(f"the comparison ended with {found['exit_code']}; its messages are above")
    if tracked != (found["mlflow_run"] is not None):
        sys.exit(f"tracking was to be {tracked}, but the run is {found['mlflow_run']}")
    return found


def measure(config: str, repeats: int, folder: Path) -> dict[str, Any]:
    """All repeats and what they come to."""
    load, runs = os.getloadavg()[0], []
    for repeat in range(repeats):
        pair: dict[str, Any] = {"with_first": repeat % 2 == 0}
        for tracked in (True, False) if pair["with_first"] else (False, True):
            name = "with" if tracked else "without"
            pair[name] = one(config, folder / f"{repeat}-{name}", tracked)
            print(f"{repeat} {name}: {pair[name]['wall_s']:.1f} s", file=sys.stderr, flush=True)
        runs.append(pair)
    wall = ratios(runs, "wall_s")
    speed = ratios(runs, "stages_cpu_s")
    spent = [where_it_was_waited_for(pair["with"]) for pair in runs]
    return {
        "benchmark": "tracking_overhead",
        "config": config,
        "repeats": repeats,
        "goal": GOAL,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "ratio_wall": of_repeats(wall, geometric=True),
        "ratio_at_one_speed": of_repeats([one / of for one, of in zip(wall, speed, strict=True)], geometric=True),
        "ratio_stages_cpu": of_repeats(speed, geometric=True),
        "waited_s": of_repeats([sum(one[name] for name in WAITED) for one in spent]),
        "after_last_stage_s": of_repeats([one["finish"] for one in spent]),
        "beside_workers_s": of_repeats([sum(one[name] for name in BESIDE) for one in spent]),
        "beside_drawing_s": of_repeats([one[DRAWING] for one in spent]),
        "cpu_s": of_repeats([sum(pair["with"]["tracking_cpu_s"].values()) for pair in runs]),
        "runs": runs,
    }


def where_it_was_waited_for(run: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by call. Where nothing was left of the drawing when all was told, some of the telling was waited for: all
    of it counts as part of `finish`."""
    spent = dict(run["tracking_s"])
    if run["drawing_waited_s"] < LEFT_S:
        spent["finish"] += spent[DRAWING]
        spent[DRAWING] = 0.0
    return spent


def ratios(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """With tracking over without, pair by pair."""
    return [float(pair["with"][name] / pair["without"][name]) for pair in runs]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tracked", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(child(options.config, options.child, options.tracked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.config, options.repeats, Path(folder))
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    if options.markdown is not None and not fill(options.markdown, figures):
        sys.exit(f"{options.markdown} has no table of {figures['benchmark']}")


if __name__ == "__main__":
    main()
