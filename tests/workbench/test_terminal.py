"""The terminal and markdown reports: readable in 100 columns, plain when piped, safe with hostile text, honest."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from results_example import estimate, results
from rich.console import Console

from workbench.report import wording, wording_curves
from workbench.report.live import LiveView
from workbench.report.mlflow_pages import comparison_page
from workbench.report.sparkline import sparkline
from workbench.report.summary import escape, markdown, write_report
from workbench.report.terminal import make_console, print_plan, print_results
from workbench.results import Results
from workbench.types import Cost


def shown(data: dict[str, Any], **options: Any) -> str:
    file = io.StringIO()
    print_results(data, make_console(file=file), **options)
    return file.getvalue()


def test_the_example_is_a_results_json() -> None:
    """These tests are about the real shape: the schema takes the example as it is."""
    assert Results.model_validate(results()).model_dump(mode="json")["comparison"] == "quickstart"


def words(text: str) -> str:
    return " ".join(text.split())


def test_table_fits_a_hundred_columns_and_is_plain_when_piped() -> None:
    data = results()
    data["arms"]["an-arm-with-a-rather-long-label"] = copy.deepcopy(data["arms"]["ppo"])
    text = shown(data)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "0.71 [0.68, 0.74]" in text
    assert "38.0 [36.1, 39.9]" in text
    assert "≤ 1.83" in text
    assert "log n - (n-1)/n" in text
    assert "against sft, judged by gold" in text


def test_usual_labels_are_not_folded() -> None:
    lines = [line.strip() for line in shown(results()).splitlines()]
    assert sum(line.startswith("best_of_n ") for line in lines) >= 3  # the arms, their cost, a duel


def test_colors_on_a_terminal() -> None:
    file = io.StringIO()
    print_results(results(), Console(file=file, force_terminal=True, color_system="standard", width=100))
    assert "\x1b[" in file.getvalue()


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [([0], "compares checkpoints, not methods"), ([0, 1, 2], "3 run seeds: a verdict on methods needs at least 5")],
)
def test_few_seeds_are_said_everywhere(seeds: list[int], expected: str) -> None:
    assert expected in words(shown(results(seeds)))
    assert expected in markdown(results(seeds))


def test_five_seeds_need_no_caveat() -> None:
    data = results([0, 1, 2, 3, 4])
    assert "seeds:" not in words(shown(data)).replace("run seeds,", "")
    assert wording.seeds_caveat(data) is None


def test_failed_certificate_takes_the_verdict_away() -> None:
    data = results()
    data["match"]["ok"] = False
    data["match"]["checks"][1] |= {"ok": False, "detail": "ppo 1987 pairs, dpo 1990"}
    for text in (words(shown(data)), markdown(data)):
        assert "No verdict" in text
        assert "FAILED" in text
        assert "ppo 1987 pairs, dpo 1990" in text
        assert "has the highest" not in text
    file = io.StringIO()
    print_results(data, Console(file=file, force_terminal=True, color_system="standard", width=100))
    assert "\x1b[31m" in file.getvalue()


def test_missing_certificate_is_not_a_passed_one() -> None:
    data = results()
    del data["match"]
    assert "No verdict" in words(shown(data))


def test_verdict_turns_duels_round_and_keeps_to_holm() -> None:
    data = results()
    data["head_to_head"] = [
        {
            "a": "dpo",
            "b": "best_of_n",
            "judge": "gold",
            "win_rate": estimate(0.4, 0.05),
            "p_value": 0.001,
            "p_holm": 0.01,
        },
        {
            "a": "best_of_n",
            "b": "ppo",
            "judge": "gold",
            "win_rate": estimate(0.6, 0.05),
            "p_value": 0.04,
            "p_holm": 0.08,
        },
    ]
    text = wording.verdict(data)
    assert "beats dpo (0.60 [0.55, 0.65], Holm p 0.010)" in text
    assert "not distinguishable from, or not better than, ppo" in text


def test_overoptimization_needs_an_interval_above_zero() -> None:
    (ppo_alarm, ppo), (other_alarm, other) = wording_curves.overoptimization_lines(results())
    assert ppo_alarm
    assert "gold fell by 0.42 [0.22, 0.62]" in ppo
    assert "proxy rose by 1.26" in ppo
    assert ppo.endswith("over-optimized.")
    assert not other_alarm
    assert "paired drop" in other


def test_a_fall_of_gold_and_proxy_together_is_no_overoptimization() -> None:
    fallen = results()
    for point in fallen["frontier"]:
        point["proxy_reward"] = point["proxy_reward"] and point["proxy_reward"] | {
            "value": -point["proxy_reward"]["value"]
        }
    (alarm, ppo), _ = wording_curves.overoptimization_lines(fallen)
    assert alarm
    assert "proxy fell by 1.26" in ppo
    assert "over-optimized" not in ppo  # without an interval nothing is said of the proxy's fall


def test_open_intervals_seeds_and_warnings_are_shown() -> None:
    data = results([0, 1])
    assert wording.interval({"value": 17.0, "low": 14.0, "high": None}) == "17.0 [14.0, ∞)"
    data["overoptimization"] = [data["overoptimization"][0] | {"seed": seed} for seed in (0, 1)]
    data["warnings"] = ["a stage computes with a nondeterministic operation"]
    chosen = {"checkpoint": "step-25", "rule": "best", "metric": "gold_reward", "oracle": True}
    data["arms"]["dpo"] |= {"selected": "step-25", "selection": chosen}
    seen = {"win_rate": estimate(0.55), "gold_reward": None, "proxy_reward": None, "seq_kl": None}
    data["arms"]["dpo"]["by_seed"] = [{"seed": seed, "diverged": None} | seen for seed in (0, 1)]
    text, page = words(shown(data)), markdown(data)
    assert "ppo (seed 1): gold fell" in text
    assert "warning: a stage computes" in text
    assert "a stage computes" in page
    assert "| dpo, seed 1 | 0.55 [0.45, 0.65] |" in page
    assert "step-25 (best gold\\_reward) ORACLE" in page


def test_diverged_arm_stays_in_the_table() -> None:
    data = results()
    data["arms"]["ppo"]["diverged"] = "KL above 200 at update 31"
    for text in (words(shown(data)), markdown(data)):
        assert "KL above 200 at update 31" in text
    assert "| ppo |" in markdown(data)


def test_nothing_known_but_the_proxy() -> None:
    data = results()
    for arm in data["arms"].values():
        arm |= {"gold_reward": None, "win_rate": None, "win_rates": [], "win_rate_length_controlled": None}
    data |= {"head_to_head": [], "ranking": [], "overoptimization": [], "agreement": {}, "reward_models": {}}
    assert "not quality" in words(shown(data))
    assert "No gold reward" in markdown(data)


def test_hostile_text_cannot_drive_the_terminal_or_the_page() -> None:
    hostile = "a\x1b]0;owned\x07b\x1b[2J\x9b31mc\u202ed\r\n[red]e[/red]<script>f</script>|g"
    assert wording.clean(hostile) == "abcd  [red]e[/red]<script>f</script>|g"
    data = results()
    data["comparison"] = hostile
    data["match"]["checks"][0] |= {"ok": False, "detail": hostile}
    data["arms"][hostile] = copy.deepcopy(data["arms"]["ppo"])
    text = shown(data)
    assert "\x1b" not in text
    assert "owned" not in text
    page = markdown(data)
    assert "<script>" not in page
    assert "\x1b" not in page
    assert escape("[1](javascript:x) ![a](b) [0.1, 0.2] *b*") == r"\[1\](javascript:x) \!\[a\](b) [0.1, 0.2] \*b\*"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7134, "0.71"), (12.34, "12.3"), (1840.4, "1840"), (0.0042, "0.0042"), (-0.001, "-0.0010"), (-0.0, "0.00"),
     (2.5e7, "2.50e+07"), (None, "-"), (True, "-"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: object, text: str) -> None:
    assert wording.number(value) == text


def test_times_counts_and_p_values() -> None:
    assert [wording.seconds(s) for s in (0.012, 8.24, 59.99, 200, 7500)] == [
        "12 ms",
        "8.2 s",
        "60.0 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [wording.count(n) for n in (950, 12345, 4.5e6)] == ["950", "12.3k", "4.5M"]
    assert [wording.p_text(p) for p in (0.0421, 0.0001, None)] == ["0.042", "< 0.001", "-"]


def test_paths_are_never_broken() -> None:
    path = "/home/" + "long/" * 30 + "results.json"
    assert path in shown(results(), results_path=path)


def test_plan_shows_hit_or_miss_and_why() -> None:
    file = io.StringIO()
    stages = [
        {"name": "sft", "instance": "sft", "key": "k", "cached": True, "why": "in the store"},
        {"name": "ppo", "instance": "ppo[ppo,seed=0]", "key": "k", "cached": False, "why": "waits for reward_model"},
    ]
    print_plan({"stages": stages}, make_console(file=file))
    text = words(file.getvalue())
    assert "ppo[ppo,seed=0] run waits for reward_model" in text
    assert "sft hit in the store" in text
    assert "2 stages: 1 in the store, 1 to run" in text


def test_report_links_its_figures_and_replaces_itself(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "frontier.png"
    path = write_report(results(), tmp_path / "report.md", [figure])
    write_report(results(), path, [figure])
    assert "![Reward against KL](<figures/frontier.png>)" in path.read_text()
    assert [item.name for item in tmp_path.iterdir()] == ["report.md"]
    assert "| ppo | 0.71 [0.68, 0.74] |" in path.read_text()
    assert "has the highest win rate" in comparison_page(results(), [])


@dataclass
class Happened:
    kind: str
    instance: str
    done: int = 0
    total: int = 0
    note: str = ""
    message: str = ""
    cached: bool = False
    why: str = ""
    cost: Cost | None = None
    path: Path | None = None


EVENTS = [
    Happened("planned", "sft", cached=True),
    Happened("planned", "ppo[ppo,seed=0]"),
    Happened("finished", "sft", cached=True),
    Happened("started", "ppo[ppo,seed=0]"),
    Happened("progress", "ppo[ppo,seed=0]", done=3, total=55, note="kl 2.1"),
    Happened("message", "ppo[ppo,seed=0]", message="resumed from update 2\x1b[2J"),
    Happened("finished", "ppo[ppo,seed=0]", cost=Cost(wall_s=75.0)),
    Happened("failed", "dpo", message="NaN in the loss"),
    Happened("skipped", "report", why="dpo failed"),
    Happened("something new", "x"),
]


def run_view(view: LiveView) -> None:
    with view:
        for event in EVENTS:
            view(event)


def test_live_view_writes_lines_when_piped() -> None:
    file = io.StringIO()
    run_view(LiveView(console=make_console(file=file)))
    assert file.getvalue().splitlines() == [
        "sft: reused",
        "ppo[ppo,seed=0]: started",
        "ppo[ppo,seed=0]: resumed from update 2",
        "ppo[ppo,seed=0]: finished in 1 min 15 s",
        "dpo: failed: NaN in the loss",
        "report: skipped: dpo failed",
    ]


def test_live_view_is_silent_when_quiet() -> None:
    file = io.StringIO()
    run_view(LiveView(quiet=True, console=make_console(file=file)))
    assert file.getvalue() == ""


def test_sparkline_shows_the_course_of_a_series() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▅▅"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([float("nan"), 0.0, 1.0]) == "▁█"
    assert sparkline([*range(1200)], width=4) == "▁▃▆█"


def test_live_view_draws_the_headline_metric_of_a_running_stage(tmp_path: Path) -> None:
    lines = [{"step": i, "unix_s": 1.0 + i, "values": {"grad_norm": 9.0, "loss": 8.0 - i}} for i in range(8)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = io.StringIO()
    view = LiveView(console=Console(file=file, force_terminal=True, width=120, markup=False))
    with view:
        for event in (EVENTS[3], EVENTS[4], Happened("metrics", "ppo[ppo,seed=0]", path=metrics)):
            view(event)
        assert view._bars is not None
        view._bars.refresh()
    assert "█▇▆▅▄▃▂▁ loss 1" in file.getvalue()


def test_live_view_draws_bars_on_a_terminal() -> None:
    file = io.StringIO()
    view = LiveView(console=Console(file=file, force_terminal=True, width=120, markup=False))
    with view:
        for event in EVENTS[:5]:
            view(event)
        assert view._bars is not None
        view._bars.refresh()
    text = file.getvalue()
    assert "3/55" in text
    assert "ppo[ppo,seed=0]" in text
    assert "0/1 (+1 reused)" in text
    assert "kl 2.1" in text
