"""How far `workbench doctor CONFIG` is off: its memory and time beside what the stages of a finished run recorded.

    python benchmarks/forecast.py HOME CONFIG [CONFIG...]     # after: workbench compare CONFIG --home HOME

Memory is compared above an idle process, where the count says something: the process itself is a constant. Records of
runs on a busy machine have CPU seconds, so time is compared with these.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipelines.forecast import forecast
from workbench.config import load_config
from workbench.estimate import PROCESS_BYTES
from workbench.forecast import seconds_of


def recorded(home: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage name with its first tag -> the costs that its runs recorded."""
    found: dict[str, list[dict[str, Any]]] = {}
    for manifest in (home / "store").glob("**/manifest.json"):
        loaded = json.loads(manifest.read_text(encoding="utf-8"))
        record = loaded.get("record", loaded)
        name, _, tags = record["instance"].partition("[")
        first = tags.rstrip("]").split(",")[0]
        found.setdefault(f"{name} {first}".strip(), []).append(record["cost"])
    return found


def main() -> None:
    """Prints one table for each config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("config", type=Path, nargs="+")
    options = parser.parse_args()
    costs = recorded(options.home)
    for path in options.config:
        needs, _ = forecast(load_config(path), options.home)
        process = PROCESS_BYTES[needs.machine.device]
        print(f"\n{path.name}: rate {needs.machine.rate / 1e9:.0f} G operations a second\n")
        print("| stage | counted above a process, MB | recorded, MB | time foretold, s | recorded, CPU s |")
        print("|---|---|---|---|---|")
        for need in needs.needs:
            seen = costs.get(need.stage)
            if not seen:
                continue
            peak = max(one["peak_memory_bytes"] for one in seen)
            cpu = sum(one["cpu_s"] for one in seen)
            print(
                f"| {need.stage} | {(need.bytes - process) / 1e6:,.0f} | {(peak - process) / 1e6:,.0f} "
                f"| {seconds_of(need, needs.machine):,.0f} | {cpu:,.0f} |"
            )


if __name__ == "__main__":
    main()
