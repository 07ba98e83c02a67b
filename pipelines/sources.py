"""What comes from outside, resolved once before anything is planned: models, files, device, context, stop ids.

Imports no torch. Everything that a stage will read gets its content digest here, so that the graph's keys follow
contents and never paths.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.config import PPO, Comparison, Data
from workbench.data.columns import LOOKED_AT, check_columns, rename
from workbench.data.findings import Findings
from workbench.data.layout import Layout, check_layout, held_out_layout
from workbench.data.sources import load_hub, read_rows
from workbench.device import check_compiler, check_processes, device_kind
from workbench.errors import ConfigError
from workbench.lora_targets import check_kernels, check_targets, folder_layers, small_llama_layers
from workbench.model_files import context_of_folder, hub_commit
from workbench.results_models import ModelSource
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


def external(store: Store, path: Path | None) -> External | None:
    """A path with the digest of its content; each file is hashed once per (path, size, mtime, inode)."""
    return External(path=str(path), digest=store.hash_path(path)) if path is not None else None


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


def model_folder(policy: str, revision: str | None) -> Path:
    """The model's folder; a hub id is downloaded, its safetensors alone."""
    path = Path(policy)
    if path.exists():
        return path.resolve()
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
    return Path(hub(lambda: snapshot_download(policy, revision=revision, allow_patterns=patterns), policy))


def hub(fetch: Any, name: str) -> str:
    """Runs a download and says plainly what went wrong."""
    try:
        path: str = fetch()
        return path
    except Exception as error:  # the hub's client raises many kinds, connection errors of its HTTP library among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"not a local path, and the hub did not give it: {reason}; expected an existing path, or a hub id "
            "that this machine can reach",
            where=name,
        ) from error


def context_of(folder: Path) -> int:
    """Positions of the model, from config.json."""
    config = _json(folder / "config.json")
    for source in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(source.get(name), int):
                return int(source[name])
    raise ConfigError(
        "config.json states no context length (max_position_embeddings); set model.max_length", where=str(folder)
    )


def stop_ids_of(folder: Path) -> list[int]:
    """EOS ids of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    raise ConfigError(
        "neither generation_config.json nor config.json names an eos_token_id; set model.stop_token_ids",
        where=str(folder),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as JSON: {error}", where=str(path)) from error


def gold_source(comparison: Comparison) -> Path | None:
    """The file of gold.python's module, or gold.reward_model's folder; None for a world's gold or none."""
    gold = comparison.gold
    if gold is None or gold.world:
        return None
    if gold.reward_model is not None:
        return Path(gold.reward_model).resolve()
    assert gold.python is not None
    module, _, function = gold.python.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # appended, never prepended: a stray file must not shadow an installed module
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"no module {module!r}; expected one that is installed or lies in the working directory",
            where="gold.python",
        )
    path = Path(spec.origin).resolve()
    if path.suffix == ".py":
        check_defines(path, function)
    return path


def judges_in_use(comparison: Comparison, *, tuning: bool) -> list[str]:
    """Names of the judges of the win rates and, where it tunes, of the objective."""
    scorer = [comparison.tuning.objective.scorer] if tuning and comparison.tuning is not None else []
    return list(dict.fromkeys([*comparison.evaluation.judges, *scorer]))


def judge_sources(comparison: Comparison, store: Store, judges: Sequence[str]) -> dict[str, External]:
    """What these judges read from outside: a reward model's folder, a file of people's verdicts."""
    found = {}
    for name in judges:
        judge = comparison.judges.get(name)
        text = getattr(judge, "folder", None) or getattr(judge, "verdicts", None)
        if text is not None and (source := external(store, Path(text).resolve())) is not None:
            found[name] = source
    return found


def reward_sources(comparison: Comparison, store: Store) -> dict[str, External]:
    """Reward models that are not trained here, or start from another model than the SFT."""
    found = {}
    for name, reward in comparison.reward_models.items():
        if (text := reward.path or reward.base) is not None:
            source = external(store, model_folder(text, reward.revision))
            assert source is not None
            found[name] = source
    return found


def model_sources(comparison: Comparison, origin: Origin) -> list[ModelSource]:
    """Which weights came from outside, with the commit of those that came from the hub."""
    asked: list[tuple[str, str | None, str | None, External | None]] = [
        ("policy", comparison.model.policy, comparison.model.revision, origin.model)
    ]
    for name, reward in comparison.reward_models.items():
        asked.append((f"reward_models/{name}", reward.path or reward.base, reward.revision, origin.rewards.get(name)))
    if comparison.gold is not None and comparison.gold.reward_model is not None:
        asked.append(("gold", comparison.gold.reward_model, None, origin.gold))
    asked += [
        (f"judges/{name}", getattr(comparison.judges[name], "folder", None), None, source)
        for name, source in origin.judges.items()
    ]
    return [
        ModelSource(
            role=role, source=Path(text).name if os.path.isabs(text) else text, revision=revision,
            commit=hub_commit(Path(source.path)), digest=source.digest,
        )
        for role, text, revision, source in asked
        if text is not None and source is not None
    ]  # fmt: skip


def check_contexts(
    comparison: Comparison,
    policy: Path | None,
    rewards: Mapping[str, External],
    max_length: int,
    judges: Sequence[str],
) -> None:
    """Refuses models beside the policy that cannot read a prompt with its response, before anything runs.

    With the policy's own tokenizer file, tokens are the same; with another one only a response alone is compared, and
    the rest when texts have been tokenised.

    Raises:
        ConfigError: A context is too short.
    """
    response = comparison.evaluation.max_response_tokens
    gold = comparison.gold
    folders = {
        f"reward_models.{name}.{'path' if comparison.reward_models[name].path else 'base'}": Path(source.path)
        for name, source in rewards.items()
    }
    if gold is not None and gold.reward_model is not None:
        folders["gold.reward_model"] = Path(gold.reward_model)
    for name in judges:
        if folder := getattr(comparison.judges.get(name), "folder", None):
            folders[f"judges.{name}.folder"] = Path(folder)
    for where, folder in folders.items():
        context = context_of_folder(folder)
        same = policy is not None and _same_file(policy / "tokenizer.json", folder / "tokenizer.json")
        needed, what = (max_length, "prompt and response") if same else (response + 1, "a response alone")
        if context is not None and context < needed:
            raise ConfigError(
                f"reads {context} tokens, but {what} may have {needed if same else response}; lower model.max_length "
                "or evaluation.max_response_tokens, or take a model with a longer context",
                where=where,
            )


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def check_defines(path: Path, name: str) -> None:
    """Refuses a gold module whose source does not bind the name, before hours of training end there.

    Reads the source and does not import it: a scorer may import torch. Star imports and `__getattr__` pass.

    Raises:
        ConfigError: The source cannot be parsed, or nothing in it is called so.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Python: {error}", where="gold.python") from error
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    if not bound & {name, "*", "__getattr__"}:
        raise ConfigError(
            f"{path} has no {name!r}; expected a function (prompts: list[str], responses: list[str]) -> list[float]. "
            f"It has {', '.join(functions[:10]) or 'no functions'}",
            where="gold.python",
        )


def conversational(source: Path, layout: Layout | None = None) -> bool:
    """Whether the first row holds lists of messages; a broken file is not, and is reported when it is read."""
    layout = layout or Layout()
    for _, row in read_rows(source, Findings(str(source)), limit=1, split=layout.split):
        named = rename(row, layout.columns)
        return any(isinstance(named.get(name), list) for name in ("prompt", "chosen"))
    return False
