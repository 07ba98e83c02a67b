"""A stage of several processes that does nothing but exchange numbers, to be killed by tests; light to import."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from workbench.errors import StageInterrupted
from workbench.stage_log import StageLog
from workbench.stages import Resources, Stage


def exchange(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Adds up numbers for ever; `raises` in the second process. Every process writes its id first."""
    import torch

    from workbench import processes

    assert "WORLD_SIZE" not in os.environ, "accelerate would look for other processes"
    (log.work / f"{log.rank}.pid").write_text(str(os.getpid()))
    while not processes.any_of(log.stop_requested()):
        if config["raises"] and log.rank == 1:
            raise ValueError("nothing to add")
        processes.total(torch.ones(3))
        log.progress(1, 2)
        time.sleep(0.02)
    raise StageInterrupted


def lopsided(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Adds up gradients of three parameters: one has one in every process, one in the last alone, one in none.

    Then compares weights that are the same in all processes, if not finite, and weights that are not.
    """
    import torch

    from workbench import processes
    from workbench.errors import IntegrityError

    found = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    last = processes.rank() + 1 == processes.size()
    for one in found[: 1 + last]:
        one.grad = torch.full((2,), 1.0 + processes.rank())
    processes.add_gradients(found)
    told = [None if one.grad is None else one.grad.tolist() for one in found]
    processes.check_lockstep([torch.ones(2), torch.tensor([torch.nan, torch.inf])])
    try:
        processes.check_lockstep([torch.ones(2), torch.tensor([1.0, 2.0 * last])])
    except IntegrityError:
        (out / "gradients.json").write_text(json.dumps(told))


def exchanging(function: str = "exchange", **config: Any) -> Stage:
    """A stage of this module with three processes."""
    return Stage(
        name=function, instance=function, function=f"tests.pipelines.exchange_stage:{function}",
        config={"raises": False} | config, inputs={}, seed=3, packages=("torch",), resources=Resources(processes=3),
    )  # fmt: skip
