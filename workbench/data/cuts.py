"""Where a text may be cut so that its parts, tokenized apart, give the ids of the whole: a prompt is read once then.

Byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM) split a text by a regular expression before anything is merged.
Between a letter and a space with a letter behind it there is always such a split: no alternative of these expressions
takes a letter and then a space, none looks back, and ahead they look for the end of white space alone. So what stands
behind the cut does not change the ids before it, whatever it is. Other tokenizers are not cut.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from typing import Any, Final

_LETTERS: Final = frozenset(string.ascii_letters)
_TRIED: Final = 50  # spaces looked at from the end
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST  # Qwen 2 and 2.5
PATTERNS: Final = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,  # Llama 3
        QWEN,
    }
)


def cutter(tokenizer: Any) -> Callable[[str], int]:
    """A function that gives the last place where a text may be cut, 0 where it may not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return last_cut if backend is not None and cuttable(json.loads(backend.to_str())) else lambda text: 0


def last_cut(text: str) -> int:
    """The last place with an ASCII letter before it, a space and an ASCII letter behind; 0: none near the end."""
    at = len(text) - 1
    for _ in range(_TRIED):
        at = text.rfind(" ", 0, at)
        if at <= 0:
            return 0
        if text[at - 1] in _LETTERS and text[at + 1] in _LETTERS:
            return at
    return 0


def cuttable(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as tokenizer.json describes it, splits at every such place."""
    model, normalizer = state["model"], state.get("normalizer")
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer["type"] == "NFC")
        and _splits(state.get("pre_tokenizer"))
        and all(_apart(one["content"]) for one in state.get("added_tokens", ()))
    )


def _splits(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False  # behind a ByteLevel a space is a letter
    by_pattern = bool(steps[-1].get("use_regex", True))
    for step in steps[:-1]:
        if step["type"] == "Split":
            # An unknown expression may look across the place, before a known one too.
            if step["pattern"].get("Regex") not in PATTERNS or step["behavior"] != "Isolated" or step["invert"]:
                return False
            by_pattern = True
        elif step["type"] != "Digits":  # splits at digits, whatever stands beside them
            return False
    return by_pattern


def _apart(token: str) -> bool:
    """A token of its own, found in the text before it is split, that cannot touch such a place."""
    return not any(one.isspace() for one in token) and not {token[0], token[-1]} & _LETTERS
