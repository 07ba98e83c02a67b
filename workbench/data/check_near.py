"""Near duplicates and near leakage: MinHash sketches of word shingles, matched by locality-sensitive hashing.

A text becomes the set of its runs of three words (lower case, spacing ignored; runs of five characters where it has
fewer than three words). Two sets' Jaccard similarity, shared over all, is estimated by the share of 64 minima that
agree: standard error at most 0.0625. Candidates share one of 12 bands of five minima: at a similarity of 0.8 99.1% of
near duplicates are found, at 0.7 89%, at 0.9 practically all. Within a band's bucket a text is compared with the
first and with the one before it, not with all, so that time stays linear however often a text repeats.

A row costs 272 bytes for the pair and as much for each different prompt; datasketch's own index (dictionaries of
Python objects) would take several gigabytes for a million rows, so its sketches are used and the index is ours.
Sketches are seeded: the same rows give the same findings.

Source: Broder 1997 (resemblance); Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4 (banding).
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.data.check_rows import SplitOf, add_rows, key_of
from workbench.data.findings import Findings
from workbench.data.formats import Texts
from workbench.data.splits import normalize
from workbench.types import SPLITS

MINIMA: Final = 64
BANDS: Final = 12
BAND_ROWS: Final = 5
THRESHOLD: Final = 0.8
_WORDS, _CHARACTERS = 3, 5
_CHUNK = 8192
_FACTOR = np.uint32(0x9E3779B1)
_OF_PROMPT = np.uint32(0x5BD1E995)  # a run of a prompt is another one than the same run of a response

Index = npt.NDArray[np.int64]
Sketches = npt.NDArray[np.uint32]


def shingles(text: str) -> Sketches:
    """Hashes of the runs of three words of a normalized text; of five characters where it has fewer words."""
    words = text.split(" ")
    if len(words) < _WORDS:
        runs = [text[at : at + _CHARACTERS] for at in range(max(1, len(text) - _CHARACTERS + 1))]
        return np.fromiter((zlib.crc32(run.encode()) for run in runs), dtype=np.uint32, count=len(runs))
    hashed = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint32, count=len(words))
    mixed: Sketches = (hashed[:-2] * _FACTOR + hashed[1:-1]) * _FACTOR + hashed[2:]  # modulo 2**32
    return mixed


class Sketchbook:
    """Sketches of texts, 256 bytes each."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._hash: Any = MinHash(num_perm=MINIMA, seed=1, hashfunc=int)
        self._chunks: list[Sketches] = []
        self.size = 0

    def add(self, pieces: Sketches) -> None:
        """Sketches one set of shingles; repeats do not matter."""
        if self.size % _CHUNK == 0:
            self._chunks.append(np.empty((_CHUNK, MINIMA), dtype=np.uint32))
        self._hash.clear()
        self._hash.update_batch(pieces.tolist())
        self._chunks[-1][self.size % _CHUNK] = self._hash.hashvalues
        self.size += 1

    def columns(self, start: int, stop: int) -> Sketches:
        """(N, stop - start) of all sketches."""
        return np.concatenate([chunk[:, start:stop] for chunk in self._chunks])[: self.size]

    def similarity(self, one: Index, other: Index) -> npt.NDArray[np.float64]:
        """(M,) estimated similarity of sketches one[i] and other[i]."""
        found = np.zeros(len(one))
        for start in range(0, len(one), 4 * _CHUNK):
            part = slice(start, start + 4 * _CHUNK)
            found[part] = (self._rows(one[part]) == self._rows(other[part])).mean(axis=1)
        return found

    def _rows(self, places: Index) -> Sketches:
        """Sketches by place; sorted access, so that each chunk is read once."""
        found = np.empty((len(places), MINIMA), dtype=np.uint32)
        chunk = places // _CHUNK
        for number in np.unique(chunk):
            mine = chunk == number
            found[mine] = self._chunks[number][places[mine] % _CHUNK]
        return found

    def buckets(self) -> Iterator[tuple[Index, Index]]:
        """Of each band: sketches that share a bucket with another, ordered by bucket, and where each bucket starts."""
        for band in range(BANDS):
            keys = np.ascontiguousarray(self.columns(band * BAND_ROWS, (band + 1) * BAND_ROWS))
            mixed = np.zeros(self.size, dtype=np.uint64)
            for column in range(BAND_ROWS):
                mixed = (mixed ^ keys[:, column]) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
            order = np.argsort(mixed, kind="stable")
            ordered = mixed[order]
            new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
            start = np.flatnonzero(new)[np.cumsum(new) - 1]
            sizes = np.bincount(start, minlength=self.size)[start]
            shared = sizes > 1
            kept = np.cumsum(shared) - 1
            yield order[shared], kept[start[shared]]


@dataclass(kw_only=True)
class NearCheck:
    """Pairs that nearly repeat an earlier one, and prompts that nearly stand in another split.

    Args:
        split_of: Says where a row belongs.
        threshold: Similarity from which on two texts are near, in (0, 1].
    """

    split_of: SplitOf
    threshold: float = THRESHOLD
    _pairs: Sketchbook = field(default_factory=Sketchbook)
    _prompts: Sketchbook = field(default_factory=Sketchbook)
    _exact: array[int] = field(default_factory=lambda: array("q"))
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _prompt_rows: array[int] = field(default_factory=lambda: array("q"))
    _splits: array[int] = field(default_factory=lambda: array("b"))
    _keys: array[int] = field(default_factory=lambda: array("q"))
    _seen: set[int] = field(default_factory=set)

    def see(self, row: int, texts: Texts) -> None:
        prompt = normalize(texts.prompt)
        asked = shingles(prompt)
        if texts.chosen is not None and texts.rejected is not None:
            # Either order: an exact repeat or the opposite label has a finding of its own.
            both = sorted((texts.chosen, texts.rejected))
            self._exact.append(key_of("\0".join([texts.prompt, *both])))
            self._rows.append(row)
            answers = [shingles(normalize(text)) for text in both]
            self._pairs.add(np.concatenate([asked ^ _OF_PROMPT, *answers]))
        split = SPLITS.index(self.split_of(texts))
        if (key := key_of(f"{split} {prompt}")) not in self._seen:
            self._seen.add(key)
            self._prompts.add(asked)
            self._prompt_rows.append(row)
            self._splits.append(split)
            self._keys.append(key_of(prompt))

    def finish(self, findings: Findings) -> None:
        if self._pairs.size:
            self._duplicates(findings)
        if self._prompts.size:
            self._leaks(findings)

    def _duplicates(self, findings: Findings) -> None:
        exact, best, twin = np.array(self._exact), np.zeros(self._pairs.size), np.full(self._pairs.size, -1)
        for members, start in self._pairs.buckets():
            if len(members) < 2:
                continue
            for other in (members[start], np.concatenate([members[:1], members[:-1]])):
                same = (other < members) & (exact[members] != exact[other])
                self._improve(best, twin, members[same], other[same], self._pairs)
        found = np.flatnonzero(best >= self.threshold)
        rows = np.array(self._rows)
        add_rows(
            findings, "near_duplicate", rows[found].tolist(),
            lambda at: f"about {best[found[at]]:.0%} alike with the pair in row {rows[twin[found[at]]]}",
        )  # fmt: skip

    def _leaks(self, findings: Findings) -> None:
        splits, rows, keys = (np.array(one) for one in (self._splits, self._prompt_rows, self._keys))
        best, twin = np.zeros(self._prompts.size), np.full(self._prompts.size, -1)
        for members, start in self._prompts.buckets():
            if len(members) < 2:
                continue
            order = np.lexsort((members, splits[members], start))
            members, start = members[order], start[order]
            for other in (members[start], np.concatenate([members[:1], members[:-1]])):
                # Equal prompts are a finding of their own; of two splits the held-out one is named.
                apart = (splits[members] > splits[other]) & (keys[members] != keys[other])
                self._improve(best, twin, members[apart], other[apart], self._prompts)
        found = np.flatnonzero(best >= self.threshold)
        found = found[np.argsort(rows[found], kind="stable")]
        add_rows(
            findings, "near_leak", rows[found].tolist(),
            lambda at: f"this {SPLITS[splits[found[at]]]} prompt is about {best[found[at]]:.0%} alike with the "
            f"{SPLITS[splits[twin[found[at]]]]} prompt in row {rows[twin[found[at]]]}",
        )  # fmt: skip

    @staticmethod
    def _improve(best: npt.NDArray[np.float64], twin: Index, one: Index, other: Index, book: Sketchbook) -> None:
        alike = book.similarity(one, other)
        better = alike > best[one]
        best[one[better]], twin[one[better]] = alike[better], other[better]
