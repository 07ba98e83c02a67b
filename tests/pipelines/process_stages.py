"""A stage for the tests of several processes: all training stages after each other in one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines import dpo, grpo, ppo, reward_model, rloo, sft
from tests.ml_helpers import STOPS, dpo_config, ppo_config, reward_config, sft_config
from workbench.config_arms_online import GRPO, RLOO
from workbench.errors import StageInterrupted
from workbench.stage_log import StageLog
from workbench.stages import Resources, Stage

LORA = {"lora": {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]}, "gradient_checkpointing": True}
_ONLINE = {"stop_ids": STOPS, "trust_remote_code": False, "max_response_tokens": 8}
_SMALL: dict[str, Any] = {"updates": 2, "batch_size": 16, "checkpoint_every_updates": 1}


def rloo_config(**changes: Any) -> dict[str, Any]:
    """A small RLOO block with what the graph adds to it."""
    return RLOO(**(_SMALL | changes)).model_dump() | _ONLINE


def grpo_config(**changes: Any) -> dict[str, Any]:
    """A small GRPO block with what the graph adds to it."""
    return GRPO(**(_SMALL | changes)).model_dump() | _ONLINE


# 24 training pairs: 7 a step leave a last step of 6 rows and an odd share of each.
CASES: Mapping[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "sft": (sft.run, sft_config(steps=3, batch_size=7)),
    "reward_model": (reward_model.run, reward_config(batch_size=7, epochs=1, microbatch_size=2)),
    "dpo": (dpo.run, dpo_config(batch_size=7, epochs=1, nll_coef=0.5)),
    "dpo-lora": (dpo.run, dpo_config(batch_size=7, epochs=1, microbatch_size=3) | LORA),
    "ppo": (ppo.run, ppo_config(updates=3, epochs=2, learning_rate=5e-3, microbatch_tokens=60)),
    "ppo-head": (ppo.run, ppo_config(updates=2, critic="head", normalize_reward=True, sft_coef=0.1)),
    "rloo": (rloo.run, rloo_config(microbatch_size=3)),
    "grpo": (grpo.run, grpo_config(epochs=2)),
}


class Log(StageLog):
    """A log of one case below the stage's; only the first process is asked to stop, once `stop_at` was logged."""

    def __init__(self, outer: StageLog, name: str, stop_at: int | None) -> None:
        work = outer.work / name
        work.mkdir(exist_ok=True)
        super().__init__(
            work=work, seed=outer.seed, resources=outer.resources, instance=name,
            send=lambda message: None, stop=threading.Event(), rank=outer.rank,
        )  # fmt: skip
        self.stop_at, self.scratch = stop_at, outer.scratch / name
        self.scratch.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        if self.rank == 0 and step == self.stop_at:
            self._stop.set()


def train(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """The named cases, each into a folder of its name; `interrupted` ones stop at step 1 and go on."""
    for name in config["cases"]:
        function, block = CASES[name.removesuffix("-interrupted")]
        (out / name).mkdir()
        if name.endswith("-interrupted"):
            try:
                function(block, inputs, out / name, Log(log, name, stop_at=1))
            except StageInterrupted:
                pass
            else:
                raise AssertionError(f"{name} did not stop in process {log.rank}")
        one = Log(log, name, stop_at=None)
        function(block, inputs, out / name, one)
        if log.rank == 0:
            (out / name / "metrics.jsonl").write_text((one.work / "metrics.jsonl").read_text())


def training(cases: list[str], inputs: Mapping[str, Any], count: int) -> Stage:
    """`train` with `count` processes."""
    return Stage(
        name="train", instance=f"train[{count}]", function="tests.pipelines.process_stages:train",
        config={"cases": cases}, inputs=inputs, seed=3, packages=("torch",), resources=Resources(processes=count),
    )  # fmt: skip
