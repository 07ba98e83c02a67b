"""Two comparisons side by side: what changed, and differences whose intervals hold what they promise."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.workbench.report_page_example import row, write
from tests.workbench.results_example import estimate, results
from tests.workbench.test_report_page import Read
from workbench.cli import main
from workbench.report.versus import headline, versus_page
from workbench.versus import changes, versus
from workbench.versus_base import INDEPENDENT, PAIRED, Run
from workbench.versus_numbers import difference, unlike

WORLD = {"gold": {"world": True}}


def run(tmp_path: Path, name: str, found: dict[str, Any] | None = None, *, rows: list[dict[str, Any]] | None = None,
        config: dict[str, Any] | None = None) -> Run:  # fmt: skip
    folder = tmp_path / "results" / name
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps((found or results()) | {"comparison": name}))
    if rows:
        write(folder / "samples.jsonl.gz", rows)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return Run.read(folder / "results.json")


def measured(seed: int, shift: float, prompts: int = 60) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run whose gold of ppo is prompt + noise + shift; the prompts' part is the same in every run."""
    shared = np.random.default_rng(7).normal(0, 2, prompts)
    gold = shared + np.random.default_rng(seed).normal(0, 0.3, prompts) + shift
    rows = [row(p, arm, 0, "x", gold_reward=float(gold[p]), win=0.5) for p in range(prompts) for arm in ("sft", "ppo")]
    se = float(gold.std(ddof=1) / math.sqrt(prompts))
    found = results()
    found["arms"]["ppo"]["gold_reward"] = estimate(float(gold.mean()), 2 * se, n=prompts, prompt_se=se)
    return found, rows


def number(found: dict[str, Any], of: str, figure: str) -> dict[str, Any]:
    return next(one for one in found["numbers"] if (one["of"], one["figure"]) == (of, figure))


def test_shared_prompts_are_paired_and_tell_more(tmp_path: Path) -> None:
    (one, rows), (two, others) = measured(1, 0.0), measured(2, 0.3)
    a, b = (run(tmp_path, name, found, rows=some, config=WORLD)
            for name, found, some in (("a", one, rows), ("b", two, others)))  # fmt: skip
    found = versus(a, b).model_dump(mode="json", by_alias=True)
    gap = number(found, "ppo", "gold_reward")["difference"]
    assert gap["method"].startswith(PAIRED)
    assert gap["low"] > 0
    # As if the differences of the prompts had been taken one by one.
    values = [{r["prompt_id"]: r["gold_reward"] for r in some if r["arm"] == "ppo"} for some in (rows, others)]
    gaps = np.array([values[1][p] - values[0][p] for p in values[0]])
    assert gap["value"] == pytest.approx(gaps.mean())
    assert (gap["high"] - gap["low"]) / 2 == pytest.approx(2.001 * gaps.std(ddof=1) / math.sqrt(60), rel=1e-3)
    assert "the same 60 test prompts" in found["pairing"]


def test_other_prompts_or_no_samples_are_independent(tmp_path: Path) -> None:
    (one, rows), (two, others) = measured(1, 0.0), measured(2, 0.3)
    a = run(tmp_path, "a", one, rows=rows, config=WORLD)
    b = run(tmp_path, "b", two, rows=[r | {"prompt": "another"} for r in others], config=WORLD)
    told = versus(a, b)
    assert "0 test prompts are in both (A has 60, B 60)" in told.pairing
    c = versus(a, run(tmp_path, "c", two, config=WORLD))
    assert "B kept no samples" in c.pairing
    for found in (told, c):
        gap = number(found.model_dump(), "ppo", "gold_reward")["difference"]
        assert gap["method"].startswith(INDEPENDENT)
        assert gap["low"] < 0 < gap["high"]


def test_the_unpaired_interval_squares_and_adds_each_end(tmp_path: Path) -> None:
    a = run(tmp_path, "a")
    one, two = {"value": 0.5, "low": 0.4, "high": 0.8, "n": 9}, {"value": 0.7, "low": 0.3, "high": 0.75, "n": 8}
    found = difference(one, two, a, a)
    assert (found.value, found.n) == (pytest.approx(0.2), 8)
    assert found.low == pytest.approx(0.2 - math.hypot(0.4, 0.3))
    assert found.high == pytest.approx(0.2 + math.hypot(0.05, 0.1))
    assert difference(one, two | {"low": None}, a, a).low is None
    refused = difference(one, estimate(None), a, a)
    assert (refused.value, refused.method) == (None, "refused: one of the runs has no value")


def test_intervals_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """Runs with seeds of their own on shared prompts: 95% intervals, 600 worlds."""
    a = run(tmp_path, "a", results([0, 1, 2, 3, 4]))
    rng = np.random.default_rng(3)
    held = paired = 0
    worlds, prompts, seeds = 600, 40, 5
    for _ in range(worlds):
        shared = rng.normal(0, 1, prompts)
        sides, means = [], []
        for _ in range(2):
            own = shared + rng.normal(0, 0.5, prompts)
            drawn = rng.normal(0, 0.2, seeds)
            means.append(own)
            sides.append({"value": own.mean() + drawn.mean(), "n": prompts, "prompt_se": own.std(ddof=1) / prompts**0.5,
                          "seed_se": drawn.std(ddof=1) / seeds**0.5})  # fmt: skip
        found = difference(*sides, a, a, float(np.corrcoef(*means)[0, 1]))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
        paired += found.method.startswith(PAIRED)
    assert paired == worlds
    assert 0.92 <= held / worlds <= 0.985


def test_the_same_run_twice_differs_in_nothing(tmp_path: Path) -> None:
    found, rows = measured(1, 0.0)
    a, b = (run(tmp_path, name, found, rows=rows, config=WORLD) for name in "ab")
    told = versus(a, b).model_dump(mode="json", by_alias=True)
    assert (told["facts"], told["stages_changed"], told["stages_same"]) == ([], [], 2)
    gap = number(told, "ppo", "gold_reward")["difference"]
    assert (gap["value"], gap["low"], gap["high"]) == (0.0, 0.0, 0.0)
    assert headline(told).startswith("0 of ")


def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path) -> None:
    other = copy.deepcopy(results())
    one = copy.deepcopy(results())
    for found, key in ((one, "k8"), (other, "k9")):
        found["stages"].append({"name": "reward_model", "instance": "reward_model[main]", "key": key, "cached": False,
                                "why": "new", "wall_s": 1.0})  # fmt: skip
    other["stages"][0]["key"] = "k1b"
    other["match"]["checks"][1]["detail"] = "1000 pairs, sha256:ef56"
    other["arms"]["grpo"] = other["arms"]["ppo"]
    configs = [{"data": {"pairs": n}, "gold": {"python": f"m:g{n}"}} for n in (2000, 1000)]
    a, b = run(tmp_path, "a", one, config=configs[0]), run(tmp_path, "b", other, config=configs[1])
    told = versus(a, b).model_dump(mode="json", by_alias=True)
    assert "reward models differ" in number(told, "ppo", "proxy_reward")["difference"]["method"]
    assert "gold rewards differ" in number(told, "ppo", "gold_reward")["difference"]["method"]
    assert "gold rewards differ" in number(told, "ppo", "win_rate")["difference"]["method"]
    assert told["config"] == [{"name": "data.pairs", "a": "2000", "b": "1000"},
                              {"name": "gold.python", "a": '"m:g2000"', "b": '"m:g1000"'}]  # fmt: skip
    assert [one["b"] for one in told["facts"]] == ["passed: 1000 pairs, sha256:ef56"]
    assert told["arms_only_b"] == ["grpo"]
    assert any("The SFT policies differ" in line for line in told["notes"])
    assert any("With one run seed" in line for line in told["notes"])


def test_a_win_rate_needs_the_same_judge_and_unknown_is_not_the_same(tmp_path: Path) -> None:
    judges = [{"judges": {"j": {"kind": "llm", "model": name, "url": name}}, **WORLD} for name in ("m", "m", "n")]
    judges[1]["judges"]["j"]["url"] = "elsewhere"
    a, b, c = (run(tmp_path, name, config=config) for name, config in zip("abc", judges, strict=True))
    unknown = run(tmp_path, "d")
    assert unlike(a, b, "j") is None
    assert "judges named j differ" in (unlike(a, c, "j") or "")
    assert unlike(a, c, "gold") is None
    for judge in ("gold", "j"):
        assert "kept no config.json" in (unlike(a, unknown, judge) or "")
    assert "does not say which reward model" in (unlike(a, b, "proxy") or "")  # neither has a stage of it
    method = number(versus(a, unknown).model_dump(), "ppo", "win_rate")["difference"]["method"]
    assert method.startswith("refused")


def test_the_page_and_the_terminal_say_the_same(tmp_path: Path) -> None:
    other = copy.deepcopy(results())
    other["arms"]["ppo"]["win_rates"][0] |= {"value": 0.9, "low": 0.87, "high": 0.93}
    hostile = "<script>document.title=1</script>\u202e"
    run(tmp_path, "a", config={"name": hostile})
    b = run(tmp_path, "b", other, config={"name": "plain"})
    done = CliRunner().invoke(main, ["report", "a", "b", "--home", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 140
    text = (b.folder / "against-a.html").read_text()
    seen = Read(text)
    assert (seen.open, seen.tags["script"]) == ([], 1)
    told = " ".join(seen.words)
    for words in ("0.19 [0.15, 0.23] *", "beyond noise"):
        assert words in done.stdout
        assert words in told
    assert "<script>document" not in text
    assert "\u202e" not in text + done.stdout
    as_json = CliRunner().invoke(main, ["report", "a", "b", "--home", str(tmp_path), "--json", "--quiet"])
    found = json.loads(as_json.stdout)
    assert found["page"] == str(b.folder / "against-a.html")
    assert number(found["versus"], "ppo", "win_rate")["difference"]["value"] == pytest.approx(0.19)
    assert versus_page(found["versus"], b.results) == text


def test_changes_keep_the_order_and_both_sides() -> None:
    found = [
        (one.name, one.a, one.b) for one in changes({"x": "1", "y": "2", "z": "3"}, {"y": "2", "w": "4", "x": "5"})
    ]
    assert found == [("x", "1", "5"), ("z", "3", None), ("w", None, "4")]
