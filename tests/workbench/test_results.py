"""results.json: its field names, its refusals, and reading it back."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.results_page import page
from workbench.errors import DataError
from workbench.results import Match, Results, emit_json_schema, load_results
from workbench.results_base import KL, CostRecord, E, WinRate
from workbench.types import Cost, Estimate


def e(value: float | None = 1.0, **extra: Any) -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - 0.1, "high": value + 0.1}
    return {"value": value, **ends, "n": 256, "n_unscored": 0, "method": "cluster-t by prompt", **extra}


def cost() -> dict[str, Any]:
    return {
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "gpu_s": 0.0,
        "flops": 1e9,
        "tokens_trained": 10,
        "tokens_generated": 10,
        "reward_queries": 1,
        "peak_memory_bytes": 10,
    }


def arm(kind: str) -> dict[str, Any]:
    win = None if kind == "sft" else e(0.6, baseline="sft", judge="gold")
    return {
        "kind": kind,
        "selected": None if kind == "sft" else "step 62",
        "gold_reward": e(),
        "proxy_reward": e(),
        "own_objective": None if kind == "sft" else e(),
        "seq_kl": e(2.0, kl_kind="bound" if kind == "best_of_n" else "mc_k1"),
        "win_rate": win,
        "win_rates": [win] if win else [],
        "win_rate_length_controlled": None,
        "response_tokens": e(20.0),
        "eos_rate": e(0.9),
        "diverged": None,
        "by_seed": [],
        "cost": {"own": cost(), "with_upstream": cost()},
    }


def whole() -> dict[str, Any]:
    """Every field that a reader of schema 1 may rely on, and no other."""
    agreement = {name: e(0.5) for name in ("implicit_accuracy", "explicit_accuracy", "agreement", "kappa")}
    agreement |= {name: e(0.5) for name in ("spearman_margins", "spearman_within_prompt", "kendall_tau")}
    scores = ("implicit_ece", "explicit_ece", "implicit_brier", "explicit_brier")
    agreement["calibration"] = {name: e(0.1) for name in scores}
    return {
        "schema": 1,
        "comparison": "quickstart",
        "seeds": {"data": 0, "sft": 0, "eval": 0, "runs": [0]},
        "mlflow": {"tracking_uri": "sqlite:///x.db", "experiment": "quickstart", "run_id": "1"},
        "report": "report.html",
        "match": {"ok": True, "checks": [{"name": "one_sft", "ok": True, "detail": "ab"}]},
        "reward_models": {
            "main": {name: e(0.7) for name in ("accuracy", "accuracy_gold", "ece", "brier", "tie_rate")},
        },
        "arms": {kind: arm(kind) for kind in ("sft", "ppo", "dpo", "best_of_n")},
        "head_to_head": [{"a": "ppo", "b": "dpo", "judge": "gold", "win_rate": e(0.5), "p_value": 0.5, "p_holm": 1.0}],
        "ranking": [{"arm": "ppo", "rating": e()}],
        "frontier": [
            {
                "arm": "ppo",
                "label": "step 7",
                "seq_kl": e(kl_kind="mc_k1"),
                "proxy_reward": e(),
                "gold_reward": None,
                "win_rate": None,
            }
        ],
        "overoptimization": [
            {"arm": "ppo", "form": "rl", "alpha": e(), "beta": e(), "peak_kl": None, "drop_from_peak": None}
        ],
        "agreement": {"heldout": agreement, "on_policy/sft": agreement, "on_policy/dpo": agreement, "ood": None},
        "stages": [{"name": "sft", "instance": "sft", "key": "ab", "cached": False, "why": "new", "wall_s": 1.0}],
    }


def test_a_file_with_the_schemas_fields_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results.model_validate(whole()).write(path)
    written = json.loads(path.read_text())

    def holds(expected: Any, found: Any, where: str) -> None:
        if isinstance(expected, dict):
            for name, value in expected.items():
                assert name in found, f"{where}.{name}"
                holds(value, found[name], f"{where}.{name}")
        elif isinstance(expected, list):
            for i, (one, other) in enumerate(zip(expected, found, strict=True)):
                holds(one, other, f"{where}[{i}]")
        else:
            assert found == expected, where

    holds(whole(), written, "results")
    assert load_results(path) == Results.model_validate(whole())
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_not_applicable_is_neither_true_nor_false() -> None:
    checks = [{"name": "a", "ok": "not_applicable", "detail": ""}, {"name": "b", "ok": True, "detail": ""}]
    assert Match.model_validate({"ok": True, "checks": checks}).checks[0].ok == "not_applicable"
    with pytest.raises(ValidationError):
        Match.model_validate({"ok": True, "checks": [{"name": "a", "ok": "true", "detail": ""}]})
    with pytest.raises(ValidationError, match="checks say otherwise"):
        Match.model_validate({"ok": True, "checks": [{"name": "a", "ok": False, "detail": ""}]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        E(value=value, low=None, high=None, n=1, method="x")
    raw = whole()
    raw["arms"]["ppo"]["gold_reward"]["value"] = value
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="not a number"):
        load_results(path)


def test_an_estimate_cannot_have_an_interval_without_a_value_or_backwards() -> None:
    with pytest.raises(ValidationError, match="cannot have an interval"):
        E(value=None, low=0.0, high=1.0, n=1, method="x")
    with pytest.raises(ValidationError, match="above high"):
        E(value=0.5, low=0.6, high=0.4, n=1, method="x")


def test_estimates_and_costs_convert() -> None:
    estimate = Estimate(value=0.5, low=0.4, high=0.6, n=9, n_unscored=2, method="x")
    assert E.of(estimate).n_unscored == 2
    assert KL.of(estimate, kl_kind="bound").kl_kind == "bound"
    assert WinRate.of(estimate, baseline="sft", judge="gold").judge == "gold"
    with pytest.raises(ValidationError):
        KL.of(estimate)
    assert CostRecord.of(Cost(wall_s=1.5, tokens_trained=3)).model_dump()["wall_s"] == 1.5


def test_a_diverged_arm_stays_in_the_table_with_nulls_and_others_may_not() -> None:
    raw = whole()
    for name in ("gold_reward", "proxy_reward", "own_objective", "seq_kl", "win_rate", "response_tokens", "eos_rate"):
        raw["arms"]["ppo"][name] = None
    with pytest.raises(ValidationError, match="only in an arm that diverged"):
        Results.model_validate(raw)
    raw["arms"]["ppo"]["diverged"] = "KL 270 nats passed the limit of 200 at update 12"
    assert Results.model_validate(raw).arms["ppo"].seq_kl is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("match"), "match"),
        (lambda r: r.update(schema=2), "schema 2"),
        (lambda r: r["arms"]["ppo"].update(reward=1), "arms.ppo.reward"),
        (lambda r: r["arms"].pop("sft"), "sft"),
        (lambda r: r["ranking"].append({"arm": "nobody", "rating": e()}), "nobody"),
        (lambda r: r["arms"]["dpo"]["seq_kl"].update(kl_kind="k2"), "arms.dpo.seq_kl.kl_kind"),
        (lambda r: r["head_to_head"][0].update(p_value=1.5), "p_value"),
    ],
)
def test_a_wrong_file_is_refused_by_field(change: Any, message: str, tmp_path: Path) -> None:
    raw = copy.deepcopy(whole())
    change(raw)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message) as caught:
        load_results(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_results_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a results\.json"):
        load_results(path)
    with pytest.raises(DataError, match="no such file"):
        load_results(tmp_path / "other.json")


def test_the_json_schema_names_what_is_written() -> None:
    schema = emit_json_schema()
    assert set(schema["properties"]) == set(json.loads(Results.model_validate(whole()).to_json()))
    assert schema["properties"]["schema"]["const"] == 1
    assert set(whole()) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    json.dumps(schema, allow_nan=False)


def test_the_page_of_fields_is_what_the_code_says() -> None:
    text = page(emit_json_schema())
    written = Path(__file__).parents[2] / "docs" / "results-json.md"
    assert written.read_text(encoding="utf-8") == text, "run python -m benchmarks.results_page"
    linked = set(re.findall(r"\]\(#(\w+)\)", text))
    assert linked == {line[3:].lower() for line in text.splitlines() if line.startswith("## ")} - {"the file"}
