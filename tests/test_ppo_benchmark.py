"""The PPO benchmark: its cases run, its phases add up, its floor counts what it says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("ppo", None)
    import ppo

    return ppo


def options(folder: Path, **changes: object) -> argparse.Namespace:
    from tests.ml_helpers import build_world

    world = build_world(folder / "world")
    (folder / "prompts.json").write_text(json.dumps([[30, 31, 32]] * 8))
    given: dict[str, object] = {
        "case": "separate", "model": world.model, "prompts": folder / "prompts.json", "batch": 4, "response": 5,
        "epochs": 2, "minibatches": 2, "updates": 2, "threads": 1, "device": "cpu", "learning_rate": 1e-4,
        "stop_ids": [], "prompt": [3, 3],
    }  # fmt: skip
    return argparse.Namespace(**(given | changes))


@pytest.mark.parametrize("case", ["separate", "head"])
def test_a_case_runs_and_its_phases_are_all_of_an_update(benchmark: object, tmp_path: Path, case: str) -> None:
    found = benchmark.run_ours(options(tmp_path, case=case))  # type: ignore[attr-defined]
    assert len(found["updates"]) == 2
    assert found["peak_memory_bytes"] >= found["imports_memory_bytes"] > 0
    for one in found["updates"]:
        assert set(one["wall_s"]) == set(one["cpu_s"]) == {"generate", "score", "train", "rest"}
        assert all(value >= 0 for value in one["wall_s"].values())
        assert one["wall_s"]["train"] > 0
    told = benchmark.summary([found], 4)  # type: ignore[attr-defined]
    assert told["updates"] == 1, "the first update of a process warms up"
    assert told["episodes_per_s"]["wall"] == pytest.approx(4 / sum(found["updates"][1]["wall_s"].values()))


def test_the_floor_counts_every_multiplication_once(benchmark: object, tmp_path: Path) -> None:
    given = options(tmp_path)
    config, length, trunk = benchmark.shape(given)  # type: ignore[attr-defined]
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    assert length == 8
    assert trunk == layers * (4 * width * width + 3 * width * inner)
    forward = 2 * (trunk + 2 * layers * width * (length // 2)) * 4 * length
    words = 2 * width * config.vocab_size * 4 * 5
    floors = benchmark.floor_operations(given)  # type: ignore[attr-defined]
    # separate: four forward passes of the rollout (two with words), then twice over: policy, critic and words, thrice
    assert floors["separate"] == 4 * forward + 2 * words + 2 * 3 * (2 * forward + words)
    assert floors["shared"] == 3 * forward + 2 * words + 2 * 3 * (forward + words)
