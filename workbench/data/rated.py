"""Rated and ranked responses of one prompt, whichever way a row writes them.

UltraFeedback (openbmb/UltraFeedback): {"instruction", "completions": [{"response", "overall_score",
"fine-grained_score", "annotations": {aspect: {"Rating": "4"}}}]}. HelpSteer2 (nvidia/HelpSteer2): {"prompt",
"response", "helpfulness": 3, ...}, one response a row. Rankings: {"prompt", "responses", "ranks"}, 1 is best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.data.formats import RowError, check_plain
from workbench.data.layout import Layout
from workbench.data.rating_names import TEXTS, UNRATED, has_lists, scores_of


@dataclass(frozen=True, kw_only=True)
class Rated:
    """Responses to one prompt, each with a score of which more is better; None: not rated."""

    prompt: Any
    responses: list[Any]
    scores: list[float | None]
    split: Any = None


def read_ratings(row: Mapping[str, Any], layout: Layout) -> Rated:
    """Reads a row of several rated responses.

    Raises:
        RowError: What is wrong with the row.
    """
    prompt = _prompt(row, "prompt" if "prompt" in row else "instruction")
    if not has_lists(row):
        name = "completions" if "completions" in row else "responses"
        items = _list(row, name)
        objects = [_object(name, at, item) for at, item in enumerate(items)]
        return Rated(
            prompt=prompt,
            responses=[_text(name, at, item) for at, item in enumerate(objects)],
            scores=[_score(scores_of(item), f"{name}[{at}]", layout, item) for at, item in enumerate(objects)],
            split=row.get("split"),
        )
    responses, scores = _list(row, "responses"), _list(row, "scores")
    _same_length(responses, scores, "scores")
    return Rated(
        prompt=prompt, responses=responses, scores=[number(one, f"scores[{at}]") for at, one in enumerate(scores)],
        split=row.get("split"),
    )  # fmt: skip


def read_ranking(row: Mapping[str, Any], layout: Layout) -> Rated:
    """Reads a row of ranked responses; a score is a rank's negative, so that more is better.

    Raises:
        RowError: What is wrong with the row.
    """
    prompt, responses = _prompt(row), _list(row, "responses")
    if "ranks" in row:
        ranks = _list(row, "ranks")
        _same_length(responses, ranks, "ranks")
    else:
        objects = [_object("responses", at, item) for at, item in enumerate(responses)]
        responses = [_text("responses", at, item) for at, item in enumerate(objects)]
        ranks = [item.get("rank") for item in objects]
    found = [number(rank, f"rank {at + 1}") for at, rank in enumerate(ranks)]
    if (low := min((one for one in found if one is not None), default=1.0)) < 1:
        raise RowError("bad_rating", f"a rank is {low:g}; expected 1 for the best, 2 for the next, and so on")
    return Rated(
        prompt=prompt, responses=responses, scores=[None if one is None else -one for one in found],
        split=row.get("split"),
    )  # fmt: skip


def read_rated_row(row: Mapping[str, Any], layout: Layout) -> Rated:
    """Reads a row of one rated response: one of several of its prompt.

    Raises:
        RowError: What is wrong with the row.
    """
    prompt, response = _prompt(row), _column(row, "response")
    for name in ("response", "split"):
        check_plain(name, row.get(name))
    score = _score(row, "the row", layout, row)
    return Rated(prompt=prompt, responses=[response], scores=[score], split=row.get("split"))


def number(value: object, name: str) -> float | None:
    """A score: a number, its text, or the mean of a list of them; None where there is none.

    Raises:
        RowError: Anything else.
    """
    if value is None or (isinstance(value, str) and value in UNRATED):
        return None
    if isinstance(value, list) and value:
        found = [one for one in (number(item, name) for item in value) if one is not None]
        return number(sum(found) / len(found), f"the mean of {name}") if found else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RowError("bad_rating", f"{name} is {type(value).__name__} {str(value)[:40]!r}; expected a number")
    try:
        score = float(value)
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowError("bad_rating", f"{name} is {str(value)[:40]!r}; expected a finite number")
    return score


def _wanted(layout: Layout) -> dict[str, float]:
    if isinstance(layout.rating, str):
        return {layout.rating: 1.0}
    return dict(layout.rating or {})


def _score(own: Mapping[str, Any], place: str, layout: Layout, item: Mapping[str, Any]) -> float | None:
    """The weighted sum of the wanted ratings, whose names the layout check resolved."""
    wanted = _wanted(layout)
    if not wanted:
        raise RowError("bad_rating", f"{place} has its rating in itself, but the first rows have a list of 'scores'")
    total = 0.0
    for name, weight in wanted.items():
        if name not in own:
            known = ", ".join(map(repr, item))[:200]
            raise RowError("bad_rating", f"{place} has no rating {name!r} (data.rating); it has {known}")
        value = number(own[name], f"{name} of {place}")
        if value is None:
            return None
        total += weight * value
    if not math.isfinite(total):
        raise RowError("bad_rating", f"{place}: the weighted sum of its ratings is no finite number")
    return total


def _prompt(row: Mapping[str, Any], name: str = "prompt") -> Any:
    """Checked before pairs are made: the draw hashes it, and of one bad prompt there is one finding."""
    prompt = _column(row, name)
    check_plain(name, prompt)
    return prompt


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        found = ", ".join(repr(str(key)[:40]) for key in list(row)[:12]) or "none"
        raise RowError("missing_column", f"no column {name!r}; found {found}. Columns are renamed by data.columns")
    return row[name]


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = _column(row, name)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {type(value).__name__}; expected a list, one entry a response")
    return value


def _object(name: str, at: int, item: object) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"{name}[{at}] is {type(item).__name__}; expected an object with text and rating")
    return item


def _text(name: str, at: int, item: Mapping[str, Any]) -> Any:
    for key in TEXTS:
        if key in item:
            return item[key]
    raise RowError("missing_column", f"{name}[{at}] has no 'response'; it has {', '.join(map(repr, item))[:200]}")


def _same_length(responses: list[Any], others: list[Any], name: str) -> None:
    if len(responses) != len(others):
        raise RowError("bad_rating", f"{len(responses)} responses but {len(others)} {name}; expected one each")
