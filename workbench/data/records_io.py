"""Reads and writes the record files that stages exchange: JSON Lines, one record a line, UTF-8."""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from workbench.errors import IntegrityError
from workbench.types import Annotation, Generation, PreferencePair, Prompt

if TYPE_CHECKING:
    from workbench.data.formats import Texts

T = TypeVar("T")
# Made once: json.dumps makes one at every call that has options.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_MISSING = "this file of an artifact is missing; rebuild the artifact"
PROMPTS_FILE, PAIRS_FILE, GENERATIONS_FILE = "prompts.jsonl", "pairs.jsonl", "generations.jsonl"
REPORT_FILE, SCORES_FILE, CORPUS_FILE, FILTER_FILE = "report.json", "scores.json", "corpus.jsonl", "filter.json"
SHOWN_FILE = "shown.json"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one object per line, keys in the given order; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(_encode(row) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Reads what `write_jsonl` wrote.

    Raises:
        IntegrityError: The file is missing, or a line is not an object (an artifact is never repaired).
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                number += 1
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
                yield row
    except FileNotFoundError:
        raise IntegrityError(_MISSING, where=str(path)) from None
    except ValueError as error:
        raise IntegrityError(f"not a record: {error}; rebuild the artifact", where=f"{path}:{number}") from error


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line as `write_jsonl` writes it."""
    return (_encode(row) + "\n").encode()


class LineFile:
    """A file of `write_jsonl`, its rows read from disk when they are asked for.

    Args:
        path: The file.

    Raises:
        IntegrityError: The file is missing; or, when a row is read, it is not an object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ends = array("q", [0])
        try:
            with path.open("rb") as file:
                for line in file:
                    ends.append(ends[-1] + len(line))
        except FileNotFoundError:
            raise IntegrityError(_MISSING, where=str(path)) from None
        self._ends = np.asarray(ends, dtype=np.int64)
        # Mapped: nothing is held, no position is shared with a forked process. An empty file cannot be mapped.
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if self._ends[-1] else np.zeros(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        try:
            row = json.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
        except ValueError as error:
            message = f"not a record: {error}; rebuild the artifact"
            raise IntegrityError(message, where=f"{self.path}:{index + 1}") from error
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every row in order, without mapping the whole file into memory at once."""
        return read_jsonl(self.path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one object, readable and in the given key order."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            yield build(row)
        except (TypeError, KeyError) as error:
            message = f"not a record of this version: {error}; rebuild the artifact"
            raise IntegrityError(message, where=f"{path}:{number}") from error


def write_prompts(folder: Path, prompts: Iterable[Prompt]) -> int:
    """Writes prompts.jsonl; returns the number of rows."""
    return write_jsonl(folder / PROMPTS_FILE, (dataclasses.asdict(prompt) for prompt in prompts))


def prompt_line(prompt: Prompt) -> bytes:
    """One line of prompts.jsonl."""
    return json_line(dataclasses.asdict(prompt))


def iter_prompts(folder: Path) -> Iterator[Prompt]:
    """Reads prompts.jsonl of a prompts artifact, one prompt at a time."""
    return _read(folder / PROMPTS_FILE, lambda row: Prompt(**row))


def read_prompts(folder: Path) -> list[Prompt]:
    """Reads prompts.jsonl of a prompts artifact."""
    return list(iter_prompts(folder))


def write_pairs(folder: Path, pairs: Iterable[PreferencePair]) -> int:
    """Writes pairs.jsonl; returns the number of rows."""
    return write_jsonl(folder / PAIRS_FILE, (dataclasses.asdict(pair) for pair in pairs))


def _pair(row: dict[str, Any]) -> PreferencePair:
    annotations = tuple(Annotation(**one) for one in row.pop("annotations"))
    return PreferencePair(**row, annotations=annotations)


def iter_pairs(folder: Path) -> Iterator[PreferencePair]:
    """Reads pairs.jsonl of a pairs artifact, one pair at a time."""
    return _read(folder / PAIRS_FILE, _pair)


def read_pairs(folder: Path) -> list[PreferencePair]:
    """Reads pairs.jsonl of a pairs artifact."""
    return list(iter_pairs(folder))


def pair_from_line(line: bytes) -> PreferencePair:
    """A line of pairs.jsonl as the record that it is."""
    return _pair(json.loads(line))


@dataclass(frozen=True)
class PairParts:
    """A line of pairs.jsonl but for its ids and its split, which are known only when the whole source was read.

    Args:
        head: `"prompt": ...` as JSON, without braces.
        middle: `"chosen": ..., "rejected": ..., "source": ...`.
        tail: What follows the split.
    """

    head: bytes
    middle: bytes
    tail: bytes

    @classmethod
    def of(cls, texts: Texts, source: str) -> PairParts:
        """The parts of a parsed row."""
        return cls(
            f'"prompt": {_encode(texts.prompt)}'.encode(),
            b", ".join(
                f'"{name}": {_encode(text)}'.encode()
                for name, text in (("chosen", texts.chosen), ("rejected", texts.rejected), ("source", source))
            ),
            _tail(texts),
        )

    def to_bytes(self) -> bytes:
        """As a spool keeps it; JSON has no bare newline."""
        return b"\n".join((self.head, self.middle, self.tail))

    @classmethod
    def from_bytes(cls, data: bytes) -> PairParts:
        """What `to_bytes` wrote."""
        return cls(*data.split(b"\n"))

    def pair_line(self, pair_id: str, prompt_id: str, split: str) -> bytes:
        """The line, newline included: what `write_pairs` writes."""
        ids = f'{{"pair_id": "{pair_id}", "prompt_id": "{prompt_id}", '.encode()
        return b"".join((ids, self.head, b", ", self.middle, f', "split": "{split}", '.encode(), self.tail, b"}\n"))

    def prompt_line(self, prompt_id: str, split: str) -> bytes:
        """The line of prompts.jsonl, newline included: what `write_prompts` writes."""
        return b"".join((f'{{"prompt_id": "{prompt_id}", '.encode(), self.head, f', "split": "{split}"}}\n'.encode()))

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return str(json.loads(b"{" + self.head + b"}")["prompt"])

    @property
    def responses(self) -> tuple[str, str]:
        """The texts of chosen and rejected."""
        row = json.loads(b"{" + self.middle + b"}")
        return row["chosen"], row["rejected"]


def _tail(texts: Texts) -> bytes:
    """What follows the split of a row that came from a file."""
    # A record's fields alone, not what a file said beside them.
    annotations = [{"annotator": one.annotator, "prefers_first": one.prefers_first} for one in texts.annotations]
    row = {"annotations": annotations, "target_margin": texts.target_margin}
    # Texts of a file say nothing about length limits: its responses count as finished.
    return _encode(row | {"chosen_finished": True, "rejected_finished": True})[1:-1].encode()


def write_generations(folder: Path, generations: Iterable[Generation]) -> int:
    """Writes generations.jsonl; returns the number of rows."""
    return write_jsonl(folder / GENERATIONS_FILE, (dataclasses.asdict(one) for one in generations))


def _generation(row: dict[str, Any]) -> Generation:
    ids = tuple(row.pop("response_ids"))
    return Generation(**row, response_ids=ids)


def read_generations(folder: Path) -> list[Generation]:
    """Reads generations.jsonl of a generations artifact."""
    return list(_read(folder / GENERATIONS_FILE, _generation))
