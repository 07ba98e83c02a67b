"""How large report.html is, how long it takes to open in a browser, and who can read it. Prints one JSON object.

    npm install --prefix DIR axe-core
    python -m benchmarks.report_page RUN [--home DIR] [--prompts 1000] [--repeats 5] [--browser chromium]
        [--axe DIR/node_modules/axe-core/axe.min.js] [--picture report.png]

The run's samples are multiplied to so many test prompts (the texts again, under ids of their own), the page is written
as `workbench report` does, and opened by headless Chromium: seconds from the start of the navigation to the end of its
`load` event, by which time the samples browser has drawn its first cards, and to the first paint; and the CPU seconds
of the page's main thread, which hang less on what else the machine does.

With --axe, axe-core looks at the page in light and dark, on a desktop and on a phone, everything unfolded; the exit
code is 1 if it finds a serious or critical fault. Source: https://github.com/dequelabs/axe-core
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from workbench.report.page import write_report_page
from workbench.report.samples import read_samples
from workbench.results import load_results
from workbench.runs import SAMPLES_FILE, find_run

TIMES = """(() => {
  const done = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const drawn = location.href !== "about:blank" && done.loadEventEnd && paint && document.querySelector("article.card");
  return drawn ? {load: done.loadEventEnd, paint: paint.startTime} : null;
})()"""
PAINTED = "new Promise(done => requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(done), 500)))"
# Leaves decision, frontier and samples, the first two down to their first heading or fold: what a picture has room for.
SHORTENED = """(() => {
  for (const one of document.querySelectorAll("main > section")) {
    one.hidden = !["decision", "frontier", "samples"].includes(one.id);
    let rest = false;
    for (const part of one.children) {
      rest ||= one.id !== "samples" && (part.matches("h3, details") || part.querySelector("h3") !== null);
      if (rest) part.hidden = true;
    }
  }
})()"""


def multiplied(rows: list[dict[str, Any]], prompts: int) -> list[dict[str, Any]]:
    """The rows with so many prompts."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    known = list(by_prompt.values())
    return [
        row | {"prompt_id": f"{row['prompt_id']}-{number}"}
        for number in range(prompts)
        for row in known[number % len(known)]
    ]


class Tab(NamedTuple):
    """An open page: its session, and seconds to the end of `load` and to the first paint."""

    session: str
    times: dict[str, float]


class Browser:
    """Headless Chromium over its debugging pipe (fd 3 in, fd 4 out, messages end with NUL).

    Source: https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, command: str, profile: Path) -> None:
        read_ours, self.out = os.pipe()
        self.back, write_ours = os.pipe()

        def wire() -> None:
            os.dup2(read_ours, 63)
            os.dup2(write_ours, 4)
            os.dup2(63, 3)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen([command, *flags], preexec_fn=wire, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(read_ours)
        os.close(write_ours)  # the browser's alone: so that a browser that is gone is seen
        self.count, self.buffer = 0, b""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *failure: Any) -> None:
        with contextlib.suppress(SystemExit, OSError):
            self.call("Browser.close")
        os.close(self.out)
        os.close(self.back)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Result of one command; events that come before it are dropped."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                found = os.read(self.back, 1 << 20)
                if not found:
                    sys.exit("the browser went away")
                self.buffer += found
            line, _, self.buffer = self.buffer.partition(b"\0")
            told = json.loads(line)
            if told.get("id") == self.count:
                if "error" in told:
                    sys.exit(f"{method}: {told['error']}")
                return told["result"]

    @contextlib.contextmanager
    def tab(
        self, address: str, *, width: int = 1280, height: int = 2000, dark: bool = False, ready: str = TIMES
    ) -> Iterator[Tab]:
        """A page in a window of this size (below 600 pixels: a phone), once the script `ready` gives its times: of a
        report, when its first cards are drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Performance.enable", session, timeDomain="threadTicks")
        self.call("Page.navigate", session, url=address)
        while not (times := self.evaluate(session, ready)):
            time.sleep(0.02)
        yield Tab(session, {name: one / 1000 for name, one in times.items()})
        self.call("Target.closeTarget", targetId=target)

    def evaluate(self, session: str, expression: str) -> Any:
        """Value of a JavaScript expression, or of its promise."""
        told = self.call("Runtime.evaluate", session, expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            sys.exit(f"the page: {told['exceptionDetails']}")
        return told["result"].get("value")

    def open(self, address: str) -> dict[str, float]:
        """Seconds to the end of `load` and to the first paint from the start of the navigation, and the page's CPU."""
        with self.tab(address) as tab:
            metrics = self.call("Performance.getMetrics", tab.session)["metrics"]
            return tab.times | {"cpu": next(one["value"] for one in metrics if one["name"] == "TaskDuration")}

    def faults(self, address: str, axe: str) -> dict[str, list[str]]:
        """What axe-core finds in each way of looking at the page: "impact: rule (elements)"."""
        found = {}
        for device, width in (("desktop", 1280), ("phone", 390)):
            for dark in (False, True):
                with self.tab(address, width=width, dark=dark) as tab:
                    self.evaluate(tab.session, "document.querySelectorAll('details').forEach(one => one.open = true)")
                    self.evaluate(tab.session, f"{axe};null")
                    told = self.evaluate(tab.session, "axe.run().then(done => done.violations)")
                    found[f"{device}, {'dark' if dark else 'light'}"] = [
                        f"{one['impact']}: {one['id']} ({len(one['nodes'])}: {one['nodes'][0]['html'][:120]})"
                        for one in told
                    ]
        return found

    def picture(self, address: str, file: Path, *, before: str = "", height: int = 1000, **look: Any) -> None:
        """A PNG of the page's top, after the script `before`; `look`: see `tab`."""
        with self.tab(address, height=height, **look) as tab:
            if before:
                self.evaluate(tab.session, before)
                self.evaluate(tab.session, PAINTED)
            data = self.call("Page.captureScreenshot", tab.session, format="png")["data"]
            file.write_bytes(base64.b64decode(data))


def main() -> int:
    """Writes, opens, looks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, default=Path("mlruns"))
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--picture", type=Path, help="PNG of three sections of the page, with the run's own prompts")
    options = parser.parse_args()
    path = find_run(options.home.absolute(), options.run)
    results = load_results(path).model_dump(mode="json", by_alias=True)
    rows = multiplied(list(read_samples(path.parent / SAMPLES_FILE)), options.prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gzip.open(folder / SAMPLES_FILE, "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        start, cpu = time.monotonic(), time.process_time()
        page = write_report_page(results, folder)
        wrote = (time.monotonic() - start, time.process_time() - cpu)
        with Browser(options.browser, folder / "profile") as browser:
            browser.open(page.as_uri())  # the first one starts the renderer
            opened = [browser.open(page.as_uri()) for _ in range(options.repeats)]
            seen = browser.faults(page.as_uri(), options.axe.read_text()) if options.axe else None
            if options.picture:
                whole = (path.parent / "report.html").as_uri()
                browser.picture(whole, options.picture, before=SHORTENED, width=1180, height=1740)
        figures = {
            "prompts": options.prompts,
            "samples": len(rows),
            "samples_bytes": (folder / SAMPLES_FILE).stat().st_size,
            "page_bytes": page.stat().st_size,
            "page_gzipped_bytes": len(gzip.compress(page.read_bytes())),
            "write_wall_s": round(wrote[0], 3),
            "write_cpu_s": round(wrote[1], 3),
            "load_median_s": round(statistics.median(one["load"] for one in opened), 3),
            "paint_median_s": round(statistics.median(one["paint"] for one in opened), 3),
            "page_cpu_median_s": round(statistics.median(one["cpu"] for one in opened), 3),
            "load_s": [round(one["load"], 3) for one in opened],
            "axe": seen,
        }
    print(json.dumps(figures, indent=1))
    told = [one for listed in (seen or {}).values() for one in listed]
    return int(any(one.startswith(("serious", "critical")) for one in told))


if __name__ == "__main__":
    sys.exit(main())
