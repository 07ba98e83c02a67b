"""The tilt section from artifacts: which columns make a curve, what is refused, seeds, and figures that draw."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from workbench.evidence import Artifacts
from workbench.measure_tilt import Tilts
from workbench.report.figures_tilt import draw_tilt, drawable

PROMPTS, POOL = 40, 32


def pool(folder: Path, seed: int) -> dict[str, Path]:
    """A candidate pool whose gold is half explained by the proxy and more by the implicit reward."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=PROMPTS * POOL)
    columns = {
        "proxy/main": gold + 2 * rng.normal(size=gold.shape) + 3.0,
        "implicit/dpo": gold + rng.normal(size=gold.shape),
        "gold": gold,
    }
    places = [(f"p{row // POOL}", row % POOL) for row in range(len(gold))]
    candidates = folder / f"candidates-{seed}"
    candidates.mkdir()
    lines = [
        {"generation_id": f"{p}/{i}", "prompt_id": p, "sample_index": i, "response": "a b", "response_ids": [1, 2],
         "finish_reason": "stop", "seq_logprob": -1.0, "ref_seq_logprob": -1.0}
        for p, i in places
    ]  # fmt: skip
    (candidates / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {f"sft/{seed}/tilt_pool": candidates}
    for name, values in columns.items():
        scores = folder / f"scores-{seed}-{name.replace('/', '-')}"
        scores.mkdir()
        told = {"generation_id": [line["generation_id"] for line in lines], name: values.tolist()}
        (scores / "scores.json").write_text(json.dumps(told))
        found[f"sft/{seed}/tilt_scores/{name}"] = scores
    return found


def points_of(folder: Path, seeds: list[int], *, gold: bool = True) -> list[dict[str, Any]]:
    inputs = {name: path for seed in seeds for name, path in pool(folder, seed).items()}
    if not gold:
        inputs = {name: path for name, path in inputs.items() if not name.endswith("/gold")}
    scope = SimpleNamespace(artifacts=Artifacts(inputs), seeds=seeds, proxy="main", has_gold=gold)
    return Tilts(scope).points()  # type: ignore[arg-type]


def at(points: list[dict[str, Any]], reward: str, kl: float) -> dict[str, Any]:
    own = [one for one in points if one["reward"] == reward and one["seq_kl"]["value"] is not None]
    return min(own, key=lambda one: abs(one["seq_kl"]["value"] - kl))


def test_the_reward_that_knows_more_of_gold_gives_more_at_every_kl(tmp_path: Path) -> None:
    points = points_of(tmp_path, [0])
    assert list(dict.fromkeys(one["reward"] for one in points)) == ["main", "implicit/dpo", "gold"]
    for kl in (0.1, 0.2):
        gains = [at(points, name, kl)["gold_gain"]["value"] for name in ("main", "implicit/dpo", "gold")]
        # For normal scores the gain is correlation times sqrt(2 KL): 1 / sqrt(5), 1 / sqrt(2) and 1.
        for gain, correlation in zip(gains, (5**-0.5, 2**-0.5, 1.0), strict=True):
            assert gain == pytest.approx(correlation * np.sqrt(2 * kl), abs=0.08)
    kls = [one["seq_kl"]["value"] for one in points if one["reward"] == "gold" and one["seq_kl"]["value"] is not None]
    assert kls == sorted(kls)


def test_points_past_the_pools_reach_are_null_with_the_reason(tmp_path: Path) -> None:
    last = [one for one in points_of(tmp_path, [0]) if one["reward"] == "main"][-1]
    assert last["seq_kl"]["value"] is last["gold_reward"]["value"] is last["proxy_reward"]["value"] is None
    assert last["seq_kl"]["method"].startswith("refused: ")
    assert 1 <= last["ess"] < 5
    assert last["pool"] == POOL


def test_a_prompt_that_gold_did_not_score_is_left_out_of_golds_curve_and_counted_in_the_others(tmp_path: Path) -> None:
    inputs = pool(tmp_path, 0)
    path = inputs["sft/0/tilt_scores/gold"] / "scores.json"
    told = json.loads(path.read_text())
    told["gold"][5] = None
    path.write_text(json.dumps(told))
    scope = SimpleNamespace(artifacts=Artifacts(inputs), seeds=[0], proxy="main", has_gold=True)
    points = Tilts(scope).points()  # type: ignore[arg-type]
    assert at(points, "gold", 0.1)["gold_reward"]["n"] == PROMPTS - 1
    other = at(points, "main", 0.1)
    assert (other["gold_reward"]["n"], other["gold_reward"]["n_unscored"]) == (PROMPTS - 1, 1)
    assert other["proxy_reward"]["n"] == PROMPTS


def test_two_rewards_differ_at_the_same_kl_by_what_they_know_of_gold_paired_by_prompt(tmp_path: Path) -> None:
    inputs = pool(tmp_path, 0) | pool(tmp_path, 1)
    path = inputs["sft/0/tilt_scores/gold"] / "scores.json"
    told = json.loads(path.read_text())
    told["gold"][5] = None
    path.write_text(json.dumps(told))
    scope = SimpleNamespace(artifacts=Artifacts(inputs), seeds=[0, 1], proxy="main", has_gold=True)
    found = Tilts(scope).differences()  # type: ignore[arg-type]
    pairs = [("main", "implicit/dpo"), ("gold", "main"), ("gold", "implicit/dpo")]
    assert list(dict.fromkeys((one["reward"], one["against"]) for one in found)) == pairs
    knows = {"main": 5**-0.5, "implicit/dpo": 2**-0.5, "gold": 1.0}
    errors = {}
    for one in (one for one in found if one["kl"] == 0.2):
        gain, pair = one["gold_gain"], (one["reward"], one["against"])
        # For normal scores the gain is correlation times sqrt(2 KL).
        assert gain["value"] == pytest.approx((knows[pair[0]] - knows[pair[1]]) * 0.4**0.5, abs=0.12)
        assert (gain["low"] > 0) == (gain["value"] > 0)
        assert gain["n"] == PROMPTS  # one is missing in one of the seeds
        errors[pair] = gain["prompt_se"]
    points = {one["reward"]: at(Tilts(scope).points(), one["reward"], 0.2)["gold_gain"] for one in found}  # type: ignore[arg-type]
    assert errors["gold", "main"] < sum(points[name]["prompt_se"] ** 2 for name in ("gold", "main")) ** 0.5
    assert Tilts(SimpleNamespace(**vars(scope) | {"has_gold": False})).differences() == []  # type: ignore[arg-type]


def test_several_seeds_carry_their_variance_and_no_pool_or_gold_is_no_figure(tmp_path: Path) -> None:
    both = points_of(tmp_path, [0, 1])
    assert both[0]["seq_kl"]["seed_se"] is not None
    assert both[0]["seq_kl"]["n"] == PROMPTS
    (tmp_path / "apart").mkdir()
    without = points_of(tmp_path / "apart", [0], gold=False)
    assert {one["gold_reward"] for one in without} == {None}
    assert {one["reward"] for one in without} == {"main", "implicit/dpo"}
    assert points_of(tmp_path, []) == []


def test_the_figure_draws_with_and_without_gold_and_not_from_single_points(tmp_path: Path) -> None:
    figure = {"value": 0.6, "low": 0.5, "high": 0.7, "kl_kind": "mc_k1"}
    arm = {"seq_kl": figure, "gold_reward": figure, "proxy_reward": {"value": 0.4, "low": None}}
    for gold in (True, False):
        folder = tmp_path / str(gold)
        folder.mkdir()
        results = {"comparison": "x", "tilt": points_of(folder, [0], gold=gold), "arms": {"sft": arm, "ppo": arm}}
        assert drawable(results)
        assert draw_tilt(results, folder / "tilt.png").stat().st_size > 10_000
    assert not drawable({"tilt": results["tilt"][:1]})
    assert not drawable({})
