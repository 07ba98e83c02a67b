"""The controls of benchmarks/honesty.py in small: they come out, and a wrong answer makes them fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from benchmarks import honesty
from benchmarks import honesty_figures as figures
from benchmarks import honesty_order as order
from benchmarks import honesty_runs as whole
from benchmarks import honesty_same as same
from benchmarks.honesty_base import Finding, Pool, Runs, artifact, chance_band, differences, read_pool, summary, told
from tests import bench
from workbench.data import stages
from workbench.judging.nulls import LONGEST
from workbench.judging.pairs import pairs_of_artifacts
from workbench.metrics.estimates import Values
from workbench.metrics.win_rate import Judged
from workbench.worlds.helpdesk import parse_prompt, sample_prompts, sample_response
from workbench.worlds.helpdesk_gold import gold


@cache
def pool() -> Pool:
    """Gold of what the world's own writer says, and a proxy that half knows it."""
    rng = np.random.default_rng(0)
    golds, proxies = {}, {}
    for prompt in sample_prompts(rng, {"test": 40}):
        request = parse_prompt(prompt.prompt)
        values = np.array([gold(prompt.prompt, sample_response(request, rng)) for _ in range(24)])
        golds[prompt.prompt_id], proxies[prompt.prompt_id] = values, values + rng.normal(scale=2.0, size=24)
    return Pool(gold=golds, proxy=proxies)


@pytest.fixture(scope="module", autouse=True)
def no_forkserver_stays() -> Iterator[None]:
    """Comparisons that run in this process start a forkserver with torch in it; tests after these want their own."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((smoke_home / "stdout.json").read_text())
    return found


def all_ok(found: list[Finding]) -> bool:
    return bool(found) and all(one.ok for one in found)


# --- the bands -------------------------------------------------------------------------------------------------------


def test_bands_are_the_binomials() -> None:
    assert chance_band(1000, 0.05) == (33, 69)
    assert chance_band(1000, 0.5) == (459, 541)
    assert [figures.rejections("", count, 1000).ok for count in (0, 32, 33, 69, 70)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_control_that_raises_or_finds_nothing_has_failed() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no such thing")

    assert summary("x", broken)["ok"] is False
    assert "no such thing" in summary("x", broken)["error"]
    assert summary("x", list)["ok"] is False
    good, bad = (Finding(case="", expected="", found=0, n=1, ok=ok) for ok in (True, False))
    assert summary("x", lambda: [good])["ok"] is True
    assert summary("x", lambda: [good, bad])["ok"] is False


def test_one_failed_control_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (Finding(case="", expected="", found=0, n=1, ok=ok) for ok in (True, False))
    monkeypatch.setattr(honesty, "CONTROLS", {"good": lambda runs: [good], "bad": lambda runs: [bad]})
    out = tmp_path / "out.json"
    for words, code in ((["--only", "good"], 0), ([], 1), (["--only", "bad", "--out", str(out)], 1)):
        monkeypatch.setattr(sys, "argv", ["honesty.py", *words])
        assert honesty.main() == code
        assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)
    assert [one["control"] for one in json.loads(out.read_text())["controls"]] == ["bad"]


def test_differences_name_what_differs() -> None:
    one = {"a": [1.0, {"b/c": None}], "d": "x", "e": True}
    assert differences(one, {"a": [1.0 + 1e-15, {"b/c": None}], "d": "x", "e": True}) == {}
    found = differences(one, {"a": [1.0 + 1e-9, {"b/c": 0.0}], "e": 1, "f": 2})
    assert set(found) == {("a", "0"), ("a", "1", "b/c"), ("d",), ("f",)}
    assert "a/1/b/c: null against 0.0" in told(found)
    assert differences([1, 2], [1]) == {(): ([1, 2], [1])}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_identical_outputs() -> None:
    assert all_ok(figures.identical(pool()))


def test_identical_outputs_fails_on_other_outputs() -> None:
    first = next(iter(pool().gold))
    other = {prompt: values + 9 * (prompt == first) for prompt, values in pool().gold.items()}
    assert not any(one.ok for one in figures.identical(pool(), other))


def test_same_policy() -> None:
    found = figures.same_policy(pool(), 30)
    assert len(found) == 5
    assert all_ok(found)


def test_same_policy_fails_with_a_test_of_another_level() -> None:
    def unpaired(a: figures.Runs, b: figures.Runs, rng: np.random.Generator) -> float:
        """Prompts differ in how hard they are; not pairing puts that into the noise, so it hardly ever rejects."""
        x, y = (np.concatenate([np.asarray(v, dtype=float) for v in one[0].scores.values()]) for one in (a, b))
        return float(stats.ttest_ind(x + 1e-9 * rng.normal(size=len(x)), y).pvalue)

    def loose(a: figures.Runs, b: figures.Runs, rng: np.random.Generator) -> float:
        return figures.head_to_head_p(a, b, rng) / 10

    assert not all_ok(figures.same_policy(pool(), 20, loose))
    assert not all_ok(figures.permutation_and_paired(20, unpaired))


def test_two_sampling_seeds(smoke: dict[str, Any], smoke_home: Path) -> None:
    sft, prompts = (artifact(smoke, smoke_home, name) for name in ("sft", "packed_prompts"))
    found = figures.two_seeds(sft, prompts, repeats=40, rows=16)
    assert (found.n, found.ok) == (40, True)
    assert not figures.two_seeds(sft, prompts, repeats=20, rows=4, test=lambda a, b, rng: 0.0).ok


def test_permutation_test_agrees_with_the_paired_test() -> None:
    assert all_ok(figures.permutation_and_paired(20))


# --- a known order ---------------------------------------------------------------------------------------------------


def test_known_order() -> None:
    assert order.known_order(lambda rng: order.dealt_best(pool(), rng), "pool", 3).ok
    assert order.known_order(order.drawn_best, "simulated", 2).ok
    found = order.known_ratings(6)
    assert [one.n for one in found] == [18, 36, 6]
    assert found[2].ok  # the mean; six redraws say little about coverage


def test_known_order_fails_when_the_order_is_another() -> None:
    def swapped(rng: np.random.Generator) -> Mapping[int, Judged]:
        drawn = dict(order.drawn_best(rng))
        return drawn | {2: drawn[4], 4: drawn[2]}

    assert not order.known_order(swapped, "swapped", 2).ok
    assert not any(one.ok for one in order.known_ratings(2, swapped))


def test_best_of_n_equals_brute_force() -> None:
    assert all_ok(order.best_of_n(pool(), pools=12))


def test_best_of_n_fails_with_a_wrong_estimator() -> None:
    def naive(proxy: Values, values: Values, n: int) -> float:
        """The maximum of the first n: unbiased, but not the mean over all subsets."""
        x, y = np.asarray(proxy, dtype=float), np.asarray(values, dtype=float)
        return float(y[np.argmax(x[:n])])

    def independent(proxy: Values, values: Values, n: int) -> float:
        """Gold sorted for itself, as if the proxy were gold."""
        return order.best_of_n_value(np.nan_to_num(np.asarray(values, dtype=float)), values, n)

    for wrong in (naive, independent):
        found = {one.case: one.ok for one in order.best_of_n(pool(), wrong, pools=12)}
        assert not found["against all subsets, ties shared"]


def test_a_proxy_that_is_gold_shows() -> None:
    assert all_ok(order.proxy_is_gold(pool()))
    assert not all_ok(order.proxy_is_gold(pool(), pool().proxy))


def test_null_judges(smoke: dict[str, Any], smoke_home: Path) -> None:
    names = ("generations[sft,test,seed=0]", "candidates[test,seed=0]", "packed_prompts")
    first, second, prompts = (artifact(smoke, smoke_home, name) for name in names)
    assert all_ok(order.null_judges(first, second, prompts))
    assert not order.null_rate("", pairs_of_artifacts(first, second, prompts, 2), {LONGEST: 0.123}).ok


def test_pool_of_a_comparison(smoke: dict[str, Any], smoke_home: Path) -> None:
    found = read_pool(smoke, smoke_home)
    assert found.gold.keys() == found.proxy.keys()
    assert {len(values) for values in found.gold.values()} == {8}


# --- whole comparisons -----------------------------------------------------------------------------------------------


def results_with(accuracy: float, n: int) -> dict[str, Any]:
    one = {"value": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03, "n": n}
    return {"reward_models": {"main": {"accuracy": one}}, "agreement": {"heldout": {"implicit_accuracy": one}}}


@pytest.mark.parametrize(
    ("accuracy", "n", "ok"),
    [(0.5, 1000, True), (0.459, 1200, True), (0.541, 1000, True), (0.56, 1000, False), (0.45, 1000, False),
     (0.5, 999, False)],
)  # fmt: skip
def test_shuffled_labels_must_be_at_chance(accuracy: float, n: int, ok: bool) -> None:
    assert [one.ok for one in whole.at_chance(results_with(accuracy, n), "")] == [ok, ok]


def test_labels_that_mean_nothing_must_not_be_learned_from() -> None:
    runs = mock.Mock(coin=results_with(0.5, 1000), world=results_with(0.62, 1000))
    moved = {"value": 3.0, "low": 2.5, "high": 3.5, "n": 100}
    runs.coin["arms"] = {"dpo": {"seq_kl": moved}}
    assert all_ok(whole.shuffled_labels(runs))
    runs.world = results_with(0.55, 1000)  # nothing was learned from good labels either: then 50% says nothing
    assert not all_ok(whole.shuffled_labels(runs))
    runs.world, moved["low"] = results_with(0.62, 1000), 0.0
    assert not all_ok(whole.shuffled_labels(runs))


def test_a_planted_leak_ends_with_exit_code_4(smoke_home: Path, tmp_path: Path) -> None:
    home = bench.copy_home(smoke_home, tmp_path / "home")
    found = whole.planted_leak(home, whole.plant_pairs_for_dpo)
    assert found.ok, found
    assert found.found == {"exit_code": 4, "failed": ["same_labels", "same_pairs"]}
    assert whole.planted_leak(home, whole.plant_nothing).ok
    with mock.patch.dict(whole.LEAKS, {whole.plant_nothing: {"same_pairs"}}):
        assert not whole.planted_leak(home, whole.plant_nothing).ok  # no leak, but one was expected


def test_a_leak_in_the_file_is_refused(tmp_path: Path) -> None:
    assert whole.leak_in_the_file(tmp_path).ok


def test_order_of_rows_changes_no_figure(smoke: dict[str, Any], smoke_home: Path, tmp_path: Path) -> None:
    home = bench.copy_home(smoke_home, tmp_path / "home")
    stage, inputs = same.measure_inputs(smoke, home)
    before = same.measured(stage, inputs, tmp_path / "before")
    mixed = same.shuffled(inputs, tmp_path / "mixed")
    first = mixed["prompts"] / "prompts.jsonl"
    assert first.read_text() != (inputs["prompts"] / "prompts.jsonl").read_text()  # they are in another order
    after = same.measured(stage, mixed, tmp_path / "after")
    assert differences(before, after) == {}


def test_order_of_a_preferences_file_changes_no_pair(tmp_path: Path) -> None:
    written = []
    for name, rows in (("given", bench.pair_rows(30)), ("turned", bench.pair_rows(30)[::-1])):
        source, out = bench.write_rows(tmp_path / "pairs.jsonl", rows), tmp_path / name
        out.mkdir()
        stages.file_pairs({"splits": {"validation": 0.2, "test": 0.2}}, {"source": source}, out, mock.Mock(seed=3))
        written.append([(out / file).read_text() for file in ("pairs.jsonl", "prompts.jsonl")])
    assert written[0] == written[1]


def test_names_and_order_of_arms_change_no_figure(smoke_home: Path, tmp_path: Path) -> None:
    bench.copy_home(smoke_home, tmp_path / "smoke")
    found = same.names(Runs(tmp_path))
    assert all_ok(found), found


def test_a_twin_is_no_other_arm(smoke_home: Path, tmp_path: Path) -> None:
    bench.copy_home(smoke_home, tmp_path / "smoke")
    assert all_ok(same.twins(Runs(tmp_path)))
