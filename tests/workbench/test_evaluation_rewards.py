"""Implicit rewards over training, their stage in the graph, and the neutral shift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ml_helpers import PAD, Log, World, build_world, policy_of, tiny_model
from tests.pipelines.test_graph import build, named, shape, upstream
from workbench.data.records_io import write_jsonl
from workbench.errors import DivergenceError, StageInterrupted
from workbench.evaluation import reference_logprobs, score_pairs
from workbench.evaluation_rewards import score_checkpoints
from workbench.models import save_model, trunk_digest
from workbench.policy_set import Checkpoint, write_policy_set
from workbench.scoring import sequence_logprobs

CONFIG = {"splits": ["validation"], "beta": 0.5, "batch_size": 4, "trust_remote_code": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def inputs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy set of the SFT and another model, reference log-probabilities, and two samples."""
    root = tmp_path_factory.mktemp("inputs")
    listed = []
    for step, model in enumerate((policy_of(world.model), tiny_model(world.tokenizer, seed=7))):
        save_model(model, world.tokenizer, root / "policy" / "checkpoints" / f"step-{step}")
        listed.append(
            Checkpoint(name=f"step-{step}", path=f"checkpoints/step-{step}", step=step, tensors=trunk_digest(model))
        )
    write_policy_set(root / "policy", listed, facts={})
    reference = root / "reference"
    reference.mkdir()
    options = {"batch_size": 4, "trust_remote_code": False}
    reference_logprobs(options, {"sft": world.sft, "pairs": world.pairs}, reference, Log(root / "work"))
    ids = {row["prompt_id"]: row["ids"] for row in map(json.loads, (world.prompts / "prompts.jsonl").open())}
    samples = [[40, 41, 1], [50, 1]]
    given = [ids["p0"], ids["p1"]]
    under = sequence_logprobs(policy_of(world.model), given, samples, pad_id=PAD)
    (root / "ood").mkdir()
    write_jsonl(
        root / "ood" / "generations.jsonl",
        [
            {"generation_id": f"p{i}/0", "prompt_id": f"p{i}", "response_ids": samples[i], "ref_seq_logprob": under[i]}
            for i in range(2)
        ],
    )
    return {"policy": root / "policy", "pairs": world.pairs, "reference_logprobs": reference, "ood": root / "ood",
            "prompts": world.prompts}  # fmt: skip


def scored(inputs: dict[str, Path], out: Path, log: Log, **changes: Any) -> Any:
    out.mkdir()
    score_checkpoints(CONFIG | changes, inputs, out, log)
    return json.loads((out / "checkpoints.json").read_text())


def test_the_reference_itself_has_reward_zero_and_others_have_not(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = scored(inputs, tmp_path / "out", Log(tmp_path / "work"))
    first, second = found["points"]
    assert [first["step"], second["step"]] == [0, 1]
    for name, count in (("chosen", 8), ("rejected", 8), ("samples", 2)):
        assert first[name] == pytest.approx([0.0] * count, abs=1e-4)
        assert np.abs(second[name]).max() > 0.1
    assert found["generation_id"] == ["p0/0", "p1/0"]
    assert len(found["chosen_tokens"]) == len(found["pair_id"]) == 8


def test_margins_are_those_of_the_selected_checkpoint(inputs: dict[str, Path], world: World, tmp_path: Path) -> None:
    found = scored(inputs, tmp_path / "out", Log(tmp_path / "work"))
    (tmp_path / "selected").mkdir()
    (tmp_path / "selected" / "selected.json").write_text('{"checkpoint": "step-1"}')
    (tmp_path / "margins").mkdir()
    score_pairs(
        {"splits": ["validation"], "implicit": {"implicit/dpo": 0.5}, "batch_size": 4, "trust_remote_code": False},
        {"pairs": world.pairs, "reference_logprobs": inputs["reference_logprobs"], "reward:main": world.reward_model,
         "policy:implicit/dpo": inputs["policy"], "selected:implicit/dpo": tmp_path / "selected"},
        tmp_path / "margins", Log(tmp_path / "work2"),
    )  # fmt: skip
    margins = json.loads((tmp_path / "margins" / "margins.json").read_text())
    sides = np.array(found["points"][1]["chosen"]) - np.array(found["points"][1]["rejected"])
    assert found["pair_id"] == margins["pair_id"]
    assert sides == pytest.approx(margins["implicit/dpo"], abs=1e-5)


def test_without_samples_the_points_have_none(inputs: dict[str, Path], tmp_path: Path) -> None:
    fewer = {name: path for name, path in inputs.items() if name not in ("ood", "prompts")}
    found = scored(fewer, tmp_path / "out", Log(tmp_path / "work"))
    assert found["generation_id"] == []
    assert all(point["samples"] == [] for point in found["points"])


def test_a_reward_that_is_no_number_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="implicit reward of step-0"):
        scored(inputs, tmp_path / "out", Log(tmp_path / "work"), beta=float("inf"))


def test_it_stops_when_asked(inputs: dict[str, Path], tmp_path: Path) -> None:
    log = Log(tmp_path / "work", stop_at=0)
    with pytest.raises(StageInterrupted):
        scored(inputs, tmp_path / "out", log)


# --- in the graph -----------------------------------------------------------------------------------------------


def test_every_dpo_arm_is_followed_and_names_are_in_no_key(tmp_path: Path) -> None:
    graph = build(tmp_path)
    stage = graph.stages["checkpoint_rewards[dpo,seed=0]"]
    assert named(graph, "checkpoint_rewards") == ["checkpoint_rewards[dpo,seed=0]"]
    renamed = build(tmp_path, "arms.other={kind: dpo, beta: 0.3, epochs: 2, batch_size: 16, checkpoint_every_steps: 2}")
    assert shape(renamed.stages["checkpoint_rewards[other,seed=0]"]) == shape(stage)
    changed = build(tmp_path, "arms.dpo.beta=0.2").stages["checkpoint_rewards[dpo,seed=0]"]
    assert shape(changed) != shape(stage)
    # No arm is charged for it: it stands on the policy, and no policy on it.
    assert all("checkpoint_rewards[dpo,seed=0]" not in upstream(graph, roles["generations"])
               for roles in graph.arms.values())  # fmt: skip


def test_margins_hold_validation_pairs_for_the_temperature_alone(tmp_path: Path) -> None:
    stage = build(tmp_path).stages["margins[seed=0]"]
    assert stage.config["splits"] == ["validation", "test", "ood"]


def test_the_neutral_shift_is_the_sft_at_another_temperature(tmp_path: Path) -> None:
    plain, shifted = build(tmp_path), build(tmp_path, "evaluation.shift_temperature=1.4")
    assert set(shifted.stages) - set(plain.stages) == {"generations[sft,shift,seed=0]", "scores[sft,shift,seed=0]"}
    drawn, usual = shifted.stages["generations[sft,shift,seed=0]"], shifted.stages["generations[sft,test,seed=0]"]
    assert dict(drawn.config) == dict(usual.config) | {"temperature": 1.4, "top_p": 1.0}
    assert drawn.seed != usual.seed
    assert dict(drawn.inputs) == dict(usual.inputs)
    for instance in plain.stages:
        if instance not in ("samples", "measure"):
            assert shape(plain.stages[instance]) == shape(shifted.stages[instance]), instance
