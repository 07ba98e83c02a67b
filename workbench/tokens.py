"""Tokenisation, the same for every arm: prompt and response ids, stop ids, and what a tokenizer must fulfil.

One rule for all: prompt and response are tokenised together and cut where the prompt's own ids end, so that a
trainer sees the ids that a policy continues. Where the joint tokenisation does not start with the prompt's ids (a
token spans the boundary), the response is tokenised alone and the row is counted as `boundary_merged`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from workbench.errors import ConfigError, DataError
from workbench.packed import PackedPairs, read_packed_prompts, row_hash, rows_digest

__all__ = [
    "Continuation",
    "PackedPairs",
    "check_tokenizer",
    "continuation",
    "decode_response",
    "encode_continuation",
    "encode_prompt",
    "encode_response",
    "encode_text",
    "encode_texts",
    "load_tokenizer",
    "prompt_ids",
    "read_packed_prompts",
    "read_stop_ids",
    "row_hash",
    "rows_digest",
    "stop_ids",
    "tokenizer_digest",
    "vocabulary_digest",
]


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Loads a tokenizer from a folder, with transformers' AutoTokenizer. Never from the network.

    Raises:
        ConfigError: There is no folder, or no tokenizer in it.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise ConfigError("no such folder; expected one with a tokenizer (tokenizer.json)", where=str(folder))
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigError(
            f"cannot load a tokenizer: {detail}; expected a folder written by save_pretrained", where=str(folder)
        ) from error


def vocabulary_digest(tokenizer: Any) -> str:
    """sha256 of what turns text into ids: equal for two tokenizers that read alike, whatever their chat templates."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_digest(folder: Path, *, trust_remote_code: bool = False) -> str:
    """sha256 of what a tokenizer does: model, special ids, chat template. Saving it again does not change it."""
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None}  # switched on and off by whoever used it last
    names = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "chat_template")
    facts = {name: getattr(tokenizer, name, None) for name in names}
    text = json.dumps({"state": state, "facts": facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stop_ids(tokenizer: Any, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a response: the config's `stop_ids` or `stop_token_ids`, else the tokenizer's eos.

    The first one is appended to responses that finished.

    Raises:
        ConfigError: An id is not in the vocabulary; the list is empty.
        DataError: Neither the config nor the tokenizer names one.
    """
    given = config.get("stop_ids") or config.get("stop_token_ids")
    if given is None or len(given) == 0:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no eos token and model.stop_token_ids is null, so nothing says where a response "
                "ends; name the ids that end one in model.stop_token_ids"
            )
        return (int(tokenizer.eos_token_id),)
    ids = tuple(dict.fromkeys(given))
    wrong = [one for one in ids if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < len(tokenizer)]
    if wrong:
        raise ConfigError(f"model.stop_token_ids has {wrong}; expected ids from 0 to {len(tokenizer) - 1}")
    return ids


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """The eos id of a tokenizer folder, read from its JSON files alone: for callers that must not import torch.

    Raises:
        DataError: The files do not say.
    """

    def read(name: str) -> dict[str, Any]:
        path = Path(folder) / name
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return value if isinstance(value, dict) else {}

    eos = read("tokenizer_config.json").get("eos_token") or read("special_tokens_map.json").get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    tokenizer = read("tokenizer.json")
    if isinstance(eos, str):
        for token in tokenizer.get("added_tokens", []):
            if token.get("content") == eos:
                return (int(token["id"]),)
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, dict) and eos in vocabulary:
            return (int(vocabulary[eos]),)
    raise DataError(
        "cannot tell the eos id from tokenizer_config.json and tokenizer.json; name it in model.stop_token_ids",
        where=str(folder),
    )


def check_tokenizer(tokenizer: Any, stops: Sequence[int]) -> None:
    """Refuses a tokenizer whose padding cannot be told from the end of a response.

    Raises:
        DataError: There is no pad token, or it is one of the stop ids.
    """
    pad = tokenizer.pad_token_id
    advice = (
        "set pad_token in the tokenizer_config.json of a copy of the model to a token that responses never hold (a "
        "reserved or unused one, or unk), or add one"
    )
    if pad is None:
        raise DataError(f"the tokenizer has no pad token (eos is id {tokenizer.eos_token_id}); {advice}")
    if pad in stops:
        raise DataError(
            f"the pad token {tokenizer.pad_token!r} (id {pad}) is also a stop id {list(stops)}. Masking the padding "
            "would mask the end of every response, which the policy then never learns; expected two different ids: "
            f"{advice}"
        )


_PREFIXES: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, nothing added."""
    # verbose=False: texts over the limit are counted by the filter, not warned of one by one.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _special_prefix(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer itself puts before a text (usually one BOS, or none)."""
    if tokenizer not in _PREFIXES:
        bare, full = encode_text(tokenizer, "a"), list(tokenizer.encode("a"))
        starts = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
        _PREFIXES[tokenizer] = full[: starts[0]] if starts and bare else []
    return _PREFIXES[tokenizer]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt. BOS stands before it exactly if the tokenizer adds one, and never twice.

    A prompt whose text starts with BOS already (chat templates write it) gets no second one; nothing that a
    tokenizer puts at the end of a text (eos) is kept, because the response follows.
    """
    return prompt_ids(tokenizer, encode_text(tokenizer, prompt))


def prompt_ids(tokenizer: Any, ids: list[int]) -> list[int]:
    """`encode_prompt` of a text whose own ids are known."""
    prefix = _special_prefix(tokenizer)
    return ids if prefix and ids[: len(prefix)] == prefix else [*prefix, *ids]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts in one call, nothing added: a fast tokenizer works on all cores."""
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    found: list[list[int]] = tokenizer(list(texts), verbose=False, **options)["input_ids"] if texts else []
    return found


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Ids of a response after its prompt.

    Args:
        ids: (R,) ids; they end with a stop id if the response finished.
        empty: There was no id before the stop id.
        boundary_merged: A token spans prompt and response, so the response was tokenised alone.
        cut_at_stop: The text itself holds a stop token; what follows it is cut, as in sampling.
    """

    ids: list[int]
    empty: bool
    boundary_merged: bool
    cut_at_stop: bool


def encode_continuation(
    tokenizer: Any, prompt: str, response: str, stops: Sequence[int], *, finished: bool = True
) -> Continuation:
    """Tokenises a response as the continuation of its prompt. See the module's rule.

    Args:
        tokenizer: Any transformers tokenizer.
        prompt, response: Exact texts; their concatenation is what is read.
        stops: Stop ids; the first one is appended where the response finished without one.
        finished: False for a response that was cut at the length limit: nothing is appended.
    """
    before, joint = encode_text(tokenizer, prompt), encode_text(tokenizer, prompt + response)
    return continuation(before, joint, lambda: encode_text(tokenizer, response), stops, finished=finished)


def continuation(
    before: list[int], joint: list[int], alone: Callable[[], list[int]], stops: Sequence[int], *, finished: bool
) -> Continuation:
    """`encode_continuation` of texts whose ids are known.

    Args:
        before: Ids of the prompt's text.
        joint: Ids of prompt and response as one text.
        alone: Gives the ids of the response's text; asked only where a token spans the boundary.
        stops, finished: As there.
    """
    merged = joint[: len(before)] != before
    ids = alone() if merged else joint[len(before) :]
    at = min((ids.index(one) for one in stops if one in ids), default=None)
    if at is not None:
        longer = at + 1 < len(ids)
        return Continuation(ids=ids[: at + 1], empty=at == 0, boundary_merged=merged, cut_at_stop=longer)
    end = [stops[0]] if finished else []
    return Continuation(ids=ids + end, empty=not ids, boundary_merged=merged, cut_at_stop=False)


def encode_response(
    tokenizer: Any, prompt: str, response: str, *, stop_ids: Sequence[int], finished: bool = True
) -> list[int]:
    """The ids of `encode_continuation` alone."""
    return encode_continuation(tokenizer, prompt, response, stop_ids, finished=finished).ids


def decode_response(
    tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int], stops: Sequence[int]
) -> str:
    """The text that follows a prompt's text, so that prompt + response reads as it was sampled.

    Decoding a response alone drops its leading space with SentencePiece-like tokenizers ("In the park" + "she went").
    Word-level tokenizers join by spaces and have no leading one: there the response alone is decoded.

    Args:
        prompt_ids: (P,) ids of the prompt.
        response_ids: (R,) ids of the response; the stop id at its end is no text.
        stops: Stop ids.
    """
    ids = list(response_ids)
    if ids and ids[-1] in stops:
        ids = ids[:-1]
    alone = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if _decodes_by_spaces(tokenizer):
        return alone
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    prompt = str(tokenizer.decode(list(prompt_ids), **options))
    whole = str(tokenizer.decode([*prompt_ids, *ids], **options))
    return whole[len(prompt) :] if whole.startswith(prompt) else alone


def _decodes_by_spaces(tokenizer: Any) -> bool:
    """A fast tokenizer without a decoder joins tokens with single spaces; they stand for nothing in the ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and backend.decoder is None
