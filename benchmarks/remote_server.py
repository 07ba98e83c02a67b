"""The same comparison on a remote MLflow server: PostgreSQL behind it, artifacts at a place of its own.

    pip install -e '.[postgres]'                       # psycopg; and PostgreSQL's own programs: apt install postgresql
    python -m benchmarks.remote_server [CONFIG] [--out remote.json]

Runs CONFIG (default: smoke) three times, each on a fresh home: into the home's own SQLite database; into an MLflow
server with a PostgreSQL database and an artifact destination, both in a temporary folder on the loopback; and into that
server again, which is killed as soon as a training stage runs and started anew when the comparison has ended, for
`workbench ui --sync`. What MLflow's pages are made of is then read through the REST API and compared: runs and their
nesting, parameters, tags, metrics with their steps, datasets, artifacts, traces, models. Prints one JSON object; exit
code 1 if anything is missing on the server, differs, or names a folder of the client in an artifact's address.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.remote_pages import differences, read_pages, totals
from benchmarks.remote_services import MlflowServer, PostgreSQL, home_server

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def command(*words: str | Path) -> list[str]:
    """`workbench ...` of this checkout."""
    return [sys.executable, "-m", "workbench.cli", *map(str, words)]


def compare(config: str, home: Path, uri: str | None) -> dict[str, Any]:
    """One whole comparison; what it warned of, and how it ended."""
    words = ["--set", f"tracking.uri={uri}"] if uri else []
    done = subprocess.run(
        command("compare", config, "--home", home, *words), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return {"exit_code": done.returncode, "warnings": warnings(done.stderr)}


def compare_and_kill(config: str, home: Path, server: MlflowServer) -> dict[str, Any]:
    """The same, while the server dies as soon as the reward model has written its first metrics."""
    with open(home.with_suffix(".log"), "w") as log:
        words = ("compare", config, "--home", home, "--set", f"tracking.uri={server.uri}")
        run = subprocess.Popen(command(*words), env=ENVIRONMENT, stderr=log, stdout=subprocess.DEVNULL)
        try:
            while run.poll() is None and not any((home / "work").glob("*/metrics.jsonl")):
                time.sleep(0.05)
            alive = run.poll() is None
            server.kill()
            code = run.wait()
        finally:
            run.terminate()  # where this program is ended itself; a process that has ended is left alone
    return {"exit_code": code, "killed_while_it_ran": alive, "warnings": warnings(home.with_suffix(".log").read_text())}


def warnings(told: str) -> list[str]:
    """Lines about tracking."""
    return [line.strip() for line in told.splitlines() if "tracking:" in line]


def sync(home: Path) -> dict[str, Any]:
    """`workbench ui --sync --json`."""
    done = subprocess.run(
        command("ui", "--sync", "--home", home, "--json"), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout) | {"exit_code": done.returncode}
    return found


def measure(config: str, folder: Path, programs: Path | None) -> dict[str, Any]:
    """Runs, kills, sends and compares."""
    figures: dict[str, Any] = {"benchmark": "remote_server", "config": config}
    with ExitStack() as stack:
        database = stack.enter_context(PostgreSQL(programs))
        backend = database.create("mlflow")
        server = stack.enter_context(MlflowServer(backend, folder / "destination"))
        figures |= {"postgresql": database.version, "uri": "postgresql behind mlflow server"}
        local, remote, broken = (folder / name for name in ("local", "remote", "broken"))
        figures["local"] = compare(config, local, None)
        figures["remote"] = compare(config, remote, server.uri)
        there = read_pages(server.uri)
        server.reset(database.create("again"))
        figures["killed"] = compare_and_kill(config, broken, server)
        server.start()
        figures["sync"], figures["sync_again"] = sync(broken), sync(broken)
        after = read_pages(server.uri)
        with home_server(local) as here_uri:
            here = read_pages(here_uri)
        homes = [str(one) for one in (local, remote, broken)]
        figures["in_the_home"], figures["on_the_server"], figures["after_the_sync"] = map(totals, (here, there, after))
        figures["differences"] = differences(here, there, homes)
        figures["differences_after_the_sync"] = differences(here, after, homes)
    return figures


def faults(figures: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = [*figures["differences"], *figures["differences_after_the_sync"]]
    found += [f"{name} ended with {figures[name]['exit_code']}" for name in ("local", "remote", "killed", "sync")
              if figures[name]["exit_code"]]  # fmt: skip
    found += [f"{name} warned: {one}" for name in ("local", "remote") for one in figures[name]["warnings"]]
    if not figures["killed"]["killed_while_it_ran"]:
        found.append("the comparison ended before the server was killed")
    if len(figures["killed"]["warnings"]) != 1:
        found.append(f"{len(figures['killed']['warnings'])} warnings of the server's death, expected one")
    if figures["sync_again"]["counts"]:
        found.append(f"a second sync sent something again: {figures['sync_again']['counts']}")
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="smoke")
    parser.add_argument("--programs", type=Path, help="folder with initdb and postgres; default: found by itself")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the servers end with this program
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.config, Path(folder), options.programs)
    figures["faults"] = faults(figures)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
