"""Checks that see one row at a time and keep a few bytes of each: splits, lengths, positions, personal data."""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from workbench.data.findings import SHOWN, Findings
from workbench.data.formats import DIALOGUE_MARKS, Texts
from workbench.data.scan import note
from workbench.data.splits import assign_split, normalize, prompt_id, unnamed_split
from workbench.metrics.estimates import mean_by_cluster, wilson
from workbench.metrics.variance import minimum_detectable_effect
from workbench.types import SPLITS, Estimate, Split

Index = npt.NDArray[np.int64]
SplitOf = Callable[[Texts], Split]
LENGTH_BAND: Final = (0.4, 0.6)
POSITION_BAND: Final = (0.45, 0.55)
PRECISION: Final = 0.05


def split_rule(fractions: Mapping[str, float], seed: int) -> SplitOf:
    """The split of a row as `compare` takes it: its own, else by a seeded hash of its prompt."""
    return lambda texts: texts.split or assign_split(prompt_id(texts.prompt), fractions, seed)


def key_of(text: str) -> int:
    """63 bits of a text's digest: equal texts share it, others practically never do."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def add_rows(findings: Findings, code: str, rows: Sequence[int], say: Callable[[int], str]) -> None:
    """Adds one finding a row: the first ten in words, the rest counted.

    Args:
        say: Place in `rows` -> the message.
    """
    note(findings, code, [(int(row), say(place)) for place, row in enumerate(rows[:SHOWN])], len(rows))


def percent(estimate: Estimate) -> str:
    """`47.6% [45.1%, 50.1%]`."""
    if estimate.value is None:
        return "unknown"
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.1%}, {estimate.high:.1%}]"
    return f"{estimate.value:.1%}{ends}"


# ------------------------------------------------------------------------------------------ splits


@dataclass(kw_only=True)
class SplitCheck:
    """Prompts in two splits, dialogues that go on in another split, empty splits, and what the test split can tell.

    Args:
        split_of: Says where a row belongs.
        wanted: Splits that must not be empty.
        precision: Half width of a win rate's interval that the test split should give.
    """

    split_of: SplitOf
    wanted: Sequence[str] = ("train", "validation", "test")
    precision: float = PRECISION
    _own: bool = False  # the rows name their splits
    _prompts: array[int] = field(default_factory=lambda: array("q"))
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _splits: array[int] = field(default_factory=lambda: array("b"))
    _starts: tuple[array[int], array[int]] = field(default_factory=lambda: (array("q"), array("q")))

    def see(self, row: int, texts: Texts) -> None:
        prompt = normalize(texts.prompt)
        self._own = self._own or texts.split is not None
        place = len(self._rows)
        self._prompts.append(key_of(prompt))
        self._rows.append(row)
        self._splits.append(SPLITS.index(self.split_of(texts)))
        for start in earlier_turns(texts.prompt):
            self._starts[0].append(key_of(normalize(start)))
            self._starts[1].append(place)

    def finish(self, findings: Findings) -> None:
        if not self._rows:
            return
        prompts, splits = np.array(self._prompts, dtype=np.int64), np.array(self._splits, dtype=np.int64)
        rows = np.array(self._rows, dtype=np.int64)
        keys, first, which = np.unique(prompts, return_index=True, return_inverse=True)
        self._leaks(findings, rows, splits, first, which)
        self._continued(findings, rows, splits, keys, first)
        counts: dict[str, int] = {split: int((splits[first] == at).sum()) for at, split in enumerate(SPLITS)}
        for split in self.wanted:
            if not counts[split]:
                message = f"no prompt of {len(first):,} is in the split {split!r}"
                findings.add("empty_split", None, unnamed_split([split], counts) if self._own else message)
        if counts["test"]:
            told, half = precision_of(counts["test"])
            code = "few_test_prompts" if half > self.precision else "precision"
            shares = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split])
            needed = f"; ±{self.precision:.1%} asks for {prompts_for(self.precision):,} test prompts"
            findings.add(code, None, f"prompts: {shares}. {told}{needed if code == 'few_test_prompts' else ''}")

    @staticmethod
    def _leaks(findings: Findings, rows: Index, splits: Index, first: Index, which: Index) -> None:
        elsewhere = np.flatnonzero(splits != splits[first][which])
        add_rows(
            findings, "split_leak", rows[elsewhere].tolist(),
            lambda at: f"the prompt is in {SPLITS[splits[elsewhere[at]]]!r} here and in "
            f"{SPLITS[splits[first[which[elsewhere[at]]]]]!r} in row {rows[first[which[elsewhere[at]]]]} (compared "
            "without case and spacing)",
        )  # fmt: skip

    def _continued(self, findings: Findings, rows: Index, splits: Index, keys: Index, first: Index) -> None:
        """Held-out prompts whose earlier turns are a prompt of another split, or the other way round."""
        starts, places = (np.array(one, dtype=np.int64) for one in self._starts)
        if not len(starts):
            return
        at = np.minimum(np.searchsorted(keys, starts), len(keys) - 1)
        hit = (keys[at] == starts) & (splits[first[at]] != splits[places])
        pairs = {int(place): int(first[one]) for place, one in zip(places[hit], at[hit], strict=True)}
        longer = sorted(pairs)
        add_rows(
            findings, "continued_leak", [int(rows[place]) for place in longer],
            lambda n: f"this dialogue ({SPLITS[splits[longer[n]]]}) goes on from the prompt in row "
            f"{rows[pairs[longer[n]]]} ({SPLITS[splits[pairs[longer[n]]]]})",
        )  # fmt: skip


def earlier_turns(prompt: str) -> Iterator[str]:
    """What a dialogue's prompt was at its earlier turns: its beginnings up to each dialogue mark but the last."""
    for mark in DIALOGUE_MARKS:
        at = prompt.find(mark)
        while at >= 0:
            end = at + len(mark)
            if end < len(prompt.rstrip()):
                yield prompt[:end]
            at = prompt.find(mark, end)


def precision_of(prompts: int) -> tuple[str, float]:
    """What a win rate on this many test prompts can tell, in words, and the half width of its interval at 50%."""
    even = wilson(prompts / 2, prompts)
    half = (float(even.high or 1.0) - float(even.low or 0.0)) / 2
    smallest = minimum_detectable_effect(0.5 / math.sqrt(prompts), df=math.inf)
    text = f"A win rate of 50% on {prompts:,} test prompts is known to ±{half:.1%}"
    if smallest < 0.5:
        text += f", and one below {0.5 + smallest:.1%} is told from 50% in less than 4 of 5 such comparisons"
    return text, half


def prompts_for(half: float) -> int:
    """Prompts for which a win rate of 50% has an interval of this half width (Wilson)."""
    z2 = 1.959964**2
    return max(1, math.ceil(z2 / (4 * half * half) - z2))


# ------------------------------------------------------------------------------------------ length and position


@dataclass(kw_only=True)
class LengthCheck:
    """How often the longer response is the chosen one, in characters; ties half; by prompt.

    Args:
        band: Warns where the whole interval lies outside it.
    """

    band: tuple[float, float] = LENGTH_BAND
    _longer: array[float] = field(default_factory=lambda: array("f"))
    _prompts: array[int] = field(default_factory=lambda: array("q"))

    def see(self, row: int, texts: Texts) -> None:
        if texts.chosen is None or texts.rejected is None or texts.chosen == texts.rejected:
            return
        gap = len(texts.chosen) - len(texts.rejected)
        self._longer.append(0.5 if gap == 0 else float(gap > 0))
        self._prompts.append(key_of(normalize(texts.prompt)))

    def finish(self, findings: Findings) -> None:
        self._say(findings, "length", "the longer response (in characters) is the chosen one in", "pairs")

    def _say(self, findings: Findings, name: str, what: str, unit: str) -> None:
        if not self._longer:
            return
        share = mean_by_cluster(np.array(self._longer, dtype=np.float64), np.array(self._prompts), proportion=True)
        low, high = self.band
        outside = share.low is not None and share.high is not None and (share.low > high or share.high < low)
        text = f"{what} {percent(share)} of {len(self._longer):,} {unit} on {share.n:,} prompts"
        rule = f"outside {low:.0%} to {high:.0%}" if outside else f"not shown to be outside {low:.0%} to {high:.0%}"
        findings.add(f"{name}_imbalance" if outside else f"{name}_balance", None, f"{text}: {rule}")


@dataclass(kw_only=True)
class PositionCheck(LengthCheck):
    """How often the response that was shown first is preferred, where annotations say which was (`chosen_first`)."""

    band: tuple[float, float] = POSITION_BAND

    def see(self, row: int, texts: Texts) -> None:
        for one in texts.annotations:
            first = getattr(one, "chosen_first", None)
            if first is not None:
                self._longer.append(float(one.prefers_first == first))
                self._prompts.append(key_of(normalize(texts.prompt)))

    def finish(self, findings: Findings) -> None:
        self._say(findings, "position", "the response shown first is preferred in", "labels")


# ------------------------------------------------------------------------------------------ personal data

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})*\.[A-Za-z]{2,24}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w.-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,4}){1,4}|\(\d{3}\) ?\d{3}-\d{4}"
    r"|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_DIGITS = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]*\d)")
_PRIVATE_IP = re.compile(r"0\.|127\.|255\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.")


def luhn(digits: str) -> bool:
    """The check digit of card numbers holds (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """The check digits of an IBAN hold (ISO 13616: 1 modulo 97)."""
    bare = text.replace(" ", "")
    return 15 <= len(bare) <= 34 and int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def personal_strings(text: str) -> Counter[str]:
    """How many strings of each kind a text holds that look like personal data. The strings are never kept.

    email; phone (with a country code, or in the North American form); card (13 to 19 digits whose check digit holds);
    iban (its check digits hold); ip (IPv4 but loopback, private and reserved ones).
    """
    found = Counter[str]()
    if "@" in text:
        found["email"] = sum(1 for _ in _EMAIL.finditer(text))
    if any(digit in text for digit in "0123456789"):
        cards = [one.group() for one in _DIGITS.finditer(text)]
        found["card"] = sum(_card(one) for one in cards)
        found["iban"] = sum(iban_holds(one.group()) for one in _IBAN.finditer(text))
        found["ip"] = sum(not _PRIVATE_IP.match(one.group()) for one in _IPV4.finditer(text))
        found["phone"] = sum(7 <= sum(map(str.isdigit, one.group())) <= 15 for one in _PHONE.finditer(text))
    return +found


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits)


@dataclass
class PersonalCheck:
    """Counts strings that look like personal data, by kind, with their rows."""

    _strings: Counter[str] = field(default_factory=Counter)
    _rows: dict[str, int] = field(default_factory=Counter)
    _first: dict[str, list[int]] = field(default_factory=dict)

    def see(self, row: int, texts: Texts) -> None:
        found = personal_strings("\n".join(text for text in (texts.prompt, texts.chosen, texts.rejected) if text))
        for kind, count in found.items():
            self._strings[kind] += count
            self._rows[kind] += 1
            first = self._first.setdefault(kind, [])
            if len(first) < SHOWN:
                first.append(row)

    def finish(self, findings: Findings) -> None:
        names = {"email": "e-mail addresses", "phone": "telephone numbers", "card": "card numbers",
                 "iban": "bank account numbers (IBAN)", "ip": "public IP addresses"}  # fmt: skip
        for kind, rows in self._first.items():
            told = f"strings like {names[kind]}: {self._strings[kind]:,} in {self._rows[kind]:,} rows"
            for place, row in enumerate(rows):
                rest = self._rows[kind] - len(rows) if place == len(rows) - 1 else 0
                findings.add(f"pii_{kind}", row, told, count=1 + rest)
