"""Do the training pairs have what `data.labels` asks for? Asked when they are read, long before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import DataError


def check_labels(lines: Iterable[Mapping[str, Any]], use: Mapping[str, Any]) -> None:
    """Refuses a rule, weights or margins that the training pairs give nothing for.

    Args:
        lines: {"pair_id", "annotations", "target_margin"} of every training pair; read once.
        use: {"rule", "weights", "margins"} of `data.labels`.

    Raises:
        DataError: No pair has annotations though the rule needs them; an annotator has no weight; margins are asked for
            and a pair has none.
    """
    weights = use["weights"] or {}
    pairs, annotated, without = 0, 0, 0
    first: str | None = None
    unknown: set[str] = set()
    for line in lines:
        pairs += 1
        annotated += bool(line["annotations"])
        if use["rule"] == "weighted":
            unknown |= {one["annotator"] for one in line["annotations"]} - weights.keys()
        if line["target_margin"] is None:
            without += 1
            first = first or line["pair_id"]
    if use["rule"] != "majority" and not annotated:
        raise DataError(
            f"data.labels.rule is {use['rule']}, but none of {pairs} training pairs has annotations; expected rows "
            "with several annotators' labels, or rule: majority"
        )
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise DataError(
            f"data.labels.weights has no weight for {', '.join(sorted(unknown)[:10])}{more}, who labeled training "
            f"pairs; expected one above 0 for each annotator (it names {', '.join(sorted(weights)) or 'none'})"
        )
    if use["margins"] and without:
        raise DataError(
            f"data.labels.margins is true, but {without} of {pairs} training pairs have no target_margin, "
            f"first {first}; give each one, or leave margins out: a margin for some pairs weighs them differently"
        )
