"""docs/findings.md: its tables exist, its prose holds no number, and a page without results stays as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from results_example import results

from workbench.results import Results

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings.md"
BLOCK = re.compile(r"<!-- ([\w.-]+):([\w-]+) -->\n.*?<!-- end -->", re.S)


def fill(home: Path, page: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.fill_docs", "--home", str(home), "--page", str(page)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=ROOT)
    return page.read_text()


def test_prose_holds_no_number() -> None:
    prose = BLOCK.sub("", PAGE.read_text())
    assert re.findall(r"\d", re.sub(r"\]\([^)]*\)", "", prose)) == []


def test_every_table_can_be_filled_and_none_without_results_is_touched(tmp_path: Path) -> None:
    home, page = tmp_path / "home", tmp_path / "findings.md"
    page.write_text(PAGE.read_text())
    names = {comparison for comparison, _ in BLOCK.findall(page.read_text())}
    assert names == {"quickstart", "study", "crossed", "overoptimization", "pairs", "stories"}
    assert fill(home, page) == PAGE.read_text()
    for name in names:
        folder = home / "results" / name
        folder.mkdir(parents=True)
        Results.model_validate(results() | {"comparison": name}).write(folder / "results.json")
    filled = fill(home, page)
    assert all(block.strip() for block in re.findall(r"-->\n(.*?)<!-- end -->", filled, re.S))
    assert fill(home, page) == filled
