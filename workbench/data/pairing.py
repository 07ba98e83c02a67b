"""Pairs of rated, ranked or labeled responses: by a stated rule, the same whatever the order of rows, and counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from workbench.data.columns import LOOKED_AT, rename
from workbench.data.findings import Findings
from workbench.data.formats import RowError
from workbench.data.grouping import grouped
from workbench.data.layout import Format, Layout, Rule, check_layout
from workbench.data.rated import Rated, number, read_ranking, read_rated_row, read_ratings
from workbench.data.scan import Later
from workbench.data.sources import Row
from workbench.data.splits import prompt_id
from workbench.data.votes import Votes, decided, read_votes, turned
from workbench.errors import ConfigError

Refuse = Callable[[int, RowError], None]


@dataclass(frozen=True)
class Chosen:
    """Pairs of one prompt as (better, worse) indices, and how many comparisons made none."""

    pairs: list[tuple[int, int]]
    ties: int = 0
    small: int = 0


def choose(scores: Sequence[float], rule: Rule, min_gap: float, draw: Callable[[int], int]) -> Chosen:
    """Which responses of a prompt make pairs.

    Equal scores never make one, nor do scores that differ by less than `min_gap`. Of equally good responses the first
    one stands for the best (or the worst).

    Args:
        scores: More is better.
        rule: best_vs_worst: one pair. best_vs_random: the best against one of the others that differ enough. all:
            every two (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5).
        min_gap: Smallest difference.
        draw: A number below its argument, for best_vs_random.

    Raises:
        ConfigError: There is no such rule.
    """
    best = max(range(len(scores)), key=lambda at: scores[at])
    if rule == "all":
        compared = [(at, other) for at in range(len(scores)) for other in range(at + 1, len(scores))]
    elif rule == "best_vs_worst":
        compared = [(best, min(range(len(scores)), key=lambda at: scores[at]))]
    elif rule == "best_vs_random":
        others = [at for at in range(len(scores)) if at != best]
        enough = [at for at in others if scores[best] > scores[at] and scores[best] - scores[at] >= min_gap]
        compared = [(best, enough[draw(len(enough))] if enough else min(others, key=lambda at: scores[at]))]
    else:
        raise ConfigError(f"got {rule!r}, expected best_vs_worst, best_vs_random or all", where="data.pairing")
    pairs, ties, small = [], 0, 0
    for one, other in compared:
        gap = abs(scores[one] - scores[other])
        if gap == 0:
            ties += 1
        elif gap < min_gap:
            small += 1
        else:
            pairs.append((one, other) if scores[one] > scores[other] else (other, one))
    return Chosen(pairs, ties, small)


class Pairing:
    """Turns the rows of a source into rows of one pair each.

    Args:
        layout: How rows are read and pairs are made.
        name: The source as messages name it.
        seed: Of best_vs_random; a prompt's draw depends on the prompt and this alone.
        scratch: Where rows wait that belong together but may stand apart.
        notes: Takes what makes no pair, a row's before its pairs; None: kept for `note`.
    """

    def __init__(
        self, layout: Layout, name: str, *, seed: int, scratch: Path | None = None, notes: Later | None = None
    ) -> None:
        self.layout = layout
        self._name, self._seed, self._scratch = name, seed, scratch
        self._format: Format = "pairs"
        self._counts: Counter[str] = Counter()
        self._notes = notes or Later()

    @property
    def one_to_one(self) -> bool:
        """Every row is one pair."""
        return self._format == "pairs"

    def pair_rows(self, rows: Iterable[Row], refuse: Refuse) -> Iterator[Row]:
        """(row number, row as `formats.parse_pair` reads it); of several rows that make a pair, the first's.

        Args:
            rows: Of the source.
            refuse: Called with what is wrong with a row that makes no pair.

        Raises:
            ConfigError: The layout does not fit the source.
        """
        iterator = iter(rows)
        first = list(islice(iterator, LOOKED_AT))
        self.layout = check_layout([row for _, row in first], self.layout, self._name)
        self._format = self.layout.format or "pairs"
        readers: Mapping[Format, Callable[[Iterator[Row], Refuse], Iterator[Row]]] = {
            "pairs": self._pairs, "ratings": self._rated, "ranking": self._rated,
            "rated_rows": self._rated_rows, "labels": self._labels,
        }  # fmt: skip
        columns = self.layout.columns
        renamed = ((number, rename(row, columns)) for number, row in chain(first, iterator))
        return readers[self._format](renamed, refuse)

    def note(self, findings: Findings) -> None:
        """Adds what made no pair."""
        self._notes.pass_on(findings)

    def facts(self) -> dict[str, Any] | None:
        """How pairs were made, and counts; None where every row is a pair and nothing was asked."""
        if self.one_to_one and self.layout.margins == "none" and self.layout.min_gap == 0:
            return None
        asked = {name: value for name, value in asdict(self.layout).items() if name not in ("columns", "split")}
        return asked | {"format": self._format, "counts": dict(sorted(self._counts.items()))}

    def _pairs(self, rows: Iterator[Row], refuse: Refuse) -> Iterator[Row]:
        plain = self.layout.margins == "none" and self.layout.min_gap == 0
        for row_number, row in rows:
            if plain:
                yield row_number, row
                continue
            try:
                gap = self._gap(row)
            except RowError as error:
                refuse(row_number, error)
                continue
            if gap < self.layout.min_gap:
                self._counts["below_min_gap"] += 1
                message = f"the scores differ by {gap:g}, less than {self.layout.min_gap:g}"
                self._notes.add("small_gap", row_number, message)
                continue
            if gap == 0:
                self._counts["ties"] += 1
                self._notes.add("rating_tie", row_number, "chosen and rejected have the same score")
                continue
            self._counts["pairs"] += 1
            yield row_number, row | self._margin(gap)

    def _gap(self, row: Mapping[str, Any]) -> float:
        """What chosen scores above rejected."""
        scores = [number(row.get(name), name) for name in ("score_chosen", "score_rejected")]
        if scores[0] is None or scores[1] is None:
            raise RowError("bad_rating", "data.margins and data.min_gap need score_chosen and score_rejected")
        if row.get("target_margin") is not None and self.layout.margins != "none":
            raise RowError("bad_margin", "the row has a target_margin and data.margins asks for another; give one")
        if (gap := scores[0] - scores[1]) < 0:
            raise RowError("bad_rating", f"chosen scores {scores[0]:g}, less than rejected with {scores[1]:g}")
        return gap

    def _margin(self, gap: float) -> dict[str, float]:
        return {"target_margin": self.layout.margin_scale * gap} if self.layout.margins != "none" else {}

    def _rated(self, rows: Iterator[Row], refuse: Refuse) -> Iterator[Row]:
        read = read_ranking if self._format == "ranking" else read_ratings
        for row_number, row in rows:
            try:
                rated = read(row, self.layout)
            except RowError as error:
                refuse(row_number, error)
                continue
            yield from self._pairs_of(row_number, rated)

    def _rated_rows(self, rows: Iterator[Row], refuse: Refuse) -> Iterator[Row]:
        def records() -> Iterator[tuple[int, Any, list[Any]]]:
            for row_number, row in rows:
                try:
                    one = read_rated_row(row, self.layout)
                except RowError as error:
                    refuse(row_number, error)
                    continue
                yield row_number, [one.prompt, one.split], [one.responses[0], one.scores[0]]

        for row_number, (prompt, split), members in grouped(records(), self._scratch):
            # Which of equals is the best, and which is drawn, must not hang on the order of rows.
            ordered = sorted((one for _, one in members), key=_place)
            responses, scores = [one[0] for one in ordered], [one[1] for one in ordered]
            yield from self._pairs_of(row_number, Rated(prompt=prompt, responses=responses, scores=scores, split=split))

    def _pairs_of(self, row_number: int, rated: Rated) -> Iterator[Row]:
        """The pairs of one prompt, by the rule."""
        assert self.layout.pairing is not None
        known = [at for at, score in enumerate(rated.scores) if score is not None]
        scores = [score for score in rated.scores if score is not None]
        self._counts.update({"prompts": 1, "responses": len(rated.responses)})
        if unrated := len(rated.scores) - len(known):
            self._counts["unrated"] += unrated
            self._notes.add(
                "unrated_response", row_number, f"{unrated} of {len(rated.scores)} responses have no rating"
            )
        if len(known) < 2:
            self._counts["single"] += 1
            self._notes.add(
                "single_response", row_number, f"{len(known)} rated responses to a prompt; expected two or more"
            )
            return
        made = choose(scores, self.layout.pairing, self.layout.min_gap, self._draw(rated.prompt))
        self._counts.update({"pairs": len(made.pairs), "ties": made.ties, "below_min_gap": made.small})
        if made.ties:
            self._notes.add("rating_tie", row_number, f"{made.ties} comparisons of equally rated responses")
        if made.small:
            message = f"{made.small} comparisons of ratings that differ by less than {self.layout.min_gap:g}"
            self._notes.add("small_gap", row_number, message)
        for better, worse in made.pairs:
            texts = (rated.responses[known[better]], rated.responses[known[worse]])
            yield row_number, _row(rated.prompt, texts, rated.split) | self._margin(scores[better] - scores[worse])

    def _draw(self, prompt: Any) -> Callable[[int], int]:
        """A seeded draw that depends on the prompt alone, so that neither order nor new rows change it."""
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
        digest = hashlib.sha256(f"{self._seed}/best_vs_random/{prompt_id(text)}".encode()).digest()
        return lambda count: int.from_bytes(digest[:8], "big") * count >> 64

    def _labels(self, rows: Iterator[Row], refuse: Refuse) -> Iterator[Row]:
        def records() -> Iterator[tuple[int, Any, list[Any]]]:
            for row_number, row in rows:
                try:
                    votes = read_votes(row)
                except RowError as error:
                    refuse(row_number, error)
                    continue
                swap = json.dumps(votes.first) > json.dumps(votes.second)
                kept = turned(votes) if swap else votes
                yield row_number, [kept.prompt, kept.first, kept.second, kept.split], [swap, kept.labels, kept.strength]

        for row_number, (prompt, one, other, split), members in grouped(records(), self._scratch):
            every = [
                Votes(prompt=prompt, first=one, second=other, labels=[(a, v) for a, v in labels], strength=strength)
                for _, (_, labels, strength) in members
            ]
            verdict = decided(every)
            labels = [label for votes in every for label in votes.labels]
            ties = sum(vote == 0 for _, vote in labels)
            self._counts.update({"labeled_pairs": 1, "labels": len(labels), "tie_labels": ties})
            if verdict == 0:
                self._counts["ties"] += 1
                self._notes.add("label_tie", row_number, f"{len(labels)} labels that prefer neither response")
                continue
            chosen, rejected = (one, other) if verdict < 0 else (other, one)
            wins = -1 if verdict < 0 else 1
            annotations = [{"annotator": name, "prefers_first": vote == wins} for name, vote in labels if vote]
            strengths = [abs(votes.strength) for votes in every if votes.strength is not None]
            margin = {}
            if self.layout.margins != "none":
                if not strengths:
                    message = "data.margins asks for a score, and the labels of this pair have none; set it to none"
                    refuse(row_number, RowError("bad_margin", message))
                    continue
                margin = self._margin(abs(verdict) / len(strengths))
            self._counts["pairs"] += 1
            yield row_number, _row(prompt, (chosen, rejected), split) | {"annotations": annotations} | margin


def _row(prompt: Any, responses: tuple[Any, Any], split: Any) -> dict[str, Any]:
    """A row as `parse_pair` reads it; a text that answers a list of messages is its assistant's message."""
    chat = isinstance(prompt, list)
    chosen, rejected = (
        [{"role": "assistant", "content": text}] if chat and isinstance(text, str) else text for text in responses
    )
    own = {} if split is None else {"split": split}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | own


def _place(member: Sequence[Any]) -> tuple[bytes, float]:
    """Where a response of [response, score] stands among those of its prompt: told by itself alone."""
    response, score = member
    return hashlib.sha256(json.dumps(response, sort_keys=True).encode()).digest(), -1.0 if score is None else score
