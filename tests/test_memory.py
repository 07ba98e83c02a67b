"""The memory benchmark: its count agrees with hand-made graphs, its cases run, its ratios are of what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import memory
from benchmarks.memory_cases import CASES, Shape, prepare
from benchmarks.memory_count import Counter


def train(counter: Counter, *, steps: int, frozen: bool = False) -> tuple[nn.Linear, nn.Linear]:
    first, second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
    first.weight.requires_grad_(not frozen)
    trained = [one for one in (first.weight, second.weight) if one.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    data = torch.randn(32, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        second(torch.tanh(first(data))).sum().backward()
        optimizer.step()
    assert counter.steps == steps
    return first, second


def test_a_count_of_full_training_is_that_by_hand() -> None:
    with Counter() as counter:
        alive = train(counter, steps=3)
    weights = 4 * (8 * 16 + 16 * 4)
    moments = 2 * weights + 2 * 4  # and Adam's two step counters
    # What the graph keeps: the data for the first weight's gradient, tanh's output once for tanh and the second weight.
    assert counter.peak == {
        "parameters": weights, "gradients": weights, "optimizer": moments, "activations": 4 * (32 * 8 + 32 * 16),
    }  # fmt: skip
    assert counter.total == 4 * weights + 8 + 4 * (32 * 8 + 32 * 16)
    del alive


def test_frozen_weights_have_no_gradient_no_moments_and_keep_no_input() -> None:
    with Counter() as counter:
        alive = train(counter, steps=2, frozen=True)
    trained = 4 * 16 * 4
    assert counter.peak == {
        "parameters": 4 * (8 * 16 + 16 * 4), "gradients": trained, "optimizer": 2 * trained + 4,
        "activations": 4 * 32 * 16,
    }  # fmt: skip
    del alive


def test_what_is_freed_is_not_counted_twice() -> None:
    with Counter() as counter:
        alive = train(counter, steps=1)
        weight = nn.Parameter(torch.ones(1000))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(5):
            (weight * torch.ones(1000)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    # square keeps its input; the factor of the product is kept for the weight's gradient
    assert counter.peak["activations"] == max(2 * 4000, 4 * 32 * 16)
    del alive


def test_every_name_is_a_case() -> None:
    assert {*memory.NAMES, *memory.PACKED} == set(CASES)


def test_ratios_are_of_ppo_over_dpo_with_adapters() -> None:
    cases = {
        "dpo_lora": memory.summary([{"training": 100, "stage": 150}], {"total": 10}),
        "ppo_shared": memory.summary(
            [{"training": one, "stage": None} for one in (130, 110, 120)], {"total": 13}
        ),
    }  # fmt: skip
    assert cases["ppo_shared"]["stage_bytes"] is None
    assert memory.ratios(cases) == {
        "ppo_shared/dpo_lora": {"training": 1.2, "counted": pytest.approx(1.3), "goal": 1.3}
    }
    assert memory.ratios({"dpo_lora": cases["dpo_lora"]}) == {}
    packed = memory.summary([{"training": 50, "stage": 50}], {"total": 4})
    assert memory.ratios({"dpo_lora": cases["dpo_lora"], "dpo_qlora": packed}) == {
        "dpo_qlora/dpo_lora": {"training": 0.5, "counted": pytest.approx(0.4)}
    }


@pytest.mark.slow
def test_adapters_need_fewer_gradients_and_moments(tmp_path: Path) -> None:
    shape = Shape(model="0.1m", batch=4, prompt=6, response=6, updates=2, rank=2)
    prepare(tmp_path, shape)
    found = {}
    for case in ("dpo_full", "dpo_lora", "ppo_full", "ppo_shared"):
        with Counter() as counter:
            CASES[case](tmp_path, tmp_path / "runs" / case, shape)
        found[case] = counter.peak
    for arm in ("dpo", "ppo"):
        lora = found[f"{arm}_{'shared' if arm == 'ppo' else 'lora'}"]
        assert lora["gradients"] < found[f"{arm}_full"]["gradients"] / 4
        assert lora["optimizer"] < found[f"{arm}_full"]["optimizer"] / 4
    assert found["ppo_shared"]["parameters"] < found["ppo_full"]["parameters"] / 2, "one base, not four networks"
