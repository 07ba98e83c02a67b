"""Two responses and who preferred which: rows or lists of labels, gathered to one pair with its annotations.

One label a row: {"prompt", "response_1", "response_2", "annotator", "preferred"}. A list in a row: {"prompt",
"response_1", "response_2", "labels": [{"annotator", "preferred"}]}. HelpSteer2's preferences (nvidia/HelpSteer2,
folder `preference`): "preference_strength" from -3 (response 1 is much better) to 3, with every label in
"all_preferences_unprocessed". Rows of chosen and rejected with an "annotator" are read so with `format: labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workbench.data.formats import RowError, check_characters, check_plain
from workbench.data.rated import number

_LISTS: Final = ("labels", "all_preferences_unprocessed")
_WORDS: Final = {"response_1": -1, "response_2": 1, "tie": 0, "1": -1, "2": 1}
_SENTINEL: Final = "all_preferences_unprocessed"  # where rows have it ...
_NEITHER: Final = -100  # ... this says that the annotator found neither response usable; elsewhere it is a number


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Labels of one pair, as one row gives them.

    Args:
        prompt, first, second: The texts (or messages).
        labels: (annotator, vote): -1 for the first, 1 for the second, 0 for neither.
        strength: The row's own verdict over all labels: below 0 for the first; None: the majority decides.
        split: The row's split, if it gives one.
    """

    prompt: Any
    first: Any
    second: Any
    labels: list[tuple[str, int]]
    strength: float | None = None
    split: Any = None


def read_votes(row: Mapping[str, Any]) -> Votes:
    """Reads one row of labels.

    Raises:
        RowError: What is wrong with the row.
    """
    named = "chosen" in row and "rejected" in row
    first, second = ("chosen", "rejected") if named else ("response_1", "response_2")
    if missing := [name for name in ("prompt", first, second) if name not in row]:
        found = ", ".join(repr(str(key)[:40]) for key in list(row)[:12]) or "none"
        raise RowError("missing_column", f"no column {' and '.join(map(repr, missing))}; found {found}")
    for name in ("prompt", first, second, "split"):
        check_plain(name, row.get(name))
    labels: list[tuple[str, int]] = []
    neither = _NEITHER if row.get(_SENTINEL) is not None else None
    strength = _strength(row, neither)
    for name in _LISTS:
        if (given := row.get(name)) is not None:
            if not isinstance(given, list):
                raise RowError("bad_annotations", f"{name} is {type(given).__name__}; expected a list of labels")
            labels += [_label(one, f"{name}[{at}]", at, neither) for at, one in enumerate(given)]
            break
    else:
        if "annotator" in row:
            labels = [_label({**row, **({"preferred": "response_1"} if named else {})}, "the row", 0, neither)]
            strength = None
    if not labels and strength is None:
        raise RowError(
            "bad_annotations", "the row has no label; expected 'labels', 'annotator' with 'preferred', or "
            "'preference_strength'",
        )  # fmt: skip
    return Votes(
        prompt=row["prompt"], first=row[first], second=row[second], labels=labels, strength=strength,
        split=_split(row.get("split")),
    )  # fmt: skip


def decided(votes: Sequence[Votes]) -> float:
    """Below 0 where the first response is preferred, above 0 for the second, 0 for a tie.

    Args:
        votes: All rows of one pair, in the order of the first row's responses. The rows' own verdicts count, if there
            are any; else one label, one vote.
    """
    strengths = [one.strength for one in votes if one.strength is not None]
    return sum(strengths) if strengths else float(sum(vote for one in votes for _, vote in one.labels))


def turned(votes: Votes) -> Votes:
    """The same labels with the two responses in the other order."""
    return Votes(
        prompt=votes.prompt, first=votes.second, second=votes.first,
        labels=[(name, -vote) for name, vote in votes.labels],
        strength=None if votes.strength is None else -votes.strength, split=votes.split,
    )  # fmt: skip


def _strength(row: Mapping[str, Any], neither: float | None) -> float | None:
    value = number(row.get("preference_strength"), "preference_strength")
    return None if value == neither else value


def _label(one: object, place: str, at: int, neither: float | None) -> tuple[str, int]:
    if not isinstance(one, Mapping):
        raise RowError("bad_annotations", f"{place} is {type(one).__name__}; expected an object")
    # A place in a list is no person: such names are told apart within a row alone.
    annotator = one.get("annotator", f"anonymous-{at + 1}")
    if isinstance(annotator, int) and not isinstance(annotator, bool):
        annotator = str(annotator)
    if not isinstance(annotator, str) or not annotator.strip():
        raise RowError("bad_annotations", f"{place}: annotator is {str(annotator)[:40]!r}; expected a name")
    check_characters(f"{place}: annotator", annotator)
    if (given := one.get("preferred")) is not None:
        vote = _WORDS.get(str(given).strip().lower()) if not isinstance(given, bool) else None
        if vote is None:
            raise RowError(
                "bad_annotations", f"{place}: preferred is {str(given)[:40]!r}; expected response_1, response_2 or tie"
            )
        return annotator, vote
    for name in ("strength", "preference_strength", "score"):
        if (value := number(one.get(name), f"{name} of {place}")) is not None:
            return annotator, 0 if value == neither else (value > 0) - (value < 0)
    raise RowError(
        "bad_annotations", f"{place} says neither 'preferred' (response_1, response_2 or tie) nor 'strength' (below 0 "
        "for response 1)",
    )  # fmt: skip


def _split(value: Any) -> Any:
    return "validation" if value == "val" else value  # HelpSteer2's name for it
