"""Annotators where pairs come from a file: agreement of each arm's own reward with each annotator's labels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.measure_annotators import NO_LABELS, AnnotatorMeasure
from workbench.results_annotators import Annotators


def scope(tmp_path: Path, labels: list[dict[str, bool]], margins: dict[str, list[float]]) -> Any:
    """Held-out pairs with their labels ({annotator: prefers chosen}) and rewards' margins; two run seeds."""
    rows = [
        {
            "pair_id": f"{number:02d}",
            "prompt_id": f"p{number}",
            "split": "test",
            "annotations": [{"annotator": name, "prefers_first": prefers} for name, prefers in said.items()],
        }
        for number, said in enumerate(labels)
    ]
    rows.append({"pair_id": "train", "prompt_id": "q", "split": "train", "annotations": []})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    ids = {"pair_id": [row["pair_id"] for row in rows[:-1]], "prompt_id": [row["prompt_id"] for row in rows[:-1]]}
    artifacts = SimpleNamespace(inputs={"raw_pairs": tmp_path}, json=lambda *_: ids | margins)

    def runs(kind: str, own: str | None) -> list[Any]:
        return [SimpleNamespace(kind=kind, own=own, seed=seed) for seed in (0, 1)]

    arms = {
        "sft": runs("sft", None),
        "ppo": runs("ppo", "proxy/main"),
        "dpo": runs("dpo", None),
        "dpo-0.1": runs("dpo", None),
    }
    return SimpleNamespace(has_gold=False, artifacts=artifacts, arms=arms)


def test_each_reward_against_each_annotator(tmp_path: Path) -> None:
    labels = [{"ann": True, "bob": True, "cyd": False}] * 8 + [{"ann": True, "bob": False, "cyd": False}] * 2
    found = scope(tmp_path, labels * 2, {"proxy/main": ([1.0] * 9 + [0.0]) * 2, "implicit/dpo": [-1.0] * 20})
    measure = AnnotatorMeasure(found, None)
    assert measure.summary.kind == "label_agreement"
    agreed = {name: one.value for name, one in measure.summary.leave_one_out.items()}
    # For ann the others split 8 times and oppose twice; for bob split 10 times; for cyd oppose 8 times, split twice.
    assert agreed == pytest.approx({"ann": 0.4, "bob": 0.5, "cyd": 0.1})
    assert measure.summary.minority == ["cyd"]
    arms = measure.arms()
    assert arms["sft"] == {}
    ppo = arms["ppo"]["by_annotator"]
    assert ppo["ann"]["value"] == pytest.approx(0.95)  # the tie counts half
    assert ppo["bob"]["value"] == pytest.approx((8 + 0.5) / 10)
    assert ppo["cyd"]["value"] == pytest.approx(0.5 / 10)
    assert ppo["ann"]["n"] == 20
    assert arms["dpo"]["by_annotator"]["cyd"]["value"] == pytest.approx(1)
    assert "minority_win_rate" not in arms["ppo"]  # no win rate is known
    missing = arms["dpo-0.1"]["by_annotator"]["ann"]
    assert (missing["value"], missing["n_unscored"]) == (None, 40)
    assert "was not asked" in missing["method"]


def test_without_names_nothing_is_known(tmp_path: Path) -> None:
    measure = AnnotatorMeasure(scope(tmp_path, [{}] * 3, {"proxy/main": [1.0] * 3}), None)
    assert measure.summary == Annotators(kind=None, reason=NO_LABELS)
    assert measure.arms()["ppo"] == {}


def test_level_annotators_have_no_minority(tmp_path: Path) -> None:
    """Somebody always agrees least; who cannot be told from the next one is no minority."""
    names = ("ann", "bob", "cyd")
    labels = [{name: name != names[row % 3] for name in names} for row in range(20)]
    summary = AnnotatorMeasure(scope(tmp_path, labels, {"proxy/main": [1.0] * 20}), None).summary
    assert summary.minority == []
    assert "agrees least, but not beyond noise" in str(summary.reason)
    arms = AnnotatorMeasure(scope(tmp_path, labels, {"proxy/main": [1.0] * 20}), None).arms()
    assert arms["ppo"]["by_annotator"].keys() == set(names)


def test_one_label_a_pair_has_no_minority(tmp_path: Path) -> None:
    labels = [{"ann": True}, {"bob": False}, {"cyd": True}] * 3
    measure = AnnotatorMeasure(scope(tmp_path, labels, {"proxy/main": [1.0] * 9, "implicit/dpo": [1.0] * 9}), None)
    assert measure.summary.kind == "label_agreement"
    assert measure.summary.minority == []
    assert measure.summary.reason is not None
    assert "needs at least 3" in measure.summary.reason
    assert measure.arms()["ppo"]["by_annotator"]["bob"]["value"] == 0
