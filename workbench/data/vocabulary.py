"""Which words a source uses, and how many of the held-out ones training would have seen."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from workbench.data.check_rows import SplitOf
from workbench.data.findings import Findings
from workbench.data.formats import Texts
from workbench.types import SPLITS

MOST_WORDS: Final = 500_000  # different ones, of each split
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(kw_only=True)
class Vocabulary:
    """Words (runs of letters and digits, case ignored) of prompts and responses, by split.

    Args:
        split_of: Says where a row belongs.
    """

    split_of: SplitOf
    words: dict[str, Counter[str]] = field(default_factory=dict)
    beyond: int = 0

    def see(self, row: int, texts: Texts) -> None:
        found = self.words.setdefault(self.split_of(texts), Counter())
        for text in (texts.prompt, texts.chosen, texts.rejected):
            words = _WORD.findall((text or "").casefold())
            if len(found) < MOST_WORDS:
                found.update(words)
            else:  # memory is bounded: only known words are counted from here on
                known = [word for word in words if word in found]
                self.beyond += len(words) - len(known)
                found.update(known)

    def finish(self, findings: Findings) -> None:
        """Adds nothing."""

    def to_json(self) -> dict[str, Any]:
        """Sizes, the share of words that stand once, the most frequent ones, and each split's coverage by train."""
        every: Counter[str] = Counter()
        for found in self.words.values():
            every.update(found)
        train = self.words.get("train", Counter())
        coverage = {}
        for split in SPLITS:
            if split != "train" and train and (held := self.words.get(split)):
                seen = [word for word in held if word in train]
                coverage[split] = {
                    "different_words": len(held),
                    "different_in_train": len(seen) / len(held),
                    "words_in_train": sum(held[word] for word in seen) / held.total(),
                }
        return {
            "words": every.total(),
            "different_words": len(every),
            "once": sum(count == 1 for count in every.values()) / max(1, len(every)),
            "most_frequent": dict(every.most_common(20)),
            "coverage": coverage,
            "not_counted": self.beyond,
        }
