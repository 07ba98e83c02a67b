"""Messages read back out of a prompt's text, so that another model's chat template can write them its own way.

Three kinds of prompts: rendered by the tokenizer's own template, a dialogue of "\\n\\nHuman:" and "\\n\\nAssistant:" as
in hh-rlhf, and plain text, which is one message of the user. What was read is rendered again and must be the same text.
"""

from __future__ import annotations

import re
from typing import Any, Final

from workbench.errors import DataError

Messages = list[dict[str, str]]
_ASKED, _ANSWERED, _ASKED_AGAIN, _SYSTEM = (f"@@{name}@@" for name in ("one", "two", "three", "rules"))
_DIALOGUE: Final = re.compile(r"\n\n(Human|Assistant):")


class Conversations:
    """Reads prompts that one tokenizer's template wrote.

    Args:
        tokenizer: The policy's; without a chat template prompts are dialogues or plain text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.frames: list[tuple[str, str, str, str, str]] = []  # head, system's end, mids, tail
        if getattr(tokenizer, "chat_template", None):
            self._learn()

    def _render(self, messages: Messages) -> str:
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(self.tokenizer.bos_token or "")

    def _learn(self) -> None:
        """What the template writes around messages, from renderings of words that occur nowhere else."""
        asked = {"role": "user", "content": _ASKED}
        more = [
            asked,
            {"role": "assistant", "content": _ANSWERED},
            {"role": "user", "content": _ASKED_AGAIN},
        ]
        try:
            head, tail = self._render([asked]).split(_ASKED)
        except Exception:  # a template may raise whatever it likes
            return
        answer, again = tail + "@", "@"  # of a template that takes one message alone: never found
        try:
            _, rest = self._render(more).split(_ASKED)
            answer, rest = rest.split(_ANSWERED)
            again = rest.split(_ASKED_AGAIN)[0]
        except Exception:
            pass
        self.frames.append((head, "", answer, again, tail))
        try:
            start, rest = self._render([{"role": "system", "content": _SYSTEM}, asked]).split(_SYSTEM)
            self.frames.append((start, rest.split(_ASKED)[0], answer, again, tail))
        except Exception:
            pass

    def messages(self, prompt: str) -> Messages:
        """The messages of a prompt, the last one the user's.

        Raises:
            DataError: It is not what the template writes, so its messages cannot be told.
        """
        if not self.frames:
            return _dialogue(prompt) or [{"role": "user", "content": prompt.strip()}]
        for frame in self.frames:
            found = _within(prompt, frame)
            try:
                if found and self._render(found) == prompt:
                    return found
            except Exception:
                continue
        raise DataError(
            f"the prompt {prompt[:80]!r} cannot be read back as messages of the policy's chat template, so another "
            "model's template cannot write it; use template: text, or a reward model of the policy's own tokenizer"
        )


def _within(prompt: str, frame: tuple[str, str, str, str, str]) -> Messages | None:
    head, system, answer, again, tail = frame
    if not prompt.startswith(head) or not prompt.endswith(tail) or len(prompt) < len(head) + len(tail):
        return None
    body = prompt[len(head) : len(prompt) - len(tail)]
    found: Messages = []
    if system:
        rules, mark, body = body.partition(system)
        if not mark:
            return None
        found.append({"role": "system", "content": rules})
    while True:
        asked, mark, rest = body.partition(answer)
        found.append({"role": "user", "content": asked})
        if not mark:
            return found
        answered, mark, body = rest.partition(again)
        if not mark:
            return None
        found.append({"role": "assistant", "content": answered})


def _dialogue(prompt: str) -> Messages | None:
    """Messages of a text of "\\n\\nHuman: ... \\n\\nAssistant:"; None if it is none."""
    start, *parts = _DIALOGUE.split(prompt)
    speakers, texts = parts[0::2], parts[1::2]
    if start.strip() or len(texts) < 2 or speakers[-1] != "Assistant" or texts[-1].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()} for who, text in zip(speakers[:-1], texts[:-1], strict=True)]
