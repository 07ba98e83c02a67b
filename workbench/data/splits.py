"""Splits by prompt: a prompt, whatever its case and spacing, belongs to exactly one split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from workbench.errors import ConfigError, DataError
from workbench.types import SPLITS, Split

_ID_HEX = 16


def normalize(text: str) -> str:
    """Case-folded text with every run of whitespace as one space, none at the ends."""
    return " ".join(text.casefold().split())


def prompt_id(prompt: str) -> str:
    """16 hex digits of the sha256 of the normalized prompt: equal prompts share it."""
    return hashlib.sha256(normalize(prompt).encode()).hexdigest()[:_ID_HEX]


def pair_id(prompt: str, chosen: str, rejected: str, occurrence: int = 0) -> str:
    """16 hex digits over the exact texts; `occurrence` tells identical rows apart (0 for the first)."""
    digest = hashlib.sha256()
    for text in (prompt, chosen, rejected, str(occurrence)):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big"))  # lengths keep ("a", "bc") apart from ("ab", "c")
        digest.update(data)
    return digest.hexdigest()[:_ID_HEX]


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """Checks `{"validation": .., "test": ..}`: each in [0, 1), together below 1.

    Raises:
        ConfigError: Another name, a number outside the range, or nothing left to train on.
    """
    unknown = sorted(set(fractions) - {"validation", "test"})
    if unknown:
        raise ConfigError(f"splits: unknown {', '.join(unknown)}; expected fractions for 'validation' and 'test'")
    values = {name: float(fractions.get(name, 0.0)) for name in ("validation", "test")}
    if any(not 0.0 <= value < 1.0 for value in values.values()) or sum(values.values()) >= 1.0:
        raise ConfigError(f"splits {values}: expected fractions in [0, 1) that leave something for train")
    return values


def assign_split(prompt_id: str, fractions: Mapping[str, float], seed: int) -> Split:
    """The split of one prompt: a seeded hash of its id against the fractions.

    It depends on no other row, so order does not matter and new rows never move old ones to another split.
    """
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < fractions.get("test", 0.0):
        return "test"
    if u < fractions.get("test", 0.0) + fractions.get("validation", 0.0):
        return "validation"
    return "train"


def check_disjoint(prompts: Iterable[tuple[str, str]]) -> None:
    """Refuses a prompt that stands in two splits.

    Args:
        prompts: (prompt text, split) of every row.

    Raises:
        DataError: Names the first ten such prompts, their splits and the total.
    """
    splits: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    for text, split in prompts:
        key = normalize(text)
        splits.setdefault(key, set()).add(split)
        texts.setdefault(key, text)
    shared = [key for key, names in splits.items() if len(names) > 1]
    refuse_shared([(texts[key], splits[key]) for key in shared[:10]], len(shared), len(splits))


def refuse_shared(examples: Iterable[tuple[str, Iterable[str]]], shared: int, total: int) -> None:
    """Refuses prompts that stand in two splits.

    Args:
        examples: (prompt text, its splits) of the first ten.
        shared: How many there are.
        total: Prompts in all.

    Raises:
        DataError: There is one.
    """
    if shared:
        listed = "\n".join(f"  {' and '.join(sorted(splits))}: {text[:80]!r}" for text, splits in examples)
        raise DataError(
            f"{shared} of {total} prompts stand in more than one split (compared without case and "
            f"spacing), so a policy would be evaluated on what it was trained on:\n{listed}\n"
            "Remove them from all splits but one, or give no splits and let the workbench split by prompt."
        )


def check_not_empty(counts: Mapping[str, int], fractions: Mapping[str, float], *, own: bool = False) -> None:
    """Refuses a split that was asked for and came out empty, before anything is trained.

    Args:
        counts: Prompts by split.
        fractions: As `assign_split` took them; train is whatever is left.
        own: The rows name their splits themselves, so the fractions split nothing.

    Raises:
        DataError: Names the empty splits and how many prompts there are.
    """
    asked = ["train", *(split for split in SPLITS if fractions.get(split, 0.0) > 0.0)]
    empty = [split for split in asked if not counts.get(split)]
    if empty and own:
        raise DataError(unnamed_split(empty, counts))
    if empty:
        total = sum(counts.get(split, 0) for split in asked)
        raise DataError(
            f"the split {' and '.join(empty)} came out empty: {total} prompts are too few for the fractions "
            f"{dict(fractions)}. Give more prompts, or change data.splits or seeds.data."
        )


def unnamed_split(empty: Sequence[str], counts: Mapping[str, int]) -> str:
    """What is wrong where rows name their own splits and none names one that is needed, and what to do."""
    named = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count) or "none"
    unsaid = " or ".join(map(repr, empty))
    return (
        f"no row says split {unsaid}: the rows name their own splits ({named} prompts), so nothing is split by prompt. "
        f"Say it in the rows of some prompts; or hide the column (data.columns: {{split: null}}), and all prompts are "
        "split by data.splits."
    )
