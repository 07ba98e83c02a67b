"""Who preferred what: labels of pairs and verdicts of judges as one table of units, annotators and values."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from workbench.data.findings import Findings
from workbench.data.formats import Texts
from workbench.data.records_io import PAIRS_FILE, SHOWN_FILE
from workbench.data.splits import prompt_id
from workbench.data.validate import Options, scan_pairs
from workbench.errors import DataError
from workbench.judgment_files import read_judgments
from workbench.types import Judgment

UNNAMED: Final = re.compile(r"anonymous-\d+")  # a place in a list of labels without names (votes.py): no person
Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """Labels (L,) on units (U,): two responses to one prompt, a first and a second one.

    Args:
        kind: "pairs": the first is the chosen response; "judgments": it is a system's.
        units: (U,) names; rows: (U,) 1-based row of the source, 0: unknown; prompts: (U,) prompt ids.
        longer: (U,) 1 the first response is the longer one, 0 the second, NaN equally long or unknown.
        responses: (U, 2) which response it is, as a number: equal numbers within a prompt are one response.
        annotators: (J,) names.
        unit, who: (L,) indices.
        value: (L,) preference for the first response: 1, 0, 0.5 a tie, between them where a judge gives a probability.
        grade: (L,) strength of the preference for the first response; NaN where the label has none.
        shown: (L,) 1 the first response was shown first, 0 the second, NaN unknown.
        unscored: Verdicts that did not come.
        unusable: Rows that could not be used: `data check` says why.
    """

    kind: Literal["pairs", "judgments"]
    units: list[str]
    rows: Index
    prompts: list[str]
    longer: Floats
    responses: Index
    annotators: list[str]
    unit: Index
    who: Index
    value: Floats
    grade: Floats
    shown: Floats
    unscored: int = 0
    unusable: int = 0

    @property
    def mirrored(self) -> bool:
        """Units have no order of their own: chosen and rejected come from the labels."""
        return self.kind == "pairs"


@dataclass
class _Table:
    """Collects labels unit by unit."""

    units: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))
    prompts: list[str] = field(default_factory=list)
    longer: array[float] = field(default_factory=lambda: array("d"))
    responses: array[int] = field(default_factory=lambda: array("q"))
    people: dict[str, int] = field(default_factory=dict)
    labels: array[float] = field(default_factory=lambda: array("d"))  # unit, who, value, grade, shown

    def add_unit(
        self, key: str, name: str, row: int, prompt: str, lengths: tuple[int | None, int | None], both: Sequence[str]
    ) -> int:
        """The unit's index; a known one keeps what it has."""
        if key in self.units:
            return self.units[key]
        place = self.units[key] = len(self.units)
        self.names.append(name)
        first, second = lengths
        self.rows.append(row)
        self.prompts.append(prompt)
        known = first is not None and second is not None and first != second
        self.longer.append(float((first or 0) > (second or 0)) if known else np.nan)
        self.responses.extend(_number(one) for one in both)
        return place

    def add_label(self, unit: int, name: str, value: float, grade: float, shown: float) -> None:
        who = self.people.setdefault(name, len(self.people))
        self.labels.extend((unit, who, value, grade, shown))

    def build(self, kind: Literal["pairs", "judgments"], unscored: int = 0) -> Opinions:
        """Names in order, whatever the order of the rows."""
        labels = np.array(self.labels, dtype=np.float64).reshape(-1, 5)
        names = sorted(self.people)
        order = {name: at for at, name in enumerate(names)}
        rank = np.array([order[name] for name in self.people], dtype=np.int64)
        who = labels[:, 1].astype(np.int64)
        return Opinions(
            kind=kind, units=self.names, rows=np.array(self.rows, dtype=np.int64), prompts=self.prompts,
            longer=np.array(self.longer), responses=np.array(self.responses, dtype=np.int64).reshape(-1, 2),
            annotators=names, unit=labels[:, 0].astype(np.int64), who=rank[who] if len(who) else who,
            value=labels[:, 2], grade=labels[:, 3], shown=labels[:, 4], unscored=unscored,
        )  # fmt: skip


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


class PairOpinions:
    """Takes annotations from the rows of a preference file as an observer of its reading.

    Args:
        shown: Of each row, for every annotation, whether the chosen response was shown first.
    """

    def __init__(self, shown: Sequence[Sequence[bool]] | None = None) -> None:
        self._table, self._shown = _Table(), shown

    def see(self, row: int, texts: Texts) -> None:
        if not texts.annotations or texts.chosen is None or texts.rejected is None or texts.chosen == texts.rejected:
            return  # equal responses are left out of training, and counted as unusable
        lengths = (len(texts.chosen), len(texts.rejected))
        unit = self._table.add_unit(
            f"row {row}", f"row {row}", row, prompt_id(texts.prompt), lengths, (texts.chosen, texts.rejected)
        )
        order = self._shown[row - 1] if self._shown is not None and row <= len(self._shown) else None
        for at, one in enumerate(texts.annotations):
            first = getattr(one, "chosen_first", None)
            if first is None and order is not None and at < len(order):
                first = order[at]
            rating = getattr(one, "rating", None)
            self._table.add_label(
                unit, one.annotator, float(one.prefers_first), np.nan if rating is None else rating,
                np.nan if first is None else float(first),
            )  # fmt: skip

    def finish(self, findings: Findings) -> None:
        """Adds nothing: who agrees with whom is not a fault of a row."""

    def opinions(self) -> Opinions:
        """What was seen."""
        return self._table.build("pairs")


def opinions_of_judgments(judgments: Iterable[Judgment]) -> Opinions:
    """Judges as annotators; a person of a human judge is one by themselves. Two systems always stand in one order."""
    table, unscored = _Table(), 0
    orders: dict[frozenset[str], str] = {}
    for one in judgments:
        first, second = str(one.first), str(one.second)
        turned = orders.setdefault(frozenset((first, second)), first) != first
        sides = [(first, one.first_id, one.first_length), (second, one.second_id, one.second_length)]
        if one.preference is None:
            unscored += 1
            continue
        (a, a_id, a_length), (b, b_id, b_length) = sides[::-1] if turned else sides
        value = one.preference if turned else 1 - one.preference
        name = f"{one.prompt_id}: {_told(a, a_id)} | {_told(b, b_id)}"
        both = (f"{a} {a_id}", f"{b} {b_id}")
        key = "\0".join((one.prompt_id, *both))
        unit = table.add_unit(key, name, 0, one.prompt_id, (a_length, b_length), both)
        shown = float((one.order == "first_shown_first") != turned)
        person = one.judge if one.annotator is None else f"{one.judge}/{one.annotator}"
        table.add_label(unit, person, value, np.nan if value in (0, 0.5, 1) else value, shown)
    found = table.build("judgments", unscored)
    # One order alone says nothing of where a response stood: files without the field have "first_shown_first".
    swapped = len(set(found.shown.tolist())) > 1
    # A judge that gives probabilities grades every verdict, 0 and 1 too.
    graded = np.isin(found.who, np.unique(found.who[~np.isnan(found.grade)]))
    return replace(
        found,
        shown=found.shown if swapped else np.full(len(found.shown), np.nan),
        grade=np.where(graded, found.value, np.nan),
    )


def _told(system: str, response: str) -> str:
    """A response as people know it: by its system, and by its id where that is no digest."""
    return system if re.fullmatch(r"[0-9a-f]{16}", response) or response == system else f"{system} {response}"


def read_opinions(sources: Sequence[str | Path], options: Options, *, tokenizer: Any = None) -> Opinions:
    """Reads one preference source with annotations, or any number of judgment files.

    Args:
        sources: One preference source (a pairs artifact's folder too), or judgment files of either format.
        options: How preference rows are read.
        tokenizer: Renders conversations.

    Raises:
        DataError: No annotation is found, or kinds are mixed.
    """
    paths = [Path(one) / PAIRS_FILE if (Path(one) / PAIRS_FILE).is_file() else one for one in sources]
    if not (len(paths) == 1 and _holds_pairs(paths[0])):
        if len(paths) > 1 and any(_holds_pairs(one) for one in paths):
            raise DataError("several sources must all be files of judgments; give one preference source at a time")
        return opinions_of_judgments(read_judgments(paths))
    observer = PairOpinions(_read_shown(Path(paths[0])))
    # A policy may have said nothing at all: such pairs are left out here, as they are in training.
    _, report = scan_pairs(paths[0], replace(options, drop_invalid=True), tokenizer=tokenizer, observers=[observer])
    found = replace(observer.opinions(), unusable=report.rows - report.kept if report.pairing is None else 0)
    if not len(found.value):
        raise DataError(
            'no row has annotations; expected [{"annotator", "prefers_first"}] in \'annotations\', rows of labels, or '
            "a file of judgments",
            where=str(sources[0]),
        )
    return found


def _holds_pairs(source: str | Path) -> bool:
    """A source is of pairs unless its first row is a judgment.

    Raises:
        DataError: It is gzipped, and damaged.
    """
    import gzip
    import zlib

    path = Path(source)
    if not path.is_file():
        return True
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            head = (gzip.GzipFile(fileobj=raw) if zipped else raw).read(2**20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"the gzip stream is damaged: {error}; write the file anew", where=str(source)) from error
    return not any(mark in head for mark in (b'"generator_1"', b'"first_id"'))


def _read_shown(path: Path) -> list[list[bool]] | None:
    """Which response each annotator of a simulated pair saw first, as the stage wrote it beside pairs.jsonl."""
    import json

    beside = path.with_name(SHOWN_FILE)
    if path.name != PAIRS_FILE or not beside.is_file():
        return None
    found = json.loads(beside.read_text(encoding="utf-8"))
    return found if isinstance(found, list) else None
