"""The study of coverage in small: it asks the workbench's estimators, finds them right, and hides no failing cell."""

from __future__ import annotations

import json

import pytest

from benchmarks.coverage import Cell, cells, exact, exact_level, markdown, measure, study

# 300 worlds put a coverage of .95 within about +-.04 (three standard errors).
SMALL = [
    Cell(kind="share", n=50, p=0.8, ties=0.2, samples=4),
    Cell(kind="share", n=50, p=0.97, samples=0),
    Cell(kind="share", n=50, p=0.8, seeds=5, seed_sd=0.0),
    Cell(kind="share", n=50, p=0.5, seeds=5, seed_sd=0.1),
    Cell(kind="share", n=50, p=0.5, seeds=2, seed_sd=0.1),
    Cell(kind="arms", n=30, p=0.8, samples=2),
    Cell(kind="mean", n=50, shape="normal"),
    Cell(kind="mean", n=50, seeds=5, seed_sd=0.5, shape="normal"),
    Cell(kind="bootstrap", n=50, shape="correlation .8"),
    Cell(kind="accuracy-difference", n=100),
    Cell(kind="accuracy-difference", n=100, seeds=5, seed_sd=0.1),
    Cell(kind="slope", n=100),
    Cell(kind="slope", n=64, samples=6),
    Cell(kind="chance", n=64, samples=2),
    Cell(kind="two-sets", n=100),
]


@pytest.mark.parametrize("cell", SMALL, ids=lambda cell: cell.name)
def test_intervals_cover_in_small(cell: Cell) -> None:
    found = measure(cell, 300, seed=0, longest=1)
    assert 0.91 <= found["coverage"] <= (1.0 if not cell.upper_applies else 0.985)
    assert found["missed_above"] + found["missed_below"] == pytest.approx(1 - found["coverage"], abs=1e-4)


@pytest.mark.parametrize("ties", [0.0, 0.5, 0.9])
def test_sign_flips_reject_the_truth_one_time_in_twenty(ties: float) -> None:
    level = measure(Cell(kind="sign-flip", n=200, ties=ties), 1000, seed=0, longest=1)["level"]
    assert 0.033 <= level <= 0.069


def test_crossed_test_rejects_the_truth_one_time_in_twenty() -> None:
    level = measure(Cell(kind="crossed", n=50, seeds=5, seed_sd=0.1), 500, seed=0, longest=1)["level"]
    assert 0.025 <= level <= 0.075


@pytest.mark.parametrize(
    ("cell", "coverage"),
    [
        (Cell(kind="share", n=50, p=0.5), 0.9672),
        (Cell(kind="share", n=50, p=0.97), 0.9372),
        (Cell(kind="share", n=200, p=0.8), 0.9585),
        (Cell(kind="share", n=50, p=0.8, ties=0.1), 0.9586),
    ],
    ids=lambda value: value.name if isinstance(value, Cell) else "",
)
def test_single_samples_have_their_exact_coverage(cell: Cell, coverage: float) -> None:
    assert exact(cell)[0] == pytest.approx(coverage, abs=1e-4)


def test_fifty_verdicts_without_ties_have_no_level_nearer_to_five_percent() -> None:
    level, why = exact_level(Cell(kind="sign-flip", n=50))
    assert level == pytest.approx(0.0649, abs=1e-4)
    assert "0.0328" in why


def test_a_failing_cell_is_published_with_its_reason() -> None:
    found = study([Cell(kind="share", n=50, p=0.5), Cell(kind="share", n=50, p=0.8)], worlds=50, seed=0, workers=1)
    assert not found["ok"]
    assert [one["name"] for one in found["failing"]] == ["share n=50 p=0.5"]
    assert "0.9351" in found["failing"][0]["why"]
    table = markdown(json.loads(json.dumps(found)))
    assert table.count("**no**") == 1
    assert len(table.splitlines()) == 4


def test_the_whole_study_has_every_size_share_and_level() -> None:
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    for n in (50, 200, 1000):
        for p in (0.5, 0.8, 0.97):
            like = [cell for cell in cells() if (cell.kind, cell.n, cell.p) == ("share", n, p)]
            assert any(cell.ties and cell.samples == 1 for cell in like)
            assert any(cell.samples == 4 and cell.seeds == 1 for cell in like)
            assert {cell.seed_sd for cell in like if cell.seeds == 5} == {0.0, 0.03, 0.1}
