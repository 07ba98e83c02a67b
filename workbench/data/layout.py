"""What the rows of a source hold, and how pairs are made of them: told by their columns, or by the config.

pairs       {"prompt", "chosen", "rejected"} and the like: one pair a row (formats.py)
ratings     one prompt a row with several rated responses: UltraFeedback's "completions", or "responses" and "scores"
rated_rows  one rated response a row, as HelpSteer has them; rows of one prompt belong together
ranking     one prompt a row with "responses" and their "ranks", 1 is best
labels      two responses and who preferred which: several rows a pair, or a list of labels in a row

What could be meant in two ways is refused with the option that decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from workbench.data.columns import check_columns, rename, without_missing
from workbench.data.rating_names import has_lists, objects_of, ratings_of, row_scores, scores_of
from workbench.errors import ConfigError

Format = Literal["pairs", "ratings", "rated_rows", "ranking", "labels"]
Rule = Literal["best_vs_worst", "best_vs_random", "all"]
Margins = Literal["none", "score_difference"]
RATED: Final = ("ratings", "rated_rows", "ranking")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows are read; fields as in the config's `data` block.

    Args:
        format: None: told by the columns of the first row.
        columns: Known column name -> the file's own, or None to hide it.
        pairing: How pairs are made of rated or ranked responses.
        rating: What is compared: a score's name, or weights by name.
        min_gap: Smallest difference between two ratings (or ranks) that makes a pair; equal ones never do.
        margins: What becomes of a pair's difference in score.
        margin_scale: Target margin in nats per unit of score.
        split: Which split of a data set that has several.
    """

    format: Format | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    pairing: Rule | None = None
    rating: str | Mapping[str, float] | None = None
    min_gap: float = 0.0
    margins: Margins = "none"
    margin_scale: float = 1.0
    split: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Layout:
        """A layout of its JSON form; fields that are missing have their defaults."""
        return cls(**(config or {}))


def format_of(row: Mapping[str, Any], layout: Layout) -> Format:
    """The format of a source by its first row, columns renamed.

    Raises:
        ConfigError: Two formats fit, and the layout does not say which is meant.
    """
    if layout.format is not None:
        return layout.format
    if "chosen" in row or "rejected" in row:
        return "pairs"
    first = _first_item(row.get("responses"))
    ranked = "ranks" in row or (isinstance(first, Mapping) and "rank" in first)
    scored = "scores" in row or (isinstance(first, Mapping) and not ranked)
    fits: dict[Format, bool] = {
        "ratings": "completions" in row or ("responses" in row and scored),
        "ranking": "responses" in row and ranked,
        "labels": "response_1" in row and "response_2" in row,
        "rated_rows": "response" in row and "prompt" in row,
    }
    found = [name for name, fit in fits.items() if fit]
    if len(found) > 1:
        raise ConfigError(
            f"the rows can be read as {' or as '.join(found)} (columns {', '.join(map(repr, row))}); say which",
            where="data.format",
        )
    if not found and "responses" in row:
        raise ConfigError(
            "the rows have 'responses' without 'ranks' or 'scores', so nothing says which is better; give 1-based "
            "ranks (1 is best) or scores, or name their column",
            where="data.columns",
        )
    return found[0] if found else "pairs"


def check_layout(rows: Sequence[Mapping[str, Any]], layout: Layout, source: str) -> Layout:
    """Refuses options that do not fit a source, by its first rows, before anything is read in full.

    Args:
        rows: The first rows, as the source gave them.
        layout: From the config.
        source: As messages name it.

    Returns:
        The layout with the source's format, and with the name of the rating that is compared.

    Raises:
        ConfigError: A mapped column is missing, an option is missing, or one has no effect.
    """
    check_columns(rows, layout.columns, source)
    renamed = [rename(one, layout.columns) for one in rows]
    _, found = _typical(renamed, layout)
    if found in RATED and layout.pairing is None:
        raise ConfigError(
            f"{source} holds rated responses ({found}), and pairs can be made of them in several ways; expected "
            "best_vs_worst, best_vs_random or all",
            where="data.pairing",
        )
    if found not in RATED and layout.pairing is not None:
        raise ConfigError(f"has no effect on {found}, which {source} holds; remove it", where="data.pairing")
    if found == "ranking" and layout.margins != "none":
        raise ConfigError("a difference of ranks is no difference in score; expected none", where="data.margins")
    if found in ("pairs", "ranking", "labels") and layout.rating is not None:
        raise ConfigError(f"has no effect on {found}; remove it", where="data.rating")
    if layout.min_gap > 0 and found == "labels":
        raise ConfigError("has no effect on labels, which have no scores; remove it", where="data.min_gap")
    rating = _rating(renamed, found, layout, source) if found in ("ratings", "rated_rows") else None
    return replace(layout, format=found, rating=rating)


def held_out_layout(rows: Sequence[Mapping[str, Any]], layout: Layout) -> Layout | None:
    """How a second source is read: with the same columns, but what it holds is told by itself, and options without
    effect on that are passed over. Margins are for training alone.

    Args:
        rows: Its first rows, as the source gave them.
        layout: Of the first source.

    Returns:
        None where it holds prompts without responses.

    Raises:
        ConfigError: Two formats fit.
    """
    renamed = [rename(one, layout.columns) for one in rows]
    row, found = _typical(renamed, replace(layout, format=None))
    named = found == "rated_rows" or (found == "ratings" and not _lists_alone(renamed))
    if found == "pairs" and "prompt" in row and not {"chosen", "rejected"} & set(row):
        return None
    return replace(
        layout,
        format=found,
        columns=without_missing(rows, layout.columns),
        pairing=layout.pairing if found in RATED else None,
        rating=layout.rating if named else None,
        min_gap=layout.min_gap if found in RATED else 0.0,
        margins="none",
        split=None,
    )


def _typical(rows: Sequence[Mapping[str, Any]], layout: Layout) -> tuple[Mapping[str, Any], Format]:
    """The first row that shows a format, and the format: a source may well start with a broken row."""
    for row in rows:
        found = format_of(row, layout)
        empty = row.get("completions", row.get("responses")) == []
        if (found != "pairs" and not empty) or "chosen" in row or "rejected" in row:
            return row, found
    return (rows[0] if rows else {}), layout.format or "pairs"


def _lists_alone(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(has_lists(row) for row in rows) and not objects_of(rows)


def _rating(
    rows: Sequence[Mapping[str, Any]], found: Format, layout: Layout, source: str
) -> str | Mapping[str, float] | None:
    """What is compared: decided here for all rows. None: scores in a list beside the responses, which has no name."""
    if not rows:
        return layout.rating
    if found == "ratings" and _lists_alone(rows):
        if layout.rating is not None:
            raise ConfigError(
                f"has no effect: {source} has one list of 'scores' beside its responses; remove it", where="data.rating"
            )
        return None
    if found == "rated_rows":
        ratings = ratings_of(row_scores(row) for row in rows if "response" in row)
    else:
        ratings = ratings_of(map(scores_of, objects_of(rows)))
    wanted = [layout.rating] if isinstance(layout.rating, str) else list(layout.rating or ())
    listed = ", ".join(ratings.offered) or "none"
    if unknown := [name for name in wanted if name not in ratings.known]:
        raise ConfigError(f"{source} has no rating {unknown[0]!r}; it has {listed}", where="data.rating")
    if layout.rating is not None:
        return layout.rating
    if not ratings.offered:
        raise ConfigError(
            f"the responses of {source} have no rating: no value of theirs is a number (ids aside); name the one to "
            "compare by",
            where="data.rating",
        )
    if len(ratings.offered) > 1:
        raise ConfigError(
            f"{source} rates each response in several ways ({listed}); name the one to compare by, or weights like "
            "{helpfulness: 1, verbosity: -0.5}",
            where="data.rating",
        )
    return ratings.offered[0]


def _first_item(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None
