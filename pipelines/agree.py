"""`workbench agree`: implicit against explicit reward on any checkpoints, without training.

    implicit = beta (log policy(response | prompt) - log reference(response | prompt))
    explicit = the reward model's score

Everything that can be refused is refused before torch is imported: arguments, folders, the file of pairs.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources import context_of, conversational, local_data, model_folder
from workbench.data.findings import Findings
from workbench.data.sources import read_rows
from workbench.data.validate import Options, load_pairs, load_prompts, unique_prompts
from workbench.device import device_kind
from workbench.errors import ConfigError, DataError
from workbench.metrics.agreement_sets import agreement_of_pairs, agreement_of_samples
from workbench.metrics.pair_margins import PairMargins
from workbench.packed import PackedPairs, read_packed_prompts
from workbench.results_agreement import Agreement
from workbench.types import PreferencePair, Prompt

PAIRS, BY_POLICY, BY_REFERENCE = "pairs", "on_policy/policy", "on_policy/reference"
PROGRESS_EVERY_S = 5.0
Say = Callable[[str], None]
Scored = dict[str, np.ndarray]


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


def agree(request: Request, home: Path, say: Say) -> dict[str, Any]:
    """Measures and returns {"schema", "sets": {name: Agreement}}.

    Raises:
        ConfigError, DataError, ResourceError: Something is wrong with what was given.
    """
    # ---- 1. What can be told without torch.
    check(request)
    device = device_kind(request.device)
    folders = {
        name: checkpoint(getattr(request, name.replace("-", "_")), f"--{name}")
        for name in ("policy", "reference", "reward-model")
    }
    check_head(folders["reward-model"])
    source = local_data(request.data, home) or Path(request.data)
    tokenizer = None
    if source.exists() and conversational(source):
        tokenizer = _tokenizer(folders["policy"])
    pairs, prompts = read(source, request, tokenizer)
    say(f"{len(pairs)} pairs, {len(prompts)} prompts in {source.name}")

    # ---- 2. Tokenise once, with one filter.
    check_tokenizers(folders)
    with tempfile.TemporaryDirectory(prefix="workbench-agree-") as scratch:
        packed = pack(pairs, prompts, folders["policy"], request, Path(scratch), say)

    # ---- 3. Sample and score; models come and go one at a time where they can.
    scored = score_all(packed, folders, request, device, say)

    # ---- 4. Compare.
    sets = compare(packed, scored, request)
    return {"schema": 1, "sets": {name: one.model_dump(mode="json") for name, one in sets.items()}}


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


def _tokenizer(folder: Path) -> Any:
    from workbench.tokens import load_tokenizer

    return load_tokenizer(folder)


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


# ------------------------------------------------------------------------------------------ models


def score_all(packed: Packed, folders: dict[str, Path], request: Request, device: str, say: Say) -> dict[str, Scored]:
    """Columns by set: for pairs "chosen/…" and "rejected/…", for samples "…": policy, reference, explicit, tokens."""
    from transformers.utils.logging import disable_progress_bar

    from workbench.evaluation import check_finite
    from workbench.models import Placement, load_policy, load_reward_model, trunk_digest
    from workbench.sampling import Decoding, sample
    from workbench.scoring import reward_scores, sequence_logprobs

    disable_progress_bar()
    placement = Placement(device=device, dtype="float32" if device == "cpu" else "bfloat16")
    options: dict[str, Any] = {"pad_id": packed.pad_id, "batch_size": request.batch_size}
    policy, reference = (load_policy(folders[name], placement) for name in ("policy", "reference"))
    if trunk_digest(policy) == trunk_digest(reference):
        message = "policy and reference are the same weights, so the implicit reward is 0 everywhere"
        raise ConfigError(f"{message}; give the policy that was trained from this reference", where="--policy")
    asked: dict[str, tuple[Sequence[list[int]], Sequence[list[int]]]] = {}
    if packed.prompts:
        asked |= {"chosen": (packed.prompts, packed.chosen), "rejected": (packed.prompts, packed.rejected)}
    if request.samples:
        decoding = Decoding(max_response_tokens=request.max_response_tokens, stop_ids=packed.stop_ids)
        prompts = [row["ids"] for row in packed.sampled for _ in range(request.samples)]
        for number, (name, model) in enumerate(((BY_POLICY, policy), (BY_REFERENCE, reference))):
            report = _progress(say, f"samples of {name.removeprefix('on_policy/')}", len(prompts))
            drawn = sample(model, prompts, decoding, seed=request.seed + number, on_batch=report, **options)
            asked[name] = (prompts, [one.ids for one in drawn])
    found: dict[str, Scored] = {name: {} for name in asked}
    for column, model in (("policy", policy), ("reference", reference)):
        for name, (given, responses) in asked.items():
            report = _progress(say, f"{column} on {name}", len(given))
            values = sequence_logprobs(model, given, responses, on_batch=report, **options)
            check_finite({f"{column} on {name}": values})
            found[name][column] = np.array(values)
    del policy, reference, model
    reward_model = load_reward_model(folders["reward-model"], placement)
    for name, (given, responses) in asked.items():
        report = _progress(say, f"reward model on {name}", len(given))
        values = reward_scores(reward_model, given, responses, on_batch=report, **options)
        check_finite({f"reward model on {name}": values})
        found[name]["explicit"] = np.array(values)
        found[name]["tokens"] = np.array([float(len(one)) for one in responses])
    return found


def _progress(say: Say, what: str, total: int) -> Callable[[int], None]:
    """One line at the start, then one every few seconds."""
    say(f"{what}: {total}")
    said = time.monotonic()

    def on_batch(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            say(f"{what}: {done} of {total}")

    return on_batch


# ------------------------------------------------------------------------------------------ figures


def compare(packed: Packed, scored: dict[str, Scored], request: Request) -> dict[str, Agreement]:
    """The sets: labelled pairs against their labels, samples of one prompt against each other."""
    found: dict[str, Agreement] = {}
    if "chosen" in scored:
        one, other = scored["chosen"], scored["rejected"]
        pairs = PairMargins(
            implicit=_implicit(one, request) - _implicit(other, request),
            explicit=one["explicit"] - other["explicit"],
            prompts=packed.pair_prompts,
            truth=np.ones(len(packed.pair_prompts)),
            truth_kind="label",
            tokens=one["tokens"] - other["tokens"],
            mean_tokens=(one["tokens"] + other["tokens"]) / 2,
            mean_kl=(_log_ratio(one) + _log_ratio(other)) / 2,
            per_token=_per_token(one, request) - _per_token(other, request),
        )
        found[PAIRS] = agreement_of_pairs(pairs, np.random.default_rng([request.seed, 1]))
    names = [row["prompt_id"] for row in packed.sampled for _ in range(request.samples)]
    for name in (BY_POLICY, BY_REFERENCE):
        if name in scored:
            one = scored[name]
            found[name] = agreement_of_samples(
                _implicit(one, request),
                one["explicit"],
                names,
                np.random.default_rng([request.seed, 2]),
                tokens=one["tokens"],
                kl=_log_ratio(one),
            )
    return found


def _log_ratio(scored: Scored) -> np.ndarray:
    return np.asarray(scored["policy"] - scored["reference"])


def _implicit(scored: Scored, request: Request) -> np.ndarray:
    return _per_token(scored, request) if request.per_token else request.beta * _log_ratio(scored)


def _per_token(scored: Scored, request: Request) -> np.ndarray:
    return np.asarray(request.beta * _log_ratio(scored) / np.maximum(scored["tokens"], 1.0))
