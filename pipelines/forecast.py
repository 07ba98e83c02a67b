"""`workbench doctor CONFIG`: the sizes of the config's models and the lengths of its data, for the forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipelines.forecast_data import LOOKED_AT, look, look_at_prompts
from pipelines.sources import Origin, resolve_origin
from workbench.config import Comparison
from workbench.data.layout import Layout
from workbench.doctor import Check
from workbench.estimate import Size, setting_of, size_of, small_llama
from workbench.estimate_stages import Lengths, Needs
from workbench.forecast import Forecast, Machine, free_memory, measure_rate, verdict
from workbench.store import Store

CHARACTERS: Final = 3.5  # of a token, English and byte-pair encoding
WORLD_PROMPT = (28, 19.0)  # longest and mean tokens of the helpdesk's prompts, and the mean of its responses
WORLD_RESPONSE = 18.0


def forecast(comparison: Comparison, home: Path, *, seconds: float = 1.0) -> tuple[Forecast, list[Check]]:
    """What the comparison needs, and the checks that `doctor` shows: config, fit.

    Args:
        seconds: For measuring the machine's rate.

    Raises:
        ConfigError, DataError, ResourceError: As before a run.
    """
    origin = resolve_origin(comparison, Store.open(home))
    policy, rewards = sizes(comparison, origin)
    model = comparison.model
    setting = setting_of(origin.device, origin.dtype, model.lora, model.gradient_checkpointing)
    lengths = lengths_of(comparison, origin)
    needs = Needs(comparison, setting, policy, rewards, lengths).all()
    machine = Machine(
        device=origin.device,
        memory=free_memory(origin.device),
        rate=measure_rate(policy, device=origin.device, threads=comparison.resources.threads, seconds=seconds),
        workers=comparison.resources.workers,
    )
    found = Forecast(needs=needs, machine=machine, lengths=lengths)
    fits, told = verdict(found)
    shown = f"{comparison.name}: {policy.parameters / 1e6:.2f}M parameters, prompt and response up to "
    config = Check(name="config", ok=True, detail=f"{shown}{origin.max_length} of {origin.context} tokens")
    return found, [config, Check(name="fits", ok=fits, detail=told)]


def sizes(comparison: Comparison, origin: Origin) -> tuple[Size, dict[str, Size]]:
    """Size of the policy, and of each reward model."""
    if origin.model is not None:
        policy = size_of(Path(origin.model.path))
    else:
        from workbench.worlds import helpdesk

        policy = small_llama(comparison.model.size, len(helpdesk.vocabulary()), origin.context)
    rewards = {
        name: size_of(Path(origin.rewards[name].path)) if name in origin.rewards else policy
        for name in comparison.reward_models
    }
    return policy, rewards


def lengths_of(comparison: Comparison, origin: Origin) -> Lengths:
    """Tokens and pairs: a world's are known, a file's are counted in its first rows, for all."""
    response = comparison.evaluation.max_response_tokens
    room = min(comparison.model.max_prompt_tokens or origin.max_length, origin.max_length - response)
    data = comparison.data
    if data.world is not None:
        longest, mean = WORLD_PROMPT
        return Lengths(
            prompt=min(longest, room), response=response, mean_prompt=min(mean, room),
            mean_response=min(WORLD_RESPONSE, response), pairs=data.pairs,
        )  # fmt: skip
    source = origin.preferences or origin.prompts
    assert source is not None
    if data.preferences is not None:
        seen = look(Path(source.path), Layout.from_config(data.layout()), data.limit)
    else:
        seen = look_at_prompts(Path(source.path), data.columns, data.limit)
    mean = min(seen.prompt / CHARACTERS, float(room)) if seen.prompt else float(room)
    answer = min(seen.response / CHARACTERS, float(response)) if seen.response else float(response)
    kept = seen.train if seen.train is not None else 1.0 - data.splits.validation - data.splits.test
    return Lengths(
        prompt=room, response=response, mean_prompt=mean, mean_response=answer,
        pairs=data.simulate.pairs if data.simulate is not None else max(1, round(seen.pairs * kept)),
        told="" if seen.whole else f" (about: the first {LOOKED_AT:,} rows were read)",
    )  # fmt: skip
