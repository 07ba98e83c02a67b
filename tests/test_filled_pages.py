"""Numbers of comparisons on the pages come from results.json: tables and numbers in prose are filled, none is typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fill_docs import BLOCK
from benchmarks.fill_docs import PAGES as FILLED
from benchmarks.fill_values import INLINE, value
from tests.workbench.results_example import results
from workbench.results import Results

ROOT = Path(__file__).parents[1]
# docs/data.md has a block of results, too, beside what `workbench data` prints of files.
PAGES = [page for page in FILLED if page.stem != "data"]
TUNING = re.compile(r"<!-- tuning -->.*?<!-- end of tuning -->", re.S)
ESTIMATE = re.compile(r"\d \[-?[\d.]+, (?:-?[\d.]+|∞)[\])]|\bp (?:[<=] ?)?0?\.\d")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_estimate_on_a_page_is_typed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert BLOCK.search(text) is not None
    assert not re.search(r"-->\s*(?:[-–]\s*)?<!-- end -->", text)
    for filled in (BLOCK, INLINE, TUNING):
        text = filled.sub("", text)
    assert [line for line in text.splitlines() if ESTIMATE.search(line)] == []


def test_a_number_in_prose_is_filled_where_its_path_leads(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "results" / "smoke"
    folder.mkdir(parents=True)
    Results.model_validate(results()).write(folder / "results.json")
    page = tmp_path / "page.md"
    told = "DPO <!-- smoke = arms dpo win_rate -->?<!-- end -->\n<!-- other = arms dpo win_rate -->0.5<!-- end -->"
    page.write_text(told)
    command = [sys.executable, "-m", "benchmarks.fill_docs", "--home", tmp_path / "home", "--page", page]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=ROOT)
    rate = value(results(), "arms dpo win_rate")
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", rate)
    assert page.read_text() == told.replace(">?<", f">{rate}<")


EXAMPLE = {
    "arms": {"dpo-0.1": {"rate": {"value": 0.756, "low": 0.7, "high": 0.81}}},
    "duels": [{"a": "ppo", "b": "dpo", "p_holm": 0.0004, "n": 12}, {"a": "ppo", "b": "bon", "p_holm": 0.25}],
}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("arms dpo-0.1 rate", "0.76 [0.70, 0.81]"),
        ("arms dpo-0.1 rate value", "0.76"),
        ("duels a=ppo,b=dpo p_holm", "< 0.001"),
        ("duels 1 p_holm", "0.250"),
        ("duels -2 n", "12"),
    ],
)
def test_a_path_leads_through_keys_places_and_entries(path: str, told: str) -> None:
    assert value(EXAMPLE, path) == told


@pytest.mark.parametrize(
    "path", ["arms ppo rate", "arms dpo-0.1", "duels a=ppo p_holm", "duels a=rloo p_holm", "duels 0 a"]
)
def test_a_path_that_leads_to_no_number_is_an_error(path: str) -> None:
    with pytest.raises(KeyError):
        value(EXAMPLE, path)
