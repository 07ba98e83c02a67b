"""What a comparison leaves for people beside results.json: the page, the table of every sample, the config."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from workbench.report.samples import read_samples


@pytest.fixture(scope="module")
def folder(smoke_home: Path) -> Path:
    return smoke_home / "results" / "smoke"


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return list(read_samples(folder / "samples.jsonl.gz"))


def test_every_sample_is_in_the_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    results = json.loads((folder / "results.json").read_text())
    counts = Counter((row["seed"], row["arm"]) for row in rows)
    assert set(counts) == {(seed, arm) for seed in results["seeds"]["runs"] for arm in results["arms"]}
    assert len(set(counts.values())) == 1
    assert len({(row["seed"], row["arm"], row["prompt_id"], row["sample_index"]) for row in rows}) == len(rows)
    assert all(row["prompt"] for row in rows)


@pytest.mark.parametrize("field", ["gold_reward", "proxy_reward"])
def test_the_table_is_what_the_figures_were_made_of(field: str, folder: Path, rows: list[dict[str, Any]]) -> None:
    results = json.loads((folder / "results.json").read_text())
    plain = [label for label, arm in results["arms"].items() if arm["kind"] != "best_of_n" and not arm["diverged"]]
    for label in plain:
        values = [row[field] for row in rows if row["arm"] == label]
        assert sum(values) / len(values) == pytest.approx(results["arms"][label][field]["value"], abs=1e-4)
    by_prompt: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["arm"] != "sft" and "gold" in row["wins"]:
            baseline = next(r for r in rows if r["arm"] == "sft" and (r["seed"], r["prompt_id"], r["sample_index"])
                            == (row["seed"], row["prompt_id"], row["sample_index"]))  # fmt: skip
            gap = row["gold_reward"] - baseline["gold_reward"]
            if abs(gap) > 1e-4:  # the table is rounded, the verdict is not
                assert row["wins"]["gold"] == (1.0 if gap > 0 else 0.0)
            by_prompt.setdefault((row["arm"], row["prompt_id"]), []).append(row["wins"]["gold"])
    assert by_prompt
    assert all((row["seq_kl"] is None) == (results["arms"][row["arm"]]["kind"] == "best_of_n") for row in rows)


def test_page_and_config_lie_beside_the_results(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert '<section id="samples"' in page
    assert json.loads((folder / "config.json").read_text())["name"] == "smoke"
