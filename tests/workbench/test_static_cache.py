"""Where keys and values lie changes neither what is drawn nor its log-probabilities; a batch too large is halved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.ml_helpers import PAD, STOPS, random_rows
from workbench import sampling, static_cache
from workbench.errors import ConfigError, ResourceError
from workbench.sampling import CacheKind, Decoding, sample


def new_model(kind: str) -> Any:
    """A random two-layer model of a real architecture, grouped keys where it has them."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1,
        "pad_token_id": PAD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "qwen2":
            return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).eval()
        if kind == "mistral":
            config = transformers.MistralConfig(**sizes, sliding_window=8)
            return transformers.MistralForCausalLM(config).eval()
        config = transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, eos_token_id=1,
            bos_token_id=1, pad_token_id=PAD,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [[id % 64 for id in row] for row in random_rows(np.random.default_rng(0), 40, end=False)]


DECODING = Decoding(max_response_tokens=16, stop_ids=tuple(STOPS[:4]))


def drawn(model: Any, prompts: list[list[int]], cache: CacheKind, **options: Any) -> list[sampling.Sample]:
    return sample(model, prompts, DECODING, pad_id=PAD, seed=4, batch_size=16, cache=cache, **options)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral"])
def test_a_static_cache_draws_the_same_bits(kind: str, prompts: list[list[int]]) -> None:
    model = new_model(kind)
    grown = drawn(model, prompts, "dynamic")
    assert {one.finish_reason for one in grown} == {"stop", "length"}
    assert drawn(model, prompts, "static") == grown


def test_a_static_cache_serves_values_too(prompts: list[list[int]]) -> None:
    model = new_model("qwen2")
    grown, static = (
        drawn(model, prompts, cache, value_head=lambda states: states.sum(-1)) for cache in ("dynamic", "static")
    )
    assert grown == static
    assert all(len(one.values) == len(one.ids) for one in static)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_fixed_shapes_draw_the_same_tokens(
    kind: str, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the decode step is compiled for: traced whole by dynamo where that is quick, else as it is."""
    shapes = []

    def step_of(model: Any) -> Any:
        traced = torch.compile(model.forward, backend="eager", fullgraph=True, dynamic=False)

        def step(**given: Any) -> Any:
            shapes.append((len(given["input_ids"]), given["attention_mask"].shape[1]))
            return (traced if kind == "qwen2" and len(shapes) < 3 else model)(**given)

        return step

    monkeypatch.setattr(static_cache, "_compiled_step", step_of)
    model = new_model(kind)
    grown, fixed = drawn(model, prompts, "dynamic"), drawn(model, prompts, "compiled")
    assert [(one.ids, one.finish_reason) for one in fixed] == [(one.ids, one.finish_reason) for one in grown]
    for one, same in zip(fixed, grown, strict=True):
        assert one.logprobs == pytest.approx(same.logprobs, abs=1e-4)
    assert {rows for rows, _ in shapes} <= {16, 8, 4, 2, 1}
    assert len({rows for rows, _ in shapes}) >= 2, "finished rows left"
    assert all(length % static_cache.LENGTH_STEP == 0 for _, length in shapes)


def test_fixed_shapes_are_refused_where_layers_slide_or_values_are_read(prompts: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="window"):
        drawn(new_model("mistral"), prompts, "compiled")
    with pytest.raises(ValueError, match="hook"):
        drawn(new_model("qwen2"), prompts, "compiled", value_head=lambda states: states.sum(-1))


def limited(model: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the model say that it has no memory for more than `most` rows; returns the sizes of what it was given."""
    asked: list[int] = []
    forward = type(model).forward

    def refusing(self: Any, **given: Any) -> Any:
        rows = len(given["input_ids"])
        asked.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, **given)

    monkeypatch.setattr(type(model), "forward", refusing)
    return asked


def test_a_batch_that_does_not_fit_is_halved_and_said(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model("qwen2")
    whole = drawn(model, prompts, "dynamic")
    asked = limited(model, 4, monkeypatch)
    said: list[str] = []
    done: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        drawn(model, prompts, "dynamic")  # nobody is told, so nothing is changed
    asked.clear()
    halved = drawn(model, prompts, "dynamic", say=said.append, on_batch=done.append)
    assert [size for size in asked if size > 4] == [16, 8], "what failed once is not tried again"
    assert len(said) == 2
    assert "8" in said[0]
    assert "evaluation.batch_size" in said[0]
    assert done[-1] == len(halved) == len(whole)
    assert all(one.ids for one in halved)
    # What was halved draws from other seeds, so it may differ, but it is drawn again the same.
    assert drawn(model, prompts, "dynamic", say=said.append) == halved
    same = drawn(model, [prompts[0]] * 16, "dynamic", say=said.append)
    assert len({tuple(tuple(one.ids) for one in same[at : at + 4]) for at in range(0, 16, 4)}) == 4, "a seed each"


def test_a_device_without_room_for_one_row_is_told(prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model("qwen2")
    limited(model, 0, monkeypatch)
    with pytest.raises(ResourceError, match="even one response"):
        drawn(model, prompts, "dynamic", say=lambda _: None)
