"""A driver in a process of its own, to be killed by tests: `python -m tests.workbench.toy_driver HOME WHAT [WAIT_S]`.

Prints one JSON line per event, then one with the outcome; exits as the command line would.
"""

from __future__ import annotations

import json
import sys

from tests.pipelines.exchange_stage import exchanging
from tests.workbench import toy_stages
from workbench.executors import Event, run
from workbench.store import Store


def main() -> int:
    """Runs a toy graph."""
    home, what, *rest = sys.argv[1:]
    stages = {
        "walk": [toy_stages.walk(60, sleep_s=0.02)],
        "fast-walk": [toy_stages.walk(60)],
        "inline": [toy_stages.stage("note_time", "slow", inline=True, sleep_s=30)],
        "child": [toy_stages.stage("with_child", "parent")],
        "exchange": [exchanging()],
    }[what]

    def tell(event: Event) -> None:
        print(json.dumps({"kind": event.kind, "done": event.done, "message": event.message}), flush=True)

    wait_s, preload = float(rest[0]) if rest else 0.0, ("workbench.processes",) if what == "exchange" else ()
    outcome = run(stages, Store.open(home), workers=2, wait_s=wait_s, on_event=tell, preload=preload)
    result = {
        "content": {i: artifact.content for i, artifact in outcome.artifacts.items()},
        "cached": outcome.cached,
        "why": outcome.why,
        "failures": {i: str(error) for i, error in outcome.failures.items()},
    }
    print(json.dumps(result), flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
