"""The coverage study of curves in small: every kind of world runs, and a wrong interval is found out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import coverage_curves as study
from workbench.results_base import E


@pytest.mark.parametrize("kind", ["arm", "difference", "unpaired", "area", "drop"])
def test_every_kind_covers_in_small(kind: str) -> None:
    found = study.measure(study.Cell(kind=kind, n=40), 25, seed=0)
    assert found["coverage"] >= 0.8
    assert found["width"] > 0
    assert found["coverage"] == pytest.approx(1 - found["missed_above"] - found["missed_below"], abs=1e-3)


def test_names_tell_the_cells_apart() -> None:
    names = [cell.name for cell in study.cells()]
    assert len(set(names)) == len(names)


def test_an_interval_that_misses_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = study.Cell(kind="arm", n=40)
    beside = E(value=5.0, low=4.9, high=5.1, n=40, method="wrong on purpose")
    monkeypatch.setattr(study, "world", lambda cell, rng: (0.0, beside))
    found = study.measure(cell, 10, seed=0)
    assert (found["coverage"], found["missed_below"]) == (0.0, 1.0)


def test_worlds_hang_on_the_seed_and_the_cell_alone() -> None:
    cell = study.Cell(kind="arm", n=30)
    one, again, other = (study.world(c, np.random.default_rng(1)) for c in (cell, cell, replace(cell, n=31)))
    assert one == again
    assert one != other


def test_markdown_has_a_row_a_cell() -> None:
    found = {"cells": [study.measure(study.Cell(kind="drop", n=30), 4, seed=0)]}
    table = study.markdown(json.loads(json.dumps(found)))
    assert table.splitlines()[2].startswith("| drop n=30 | 4 |")
