"""configs/crossed.yaml at the smallest size, from the command to the report: all cells, certificate, both sections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import bench

SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"updates": 3, "batch_size": 16, "critic_warmup_updates": 1, "checkpoint_every_updates": 1},
    "dpo": {"epochs": 2, "batch_size": 16, "checkpoint_every_steps": 2},
    "best_of_n": {"n": 2, "pool": 16},
}


def small(folder: Path) -> Path:
    """The shipped config with its arms as they are, but for sizes."""
    config = yaml.safe_load((bench.ROOT / "configs" / "crossed.yaml").read_text())
    smoke = yaml.safe_load((bench.ROOT / "configs" / "smoke.yaml").read_text())
    for section in ("seeds", "model", "data", "sft", "reward_models", "evaluation", "resources"):
        config[section] = smoke[section]
    for label, arm in config["arms"].items():
        arm |= SMALL[arm.get("kind", label)]
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config | {"tracking": {"enabled": False}}))
    return path


@pytest.mark.slow
def test_the_crossed_design_runs_from_the_command_to_the_report(tmp_path: Path) -> None:
    home = tmp_path / "home"
    results = bench.compare(small(tmp_path), home)
    assert results["match"]["ok"]
    told = {check["name"]: check["detail"] for check in results["match"]["checks"]}
    for label, source in (("dpo-explicit", "main"), ("dpo-implicit", "dpo")):
        assert f"{label}: the same pairs, labels of {source} by sample, " in told["same_pairs"]

    one = next(row for row in results["decomposition"] if (row["measure"], row["at"]) == ("gold_reward", "selected"))
    cells = {(cell["reward"], cell["optimizer"]): cell for cell in one["cells"]}
    assert {place: cell["arm"] for place, cell in cells.items()} == {
        ("explicit", "ppo"): "ppo", ("implicit", "ppo"): "ppo-implicit",
        ("explicit", "best_of_n"): "best_of_n", ("implicit", "best_of_n"): "best_of_n-implicit",
        ("explicit", "direct"): "dpo-explicit", ("implicit", "direct"): "dpo-implicit",
    }  # fmt: skip
    assert one["caveats"] == []
    arms = results["arms"]
    for cell in cells.values():
        assert cell["value"]["value"] == pytest.approx(arms[cell["arm"]]["gold_reward"]["value"])
    total = arms["ppo"]["gold_reward"]["value"] - arms["dpo"]["gold_reward"]["value"]
    assert one["gap"]["total"]["value"] == pytest.approx(total)
    for split in one["gap"]["splits"]:
        parts = [split["reward"], split["optimizer"], one["gap"]["relabeling"]]
        assert sum(part["value"] for part in parts) == pytest.approx(total)
    assert {(row["measure"], row["at"]) for row in results["decomposition"]} >= {("win_rate", "selected")}

    # What the arm on the implicit reward optimized is measured in that reward's own column.
    assert arms["ppo-implicit"]["own_objective"]["value"] is not None
    assert {point["reward"] for point in results["tilt"]} == {"main", "implicit/dpo", "gold"}
    compared = {(one["reward"], one["against"]) for one in results["tilt_differences"]}
    assert compared <= {("main", "implicit/dpo"), ("gold", "main"), ("gold", "implicit/dpo")}
    keys = {row["instance"]: row["key"] for row in results["stages"]}
    facts = json.loads((home / "store" / keys["relabeled[main,sample,seed=0]"] / "out" / "facts.json").read_text())
    assert 0 < facts["turned"] < facts["pairs"]
    report = (home / "results" / "crossed" / "report.md").read_text()
    assert "## Reward and optimizer apart" in report
    assert "## Perfect optimizers" in report
