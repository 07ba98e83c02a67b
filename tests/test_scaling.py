"""The benchmark of scaling in small: its stages exist, its verdicts follow the figures, its model never ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import scaling
from benchmarks.fill_performance import PAGE, fill
from benchmarks.scaling_axes import AXES, base, endless_model
from pipelines.compare import prepare
from workbench.config import load_config
from workbench.store import Store


@pytest.fixture(scope="module", autouse=True)
def no_forkserver_stays() -> Iterator[None]:
    """Stages that run from this process start a forkserver with torch in it; tests after these want their own."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(AXES))
def test_every_line_of_an_axis_is_a_stage(name: str, tmp_path: Path) -> None:
    axis, raw = AXES[name], base()
    axis.change(raw, axis.sizes[0], tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    stages = prepare(load_config(tmp_path / "config.yaml"), Store.open(tmp_path / "home")).stages
    for start in axis.stages.values():
        assert len([one for one in stages if one == start or one.startswith(start)]) == 1, start


def test_the_endless_model_fills_every_response(tmp_path: Path) -> None:
    from workbench.models import Placement, load_policy
    from workbench.sampling import Decoding, sample

    policy = load_policy(endless_model(tmp_path), Placement())
    eos = int(policy.config.eos_token_id)
    decoding = Decoding(max_response_tokens=64, stop_ids=(eos,))
    drawn = sample(policy, [[5, 6, 7]] * 32, decoding, pad_id=int(policy.config.pad_token_id), seed=0)
    assert {len(one.ids) for one in drawn} == {64}
    assert len({tuple(one.ids) for one in drawn}) > 16  # it samples, and does not repeat itself


@pytest.mark.slow
def test_a_measured_axis_draws_its_figure_and_fills_its_table(tmp_path: Path) -> None:
    found = {
        "benchmark": "scaling", "cores": 2, "load_before": 0.0, "repeats": 1, "versions": {"torch": "1"},
        "axes": {"n": scaling.measure_axis(replace(AXES["n"], stages={"candidates": "candidates["}), [2, 4], 1)},
    }  # fmt: skip
    stages = found["axes"]["n"]["stages"]
    assert all(value > 0 for stage in stages.values() for row in stage["cpu_s"] for value in row)
    assert all(value >= 0 for stage in stages.values() for row in stage["above_idle_mb"] for value in row)
    assert stages["candidates"]["linear_or_better"].startswith("undecided")  # one repeat shows nothing
    scaling.draw(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    (tmp_path / "page.md").write_text(PAGE.read_text())
    assert fill(tmp_path / "page.md", found) == 2
    assert "| n, 2 to 4 | candidates |" in (tmp_path / "page.md").read_text()
    assert "candidates" in scaling.told(found)


def costs(power: float, noise: float) -> Any:
    sizes = np.array([500, 1000, 2000, 4000, 8000])
    return 0.001 * sizes**power * np.exp(noise * np.random.default_rng(0).normal(size=(3, 5)))


@pytest.mark.parametrize(
    ("power", "noise", "verdict"), [(1.0, 0.005, "yes"), (2.0, 0.005, "no"), (1.1, 0.3, "undecided")]
)
def test_the_verdict_on_time_follows_the_exponents_interval(power: float, noise: float, verdict: str) -> None:
    sizes = [500, 1000, 2000, 4000, 8000]
    judged = scaling.judged(sizes, costs(power, noise), np.full((3, 5), 40.0))
    assert judged["linear_or_better"].startswith(verdict)
    assert judged["memory_flat"] == "yes"


def test_memory_that_grows_is_told_by_unit() -> None:
    sizes = [500, 1000, 2000, 4000, 8000]
    above = 40.0 + 0.05 * np.array(sizes) + np.array([[0.0], [0.5], [1.0]])
    judged = scaling.judged(sizes, costs(1.0, 0.01), above)
    assert judged["memory_kb_per_unit"]["value"] == pytest.approx(50.0)
    assert judged["memory_flat"] == "no"
