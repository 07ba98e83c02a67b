"""The parts of a cut text give the ids of the whole, whatever follows; what is not known to do so is not cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from workbench.data.cuts import PATTERNS, QWEN, cuttable, cutter, last_cut

PIECES = [
    "the", "a", "It", "it's", "we'LL", "I", "42", "1234567", "x1", "...", "?", "!\n", "\n\n", "Assistant:", "  ", "\t",
    "é", "e\u0301", "日本", "<|im_end|>", "'", "-", "don't", "naïve", "Ünder", " ", "\u00a0", "🙂", "\r\n", "end",
]  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    """Random texts of words, numbers, marks, white space and special tokens, joined by a space or by nothing."""
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PIECES) + rng.choice(("", " ", " ")) for _ in range(rng.randint(0, 14)))
        for _ in range(count)
    ]


def byte_level(pattern: str | None, *, nfc: bool = False, digits: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(400, 1), trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>")])
    return tokenizer


class Fast:
    """What of a transformers tokenizer is read."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


def state(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@pytest.mark.parametrize("pattern", [None, *sorted(PATTERNS)])
def test_the_parts_give_the_ids_of_the_whole(pattern: str | None) -> None:
    tokenizer = byte_level(pattern, nfc=pattern is not None, digits=pattern is None)
    cut, cuts = cutter(Fast(tokenizer)), 0
    for prompt, response in zip(texts(1500, 2), texts(1500, 3), strict=True):
        at = cut(prompt)
        cuts += at > 0
        for text in (prompt, prompt + response):
            apart = tokenizer.encode(text[:at]).ids + tokenizer.encode(text[at:]).ids
            assert apart == tokenizer.encode(text).ids, (text, at)
    assert cuts > 300


def test_the_last_place_between_letters_is_taken() -> None:
    assert last_cut("Human: is it so?\n\nAssistant:") == len("Human: is it")
    assert [last_cut(text) for text in ("", " ", " a", "a ", "a b", "a  b", "a 1 . b")] == [0, 0, 0, 0, 1, 0, 0]
    assert last_cut("a b" + " ." * 60) == 0, "far from the end the prompt is short of nothing"


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


KNOWN, PAIRS_OF_WORDS = split(QWEN), split(r"\w+ \w+")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def changed(**changes: Any) -> dict[str, Any]:
    return state(byte_level(None)) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [PAIRS_OF_WORDS, KNOWN, BYTES]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, KNOWN, BYTES]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [KNOWN]}},
        {"normalizer": {"type": "Lowercase"}},
        {"added_tokens": [{"content": "New York"}]},
        {"added_tokens": [{"content": "end"}]},
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
    ],
)
def test_what_is_not_known_to_split_there_is_not_cut(changes: dict[str, Any]) -> None:
    assert cuttable(changed())
    assert cuttable(changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [KNOWN, BYTES]}))
    assert not cuttable(changed(**changes))


def test_an_unknown_expression_and_slow_tokenizers_are_not_cut() -> None:
    assert not cuttable(state(byte_level(r"\w+ \w+|\s+|.")))
    assert cutter(object())("a b c") == 0
