"""Where TRL 1.12's PPO spends its time: a clock that switches at what `PPOTrainer.train` calls. See ppo_trl.py."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

PHASES = ("generate", "score", "train", "rest")


class Clock:
    """Wall and CPU seconds of the phase that runs now; a phase that is None is not counted."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.phase: str | None = None
        self.reset()
        self.since = (time.perf_counter(), time.process_time())

    def reset(self) -> None:
        """Forgets all seconds."""
        self.wall, self.cpu = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)

    def switch(self, phase: str | None) -> None:
        """Ends the running phase and starts another."""
        self.synchronize()
        now = (time.perf_counter(), time.process_time())
        if self.phase is not None:
            self.wall[self.phase] += now[0] - self.since[0]
            self.cpu[self.phase] += now[1] - self.since[1]
        self.phase, self.since = phase, now


@dataclasses.dataclass
class Seen:
    """What `watched` sees of the running update."""

    score: float = 0.0
    tokens: int = 0
    logged: dict[str, float] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def watched(module: Any, trainer: Any, clock: Clock, record: Callable[[Seen], None]) -> Iterator[None]:
    """Switches the clock at what `train` calls; `record` is called after each update, while the clock stands.

    `train` runs rollout, scoring and epochs inline: the calls that open and close them mark the borders. An update is
    over when the next one samples, so that TRL's tidying up counts.
    """
    seen = Seen()
    generation, get_reward, accumulate = module.batch_generation, module.get_reward, trainer.accelerator.accumulate
    pad = trainer.processing_class.pad_token_id

    def finish() -> None:
        clock.switch(None)
        if seen.logged:  # else there was none before
            record(dataclasses.replace(seen))
        seen.logged = {}
        clock.reset()

    def timed_generation(*args: Any, **options: Any) -> Any:
        finish()
        clock.switch("generate")
        found = generation(*args, **options)
        clock.switch("score")
        return found

    def timed_reward(model: Any, ids: Any, pad_id: int, context: int) -> Any:
        found = get_reward(model, ids, pad_id, context)
        if model is trainer.reward_model:  # the last pass
            seen.score, seen.tokens = float(found[1].mean()), int((ids[:, context:] != pad).sum())
            clock.switch("rest")
        return found

    def timed_accumulate(*args: Any) -> Any:
        if clock.phase != "train":
            clock.switch("train")
        return accumulate(*args)

    def log(logged: dict[str, float]) -> None:
        clock.switch("rest")
        seen.logged = {name: float(value) for name, value in logged.items()}

    module.batch_generation, module.get_reward = timed_generation, timed_reward
    trainer.accelerator.accumulate, trainer.log = timed_accumulate, log
    try:
        yield
        finish()
    finally:
        module.batch_generation, module.get_reward = generation, get_reward
        trainer.accelerator.accumulate = accumulate
