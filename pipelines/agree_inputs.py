"""What `workbench agree` is given: refused where it is wrong before torch is imported, then tokenised once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources_models import context_of, model_folder
from workbench.data.findings import Findings
from workbench.data.sources import read_rows
from workbench.data.validate import Options, load_pairs, load_prompts, unique_prompts
from workbench.errors import ConfigError, DataError
from workbench.packed import PackedPairs, read_packed_prompts
from workbench.types import PreferencePair, Prompt

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared.

    Args:
        policy, reference, reward_model: Folders or hub ids.
        data: File, datasets folder or hub id of pairs; prompts alone are enough with `samples`.
        beta: Of the implicit reward; scales its margins, changes no order.
        per_token: Divide each implicit reward by the response's length in tokens.
        samples: Responses to sample for each prompt from policy and reference; 0: none.
        max_response_tokens: Of the samples.
        stop_token_ids: Ids that end a response; empty: the tokenizer's eos.
        limit: Rows to read; None: all.
        drop_invalid: Count broken rows instead of stopping.
        seed: Of samples and resampling.
        batch_size: Sequences at once.
        device: auto, cpu or cuda.
    """

    policy: str
    reference: str
    reward_model: str
    data: str
    beta: float = 0.1
    per_token: bool = False
    samples: int = 0
    max_response_tokens: int = 128
    stop_token_ids: tuple[int, ...] = ()
    limit: int | None = None
    drop_invalid: bool = False
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"


# ------------------------------------------------------------------------------------------ refusals


def check(request: Request) -> None:
    """Refuses numbers that make no sense."""
    if not math.isfinite(request.beta) or request.beta <= 0:
        raise ConfigError(f"got {request.beta}, expected a number above 0: DPO's beta", where="--beta")
    if request.samples == 1 or request.samples < 0:
        message = f"got {request.samples}, expected 0 (none) or at least 2, so that there are pairs; 4 and more also"
        raise ConfigError(f"{message} give rank correlations within a prompt", where="--samples")
    for name in ("max_response_tokens", "batch_size"):
        if getattr(request, name) < 1:
            got = getattr(request, name)
            raise ConfigError(f"got {got}, expected a whole number above 0", where=f"--{name.replace('_', '-')}")


def checkpoint(text: str, option: str) -> Path:
    """A folder with config.json and safetensors, from a folder or a hub id."""
    folder = model_folder(text, None)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; expected a folder written by save_pretrained", where=option)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} has no *.safetensors weights; pickled ones are never loaded", where=option)
    return folder


def check_head(folder: Path) -> None:
    """Refuses a reward model without a trained head of one output: its scores would be random numbers."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(size))
            except ValueError as error:
                raise ConfigError(f"{path.name} is no safetensors file: {error}", where="--reward-model") from error
        shapes |= {name: one["shape"] for name, one in header.items() if name != "__metadata__"}
    head = shapes.get("score.weight")
    if head is None or head[0] != 1:
        found = "no score.weight" if head is None else f"a head of {head[0]} outputs"
        raise ConfigError(
            f"{folder} has {found}; expected a sequence classifier with one output, as `workbench compare` or TRL's "
            "RewardTrainer writes it",
            where="--reward-model",
        )


def check_tokenizers(folders: dict[str, Path]) -> None:
    """Refuses models that read texts differently: log-probabilities and scores would be of different ids."""
    from workbench.tokens import tokenizer_digest

    digests = {name: tokenizer_digest(folder) for name, folder in folders.items()}
    for name in ("reference", "reward-model"):
        if digests[name] != digests["policy"]:
            raise ConfigError(
                f"its tokenizer is not the policy's ({folders[name]} against {folders['policy']}); all three must turn "
                "a text into the same ids",
                where=f"--{name}",
            )


# ------------------------------------------------------------------------------------------ data


def read(source: Path, request: Request, tokenizer: Any) -> tuple[list[PreferencePair], list[Prompt]]:
    """Pairs and their prompts; prompts alone where rows have no responses."""
    options = Options(limit=request.limit, drop_invalid=request.drop_invalid, split="test")
    first = next(read_rows(source, Findings(source.name), limit=1), None) if source.exists() else None
    if first is not None and "prompt" in first[1] and not {"chosen", "rejected"} & set(first[1]):
        if not request.samples:
            message = "holds prompts alone, so there is nothing to compare; give pairs, or --samples N"
            raise DataError(message, where=source.name)
        return [], load_prompts(source, options, tokenizer=tokenizer)[0]
    pairs, _ = load_pairs(source, options, tokenizer=tokenizer)
    return pairs, unique_prompts(pairs)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Ids of the pairs and of the prompts to sample on, after the filter."""

    prompts: Sequence[list[int]]
    chosen: Sequence[list[int]]
    rejected: Sequence[list[int]]
    pair_prompts: Sequence[str]
    sampled: Sequence[dict[str, Any]]
    stop_ids: tuple[int, ...]
    pad_id: int


def pack(
    pairs: Sequence[PreferencePair], prompts: Sequence[Prompt], folder: Path, request: Request, scratch: Path, say: Say
) -> Packed:
    """Tokenises with the filter of `compare`: empty, identical and over-length rows are left out and counted."""
    from workbench.data.packing import pack_pairs, pack_prompts

    config = {
        "max_length": context_of(folder),
        "max_response_tokens": request.max_response_tokens if request.samples else None,
        "stop_token_ids": list(request.stop_token_ids) or None,
    }
    facts: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    if pairs:
        (scratch / "pairs").mkdir()
        facts = pack_pairs(pairs, folder, config, scratch / "pairs")
        kept = PackedPairs(scratch / "pairs")
        rows = [kept.as_lists(index) for index in range(len(kept))]
        names = [kept.meta(index)["prompt_id"] for index in range(len(kept))]
        _tell(say, "pairs", facts)
    sampled: list[dict[str, Any]] = []
    if request.samples:
        (scratch / "prompts").mkdir()
        facts = pack_prompts(prompts, folder, config, scratch / "prompts")
        sampled = read_packed_prompts(scratch / "prompts")
        _tell(say, "prompts", facts)
    return Packed(
        prompts=[row["prompt_ids"] for row in rows],
        chosen=[row["chosen_ids"] for row in rows],
        rejected=[row["rejected_ids"] for row in rows],
        pair_prompts=names,
        sampled=sampled,
        stop_ids=tuple(facts["stop_ids"]),
        pad_id=int(facts["pad_id"]),
    )


def _tell(say: Say, what: str, facts: dict[str, Any]) -> None:
    dropped = ", ".join(f"{count} {reason}" for reason, count in facts["dropped"].items())
    say(f"{what}: kept {facts['kept']} of {facts['rows']}" + (f"; dropped {dropped}" if dropped else ""))
