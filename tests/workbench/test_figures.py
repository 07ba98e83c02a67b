"""Figures: fixed size, the same bytes for the same results, and drawn from whatever data there are."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from results_example import estimate, results

from workbench.report import figures, figures_frontier


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_draws_every_figure_at_a_fixed_size(tmp_path: Path) -> None:
    before = set(sys.modules)  # another test of this process may have had a reason
    paths = figures.draw_all(results(), tmp_path / "figures")
    assert [path.name for path in paths] == [
        "frontier.png",
        "overoptimization.png",
        "agreement.png",
        "reliability.png",
        "agreement_trajectory.png",
    ]
    assert [png_size(path) for path in (paths[0], paths[2])] == [(1620, 810), (1080, 690)]
    assert "matplotlib.pyplot" not in set(sys.modules) - before  # no global state, no display


def test_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = figures_frontier.draw_frontier(results(), tmp_path / "a.png").read_bytes()
    assert first == figures_frontier.draw_frontier(results(), tmp_path / "b.png").read_bytes()


def test_arms_differ_without_color() -> None:
    data = results()
    styles = figures._styles(data)
    looks = [(style["marker"], style["linestyle"]) for style in styles.values()]
    assert len(set(looks)) == len(looks)
    assert styles == figures._styles(data | {"frontier": []})  # the same arm looks the same in every figure


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []

    def keep(figure: Any, path: Path, results: Any, **options: Any) -> Path:
        kept.extend(figure.axes)
        return path

    monkeypatch.setattr(figures_frontier, "_save", keep)
    return kept


def test_frontier_has_intervals_in_both_directions_and_marks_the_bound(axes: list[Any]) -> None:
    figures_frontier.draw_frontier(results(), Path("x.png"))
    by_kl, by_proxy = axes
    for panel in axes:
        lines = {container.get_label(): container for container in panel.containers}
        assert set(lines) == {"ppo", "dpo", "best_of_n (KL bound)"}
        assert lines["ppo"].has_xerr
        assert lines["ppo"].has_yerr
    kl = next(one for one in by_kl.containers if one.get_label() == "ppo").lines[0].get_xdata()
    assert list(kl) == [0.4, 2.0, 5.0, 9.0, 15.0, 24.0, 38.0]
    assert by_kl.get_ylabel() == "gold reward"
    assert by_proxy.get_xlabel().strip() == "proxy reward (shared reward model)"


def test_pareto_points_are_filled_and_names_stand_in_the_legend_alone(axes: list[Any]) -> None:
    data = results()
    for number, point in enumerate(data["frontier"]):
        point["pareto"] = number == 0
    figures_frontier.draw_frontier(data, Path("x.png"))
    for panel in axes:
        assert not panel.texts  # labels beside points would overlap where arms end close together
        (filled,) = [line for line in panel.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 1]
        assert filled.get_ydata()[0] == data["frontier"][0]["gold_reward"]["value"]
        assert filled.get_marker() == "o"
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["ppo", "dpo", "best_of_n (KL bound)"]


def test_the_gold_selector_has_a_line_of_its_own(axes: list[Any]) -> None:
    data = results()
    data["frontier"] += [
        point | {"selector": "gold", "gold_reward": estimate(2.0)}
        for point in data["frontier"]
        if point["arm"] == "best_of_n"
    ]
    figures_frontier.draw_frontier(data, Path("x.png"))
    assert "best-of-n by gold (KL bound)" in [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    axes.clear()
    figures_frontier.draw_overoptimization(data, Path("x.png"))
    shown = {panel.get_title(): {text.get_text() for text in panel.get_legend().get_texts()} for panel in axes}
    assert shown["best_of_n"] == {"proxy", "gold", "gold, picked by gold"}
    assert shown["ppo"] == {"proxy", "gold"}


def test_onset_and_goodhart_are_marked(axes: list[Any]) -> None:
    data = results()
    onset = {"value": 9.0, "low": 5.0, "high": 15.0}
    data["overoptimization"][0] |= {"goodhart": True, "onset_kl": onset}
    figures_frontier.draw_overoptimization(data, Path("x.png"))
    ppo, dpo, _ = axes
    assert "Goodhart" in ppo.get_title()
    assert [(band.get_x(), band.get_width()) for band in ppo.patches] == [(5.0, 10.0)]
    assert not dpo.patches


def test_a_turn_by_another_proxy_than_the_one_drawn_names_both(axes: list[Any]) -> None:
    data = results()
    data["overoptimization"][0] |= {"goodhart": True, "proxy": "few", "proxy_role": "own"}
    data["overoptimization"][1] |= {"goodhart": True, "proxy": "main", "proxy_role": "both"}
    figures_frontier.draw_overoptimization(data, Path("x.png"))
    ppo, _, bon = axes
    assert ppo.get_title() == "ppo\nGoodhart: gold falls, few rises"
    assert {text.get_text() for text in ppo.get_legend().get_texts()} == {"shared proxy", "gold"}
    assert bon.get_title().endswith("gold falls, proxy rises")
    assert {text.get_text() for text in bon.get_legend().get_texts()} == {"proxy", "gold"}


def test_selected_policies_alone_have_no_figure_of_the_way_there(tmp_path: Path) -> None:
    data = results()
    data["frontier"] = [
        point | {"label": "selected (test)", "prompt_set": "test"}
        for point in data["frontier"]
        if point["arm"] == "dpo"
    ][-1:]
    names = [path.name for path in figures.draw_all(data, tmp_path)]
    assert "frontier.png" in names
    assert "overoptimization.png" not in names
    figures_frontier.draw_overoptimization(data, tmp_path / "bare.png")  # asked for by itself: an empty panel


def test_without_gold_the_frontier_shows_the_win_rate_and_then_the_proxy(axes: list[Any]) -> None:
    data = results()
    for point in data["frontier"]:
        point["gold_reward"] = None
    figures_frontier.draw_frontier(data, Path("x.png"))
    for point in data["frontier"]:
        point["win_rate"] = None
    figures_frontier.draw_frontier(data, Path("x.png"))
    assert [panel.get_ylabel() for panel in axes] == ["win rate", "", "proxy reward (shared reward model)"]


def test_seeds_are_lines_of_their_own_under_one_name(axes: list[Any]) -> None:
    data = results([0, 1])
    data["frontier"] = [point | {"seed": seed} for seed in (0, 1) for point in data["frontier"]]
    figures_frontier.draw_frontier(data, Path("x.png"))
    assert [len(panel.containers) for panel in axes] == [6, 6]
    assert len(axes[0].figure.legends[0].get_texts()) == 3


def test_overoptimization_has_a_panel_per_arm_with_proxy_and_gold(axes: list[Any]) -> None:
    figures_frontier.draw_overoptimization(results(), Path("x.png"))
    assert [panel.get_title() for panel in axes] == ["ppo", "dpo", "best_of_n"]
    for panel in axes:
        assert {text.get_text() for text in panel.get_legend().get_texts()} == {"proxy", "gold"}


def test_odd_data_are_drawn_all_the_same(tmp_path: Path) -> None:
    data = results()
    data["frontier"] = [
        point
        | {
            "arm": "<b>\x1b[2J$x^{$",  # also not to be taken for mathematics
            "gold_reward": {"value": 1.0, "low": None, "high": None},
            "seq_kl": {"value": -0.02, "low": -0.1, "high": 0.06, "kl_kind": "mc_k1"},
        }
        for point in data["frontier"][:1]
    ]
    data["frontier"].append(data["frontier"][0] | {"seq_kl": {"value": None, "low": None, "high": None}})
    data["agreement"]["ood"] = {"agreement": {"value": None, "low": None, "high": None}}
    for point in data["agreement_trajectory"]:
        point |= {"implicit_accuracy": None, "explicit_accuracy": None}
    data["agreement"]["heldout"]["calibration"]["implicit_reliability"][0]["preferred"] |= {"low": None, "high": None}
    assert len(figures.draw_all(data, tmp_path)) == 5
    data |= {"frontier": [], "agreement": {}, "agreement_trajectory": []}
    assert figures.draw_all(data, tmp_path) == []


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    curves = {"a": [(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0)], "empty": []}
    path = figures.draw_curves(curves, tmp_path / "c.png", metric="score", title="score")
    assert png_size(path) == (1080, 690)
