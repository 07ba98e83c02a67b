"""`workbench agree`: implicit against explicit reward on any checkpoints, without training.

    implicit = beta (log policy(response | prompt) - log reference(response | prompt))
    explicit = the reward model's score

Everything that can be refused is refused before torch is imported: arguments, folders, the file of pairs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.agree_inputs import (
    Packed,
    Request,
    Say,
    check,
    check_head,
    check_tokenizers,
    checkpoint,
    pack,
    read,
)
from pipelines.sources import conversational, local_data
from workbench.device import device_kind
from workbench.errors import ConfigError
from workbench.measure_disagreements import LISTED, largest_disagreements
from workbench.metrics.agreement_sets import agreement_of_pairs, agreement_of_samples
from workbench.metrics.pair_margins import PairMargins, pairs_of_samples, pairs_within
from workbench.results_agreement import Agreement, Disagreement

PAIRS, BY_POLICY, BY_REFERENCE = "pairs", "on_policy/policy", "on_policy/reference"
PROGRESS_EVERY_S = 5.0
Asked = tuple[Sequence[list[int]], Sequence[list[int]]]
Scored = dict[str, np.ndarray]


def agree(request: Request, home: Path, say: Say) -> dict[str, Any]:
    """Measures and returns {"schema", "sets": {name: Agreement}, "disagreements": [Disagreement]}.

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
    asked, scored = score_all(packed, folders, request, device, say)

    # ---- 4. Compare.
    sets = compare(packed, scored, request)
    return {
        "schema": 1,
        "sets": {name: one.model_dump(mode="json") for name, one in sets.items()},
        "disagreements": disagreements(packed, asked, scored, request, tokenizer or _tokenizer(folders["policy"])),
    }


def _tokenizer(folder: Path) -> Any:
    from workbench.tokens import load_tokenizer

    return load_tokenizer(folder)


# ------------------------------------------------------------------------------------------ models


def score_all(
    packed: Packed, folders: dict[str, Path], request: Request, device: str, say: Say
) -> tuple[dict[str, Asked], dict[str, Scored]]:
    """Ids (prompts, responses) and columns by set, the pairs' sides apart: policy, reference, explicit, tokens."""
    from transformers.utils.logging import disable_progress_bar

    from workbench.models import Placement, load_policy, load_reward_model, trunk_digest
    from workbench.numerics import check_finite
    from workbench.sampling import Decoding, sample
    from workbench.scoring import reward_scores, sequence_logprobs

    disable_progress_bar()
    placement = Placement(device=device, dtype="float32" if device == "cpu" else "bfloat16")
    options: dict[str, Any] = {"pad_id": packed.pad_id, "batch_size": request.batch_size}
    policy, reference = (load_policy(folders[name], placement) for name in ("policy", "reference"))
    if trunk_digest(policy) == trunk_digest(reference):
        message = "policy and reference are the same weights, so the implicit reward is 0 everywhere"
        raise ConfigError(f"{message}; give the policy that was trained from this reference", where="--policy")
    asked: dict[str, Asked] = {}
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
    return asked, found


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
                kl=_log_ratio(one) if name == BY_POLICY else None,  # of texts it did not write, no KL
            )
    return found


def disagreements(
    packed: Packed, asked: dict[str, Asked], scored: dict[str, Scored], request: Request, tokenizer: Any
) -> list[dict[str, Any]]:
    """The largest disagreements of every set, with their texts, special tokens left out."""
    found = []

    def told(name: str, pairs: PairMargins, texts: Callable[[int], tuple[list[int], list[int], list[int]]]) -> None:
        for row, size in largest_disagreements(pairs, LISTED):
            prompt, *both = (tokenizer.decode(ids, skip_special_tokens=True) for ids in texts(row))
            explicit, implicit = both if pairs.explicit[row] > 0 else both[::-1]
            one = Disagreement(
                set=name,
                seed=request.seed,
                prompt_id=str(pairs.prompts[row]),
                prompt=prompt,
                explicit_prefers=explicit,
                implicit_prefers=implicit,
                explicit_margin=abs(float(pairs.explicit[row])),
                implicit_margin=abs(float(pairs.implicit[row])),
                gold_margin=None,
                size=size,
            )
            found.append(one.model_dump(mode="json"))

    if "chosen" in scored:
        (prompts, chosen), (_, rejected) = asked["chosen"], asked["rejected"]
        implicit = _implicit(scored["chosen"], request) - _implicit(scored["rejected"], request)
        explicit = scored["chosen"]["explicit"] - scored["rejected"]["explicit"]
        pairs = PairMargins(implicit=implicit, explicit=explicit, prompts=packed.pair_prompts)
        told(PAIRS, pairs, lambda row: (prompts[row], chosen[row], rejected[row]))
    names = [row["prompt_id"] for row in packed.sampled for _ in range(request.samples)]
    for name in (BY_POLICY, BY_REFERENCE):
        if name in scored:
            given, drawn = asked[name]
            first, second, _ = pairs_within(names, None)
            samples = pairs_of_samples(_implicit(scored[name], request), scored[name]["explicit"], names)

            def texts(
                row: int, given: Any = given, drawn: Any = drawn, first: Any = first, second: Any = second
            ) -> tuple[list[int], list[int], list[int]]:
                return given[first[row]], drawn[first[row]], drawn[second[row]]

            told(name, samples, texts)
    return found


def _log_ratio(scored: Scored) -> np.ndarray:
    return np.asarray(scored["policy"] - scored["reference"])


def _implicit(scored: Scored, request: Request) -> np.ndarray:
    return _per_token(scored, request) if request.per_token else request.beta * _log_ratio(scored)


def _per_token(scored: Scored, request: Request) -> np.ndarray:
    return np.asarray(request.beta * _log_ratio(scored) / np.maximum(scored["tokens"], 1.0))
