"""Single numbers within the prose of a page, from results.json (`fill_docs.py` fills them in).

    <!-- COMPARISON = arms dpo-0.1 win_rate -->0.86 [0.84, 0.87]<!-- end -->

The words after `=` lead through results.json: a key, a place in a list, or `a=dpo,b=ppo` for the one entry of a list
that has these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.report.wording import interval, number, p_text

INLINE = re.compile(r"(<!-- ([\w.-]+) = ([^>]+?) -->).*?<!-- end -->", re.S)


def value(results: Any, path: str) -> str:
    """What a path leads to, as people read it: an estimate with its interval, a p-value, a number.

    Raises:
        KeyError: It leads nowhere, or to something that is no number: names the path.
    """
    found, words = results, path.split()
    for word in words:
        try:
            found = found[word] if isinstance(found, dict) else _entry(found, word)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise KeyError(f"{path}: nothing is at {word} ({error})") from error
    if isinstance(found, dict) and found.get("value") is not None:
        return interval(found)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise KeyError(f"{path}: no number, but {found!r:.80}")
    if words[-1].startswith("p_") or words[-1].endswith("_p"):
        return p_text(found)
    return str(found) if isinstance(found, int) else number(found)


def _entry(found: Sequence[Any], word: str) -> Any:
    if "=" not in word:
        return found[int(word)]
    wanted = dict(part.split("=", 1) for part in word.split(","))
    chosen = [one for one in found if all(str(one.get(key)) == text for key, text in wanted.items())]
    if len(chosen) != 1:
        raise ValueError(f"{len(chosen)} entries, not one")
    return chosen[0]
