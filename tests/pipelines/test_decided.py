"""A finished comparison carries its decision, the diversity of its samples and the arms as annotators see them."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from workbench.config import default_annotators
from workbench.results_diversity import DIVERSITY


@pytest.fixture(scope="module")
def results(smoke_home: Path) -> Any:
    return json.loads((smoke_home / "results" / "smoke" / "results.json").read_text())


def test_the_decision_is_about_checkpoints(results: Any) -> None:
    found = results["decision"]
    assert (found["judge"], found["scope"], found["margin"]) == ("gold", "checkpoints", 0.03)
    assert found["verdict"] in ("winner", "equivalent", "undecided")
    assert set(found["eligible"]) == set(results["arms"])
    arms = len(results["arms"])
    assert len(found["evidence"]) == arms * (arms - 1) // 2
    assert "One run seed" in found["sentence"]


def test_every_arm_has_its_diversity(results: Any) -> None:
    for label, arm in results["arms"].items():
        found = arm["diversity"]
        for name in DIVERSITY:
            null = name == "entropy_per_token" and arm["kind"] == "best_of_n"
            assert (found[name]["value"] is None) == null, (label, name)
        assert 0 < found["distinct_1"]["value"] <= 1
        assert 0 <= found["self_bleu"]["value"] <= 1
        assert (label == "sft") == (not found["against_sft"])


def test_entropy_is_minus_the_mean_log_probability(results: Any, smoke_home: Path) -> None:
    keys = {row["instance"]: row["key"] for row in results["stages"]}
    instance = next(name for name in keys if name.startswith("generations[sft,"))
    rows = [json.loads(line) for line in (smoke_home / "store" / keys[instance] / "out/generations.jsonl").open()]
    tokens = sum(len(one["response_ids"]) for one in rows)
    rate = -sum(one["seq_logprob"] for one in rows) / tokens
    assert results["arms"]["sft"]["diversity"]["entropy_per_token"]["value"] == pytest.approx(rate)


def test_every_annotator_sees_every_arm(results: Any) -> None:
    names = [one.name for one in default_annotators()]
    about = results["annotators"]
    assert about["kind"] == "expected_win_rate"
    assert list(about["leave_one_out"]) == names
    agreed = {name: one["value"] for name, one in about["leave_one_out"].items()}
    assert set(about["minority"]) <= {min(agreed, key=lambda name: agreed[name])}
    assert about["minority"] or about["reason"], "level annotators have no minority, and it is said"
    for label, arm in results["arms"].items():
        if label == "sft":
            assert arm["by_annotator"] == {}
            continue
        assert list(arm["by_annotator"]) == names
        if about["minority"]:
            assert arm["minority_win_rate"]["value"] == arm["by_annotator"][about["minority"][0]]["value"]
            others = [arm["by_annotator"][name]["value"] for name in names if name not in about["minority"]]
            gap = sum(others) / len(others) - arm["minority_win_rate"]["value"]
            assert math.isclose(arm["minority_gap"]["value"], gap, abs_tol=1e-9)
        else:
            assert arm["minority_win_rate"] is arm["minority_gap"] is None
        # Labels are noisy judgments of gold: nearer to a half than gold's own verdict, on the same side.
        assert abs(arm["by_annotator"]["careful"]["value"] - 0.5) <= abs(arm["win_rate"]["value"] - 0.5) + 0.05


def test_mlflow_can_be_filtered_by_it(results: Any, smoke_home: Path) -> None:
    with sqlite3.connect(f"file:{smoke_home / 'mlflow.db'}?mode=ro", uri=True) as database:
        found = dict(
            database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [results["mlflow"]["run_id"]]).fetchall()
        )
    assert found["decision"] == results["decision"]["verdict"]
    assert found["decision.scope"] == "checkpoints"
    assert "Decision:" in found["mlflow.note.content"]
