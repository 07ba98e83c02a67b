"""The wire, against a real server: `transformers serve`, started for one policy. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.ml_helpers import PAD, Log, World, add_policy, build_world, policy_of
from workbench import generations
from workbench.data.records_io import read_jsonl
from workbench.errors import ConfigError
from workbench.packed import read_packed_prompts, write_packed_prompts
from workbench.scoring import sequence_logprobs

pytestmark = pytest.mark.slow

STOPS, LENGTH = [1, 10, 11, 12, 13], 6  # EOS, and words that end a response
SERVE = """
import sys
from transformers.cli.serve import Serve
Serve(host="127.0.0.1", port=int(sys.argv[1]), device="cpu", dtype="float32", log_level="error")
"""
# What this server wants to be told otherwise than by the usual fields; it takes text alone.
GENERATION = {"do_sample": True, "top_k": 0, "eos_token_id": STOPS, "pad_token_id": PAD}
CONFIG: dict[str, Any] = {
    "split": "validation", "prompts": 8, "samples_per_prompt": 5, "temperature": 1.0, "top_p": 1.0,
    "max_response_tokens": LENGTH, "stop_ids": STOPS, "batch_size": 64, "trust_remote_code": False,
    "connection": {
        "url": None, "api_key_env": None, "concurrency": 2, "timeout_s": 60.0, "max_retries": 1, "deadline_s": 120.0,
        "start_timeout_s": 120.0,
    },
}  # fmt: skip


def speaker(tokenizer: Any) -> Any:
    """A random GPT-2 that never says what a text loses: padding and unknown words."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=0.4,
                eos_token_id=1, bos_token_id=None, pad_token_id=PAD, tie_word_embeddings=False,
            )
        )  # fmt: skip
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[PAD, tokenizer.unk_token_id], 0] = -50.0
    return model.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With prompts whose texts give their ids, and a policy."""
    world = build_world(tmp_path_factory.mktemp("world"))
    rows = list(read_packed_prompts(world.prompts))
    write_packed_prompts(world.prompts, [row | {"prompt": world.tokenizer.decode(row["ids"])} for row in rows])
    add_policy(world, speaker(world.tokenizer))
    return world


def generate(world: World, work: Path, prompts: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any], Log]:
    serve = work.parent / "serve.py"
    serve.write_text(SERVE)
    server = {
        "command": f"{sys.executable} {serve} {{port}} {{model}}", "model": "{model}", "tokens": "text",
        "body": {"generation_config": json.dumps(GENERATION)}, "check_responses": 40,
    }  # fmt: skip
    inputs = {
        "prompts": prompts or world.prompts, "sft": world.sft, "policy": world.root / "policy",
        "selected": world.root / "selected",
    }  # fmt: skip
    out, log = world.out("served"), Log(work)
    generations.generate(CONFIG | {"server": server}, inputs, out, log)
    return list(read_jsonl(out / "generations.jsonl")), json.loads((out / "facts.json").read_text()), log


def test_a_real_server_samples_the_policy(world: World, tmp_path: Path) -> None:
    if importlib.util.find_spec("openai") is None:
        pytest.skip("transformers serve needs the package openai (extra dev)")
    rows, facts, log = generate(world, tmp_path / "w")
    assert facts["decoding"]["sampler"] == "server, text"
    assert facts["served"]["responses"] == len(rows) == 40
    assert abs(facts["served"]["difference"]) < 5 * facts["served"]["standard_error"] + 0.01
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    for row in rows:
        ids = row["response_ids"]
        assert (ids[-1] in STOPS, len(ids) == LENGTH or ids[-1] in STOPS) == (row["finish_reason"] == "stop", True)
        assert not set(ids[:-1]) & set(STOPS)
    packed = {row["prompt_id"]: row["ids"] for row in read_packed_prompts(world.prompts)}
    ids = [packed[row["prompt_id"]] for row in rows], [row["response_ids"] for row in rows]
    for name, folder in (("seq_logprob", world.root / "policy/checkpoints/last"), ("ref_seq_logprob", world.model)):
        expected = sequence_logprobs(policy_of(folder), *ids, pad_id=PAD)
        assert np.allclose([row[name] for row in rows], expected)
    assert any("sampled by the server" in str(said) for said in log.said)


def test_prompts_that_a_text_does_not_carry_are_refused_before_a_server_starts(world: World, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_packed_prompts(prompts, [row | {"prompt": "zz"} for row in read_packed_prompts(world.prompts)])
    with pytest.raises(ConfigError, match="tokens: ids"):
        generate(world, tmp_path / "w", prompts)
    assert not (tmp_path / "w" / "server.log").exists()
