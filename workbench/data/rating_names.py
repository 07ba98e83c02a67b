"""Which of a response's values are ratings: decided once for a source, by its first rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

TEXTS: Final = ("response", "answer", "text", "content")
UNRATED: Final = frozenset({"N/A", ""})  # UltraFeedback writes N/A where the judge gave no rating
_ROW: Final = frozenset({"prompt", "instruction", "response", "split", "annotations"})
# Numbers that name something: id, prompt_id, row-index, sampleId.
_NAMES: Final = re.compile(r"(?:^|.*[_\-. ])(?:id|ids|idx|index|uuid)$|.*[a-z]I[dD]$", re.IGNORECASE)


@dataclass(frozen=True)
class Ratings:
    """Names by which responses are rated.

    Args:
        offered: Those that may be meant where none is named, in the order of the first row.
        known: All names that may be asked for, those of ids and of ratings with gaps alone among them.
    """

    offered: tuple[str, ...]
    known: frozenset[str]


def ratings_of(responses: Iterable[Mapping[str, Any]]) -> Ratings:
    """The ratings of responses: values that are numbers more often than anything else (a gap is neither).

    Args:
        responses: Each one's values by name, as `scores_of` gives them.
    """
    counts: Counter[str] = Counter()
    for one in responses:
        for name, value in one.items():
            if value is None or (isinstance(value, str) and value in UNRATED):
                counts[name] += 0
            else:
                counts[name] += 1 if _rates(value) else -1
    offered = tuple(name for name, count in counts.items() if count > 0 and not _NAMES.match(name))
    return Ratings(offered, frozenset(name for name, count in counts.items() if count >= 0))


def objects_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The objects of a response with its scores, in rows that hold several."""
    items = [item for row in rows if not has_lists(row) for item in _items(row)]
    return [item for item in items if isinstance(item, Mapping)]


def has_lists(row: Mapping[str, Any]) -> bool:
    """Whether a row has its scores in a list beside the responses, which have no names."""
    return "scores" in row and "completions" not in row


def row_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """What may be a score in a row of one response."""
    return {name: value for name, value in row.items() if name not in _ROW}


def scores_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """What may be a score of a completion, by name, the aspects of its `annotations` among them."""
    scores = {name: value for name, value in item.items() if name not in (*TEXTS, "annotations")}
    aspects = item.get("annotations")
    if isinstance(aspects, Mapping):
        for name, one in aspects.items():
            # Some aspects are lists of one verdict per dimension, as UltraFeedback's early releases had them.
            verdict = one[0] if isinstance(one, list) and one else one
            scores.setdefault(name, verdict.get("Rating") if isinstance(verdict, Mapping) else verdict)
    return scores


def _items(row: Mapping[str, Any]) -> list[Any]:
    value = row.get("completions", row.get("responses"))
    return value if isinstance(value, list) else []


def _rates(value: object) -> bool:
    """A number, its text (a csv has no numbers), or several annotators' numbers."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return len(value) < 20
    return isinstance(value, int | float) and not isinstance(value, bool)
