"""The examples run as they are written, and come out as they say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import bench


def run(script: str, folder: Path) -> Any:
    """An example as a user starts it, without MLflow; what it printed."""
    command = [bench.PYTHON, str(bench.ROOT / "examples" / script), str(folder), *bench.UNTRACKED]
    done = subprocess.run(
        command, env=bench.environment(), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def results(folder: Path, name: str) -> Any:
    return json.loads((folder / "home" / "results" / name / "results.json").read_text())


@pytest.mark.slow
def test_own_data_then_own_judge(tmp_path: Path) -> None:
    told = run("own_data.py", tmp_path)
    shop = results(tmp_path, "teashop")
    assert shop["match"]["ok"]
    assert set(shop["arms"]) == {"sft", "ppo", "dpo", "best_of_n"}
    assert shop["arms"]["best_of_n"]["gold_gain"]["low"] > 0
    page = tmp_path / "home" / "results" / "teashop" / "report.html"
    assert str(page) in told.stdout
    assert page.is_file()

    run("own_judge.py", tmp_path)
    judged = results(tmp_path, "judged")
    again = {row["name"] for row in judged["stages"] if not row["cached"]}
    assert not again & {"sft", "reward_model", "dpo", "ppo", "candidates", "generations"}
    manager = judged["judges"]["manager"]
    assert manager["flip_rate"]["value"] == 0.0  # the rule does not look at the order
    assert manager["null_model"]["value"] < 0.5  # what begs to be preferred at most ties with what helps nobody
    assert sum(manager["unscored"].values()) == 0
    assert judged["arms"]["best_of_n"]["win_rate"]["judge"] == "manager"
    rates = {rate["judge"]: rate["value"] for rate in judged["arms"]["best_of_n"]["win_rates"]}
    assert rates["manager"] > 0.5
