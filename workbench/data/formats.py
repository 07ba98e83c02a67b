"""From one row of any known format to the exact texts that are tokenised: prompt, chosen, rejected.

standard                 {"prompt": text, "chosen": text, "rejected": text}
standard-implicit        {"chosen": text, "rejected": text}; both start with the prompt
conversational           the same with lists of {"role", "content"}; rendered by the tokenizer's chat template
conversational-implicit
prompt                   {"prompt": text} or a list of messages; no responses
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from workbench.data.annotation_details import annotation_of, is_finite
from workbench.types import SPLITS, Annotation, Split

Format = Literal["standard", "standard-implicit", "conversational", "conversational-implicit", "prompt"]
# A prompt that is not given ends after the last of these that both texts share ...
DIALOGUE_MARKS: Final = ("\n\nAssistant:", "<|im_start|>assistant\n", "<|assistant|>\n", "### Response:\n", "[/INST]")


class RowError(Exception):
    """One row cannot be used. `code` is a name in `findings.CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What one row says. A prompt-only row has None for both responses.

    `prompt_guessed`: nothing marks where the prompt ends; it is the whole words with which both responses begin.
    """

    format: Format
    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    annotations: tuple[Annotation, ...] = ()
    target_margin: float | None = None
    split: Split | None = None
    prompt_guessed: bool = False


def parse_pair(row: Mapping[str, Any], tokenizer: Any = None) -> Texts:
    """Reads a preference row.

    Args:
        row: The row as its source gave it.
        tokenizer: Renders conversations; needed for conversational rows only.

    Raises:
        RowError: What is wrong with the row.
    """
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise RowError("missing_column", _missing(missing, row))
    values = {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
    if isinstance(values["chosen"], list) or isinstance(values["rejected"], list):
        _drop_repeated_prompt(values)
        for name, value in values.items():
            _check_messages(name, value)
        texts = _render_pair(values, tokenizer)
    else:
        for name, value in values.items():
            _check_text(name, value)
        texts = _standard(values)
    return Texts(**texts, annotations=_annotations(row), target_margin=_margin(row), split=_split(row))


def parse_prompt(row: Mapping[str, Any], tokenizer: Any = None) -> Texts:
    """Reads a row that holds a prompt alone.

    Raises:
        RowError: What is wrong with the row.
    """
    if "prompt" not in row:
        raise RowError("missing_column", _missing(["prompt"], row))
    if isinstance(row["prompt"], list):
        _check_messages("prompt", row["prompt"])
        _check_turns(row["prompt"], None)
        return Texts(format="prompt", prompt=_render(tokenizer, row["prompt"], prompt=True), split=_split(row))
    _check_text("prompt", row["prompt"])
    return Texts(format="prompt", prompt=row["prompt"], split=_split(row))


def _missing(missing: Sequence[str], row: Mapping[str, Any]) -> str:
    found = ", ".join(repr(str(key)[:40]) for key in list(row)[:12]) or "none"
    expected = "'prompt'" if missing == ["prompt"] else "'chosen' and 'rejected' (with 'prompt', or starting with it)"
    return f"no column {' and '.join(map(repr, missing))}; expected {expected}, found {found}"


def _kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {_kind(value)}; expected text")
    check_characters(name, value)
    if not value.strip():
        raise RowError("empty_text", f"{name} is {'empty' if not value else 'only whitespace'}")


def check_plain(name: str, value: object) -> None:
    """Refuses what cannot be a text or messages, in rows that wait for others before they are read whole.

    Raises:
        RowError: `wrong_type`: JSON has no form for it (a parquet file may hold bytes or dates); `bad_unicode`, `nul`.
    """
    if isinstance(value, str):
        check_characters(name, value)
        return
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} is {_kind(value)} that JSON has no form for ({str(error)[:60]}); expected text or messages"
        raise RowError("wrong_type", message) from None


def check_characters(name: str, value: str) -> None:
    """Refuses a text that cannot be written as UTF-8, or holds a NUL.

    Raises:
        RowError: `bad_unicode` or `nul`.
    """
    if (at := value.find("\0")) >= 0:
        raise RowError("nul", f"{name} has a NUL at character {at}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("bad_unicode", f"{name} has a lone surrogate at character {error.start}") from None


def _check_messages(name: str, value: object) -> None:
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {_kind(value)}; expected a list of messages, as in the other columns")
    if not value:
        raise RowError("empty_text", f"{name} is an empty list")
    for index, message in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise RowError("wrong_type", f"{place} is not an object with 'role' and 'content'")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise RowError(
                "wrong_type", f"{place}: role and content must be text, content is {_kind(message['content'])}"
            )
        for key, text in message.items():  # templates may print any of them
            if isinstance(text, str):
                check_characters(place if key == "content" else f"{place}: {key[:40]!r}", text)
    if not any(message["content"].strip() for message in value):
        raise RowError("empty_text", f"{name} has no content")


def _standard(values: Mapping[str, str]) -> dict[str, Any]:
    if "prompt" in values:
        return {"format": "standard", **values}
    chosen, rejected = values["chosen"], values["rejected"]
    prompt = implicit_prompt(chosen, rejected)
    if not prompt.strip():
        raise RowError("no_common_prompt", "there is no 'prompt' column, and chosen and rejected share no beginning")
    texts = {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    for name in ("chosen", "rejected"):
        if not texts[name].strip():
            raise RowError("empty_text", f"{name} has nothing after the prompt that both texts share")
    return {"format": "standard-implicit", "prompt_guessed": not prompt.endswith(DIALOGUE_MARKS), **texts}


def implicit_prompt(chosen: str, rejected: str) -> str:
    """The prompt that two texts share: their common beginning, cut at a sensible place.

    Up to and including the last dialogue mark that both share ("\\n\\nAssistant:" of hh-rlhf); without one, before the
    last whitespace of the common beginning, so that no word is cut. The responses keep their leading space.
    """
    length = next((at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    common = chosen[: min(len(chosen), len(rejected)) if length is None else length]
    ends = [at + len(mark) for mark in DIALOGUE_MARKS if (at := common.rfind(mark)) >= 0]
    if ends:
        return common[: max(ends)]
    cut = max((at for at, character in enumerate(common) if character.isspace()), default=0)
    return common[:cut].rstrip()


def _render_pair(values: Mapping[str, list[dict[str, str]]], tokenizer: Any) -> dict[str, Any]:
    chosen, rejected = values["chosen"], values["rejected"]
    if "prompt" in values:
        prompt, name = values["prompt"], "conversational"
    else:
        length = 0
        while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
            length += 1
        if length and length == len(chosen) == len(rejected):
            length -= 1  # equal conversations: the last message is the response, and the pair is reported as identical
        prompt, chosen, rejected, name = chosen[:length], chosen[length:], rejected[length:], "conversational-implicit"
        if not prompt:
            raise RowError(
                "no_common_prompt", "there is no 'prompt' column, and the conversations share no first message"
            )
    texts = {"prompt": _render(tokenizer, prompt, prompt=True)}
    for role, response in (("chosen", chosen), ("rejected", rejected)):
        _check_turns(prompt, response)
        if not response[0]["content"].strip():
            raise RowError("empty_text", f"{role} is empty")
        whole = _render(tokenizer, [*prompt, *response], prompt=False)
        if not whole.startswith(texts["prompt"]):
            raise RowError(
                "template_broken",
                f"the rendered prompt {texts['prompt'][-60:]!r} is not a prefix of the rendered conversation "
                f"{whole[: len(texts['prompt']) + 20][-60:]!r}",
            )
        texts[role] = whole[len(texts["prompt"]) :]
    return {"format": name, **texts}


def _drop_repeated_prompt(values: dict[str, Any]) -> None:
    """Some published sets give the first user message as text beside conversations that contain it."""
    prompt = values.get("prompt")
    both = [values[name] for name in ("chosen", "rejected")]
    if isinstance(prompt, str) and all(
        isinstance(one, list) and one and isinstance(one[0], dict) and one[0].get("content") == prompt for one in both
    ):
        del values["prompt"]


def _check_turns(prompt: Sequence[Mapping[str, str]], response: Sequence[Mapping[str, str]] | None) -> None:
    if prompt[-1]["role"] == "assistant":
        raise RowError("bad_conversation", "the prompt ends with an assistant message; expected a user's")
    if response is not None and (not response or response[0]["role"] != "assistant"):
        found = repr(response[0]["role"][:40]) if response else "no message"
        raise RowError("bad_conversation", f"a response starts with {found}; expected an assistant message")


def _render(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool) -> str:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        what = "no tokenizer was given" if tokenizer is None else "the tokenizer has no chat template"
        raise RowError("no_chat_template", f"the row is a conversation, but {what}")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # templates are programs: they raise what they like
        raise RowError(
            "template_broken", f"the chat template failed: {type(error).__name__}: {str(error)[:120]}"
        ) from error


def _annotations(row: Mapping[str, Any]) -> tuple[Annotation, ...]:
    value = row.get("annotations")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError("bad_annotations", f"annotations is {_kind(value)}; expected a list")
    annotations = []
    for index, one in enumerate(value):
        good = isinstance(one, dict) and isinstance(one.get("annotator"), str)
        if not good or not isinstance(one.get("prefers_first"), bool):
            raise RowError(
                "bad_annotations", f"annotations[{index}] is not {{annotator: text, prefers_first: true|false}}"
            )
        check_characters(f"annotations[{index}]: annotator", one["annotator"])
        if not one["annotator"].strip():
            raise RowError("bad_annotations", f"annotations[{index}]: annotator is blank; expected a name")
        try:
            annotations.append(annotation_of(one))
        except ValueError as error:
            raise RowError("bad_annotations", f"annotations[{index}]: {error}") from None
    return tuple(annotations)


def _margin(row: Mapping[str, Any]) -> float | None:
    value = row.get("target_margin")
    if value is None:
        return None
    if not is_finite(value):
        raise RowError("bad_margin", f"target_margin is {str(value)[:40]!r}; expected a finite number")
    return float(value)


def _split(row: Mapping[str, Any]) -> Split | None:
    value = row.get("split")
    if value is None:
        return None
    for split in SPLITS:
        if split == value:
            return split
    raise RowError("bad_split", f"split is {str(value)[:40]!r}; expected one of {', '.join(SPLITS)}")
