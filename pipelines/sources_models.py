"""Models from outside, resolved before anything is planned: folders, contexts, stop ids. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import Comparison
from workbench.errors import ConfigError
from workbench.model_files import context_in, context_of_folder, hub_commit
from workbench.results_models import ModelSource
from workbench.stages import External
from workbench.store import Store

if TYPE_CHECKING:
    from pipelines.sources import Origin


def external(store: Store, path: Path | None) -> External | None:
    """A path with the digest of its content; each file is hashed once per (path, size, mtime, inode)."""
    return External(path=str(path), digest=store.hash_path(path)) if path is not None else None


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
    found = context_in(_json(folder / "config.json"))
    if found is None:
        raise ConfigError(
            "config.json states no context length (max_position_embeddings); set model.max_length", where=str(folder)
        )
    return found


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


def reward_sources(comparison: Comparison, store: Store) -> dict[str, External]:
    """Reward models that are not trained here, or start from another model than the SFT."""
    found = {}
    for name, reward in comparison.reward_models.items():
        if (text := reward.path or reward.base) is not None:
            source = external(store, model_folder(text, reward.revision))
            assert source is not None
            found[name] = source
    return found


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
