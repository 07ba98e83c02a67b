"""Takes the pictures of docs/mlflow.md: a run's page, its arms side by side, the texts of two of them.

    python -m benchmarks.mlflow_pictures RUN --home DIR [--folder docs/figures] [--browser chromium]

Starts `workbench ui` on the home and opens the pages that the run's own description links to, each in headless
Chromium, once the texts that belong on it are there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.remote_pages import ask
from benchmarks.report_page import Browser
from workbench.results import load_results
from workbench.runs import find_run

START_S, SETTLE_S = 120.0, 4.0  # for the server to answer; for charts to be drawn after their texts are there
NOTE = "mlflow.note.content"
# name -> (which link of the description; None: the run's own page, texts that must be there, width, height)
PAGES = {
    "mlflow-run": (None, ("Match certificate", "one_sft"), 1500, 1250),
    "mlflow-arms": ("arms side by side", ("win_rate", "seq_kl vs. gold_reward", "frontier_proxy_reward"), 1500, 1250),
    "mlflow-evaluation": ("responses of", ("Comparing", "gold_reward", "proxy_reward"), 2000, 1000),
}


@contextlib.contextmanager
def served(home: Path) -> Iterator[str]:
    """Address of `workbench ui` on a home, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "workbench.cli", "ui", "--home", str(home), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        start = time.monotonic()
        while True:
            try:
                ask(f"http://127.0.0.1:{port}", "2.0/mlflow/experiments/search", {"max_results": 1})
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() - start > START_S:
                    sys.exit("workbench ui did not start")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def links(uri: str, run: str) -> dict[str | None, str]:
    """Text of each link in a run's description -> its place on the server; None: the run's own page."""
    found = ask(uri, "2.0/mlflow/runs/get", run_id=run)["run"]
    tags = {one["key"]: one["value"] for one in found["data"]["tags"]}
    own = f"#/experiments/{found['info']['experiment_id']}/runs/{run}?workflowType=machine_learning"
    listed: dict[str | None, str] = dict(re.findall(r"\[([^\]]+)\]\((#[^)\s]+)\)", tags[NOTE]))
    return listed | {None: own}


def ready(texts: tuple[str, ...]) -> str:
    """A script that gives an object once all texts are on the page and have been for a while; it unfolds the
    description and closes the assistant that a browser's first visit opens."""
    return f"""(() => {{
      const close = document.querySelector('button[aria-label="Close"]');
      if (close && document.body.innerText.includes("MLflow Assistant")) {{ close.click(); return null; }}
      document.querySelector('button[aria-label="Expand description"]')?.click();
      const there = {json.dumps(texts)}.every(one => document.body && document.body.innerText.includes(one));
      if (!there) {{ window.since = undefined; return null; }}
      window.since ??= performance.now();
      return performance.now() - window.since > {1000 * SETTLE_S} ? {{load: performance.now()}} : null;
    }})()"""


def take(uri: str, places: dict[str | None, str], browser: Any, folder: Path) -> list[str]:
    """Writes the pictures; returns their files."""
    files = []
    for name, (wanted, texts, width, height) in PAGES.items():
        place = next(
            (at for text, at in places.items() if text == wanted or (wanted and text and text.startswith(wanted))), None
        )
        if place is None:
            sys.exit(f"the run's description has no link {wanted!r}")
        file = folder / f"{name}.png"
        browser.picture(f"{uri}/{place}", file, width=width, height=height, ready=ready(texts))
        files.append(str(file))
    return files


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, default=Path("mlruns"))
    parser.add_argument("--folder", type=Path, default=Path("docs/figures"))
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    run = load_results(find_run(options.home.absolute(), options.run)).mlflow.run_id
    if run is None:
        sys.exit("the comparison was not tracked")
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(served(options.home))
        profile = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        browser = stack.enter_context(Browser(options.browser, profile))
        print(json.dumps({"run": run, "pictures": take(uri, links(uri, run), browser, options.folder)}))


if __name__ == "__main__":
    main()
