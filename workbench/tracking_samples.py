"""Responses side by side as MLflow shows them: which prompts, what is said of each response, tables. No mlflow here.

From samples.jsonl.gz, first run seed: the same rows, the same order of prompts and the same suspicions as in the
report (`workbench.report.samples`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config_base import BASELINE
from workbench.report.samples import Row, cut, suspicions, telling
from workbench.tracking_names import safe_key

AT_ONCE = 20  # traces in one operation
DIGITS = 4  # significant ones
# MLflow's page reads a table whole.
TABLE_PROMPTS = 1000  # of an arm's table, those that tell the most
SET_ROWS = 1000  # of a set's table, the largest
FIGURES = ("gold_reward", "proxy_reward", "implicit_reward", "seq_kl", "response_tokens")
# Set -> (place of its size in `suspicions`, what it is).
SETS: Mapping[str, tuple[int, str]] = {
    "worst_losses": (0, f"Responses that the truth ranks below the {BASELINE}'s, the worst first."),
    "suspected_hacks": (
        1,
        f"Responses whose proxy reward lies above the {BASELINE}'s mean on the prompt and whose truth lies below it: "
        "suspected reward hacks, the largest first. Noise makes some of these.",
    ),
    "rewards_disagree": (
        2,
        f"Responses that DPO's implicit and the explicit reward order in opposite ways against the {BASELINE}'s, the "
        "largest first.",
    ),
}
COLUMNS = ("prompt", "response", "sample_index", *FIGURES, "finish_reason")
Marks = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Told:
    """The samples of one run seed.

    Args:
        rows: Of samples.jsonl.gz.
        marks: (loss, hack, disagreement) of each.
        prompts: Ids of prompts, those that tell the most first.
    """

    rows: Sequence[Row]
    marks: Sequence[Marks]
    prompts: Sequence[str]


def tell(rows: Sequence[Row]) -> Told:
    """Finds what is suspicious and which prompts tell the most, by the first sample of each arm."""
    marks = suspicions(rows)
    by_prompt: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row["sample_index"] == 0:
            by_prompt.setdefault(row["prompt_id"], []).append(place)
    return Told(rows=rows, marks=marks, prompts=list(telling(by_prompt, marks)))


def trace_id(ref: str, row: Row) -> str:
    """The same response of the same comparison has the same id, whenever it is sent. 32 hex digits."""
    place = f"{ref}/{row['seed']}/{row['prompt_id']}/{row['arm']}/{row['sample_index']}"
    return hashlib.sha256(place.encode()).hexdigest()[:32]


def traces(told: Told, arm: str, ref: str, most: int) -> Iterator[dict[str, Any]]:
    """An arm's first sample of each of the `most` prompts that tell the most, as traces."""
    rank = {prompt: place for place, prompt in enumerate(told.prompts[:most])}
    own = [
        (rank[row["prompt_id"]], row, marks)
        for row, marks in zip(told.rows, told.marks, strict=True)
        if row["arm"] == arm and row["sample_index"] == 0 and row["prompt_id"] in rank
    ]
    for place, row, marks in sorted(own, key=lambda one: one[0]):
        yield {
            "id": trace_id(ref, row),
            "place": place,
            "name": arm,
            "prompt": cut(row["prompt"]),
            "response": cut(row["response"]),
            "tags": {"arm": arm, "prompt_id": row["prompt_id"]},
            "feedback": feedback(row, marks),
        }


def feedback(row: Row, marks: Marks) -> list[tuple[str, float | bool | str, str]]:
    """(name, value, source) of all that is known of a response; what is not known is left out."""
    found: list[tuple[str, float | bool | str, str]] = [
        (name, _plain(row[name]), "workbench") for name in FIGURES if row.get(name) is not None
    ]
    for judge, won in row["wins"].items():
        if won is not None:
            result = "win" if won > 0.5 else "loss" if won < 0.5 else "tie"
            found.append((safe_key(f"against_{BASELINE}_by_{judge}"), result, safe_key(judge)))
    if row["arm"] != BASELINE:
        found += [(name, marks[SETS[name][0]] is not None, "workbench") for name in _markable(row)]
    return found


def _markable(row: Row) -> Iterator[str]:
    """Sets of which it is known whether a response belongs to them: both sides of the contradiction are there."""
    if row.get("proxy_reward") is None:
        return
    truths = [row.get("gold_reward"), *(row.get("rewards") or {}).values(), *row["wins"].values()]
    if any(one is not None for one in truths):
        yield "suspected_hacks"
    if row.get("implicit_reward") is not None:
        yield "rewards_disagree"


def arm_table(told: Told, arm: str) -> dict[str, Any]:
    """An arm's responses in the form of MLflow's tables: of all prompts, or of as many as a page can take."""
    prompts = set(told.prompts[:TABLE_PROMPTS])
    rows = [
        (row, marks)
        for row, marks in zip(told.rows, told.marks, strict=True)
        if row["arm"] == arm and row["prompt_id"] in prompts
    ]
    judges = list(dict.fromkeys(judge for row, _ in rows for judge in row["wins"]))
    names = [*COLUMNS, *(f"against_{BASELINE}_by_{judge}" for judge in judges), *SETS]
    data = [
        [_cell(row, name) for name in COLUMNS]
        + [row["wins"].get(judge) for judge in judges]
        + [_size(marks[place]) for place, _ in SETS.values()]
        for row, marks in rows
    ]
    return {"columns": names, "data": data}


def set_rows(told: Told, name: str) -> list[Row]:
    """The rows of a set, largest first, each with its `size` and the baseline's response beside it."""
    place = SETS[name][0]
    base = {
        (row["prompt_id"], row["sample_index"]): row["response"] for row in told.rows if row["arm"] == BASELINE
    }  # fmt: skip
    found = [
        dict(row) | {"size": marks[place], "baseline": base.get((row["prompt_id"], row["sample_index"]), "")}
        for row, marks in zip(told.rows, told.marks, strict=True)
        if marks[place] is not None
    ]
    return sorted(found, key=lambda row: -row["size"])


def set_table(rows: Sequence[Row]) -> dict[str, Any]:
    """A set in the form of MLflow's tables."""
    names = ("arm", "size", "prompt", "response", "baseline", *FIGURES, "sample_index")
    return {"columns": list(names), "data": [[_cell(row, name) for name in names] for row in rows[:SET_ROWS]]}


def _cell(row: Row, name: str) -> Any:
    value = row.get(name)
    if name in ("prompt", "response", "baseline", "finish_reason"):
        return cut(str(value))
    return _size(value) if isinstance(value, float) else value


def _size(value: float | None) -> float | None:
    return None if value is None else _plain(value)


def _plain(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
