"""What people are told of the two rewards: every part from results.json alone, hostile text stays text."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.results_example import estimate, results
from workbench.report import figures_agreement
from workbench.report.agreement import (
    TEXT,
    agreement_tables,
    generalization_line,
    optimized_loses,
    print_agreement,
    sections,
)
from workbench.report.summary import markdown
from workbench.report.terminal import make_console


def test_every_part_has_its_section() -> None:
    page = markdown(results())
    for title in (
        "## Implicit against explicit reward",
        "### If the pairs were as far apart",
        "### Calibration",
        "### By size of the gold margin",
        "### Over training",
        "### Away from where they were fitted",
        "### Disagreements that matter",
    ):
        assert title in page, title
    assert "| heldout | 0.82 [0.80, 0.84] | 0.67 [0.65, 0.69] |" in page
    assert "| on\\_policy/ppo | on\\_policy, trained on explicit |" in page
    assert "| heldout, explicit | fresh | 0.04 [0.01, 0.07] |" in page
    assert "below 1.00" in page
    assert "1.00 and more" in page


def test_results_of_an_older_version_are_still_told() -> None:
    data = results()
    old = ("agreement", "kappa", "implicit_accuracy", "explicit_accuracy", "spearman_margins", "spearman_within_prompt")
    data["agreement"] = {
        name: entry and {field: entry[field] for field in old} | {"calibration": None}
        for name, entry in data["agreement"].items()
    }
    for name in ("agreement_trajectory", "generalization", "disagreements"):
        del data[name]
    page = sections(data)
    assert "| heldout | 0.82 [0.80, 0.84] | - |" in page
    assert "###" not in page
    assert generalization_line(data) is None
    assert sections({"agreement": {}}) == sections({}) == ""


@pytest.mark.parametrize(
    ("holds", "word"), [(True, ": holds;"), (False, ": does not hold;"), ("unresolved", ": unresolved;")]
)
def test_the_statement_is_told_as_it_was_resolved(holds: Any, word: str) -> None:
    data = results()
    data["generalization"]["holds"] = holds
    line = generalization_line(data) or ""
    assert word in line
    assert "0.04 [0.01, 0.07]" in line


@pytest.mark.parametrize(
    ("optimized", "ends", "word"),
    [
        ("explicit", (-0.1, -0.02), "more"),
        ("explicit", (0.02, 0.1), "less"),
        ("implicit", (0.02, 0.1), "more"),
        ("implicit", (-0.1, -0.02), "less"),
        ("explicit", (-0.1, 0.02), "unresolved"),
        ("implicit", (None, None), "unresolved"),
        (None, (0.02, 0.1), "-"),
    ],
)
def test_the_optimized_reward_loses_more_only_where_that_is_resolved(optimized: Any, ends: Any, word: str) -> None:
    data = results()
    shift = data["generalization"]["shifts"][0]
    shift |= {"optimized": optimized, "difference_change": {"value": 0.0, "low": ends[0], "high": ends[1]}}
    assert optimized_loses(shift) == word
    table = sections(data).split("### Away from where they were fitted")[1].split("###")[0]
    assert next(line for line in table.splitlines() if line.startswith("| on")).endswith(f"| {word} |")
    assert "tends to look worst" not in table


def test_hostile_texts_stay_text() -> None:
    data = results()
    hostile = "</script><script>alert(1)</script> | [x](javascript:1) ![y](z) \x1b[2J\u202e\n## a heading\n- a point"
    for field in ("prompt", "explicit_prefers", "implicit_prefers"):
        data["disagreements"][0][field] = hostile
    data["agreement"][hostile] = copy.deepcopy(data["agreement"]["heldout"])
    data["agreement_trajectory"][0]["arm"] = data["generalization"]["statement"] = hostile
    page = sections(data)
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "x](javascript" not in page
    assert "\n## a heading" not in page
    assert "\n- a point" not in page


def test_long_texts_are_cut_and_empty_ones_named() -> None:
    data = results()
    data["disagreements"][0] |= {"explicit_prefers": "word " * 20_000, "implicit_prefers": ""}
    page = sections(data)
    assert max(map(len, page.splitlines())) < TEXT + 200
    assert "…" in page
    assert "(empty)" in page


def test_the_tables_of_the_terminal_fit_and_leave_out_what_has_no_truth() -> None:
    data = results()
    data["agreement"]["on_policy/best_of_n-implicit"] = copy.deepcopy(data["agreement"]["heldout"])
    data["agreement"]["on_policy/sft"] |= {"truth": None}
    written = io.StringIO()
    print_agreement({k: v for k, v in data["agreement"].items() if v}, make_console(file=written))
    assert all(len(line) <= 100 for line in written.getvalue().splitlines())
    _, (_, _, rows) = agreement_tables(data["agreement"])
    assert "on_policy/sft" not in [row[0] for row in rows]


def test_reliability_shows_four_sets_at_most_held_out_first() -> None:
    data = results()
    block = data["agreement"]["heldout"]
    data["agreement"] = {
        name: copy.deepcopy(block)
        for name in ("on_policy/sft", "on_policy/ppo", "temperature_shift", "on_policy/dpo", "ood", "heldout")
    }
    shown = figures_agreement.reliability_sets(data)
    assert list(shown) == ["heldout", "ood", "on_policy/ppo", "on_policy/dpo"]
    assert figures_agreement.reliability_sets({"agreement": {"ood": None}}) == {}


def test_figures_are_the_same_bytes_and_tell_the_rewards_apart_without_color(tmp_path: Path) -> None:
    for name in ("draw_agreement", "draw_reliability", "draw_trajectory"):
        draw = getattr(figures_agreement, name)
        first = draw(results(), tmp_path / "a.png").read_bytes()
        assert first == draw(results(), tmp_path / "b.png").read_bytes(), name
    looks = [(style["marker"], style["linestyle"]) for style in figures_agreement._REWARDS.values()]
    assert len(set(looks)) == 2


def test_a_bin_without_an_interval_is_drawn(tmp_path: Path) -> None:
    data = results()
    point = data["agreement"]["heldout"]["calibration"]["explicit_reliability"][1]
    point["preferred"] = estimate(None)
    assert figures_agreement.draw_reliability(data, tmp_path / "a.png").stat().st_size > 10_000
