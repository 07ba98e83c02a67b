"""The certificate and arms with other labels: a declared difference passes and is told, an undeclared one fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workbench.test_match import OTHER, PAIRS, SFT, made, matched, verdicts
from workbench.data.relabel import FLIPS_FILE
from workbench.evidence import Artifacts
from workbench.match_facts import RewardLineage, Side
from workbench.packed import PackedPairs, write_packed_pairs
from workbench.sides import _pairs_behind, from_json, to_json
from workbench.types import Cost

LABELS = "main by sample, 3 of 9 turned"
ROWS = [([1], [2, 3], [4]), ([5], [6], [7]), ([8], [9], [9, 9])]
META = [{"pair_id": f"pair{i}", "prompt_id": f"p{i}", "split": "train"} for i in range(3)]


def with_relabeled(**change: object) -> dict[str, Side]:
    sides = matched()
    reward = RewardLineage(name="main", sft_tensors=SFT, pair_rows=PAIRS)
    made = replace(sides["dpo"], label="dpo-explicit", labels=LABELS, reward=reward)
    return sides | {"dpo-explicit": replace(made, **change)}  # type: ignore[arg-type]


def test_declared_labels_pass_and_are_told() -> None:
    found = made(with_relabeled())
    assert found.ok
    told = {check.name: check.detail for check in found.checks}
    assert f"dpo-explicit: the same pairs, labels of {LABELS}" in told["same_pairs"]
    assert "dpo-explicit" in told["reward_lineage"]
    assert "labels of" not in {check.name: check.detail for check in made(matched()).checks}["same_pairs"]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"pair_rows": OTHER}, {"same_pairs"}),
        ({"reward": None}, {"same_pairs", "reward_lineage"}),
        ({"reward": RewardLineage(name="main", sft_tensors=SFT, pair_rows=OTHER)}, {"same_pairs"}),
        ({"reward": RewardLineage(name="main", sft_tensors=SFT)}, {"same_pairs"}),
        ({"reward": RewardLineage(name="main", sft_tensors=OTHER, pair_rows=PAIRS)}, {"reward_lineage"}),
    ],
)
def test_other_pairs_behind_the_arm_or_behind_its_labels_fail(change: dict[str, object], failed: set[str]) -> None:
    assert {name for name, ok in verdicts(made(with_relabeled(**change))).items() if ok is False} == failed


def test_a_side_with_labels_survives_json() -> None:
    side = with_relabeled()["dpo-explicit"]
    again = from_json(json.loads(json.dumps(to_json(side))), own=Cost(wall_s=10, cpu_s=9), total=side.total_cost)  # type: ignore[arg-type]
    assert again == side


def written(folder: Path, flips: list[bool]) -> PackedPairs:
    import numpy as np

    folder.mkdir()
    rows = [(p, b, a) if flip else (p, a, b) for (p, a, b), flip in zip(ROWS, flips, strict=True)]
    write_packed_pairs(folder, rows, META)
    np.save(folder / FLIPS_FILE, np.array(flips))
    return PackedPairs(folder)


def test_turns_are_undone_only_for_the_arm_that_declares_them(tmp_path: Path) -> None:
    original = written(tmp_path / "pairs", [False] * 3).ids_digest()
    turned = written(tmp_path / "turned", [True, False, True]).ids_digest()
    artifacts = Artifacts({"declared/0/relabeled": tmp_path / "turned"})
    assert turned != original
    assert _pairs_behind(artifacts, "declared", 0, turned) == original
    # The data's own labels are not what was declared.
    assert _pairs_behind(artifacts, "declared", 0, original) == f"{original} in place of the declared {turned}"
    assert _pairs_behind(artifacts, "silent", 0, turned) == turned
    third = written(tmp_path / "third", [False, True, True]).ids_digest()
    assert _pairs_behind(artifacts, "declared", 0, third).startswith(third)
