"""The measure stage on the two rewards, with artifacts written by hand: gold or none, one run seed or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.data.records_io import write_json, write_jsonl, write_pairs
from workbench.evidence import Artifacts
from workbench.measure_disagreements import Disagreements
from workbench.measure_rewards import Rewards
from workbench.measure_scope import Scope
from workbench.measure_shifts import Shifts
from workbench.packed import write_packed_pairs, write_packed_prompts
from workbench.results_agreement import Agreement, AgreementPoint, Disagreement, Generalization
from workbench.types import PreferencePair

PAIRS, PROMPTS, SAMPLES = 90, 40, 4
PEOPLE = [{"name": "a", "temperature": 0.7}, {"name": "b", "length_bias": 0.1}]


class World:
    """Artifacts of an SFT and one DPO arm, whose rewards see gold through noise."""

    def __init__(self, root: Path, *, seeds: int, gold: bool, ood_pairs: bool = False, drop: float = 0.0) -> None:
        self.root, self.rng, self.gold = root, np.random.default_rng(0), gold
        self.inputs: dict[str, Path] = {}
        self.seeds = list(range(seeds))
        self._pairs(ood_pairs)
        for seed in self.seeds:
            for label in ("sft", "dpo"):
                self._samples(label, seed, "generations", "scores", 0.0)
            self._samples("sft", seed, "shift", "shift_scores", drop)
            self._samples("sft", seed, "ood", "ood_scores", drop)
            self._rewards(seed)

    def folder(self, role: str) -> Path:
        path = self.root / role.replace("/", "-")
        path.mkdir()
        self.inputs[role] = path
        return path

    def _pairs(self, ood: bool) -> None:
        splits = ["validation", "test", *(["ood"] if ood else [])]
        self.rows = [
            PreferencePair(
                pair_id=f"{split}{i:02}", prompt_id=f"{split}-p{i}", prompt=f"prompt {i}", chosen=f"good {i}",
                rejected=f"bad and long {i}", source="test", split=split,
            )
            for split in splits
            for i in range(PAIRS)
        ]  # fmt: skip
        self.margin = dict(
            zip([row.pair_id for row in self.rows], self.rng.normal(0.5, 1, len(self.rows)), strict=True)
        )
        raw = self.folder("raw_pairs")
        write_pairs(raw, self.rows)
        if self.gold:
            write_json(raw / "scores.json", {name: {"chosen": m, "rejected": 0.0} for name, m in self.margin.items()})
        packed = [([5, 6], [7] * (2 + i % 3) + [1], [8, 9, 1]) for i in range(len(self.rows))]
        meta = [{"pair_id": row.pair_id, "prompt_id": row.prompt_id, "split": row.split, "annotations": [],
                 "target_margin": None} for row in self.rows]  # fmt: skip
        write_packed_pairs(self.folder("pairs"), packed, meta)
        ids = [f"p{i}" for i in range(PROMPTS)] + [row.prompt_id for row in self.rows]
        write_packed_prompts(
            self.folder("prompts"),
            [{"prompt_id": name, "prompt": f"text of {name}", "split": "test", "ids": [5]} for name in ids],
        )

    def _samples(self, label: str, seed: int, role: str, scores: str, drop: float) -> None:
        rows, columns = [], {"generation_id": [], "proxy/main": [], "implicit/dpo": []}  # type: ignore[var-annotated]
        golds = []
        for i in range(PROMPTS):
            for k in range(SAMPLES):
                length, value = int(self.rng.integers(2, 9)), float(self.rng.normal())
                ratio = 0.0 if label == "sft" else float(self.rng.normal(1, 1))
                rows.append({"generation_id": f"p{i}/{k}", "prompt_id": f"p{i}", "policy": "d", "sample_index": k,
                             "response": f"text {seed} {i} {k}", "response_ids": [7] * length, "finish_reason": "stop",
                             "seq_logprob": -5.0 + ratio, "ref_seq_logprob": -5.0})  # fmt: skip
                columns["generation_id"].append(f"p{i}/{k}")
                columns["proxy/main"].append(value + float(self.rng.normal()))
                columns["implicit/dpo"].append((1 - drop) * value + float(self.rng.normal()))
                golds.append(value)
        write_jsonl(self.folder(f"{label}/{seed}/{role}") / "generations.jsonl", rows)
        write_json(
            self.folder(f"{label}/{seed}/{scores}") / "scores.json", columns | ({"gold": golds} if self.gold else {})
        )

    def _rewards(self, seed: int) -> None:
        explicit = [float(m + self.rng.normal()) for m in self.margin.values()]
        chosen = [float(m + self.rng.normal()) for m in self.margin.values()]
        rejected = [float(0.1 * self.rng.normal()) for _ in self.margin]
        names = {name: [getattr(row, name) for row in self.rows] for name in ("pair_id", "prompt_id", "split")}
        implicit = [a - b for a, b in zip(chosen, rejected, strict=True)]
        write_json(
            self.folder(f"sft/{seed}/margins") / "margins.json",
            names | {"proxy/main": explicit, "implicit/dpo": implicit},
        )
        write_json(self.folder(f"dpo/{seed}/selected") / "selected.json",
                   {"checkpoint": "step-2", "rule": "last", "metric": None, "value": None})  # fmt: skip
        write_json(
            self.folder(f"dpo/{seed}/policy") / "index.json",
            {"checkpoints": [{"name": f"step-{s}", "step": s} for s in (1, 2)], "last": "step-2", "diverged": None},
        )
        samples = json.loads((self.inputs[f"sft/{seed}/ood_scores"] / "scores.json").read_text())
        kept = [row for row, one in enumerate(self.rows) if one.split != "validation"]
        points = [
            {"name": f"step-{s}", "step": s, "chosen": [s / 2 * chosen[i] for i in kept],
             "rejected": [s / 2 * rejected[i] for i in kept], "samples": samples["implicit/dpo"]}
            for s in (1, 2)
        ]  # fmt: skip
        write_json(
            self.folder(f"dpo/{seed}/checkpoints") / "checkpoints.json",
            {name: [values[i] for i in kept] for name, values in names.items()}
            | {"points": points, "generation_id": samples["generation_id"]},
        )

    def scope(self, **changes: Any) -> Scope:
        block = {"kind": "dpo", "beta": 0.1, "labels": "given"}
        config = {"arms": {"dpo": block}, "runs": self.seeds, "reward_models": ["main"], "proxy": "main",
                  "implicit": "dpo", "judges": ["gold"], "judge_kinds": {}, "gold": self.gold,
                  "annotators": PEOPLE if self.gold else None, "labels_per_pair": 1}  # fmt: skip
        return Scope(config | changes, Artifacts(self.inputs), 0)


def told(world: World, **changes: Any) -> tuple[dict[str, Agreement | None], Shifts, list[Disagreement]]:
    scope = world.scope(**changes)
    rewards = Rewards(scope)
    sets = {name: None if one is None else Agreement.model_validate(one) for name, one in rewards.agreement().items()}
    listed = [Disagreement.model_validate(one) for one in Disagreements(scope, rewards).listed(5)]
    return sets, Shifts(scope, rewards), listed


def test_every_set_is_there_and_calibrated_against_fresh_labels(tmp_path: Path) -> None:
    sets, shifts, listed = told(World(tmp_path, seeds=1, gold=True))
    assert sets.keys() == {"heldout", "on_policy/sft", "on_policy/dpo", "temperature_shift", "ood"}
    for name, entry in sets.items():
        assert entry is not None
        assert entry.calibration is not None
        assert entry.calibration.labels == "fresh", name
        assert entry.calibration.tempered is not None
        assert entry.per_token is not None
        assert (entry.standardized is None) == (name == "heldout")
    heldout, sft, dpo = sets["heldout"], sets["on_policy/sft"], sets["on_policy/dpo"]
    assert heldout is not None
    assert sft is not None
    assert dpo is not None
    assert (heldout.n_pairs, sft.n_pairs) == (PAIRS, PROMPTS * SAMPLES * (SAMPLES - 1) // 2)
    assert (len(sft.by_kl), len(dpo.by_kl)) == (0, 3)
    points = [AgreementPoint.model_validate(one) for one in shifts.trajectory()]
    assert [(one.step, one.set) for one in points] == [(s, n) for s in (1, 2) for n in ("heldout", "ood")]
    assert points[2].agreement.value == pytest.approx(heldout.agreement.value)
    assert points[2].seq_margin.value == pytest.approx(2 * (points[0].seq_margin.value or 0))
    assert all(one.prompt for one in listed)


def test_fresh_labels_are_the_same_in_every_run_seed(tmp_path: Path) -> None:
    world = World(tmp_path, seeds=3, gold=True)
    pairs = Rewards(world.scope()).reader.held_out("test")
    assert pairs is not None
    assert pairs.fresh is not None
    assert len(pairs) == 3 * PAIRS
    np.testing.assert_array_equal(pairs.fresh[:PAIRS], pairs.fresh[PAIRS : 2 * PAIRS])


def test_several_run_seeds_are_crossed_everywhere(tmp_path: Path) -> None:
    sets, shifts, _ = told(World(tmp_path, seeds=5, gold=True))
    sft = sets["on_policy/sft"]
    assert sft is not None
    assert sft.calibration is not None
    assert sft.standardized is not None
    assert sft.length is not None
    for one in (sft.accuracy_difference, sft.standardized.agreement, sft.length.implicit,
                sft.calibration.implicit_slope, sft.calibration.implicit_reliability[0].preferred):  # fmt: skip
        assert one is not None
        assert "5 seeds" in one.method
    found = Generalization.model_validate(shifts.generalization())
    assert found.holds == "unresolved"  # both rewards see gold equally well everywhere
    assert "holds 0" in found.reason


def test_an_implicit_reward_that_breaks_down_out_of_distribution_is_found(tmp_path: Path) -> None:
    _, shifts, _ = told(World(tmp_path, seeds=5, gold=True, drop=1.0))
    found = Generalization.model_validate(shifts.generalization())
    assert found.holds is True
    assert (found.difference.low or 0) > 0.1
    by_set = {one.set: one for one in found.shifts}
    assert (by_set["temperature_shift"].implicit_change.high or 0) < -0.1
    assert by_set["temperature_shift"].kind == "temperature"
    assert by_set["on_policy/dpo"].optimized == "implicit"


def test_labelled_pairs_out_of_distribution_are_held_against_held_out_ones(tmp_path: Path) -> None:
    sets, shifts, _ = told(World(tmp_path, seeds=1, gold=False, ood_pairs=True))
    ood = sets["ood"]
    assert ood is not None
    assert ood.truth == "label"
    assert ood.calibration is not None
    assert ood.calibration.labels == "given"
    found = Generalization.model_validate(shifts.generalization())
    assert (found.in_distribution, found.out_of_distribution) == ("heldout", "ood")
    assert found.shifts == []  # samples have no truth to be compared with


def test_without_gold_samples_have_no_truth(tmp_path: Path) -> None:
    sets, shifts, listed = told(World(tmp_path, seeds=1, gold=False))
    heldout, sft = sets["heldout"], sets["on_policy/sft"]
    assert heldout is not None
    assert sft is not None
    assert heldout.calibration is not None
    assert (heldout.calibration.labels, heldout.against_gold, heldout.by_gold_gap) == ("given", None, [])
    assert (sft.truth, sft.implicit_accuracy, sft.calibration, sft.standardized) == (None,) * 4
    assert sft.agreement.value is not None
    assert shifts.generalization() is None
    points = [AgreementPoint.model_validate(one) for one in shifts.trajectory()]
    assert {(one.set, one.implicit_accuracy is None) for one in points} == {("heldout", False), ("ood", True)}
    assert all(one.gold_margin is None for one in listed)


def test_without_dpo_there_is_nothing_to_compare(tmp_path: Path) -> None:
    sets, shifts, listed = told(World(tmp_path, seeds=1, gold=True), implicit=None)
    assert (sets, listed, shifts.generalization()) == ({}, [], None)
