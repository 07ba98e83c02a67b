"""benchmarks/tracking_overhead.py: what it makes of its pairs, without running one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import tracking_overhead
from benchmarks.fill_performance import fill


def test_the_machines_speed_is_taken_out_and_the_page_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 1.0, 1.2, 1.0, 0.9, 1.0])  # of every run, as the machine drifts

    def one(config: str, home: Path, tracked: bool) -> dict[str, Any]:
        slow = next(speeds)
        spent = dict.fromkeys(tracking_overhead.CALLS, 0.1) | {"tell": 0.7}
        cpu = dict.fromkeys(tracking_overhead.CALLS, 0.05)
        return {"wall_s": (102.0 if tracked else 100.0) * slow, "stages_cpu_s": 180.0 * slow, "tracking_s": spent,
                "tracking_cpu_s": cpu, "drawing_waited_s": left_s, "exit_code": 0, "mlflow_run": "r"}  # fmt: skip

    monkeypatch.setattr(tracking_overhead, "one", one)
    left_s = 0.5
    found = tracking_overhead.measure("quickstart", 3, tmp_path)
    assert [pair["with_first"] for pair in found["runs"]] == [True, False, True]
    at_one_speed = found["ratio_at_one_speed"]
    assert at_one_speed["value"] == pytest.approx(1.02)
    assert at_one_speed["high"] - at_one_speed["low"] == pytest.approx(0.0, abs=1e-9)
    assert found["ratio_wall"]["high"] - found["ratio_wall"]["low"] > 0.1
    assert found["waited_s"]["value"] == pytest.approx(0.1 * len(tracking_overhead.WAITED))
    assert found["beside_drawing_s"]["value"] == pytest.approx(0.7)
    page = tmp_path / "page.md"
    page.write_text("<!-- tracking_overhead:overhead -->\n<!-- end -->\n")
    assert fill(page, found) == 1
    assert "| the same at one speed of the machine | 1.020 [1.020, 1.020] |" in page.read_text()
    speeds, left_s = iter([1.0] * 6), 0.0  # the drawing had ended before all was told
    waited = tracking_overhead.measure("quickstart", 3, tmp_path)
    assert waited["waited_s"]["value"] == pytest.approx(found["waited_s"]["value"] + 0.7)
    assert waited["beside_drawing_s"]["value"] == 0


def test_every_call_that_a_comparison_makes_is_timed() -> None:
    from pipelines.tracked import Tracking

    public = {name for name in vars(Tracking) if not name.startswith("_") and callable(getattr(Tracking, name))}
    assert public | {"__init__"} == set(tracking_overhead.CALLS)
