"""Numbers of comparisons on the pages come from results.json: tables and numbers in prose are filled, none is typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "tests" / "workbench"))

from fill_docs import BLOCK  # noqa: E402
from fill_values import INLINE, value  # noqa: E402
from results_example import results  # noqa: E402

from workbench.results import Results  # noqa: E402

PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("results", "findings", "agreement"))]
TUNING = re.compile(r"<!-- tuning -->.*?<!-- end of tuning -->", re.S)
ESTIMATE = re.compile(r"\d \[-?[\d.]+, (?:-?[\d.]+|∞)[\])]|\bp \.\d")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_estimate_on_a_page_is_typed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert ESTIMATE.search(text) is not None
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
    command = [sys.executable, ROOT / "benchmarks" / "fill_docs.py", "--home", tmp_path / "home", "--page", page]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
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
        ("duels -2 n", "12.0"),
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
