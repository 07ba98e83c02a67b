"""`workbench data describe`: what a source of preference pairs holds, in bounded memory.

Of each pair a few numbers stay; texts only of a seeded sample of prompts, for topics. Nothing is judged here: what is
wrong is `workbench data check`'s business.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.data.check_rows import SplitOf, key_of, split_rule
from workbench.data.findings import Findings
from workbench.data.formats import Texts
from workbench.data.light_tokenizer import LightTokenizer
from workbench.data.splits import normalize
from workbench.data.topics import PromptSample, topics
from workbench.data.validate import Observer, Options, scan_pairs, source_name
from workbench.data.vocabulary import Vocabulary
from workbench.metrics.estimates import mean_by_cluster
from workbench.results_base import E
from workbench.types import SPLITS

Floats = npt.NDArray[np.float64]
ROLES: Final = ("prompt", "chosen", "rejected")
STEPS: Final = (1, 6, 11, 21, 51, 101, 201)  # words by which one response is longer: 1-5, 6-10, ... over 200


@dataclass(kw_only=True)
class Lengths:
    """Lengths of every pair, its split, prompt and margin, as numbers.

    Args:
        split_of: Says where a row belongs.
        tokenizer: Counts tokens; None: they are not counted.
    """

    split_of: SplitOf
    tokenizer: LightTokenizer | None = None
    prompts: array[int] = field(default_factory=lambda: array("q"))
    splits: array[int] = field(default_factory=lambda: array("b"))
    margins: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("l"))
    counts: dict[str, array[int]] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    people: Counter[str] = field(default_factory=Counter)

    def see(self, row: int, texts: Texts) -> None:
        if texts.chosen is None or texts.rejected is None or texts.chosen == texts.rejected:
            return
        self.formats[texts.format] += 1
        self.prompts.append(key_of(normalize(texts.prompt)))
        self.splits.append(SPLITS.index(self.split_of(texts)))
        self.margins.append(np.nan if texts.target_margin is None else texts.target_margin)
        self.labels.append(len(texts.annotations))
        self.people.update(one.annotator for one in texts.annotations)
        for role, text in zip(ROLES, (texts.prompt, texts.chosen, texts.rejected), strict=True):
            self._count("characters", role, len(text))
            self._count("words", role, len(text.split()))
            if self.tokenizer is not None:
                self._count("tokens", role, len(self.tokenizer.encode(text, add_special_tokens=False)))

    def _count(self, unit: str, role: str, value: int) -> None:
        name = f"{unit} {role}"
        if name not in self.counts:
            self.counts[name] = array("l")
        self.counts[name].append(value)

    def finish(self, findings: Findings) -> None:
        """Adds nothing."""

    def of(self, unit: str, role: str) -> Floats:
        """(N,) lengths of one role."""
        return np.array(self.counts[f"{unit} {role}"], dtype=np.float64)


def describe(
    source: str | Path, options: Options, *, model: Path | None = None, n_topics: int = 8, seed: int = 0
) -> dict[str, Any]:
    """Statistics of one source, as plain JSON (docs/data.md says what each field is); where no pair can be used, the
    counts and the errors alone.

    Args:
        source: Path or hub id.
        options: How rows are read; rows that cannot be used are counted, never described.
        model: Folder whose tokenizer counts tokens.
        n_topics: Topics to form; 0: none.
        seed: Of the sample of prompts and of the topics.

    Raises:
        DataError: The source does not exist.
    """
    tokenizer = None if model is None else LightTokenizer(model)
    lengths = Lengths(split_of=split_rule(options.fractions or {}, options.seed), tokenizer=tokenizer)
    vocabulary, sample = Vocabulary(split_of=lengths.split_of), PromptSample(split_of=lengths.split_of, seed=seed)
    observers: list[Observer] = [lengths, vocabulary, *([sample] if n_topics else [])]
    _, report = scan_pairs(source, options, tokenizer=tokenizer, stop=False, observers=observers)
    errors = [one.to_json() for one in report.findings if one.severity == "error"]
    head = {"schema": 1, "source": source_name(source), "rows": report.rows, "pairs": len(lengths.prompts)}
    if not lengths.prompts:
        return head | {"findings": errors}
    units = ["characters", "words", *(["tokens"] if tokenizer else [])]
    prompts = np.array(lengths.prompts)
    return head | {
        "findings": errors,
        "prompts": len(np.unique(prompts)),
        "formats": dict(lengths.formats.most_common()),
        "splits": _splits(lengths),
        "lengths": {unit: _spreads(lengths, unit, prompts) for unit in units},
        "longer_chosen": {unit: _longer(lengths, unit) for unit in units},
        "win_by_length": _win_by_length(lengths),
        "vocabulary": vocabulary.to_json(),
        "topics": topics(sample, n_topics, seed) if n_topics else None,
        "margins": _margins(lengths),
        "annotations": _annotations(lengths),
    }


def _splits(lengths: Lengths) -> dict[str, dict[str, int]]:
    splits, prompts = np.array(lengths.splits), np.array(lengths.prompts)
    return {
        name: {"pairs": int((splits == place).sum()), "prompts": len(np.unique(prompts[splits == place]))}
        for place, name in enumerate(SPLITS)
        if (splits == place).any()
    }


def _spreads(lengths: Lengths, unit: str, prompts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Of each role; the two responses have one scale."""
    values = {role: lengths.of(unit, role) for role in ROLES}
    responses = np.concatenate([values["chosen"], values["rejected"]])
    scales = {"prompt": values["prompt"], "chosen": responses, "rejected": responses}
    return {role: _spread(values[role], scales[role], prompts) for role in ROLES}


def _spread(values: Floats, scale: Floats, prompts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Mean with its interval by prompt, percentiles, and a histogram whose bins hold whole numbers and whose last one
    holds all from the 99th percentile of `scale` up."""
    shares = (0, 5, 25, 50, 75, 95, 100)
    points = np.percentile(values, shares, method="inverted_cdf").tolist()
    top = max(float(np.percentile(scale, 99, method="inverted_cdf")), 1.0)
    width = max(1, int(np.ceil(top / 30)))
    edges = np.arange(0, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    return {
        "mean": E.of(mean_by_cluster(values, prompts)).model_dump(mode="json"),
        "percentiles": {str(share): int(point) for share, point in zip(shares, points, strict=True)},
        "histogram": {"edges": edges.astype(int).tolist(), "counts": counts.tolist()},
    }


def _gap(lengths: Lengths, unit: str) -> Floats:
    return lengths.of(unit, "chosen") - lengths.of(unit, "rejected")


def _longer(lengths: Lengths, unit: str) -> dict[str, Any]:
    gap = _gap(lengths, unit)
    wins = np.where(gap == 0, 0.5, gap > 0)
    return E.of(mean_by_cluster(wins, np.array(lengths.prompts), proportion=True)).model_dump(mode="json")


def _win_by_length(lengths: Lengths) -> list[dict[str, Any]]:
    """How often the longer response is the chosen one, by how many words it is longer. Pairs are unordered, so the
    curve for "shorter by" is its mirror image."""
    gap, prompts = _gap(lengths, "words"), np.array(lengths.prompts)
    found = []
    for start, stop in zip(STEPS, (*STEPS[1:], None), strict=True):
        inside = (np.abs(gap) >= start) & (np.abs(gap) < (stop or np.inf))
        if inside.any():
            share = mean_by_cluster((gap[inside] > 0).astype(float), prompts[inside], proportion=True)
            win = E.of(share).model_dump(mode="json")
            last = None if stop is None else stop - 1
            found.append({"from_words": start, "to_words": last, "pairs": int(inside.sum()), "longer_wins": win})
    return found


def _margins(lengths: Lengths) -> dict[str, Any] | None:
    margins = np.array(lengths.margins)
    known = margins[~np.isnan(margins)]
    if not len(known):
        return None
    counts, edges = np.histogram(known, 20)
    points = np.percentile(known, (0, 5, 50, 95, 100)).tolist()
    return {
        "pairs": len(known),
        "mean": E.of(mean_by_cluster(known, np.array(lengths.prompts)[~np.isnan(margins)])).model_dump(mode="json"),
        "percentiles": dict(zip(("0", "5", "50", "95", "100"), points, strict=True)),
        "negative": int((known < 0).sum()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _annotations(lengths: Lengths) -> dict[str, Any] | None:
    if not lengths.people:
        return None
    per_pair = Counter(lengths.labels)
    return {
        "annotators": len(lengths.people),
        "labels": sum(lengths.people.values()),
        "labels_per_pair": {str(count): per_pair[count] for count in sorted(per_pair)},
        "most_labels": dict(lengths.people.most_common(20)),
    }


def headline(found: dict[str, Any]) -> Sequence[str]:
    """The figures in a few lines, for people."""
    if not found["pairs"]:
        return [f"{found['source']}: no usable pair in {found['rows']} rows"]
    splits = ", ".join(f"{one['pairs']:,} {name}" for name, one in found["splits"].items())
    return [f"{found['source']}: {found['pairs']:,} pairs on {found['prompts']:,} prompts ({splits})"]
