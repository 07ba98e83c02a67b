"""What a file may say of a label beside who gave it and which response it prefers.

In "annotations" of a row: {"annotator", "prefers_first", "chosen_first": true|false, "rating": number}.
`chosen_first`: the chosen response was shown first; `rating`: how strongly the chosen response is preferred (below 0:
the rejected one). Training uses neither; the checks and the agreement dashboard do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.types import Annotation


@dataclass(frozen=True, kw_only=True)
class DetailedAnnotation(Annotation):
    """An annotation with what only some files say.

    Args:
        chosen_first: The chosen response was shown first; None: unknown.
        rating: Strength of the preference for the chosen response, in the file's own unit; None: unknown.
    """

    chosen_first: bool | None = None
    rating: float | None = None


def is_finite(value: object) -> bool:
    """Whether this is a number, and a float can hold it: JSON has integers of any size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def annotation_of(one: Mapping[str, Any]) -> Annotation:
    """One entry of "annotations", whose annotator and preference were checked already.

    Raises:
        ValueError: What is wrong with the rest.
    """
    first, rating = one.get("chosen_first"), one.get("rating")
    if first is None and rating is None:
        return Annotation(annotator=one["annotator"], prefers_first=one["prefers_first"])
    if first is not None and not isinstance(first, bool):
        raise ValueError(f"chosen_first is {str(first)[:40]!r}; expected true or false")
    if rating is not None and not is_finite(rating):
        raise ValueError(f"rating is {str(rating)[:40]!r}; expected a finite number")
    return DetailedAnnotation(
        annotator=one["annotator"],
        prefers_first=one["prefers_first"],
        chosen_first=first,
        rating=None if rating is None else float(rating),
    )
