"""One filter for all arms: what is too long, empty or without a preference leaves before any trainer sees it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from workbench.data.cuts import cutter
from workbench.errors import ConfigError, DataError
from workbench.packed import PackedWriter, write_packed_prompts
from workbench.tokens import (
    Continuation,
    check_tokenizer,
    continuation,
    encode_text,
    encode_texts,
    load_tokenizer,
    prompt_ids,
    stop_ids,
)
from workbench.types import SPLITS, PreferencePair, Prompt

T = TypeVar("T")
EXAMPLES: Final = 10
BATCH_ROWS, BATCH_CHARACTERS = 512, 2_000_000  # of one call of the tokenizer
_UNLIMITED: Final = 10**6  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds in tokens; None: no bound.

    Args:
        max_prompt_tokens: Longest prompt.
        max_length: Longest prompt with response, stop token included: the model's context.
        max_response_tokens: What a rollout may add, so prompts must leave room for it.
    """

    max_prompt_tokens: int | None
    max_length: int | None
    max_response_tokens: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path, tokenizer: Any) -> Limits:
        """Reads the limits of a stage's config; without `max_length`, the context of the model beside the tokenizer.

        Raises:
            ConfigError: A limit is no positive number, or responses alone fill the context.
        """
        given = {name: config.get(name) for name in ("max_prompt_tokens", "max_length", "max_response_tokens")}
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number of tokens from 1 up, or null")
        context = _context(folder, tokenizer)
        length = given["max_length"] or context
        if context is not None and length is not None and length > context:
            raise ConfigError(
                f"model.max_length is {length}, but the model reads {context} tokens; lower it or drop it"
            )
        response = given["max_response_tokens"] or 1
        if length is not None and response >= length:
            raise ConfigError(
                f"evaluation.max_response_tokens is {response}, but prompt and response together have {length}; "
                "expected fewer, so that a prompt fits too"
            )
        return cls(max_prompt_tokens=given["max_prompt_tokens"], max_length=length, max_response_tokens=response)

    def prompt_problem(self, ids: Sequence[int]) -> str | None:
        """Why a prompt is left out, or None."""
        if not ids:
            return "empty_prompt"
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            return "over_length_prompt"
        if self.max_length is not None and len(ids) + self.max_response_tokens > self.max_length:
            return "prompt_leaves_no_room"
        return None


def _context(folder: Path, tokenizer: Any) -> int | None:
    """Positions of the model whose config.json lies beside the tokenizer, else the tokenizer's own limit."""
    path = folder / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        for block in (config.get("text_config") or {}, config):
            for name in ("max_position_embeddings", "n_positions"):
                if isinstance(block.get(name), int):
                    return int(block[name])
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if isinstance(limit, int) and limit < _UNLIMITED else None


@dataclass
class Filter:
    """What was dropped and why, as it stands in filter.json."""

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    noted: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)

    def take(self, name: str, split: str, problem: str | None) -> bool:
        """Counts one row; True if it stays."""
        self.rows += 1
        self.before[split] += 1
        if problem is None:
            self.kept += 1
            self.after[split] += 1
            return True
        self.dropped[problem] += 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < EXAMPLES:
            examples.append(name)
        return False

    def to_json(self, **facts: Any) -> dict[str, Any]:
        """filter.json: counts by reason, first ten ids by reason, and counted notes on rows that were kept."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": dict(sorted(self.examples.items())),
            "noted": dict(sorted(self.noted.items())),
            "splits": {split: self.after[split] for split in SPLITS if self.before[split]},
            **facts,
        }

    def check_splits(self, what: str) -> None:
        """Refuses an empty result before anything is trained.

        Raises:
            DataError: A split that had rows has none left, or there was none at all.
        """
        empty = [split for split in SPLITS if self.before[split] and not self.after[split]]
        if empty or not self.rows:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "no rows came in"
            )
            raise DataError(
                f"no {what} left in {' and '.join(empty) or 'any split'} after the filter ({reasons}); raise "
                "model.max_prompt_tokens or model.max_length, lower evaluation.max_response_tokens, or shorten the data"
            )


def pack_prompts(prompts: Iterable[Prompt], folder: Path, config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Tokenises and filters prompts into `out`; returns what filter.json says. Holds one batch of them at a time.

    Args:
        prompts: Of all splits.
        folder: With the tokenizer (and the model's config.json, if there is one).
        config: {"max_prompt_tokens", "max_length", "max_response_tokens", "stop_ids" or "stop_token_ids",
            "trust_remote_code"}; any may be missing.
    """
    tokenizer, stops, limits = _prepare(folder, config)
    filtered = Filter()

    def rows() -> Iterator[dict[str, Any]]:
        batches = _batches(prompts, lambda prompt: len(prompt.prompt))
        for batch, found in _encoded(tokenizer, batches, lambda prompt: [prompt.prompt]):
            for prompt, bare in zip(batch, found, strict=True):
                ids = prompt_ids(tokenizer, bare)
                if filtered.take(prompt.prompt_id, prompt.split, limits.prompt_problem(ids)):
                    yield {**dataclasses.asdict(prompt), "ids": ids}

    write_packed_prompts(out, rows())
    filtered.check_splits("prompt is")
    return filtered.to_json(stop_ids=list(stops), pad_id=tokenizer.pad_token_id, **dataclasses.asdict(limits))


def pack_pairs(pairs: Iterable[PreferencePair], folder: Path, config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Tokenises and filters pairs into `out`; returns what filter.json says. Arguments as `pack_prompts`."""
    tokenizer, stops, limits = _prepare(folder, config)
    filtered, cut = Filter(), cutter(tokenizer)
    with PackedWriter(out) as writer:
        batches = _batches(pairs, lambda pair: len(pair.prompt) + len(pair.chosen) + len(pair.rejected))
        for batch, found in _encoded(tokenizer, batches, partial(_parts, cut)):
            bare = iter(found)
            for pair in batch:
                parts = (next(bare), next(bare), next(bare), next(bare))
                prompt, chosen, rejected = _pair_ids(tokenizer, pair, parts, stops)
                problem = _pair_problem(limits, prompt, chosen, rejected)
                if filtered.take(pair.pair_id, pair.split, problem):
                    filtered.noted["boundary_merged"] += chosen.boundary_merged + rejected.boundary_merged
                    filtered.noted["cut_at_stop"] += chosen.cut_at_stop + rejected.cut_at_stop
                    filtered.noted["unfinished"] += (not pair.chosen_finished) + (not pair.rejected_finished)
                    writer.append(prompt, chosen.ids, rejected.ids, _meta(pair))
    filtered.check_splits("pair is")
    return filtered.to_json(stop_ids=list(stops), pad_id=tokenizer.pad_token_id, **dataclasses.asdict(limits))


def _prepare(folder: Path, config: Mapping[str, Any]) -> tuple[Any, tuple[int, ...], Limits]:
    tokenizer = load_tokenizer(folder, trust_remote_code=bool(config.get("trust_remote_code")))
    stops = stop_ids(tokenizer, config)
    check_tokenizer(tokenizer, stops)
    return tokenizer, stops, Limits.from_config(config, folder, tokenizer)


def _batches(rows: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Rows in batches for one call of the tokenizer, bounded in rows and in characters."""
    batch: list[T] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += size(row)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(
    tokenizer: Any, batches: Iterable[list[T]], texts: Callable[[T], list[str]]
) -> Iterator[tuple[list[T], list[list[int]]]]:
    """Each batch with the ids of its texts. One batch is tokenised while what came before is worked on: a fast
    tokenizer does not hold the interpreter's lock.

    Args:
        tokenizer: Any transformers tokenizer.
        batches: In order.
        texts: What to tokenise of one row.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[tuple[list[T], Future[list[list[int]]]]] = deque()
        for batch in batches:
            waiting.append(
                (batch, pool.submit(encode_texts, tokenizer, [text for row in batch for text in texts(row)]))
            )
            if len(waiting) > 1:
                done, found = waiting.popleft()
                yield done, found.result()
        for done, found in waiting:
            yield done, found.result()


def _parts(cut: Callable[[str], int], pair: PreferencePair) -> list[str]:
    """The prompt up to where it may be cut, and what is left of it: alone, with the chosen, with the rejected."""
    at = cut(pair.prompt)
    head, tail = pair.prompt[:at], pair.prompt[at:]
    return [head, tail, tail + pair.chosen, tail + pair.rejected]


def _pair_ids(
    tokenizer: Any, pair: PreferencePair, bare: tuple[list[int], ...], stops: Sequence[int]
) -> tuple[list[int], Continuation, Continuation]:
    """Ids of prompt, chosen and rejected, as `encode_prompt` and `encode_continuation` give them.

    Args:
        tokenizer, stops: As there.
        pair: The texts.
        bare: Ids of `_parts`.
    """
    head, before, with_chosen, with_rejected = bare
    chosen = continuation(
        before, with_chosen, partial(encode_text, tokenizer, pair.chosen), stops, finished=pair.chosen_finished
    )
    rejected = continuation(
        before, with_rejected, partial(encode_text, tokenizer, pair.rejected), stops, finished=pair.rejected_finished
    )
    return prompt_ids(tokenizer, head + before), chosen, rejected


def _pair_problem(limits: Limits, prompt: list[int], chosen: Continuation, rejected: Continuation) -> str | None:
    """Why a pair is left out, or None."""
    if (problem := limits.prompt_problem(prompt)) is not None:
        return problem
    if chosen.empty or rejected.empty:
        return "empty_response"
    if chosen.ids == rejected.ids:
        return "identical_ids"
    longest = len(prompt) + max(len(chosen.ids), len(rejected.ids))
    return "over_length_pair" if limits.max_length is not None and longest > limits.max_length else None


def _meta(pair: PreferencePair) -> dict[str, Any]:
    return {
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "split": pair.split,
        "annotations": [dataclasses.asdict(one) for one in pair.annotations],
        "target_margin": pair.target_margin,
    }
