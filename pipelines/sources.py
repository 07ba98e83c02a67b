"""What comes from outside, resolved once before anything is planned: models, files, device, context, stop ids.

Imports no torch. Everything that a stage will read gets its content digest here, so that the graph's keys follow
contents and never paths.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.sources_gold import gold_source
from pipelines.sources_models import (
    check_contexts,
    context_of,
    external,
    judge_sources,
    judges_in_use,
    model_folder,
    reward_sources,
    stop_ids_of,
)
from workbench.config import PPO, Comparison, Data
from workbench.data.columns import LOOKED_AT, check_columns, rename
from workbench.data.findings import Findings
from workbench.data.layout import Layout, check_layout, held_out_layout
from workbench.data.sources import load_hub, read_rows
from workbench.device import check_compiler, check_processes, device_kind
from workbench.errors import ConfigError
from workbench.lora_targets import check_kernels, check_targets, folder_layers, small_llama_layers
from workbench.stages import External
from workbench.store import Store

WORLD_CONTEXT = 128  # positions of a model that is trained from scratch; a world's prompt and response stay below 80


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The outside of a comparison.

    Args:
        model: The policy's folder, or None where a world's model is trained from scratch.
        preferences, prompts, ood, gold: Files, where the config names them; `gold` is the module or model folder.
        rewards: Name of a reward model that exists already, or has a base of its own -> that folder.
        judges: Name of a judge -> its model's folder or the file of its verdicts.
        context: Positions of the model, tokens.
        max_length: Prompt and response together, tokens.
        stop_ids: Ids that end a response.
        device, dtype: Device kind and precision of every stage.
        needs_template: The pairs are conversational, so reading them needs the tokenizer's chat template.
        has_ood: There is an out-of-distribution prompt set.
    """

    model: External | None
    preferences: External | None
    prompts: External | None
    ood: External | None
    gold: External | None
    context: int
    max_length: int
    stop_ids: tuple[int, ...]
    device: str
    dtype: str
    needs_template: bool
    has_ood: bool
    judges: Mapping[str, External] = field(default_factory=dict)
    rewards: Mapping[str, External] = field(default_factory=dict)


def resolve_origin(comparison: Comparison, store: Store, *, tuning: bool = False) -> Origin:
    """Resolves and digests everything that the config names.

    Args:
        tuning: For `tune`, so the judge of its objective is in use as well.

    Raises:
        ConfigError, DataError, ResourceError: Something is missing, unusable, or not on this machine.
    """
    model, data = comparison.model, comparison.data
    device = device_kind(comparison.resources.device)
    check_processes(comparison.resources.processes, device)
    for label, arm in comparison.arms.items():
        if isinstance(arm, PPO) and arm.compile:
            check_compiler(device, f"arms.{label}.compile")
    if comparison.sampling.cache == "compiled":
        check_compiler(device, "sampling.cache")
    folder = model_folder(model.policy, model.revision) if model.policy is not None else None
    if folder is not None:
        context, stop_ids = context_of(folder), model.stop_token_ids or stop_ids_of(folder)
    else:
        from workbench.worlds import helpdesk

        context = WORLD_CONTEXT
        stop_ids = model.stop_token_ids or [helpdesk.vocabulary().index(helpdesk.EOS)]
    if model.lora is not None:
        known = folder_layers(folder) if folder is not None else small_llama_layers(model.size.num_layers)
        check_targets(model.lora.target_modules, known)
        if model.lora.quantize is not None:
            check_kernels()
    max_length = min(model.max_length or context, context)
    if comparison.evaluation.max_response_tokens >= max_length:
        raise ConfigError(
            f"got {comparison.evaluation.max_response_tokens}, which leaves no room for a "
            f"prompt in {max_length} tokens (the model's context is {context}); make it smaller",
            where="evaluation.max_response_tokens",
        )
    rewards = reward_sources(comparison, store)
    judges = judges_in_use(comparison, tuning=tuning)
    check_contexts(comparison, folder, rewards, max_length, judges)
    preferences = local_data(hub_name(data), store.home)
    ood = local_data(data.ood, store.home)
    layout = Layout.from_config(data.layout())
    layouts = {source: check_source(source, layout, held_out=source == ood) for source in (preferences, ood) if source}
    return Origin(
        model=external(store, folder),
        preferences=external(store, preferences),
        prompts=external(store, local_data(data.simulate.prompts if data.simulate else None, store.home)),
        ood=external(store, ood),
        gold=external(store, gold_source(comparison)),
        context=context,
        max_length=max_length,
        stop_ids=tuple(stop_ids),
        device=device,
        dtype={"auto": "float32" if device == "cpu" else "bfloat16"}.get(model.dtype, model.dtype),
        needs_template=any(conversational(source, own) for source, own in layouts.items()),
        has_ood=data.world is not None or ood is not None,
        judges=judge_sources(comparison, store, judges),
        rewards=rewards,
    )


def hub_name(data: Data) -> str | None:
    """`data.preferences`, with what is asked of a hub id: `owner/name[:folder][@revision][#split]`.

    Raises:
        ConfigError: The source is a path, and something is asked that only a hub id has.
    """
    text = data.preferences
    if text is None:
        return None
    local = Path(text).exists()
    for name in ("revision", "folder"):
        if local and getattr(data, name) is not None:
            raise ConfigError(f"has no effect: {text} is a local path; remove it", where=f"data.{name}")
    if Path(text).is_file() and data.split is not None:
        raise ConfigError(
            f"has no effect: {text} is one file; remove it, or give the folder or hub id", where="data.split"
        )
    if local:
        return text
    parts = ((":", data.folder), ("@", data.revision), ("#", data.split))
    return text + "".join(mark + part for mark, part in parts if part is not None)


def check_source(source: Path, layout: Layout, *, held_out: bool = False) -> Layout:
    """Refuses options of the data block that do not fit the first rows of a source.

    Args:
        source: A file or folder; one that cannot be read is reported when it is.
        layout: From the config.
        held_out: The source is `data.ood`, which may hold something else.

    Returns:
        How this source is read.

    Raises:
        ConfigError: A mapped column is missing, an option is missing, or one has no effect.
    """
    split = None if held_out else layout.split
    rows = [row for _, row in read_rows(source, Findings(source.name), limit=LOOKED_AT, split=split)]
    own = held_out_layout(rows, layout) if held_out else layout
    if own is None:
        check_columns(rows, {name: given for name, given in layout.columns.items() if name == "prompt"}, source.name)
        return Layout(columns=layout.columns)
    if rows:
        check_layout(rows, own, source.name)
    return own


def local_data(text: str | None, home: Path) -> Path | None:
    """A data source as a path. A hub id is fetched once and kept as a datasets folder below `home/hub`."""
    if text is None:
        return None
    path = Path(text)
    if path.exists():
        return path.resolve()
    kept = home / "hub" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not kept.exists():
        partial = kept.with_name(f".{kept.name}.{os.getpid()}")
        load_hub(text).save_to_disk(str(partial))
        partial.rename(kept)
    return kept


def conversational(source: Path, layout: Layout | None = None) -> bool:
    """Whether the first row holds lists of messages; a broken file is not, and is reported when it is read."""
    layout = layout or Layout()
    for _, row in read_rows(source, Findings(str(source)), limit=1, split=layout.split):
        named = rename(row, layout.columns)
        return any(isinstance(named.get(name), list) for name in ("prompt", "chosen"))
    return False
