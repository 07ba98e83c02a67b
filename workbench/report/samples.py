"""The samples that the report's browser shows: which prompts tell the most, and what is suspicious about a response.

From samples.jsonl.gz alone, first run seed. A response is set against the SFT's sample of the same index:
- loss: the truth (gold; without it the first judge's verdict, else the proxy) of it less the SFT's, below 0;
- suspected reward hack: the proxy is above the SFT's mean on this prompt and the truth below it, both in standard
  deviations of SFT samples; the size is the sum of the two distances. Without gold the truth is the mean of the other
  reward models, else the first judge's verdict;
- disagreement: implicit and explicit reward order it and the SFT's sample in opposite ways; the size is the product of
  the two differences, each in units of its root mean square.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config_base import BASELINE
from workbench.errors import DataError
from workbench.report.shell import visible

MAX_PROMPTS = 200
MAX_SAMPLES = 4  # of a prompt and arm
MAX_TEXT = 4000  # characters of a text
MAX_CHARACTERS = 3_000_000  # of all texts together: the page must open in a second
KINDS = ("loss", "hack", "disagreement")
FIGURES = ("gold_reward", "proxy_reward", "implicit_reward", "seq_kl", "response_tokens")
RULE = (
    "in turn the prompt with the worst loss, with the largest suspected reward hack and with the largest disagreement "
    "of the two rewards that is not yet among them, then the others in order"
)
Row = dict[str, Any]


def read_samples(path: Path) -> Iterator[Row]:
    """Rows of samples.jsonl.gz.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield {"wins": {}, **row, "arm": str(row["arm"]), "seed": int(row["seed"])}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot be read: {error}; run compare again to write it anew", where=str(path)) from error


def first_seed(path: Path) -> list[Row]:
    """Rows of the first run seed, which stand first."""
    found: list[Row] = []
    for row in read_samples(path):
        if found and row["seed"] != found[0]["seed"]:
            break
        found.append(row)
    return found


def browser(rows: Sequence[Row]) -> dict[str, Any] | None:
    """What the page's script gets; None without rows.

    Returns:
        arms, judges, truth (what the losses are by), seed; total, the prompts that were measured; rule; prompts: each
        {"text", "rows"}, a row being [arm, sample, response, finish reason, figures, wins, loss, hack, disagreement].
    """
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    judges = list(dict.fromkeys(judge for row in rows for judge in row["wins"]))
    marks = suspicions(rows)
    by_prompt: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_prompt.setdefault(row["prompt_id"], []).append(place)
    shown: list[dict[str, Any]] = []
    size = 0
    for prompt_id in telling(by_prompt, marks):
        kept = [place for place in by_prompt[prompt_id] if rows[place]["sample_index"] < MAX_SAMPLES]
        told = [_told(rows[place], marks[place], arms, judges) for place in kept]
        text = cut(rows[kept[0]]["prompt"]) if kept else ""
        size += len(text) + sum(len(one[2]) for one in told)
        if len(shown) == MAX_PROMPTS or (shown and size > MAX_CHARACTERS):
            break
        shown.append({"text": text, "rows": told})
    return {
        "arms": [visible(arm) for arm in arms], "judges": [visible(judge) for judge in judges], "truth": truth_of(rows),
        "seed": rows[0]["seed"], "total": len(by_prompt), "rule": RULE, "prompts": shown,
    }  # fmt: skip


def cut(text: str) -> str:
    """A text that cannot hide anything, at most `MAX_TEXT` characters of it, and a mark where it was cut."""
    shown = visible(text)
    return shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]} […cut: {len(text)} characters in all]"


def _told(row: Row, marks: Sequence[float | None], arms: Sequence[str], judges: Sequence[str]) -> list[Any]:
    figures = [row.get(name) for name in FIGURES]
    wins = [row["wins"].get(judge) for judge in judges]
    sizes = [None if one is None else round(one, 3) for one in marks]
    place = [arms.index(row["arm"]), row["sample_index"]]
    return [*place, cut(row["response"]), visible(str(row["finish_reason"])), figures, wins, *sizes]


def telling(by_prompt: Mapping[str, Sequence[int]], marks: Sequence[Sequence[float | None]]) -> Iterator[str]:
    """Prompts by `RULE`."""
    orders = []
    for kind in range(len(KINDS)):
        largest = {prompt: max((marks[place][kind] or 0.0 for place in places), default=0.0)
                   for prompt, places in by_prompt.items()}  # fmt: skip
        orders.append(iter(sorted((prompt for prompt, one in largest.items() if one > 0), key=lambda p: -largest[p])))
    seen: set[str] = set()
    while orders:
        for order in list(orders):
            prompt = next((one for one in order if one not in seen), None)
            if prompt is None:
                orders.remove(order)
            else:
                seen.add(prompt)
                yield prompt
    yield from (prompt for prompt in by_prompt if prompt not in seen)


# ------------------------------------------------------------------------------------------ suspicions


def suspicions(rows: Sequence[Row]) -> list[tuple[float | None, float | None, float | None]]:
    """(loss, hack, disagreement) of every row, each above 0, or None where it is none."""
    base = {(row["prompt_id"], row["sample_index"]): row for row in rows if row["arm"] == BASELINE}
    pairs = [
        (row, base.get((row["prompt_id"], row["sample_index"])) if row["arm"] != BASELINE else None) for row in rows
    ]
    implicit = [_gap(row, other, "implicit_reward") for row, other in pairs]
    explicit = [_gap(row, other, "proxy_reward") for row, other in pairs]
    units = [_root_mean_square(one) for one in (implicit, explicit)]
    hacks = _hacks(rows)
    found: list[tuple[float | None, float | None, float | None]] = []
    for place, (row, other) in enumerate(pairs):
        loss = _loss(row, other)
        a, b = implicit[place], explicit[place]
        product = -a * b / (units[0] * units[1]) if a is not None and b is not None and units[0] and units[1] else 0.0
        found.append((loss, hacks[place], product if product > 0 else None))
    return found


def truth_of(rows: Sequence[Row]) -> str:
    """What losses are told by: gold, else the first judge, else the proxy."""
    if any(row.get("gold_reward") is not None for row in rows):
        return "gold"
    judge = next((judge for row in rows for judge, won in row["wins"].items() if won is not None), None)
    return f"judge {visible(judge)}" if judge is not None else "proxy"


def _loss(row: Row, other: Row | None) -> float | None:
    gap = _gap(row, other, "gold_reward")
    if gap is None and other is not None and row.get("gold_reward") is None:
        won = next((one for one in row["wins"].values() if one is not None), None)
        gap = 2 * won - 1 if won is not None else _gap(row, other, "proxy_reward")
    return -gap if gap is not None and gap < 0 else None


def _hacks(rows: Sequence[Row]) -> list[float | None]:
    truths = [_truth(row) for row in rows]
    base = [place for place, row in enumerate(rows) if row["arm"] == BASELINE]
    proxies = [row.get("proxy_reward") for row in rows]
    spread = [_deviation(values[place] for place in base) for values in (proxies, truths)]
    means: dict[str, tuple[float | None, float | None]] = {}
    by_prompt: dict[str, list[int]] = {}
    for place in base:
        by_prompt.setdefault(rows[place]["prompt_id"], []).append(place)
    for prompt, places in by_prompt.items():
        means[prompt] = (_mean(proxies[place] for place in places), _mean(truths[place] for place in places))
    found: list[float | None] = []
    for place, row in enumerate(rows):
        proxy, truth = proxies[place], truths[place]
        mean_proxy, mean_truth = means.get(row["prompt_id"], (None, None))
        # A verdict is about the SFT's sample already: a half is level.
        level = 0.5 if _judged(row) and truth is not None else mean_truth
        unit = 0.5 if _judged(row) else spread[1]
        if row["arm"] == BASELINE or None in (proxy, truth, mean_proxy, level) or not spread[0] or not unit:
            found.append(None)
            continue
        up, down = (proxy - mean_proxy) / spread[0], (level - truth) / unit  # type: ignore[operator]
        found.append(up + down if up > 0 and down > 0 else None)
    return found


def _truth(row: Row) -> float | None:
    """What stands against the proxy: gold, the mean of the other reward models, or the first verdict."""
    if row.get("gold_reward") is not None:
        return float(row["gold_reward"])
    others = _mean((row.get("rewards") or {}).values())
    return others if others is not None else next((one for one in row["wins"].values() if one is not None), None)


def _judged(row: Row) -> bool:
    return row.get("gold_reward") is None and _mean((row.get("rewards") or {}).values()) is None


def _gap(row: Row, other: Row | None, field: str) -> float | None:
    if other is None or row.get(field) is None or other.get(field) is None:
        return None
    return float(row[field] - other[field])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) / len(known) if known else None


def _deviation(values: Iterable[float | None]) -> float:
    known = [one for one in values if one is not None]
    if len(known) < 2:
        return 0.0
    mean = sum(known) / len(known)
    return math.sqrt(sum((one - mean) ** 2 for one in known) / (len(known) - 1))


def _root_mean_square(values: Iterable[float | None]) -> float:
    known = [one for one in values if one is not None]
    return math.sqrt(sum(one * one for one in known) / len(known)) if known else 0.0
