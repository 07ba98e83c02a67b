"""Checks of rows against a model: what the context leaves out, where ids differ from texts, the tokenizer's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.data.check_rows import add_rows
from workbench.data.findings import SHOWN, Findings
from workbench.data.formats import Texts
from workbench.data.packing import Limits
from workbench.tokens import encode_continuation, encode_prompt

_SAY = {
    "over_length_prompt": "the prompt has {prompt:,} tokens; at most {limits.max_prompt_tokens:,} are asked for",
    "prompt_leaves_no_room": "the prompt has {prompt:,} tokens; with {limits.max_response_tokens:,} for the response "
    "it is over the context of {limits.max_length:,}",
    "over_length_pair": "prompt and response have {longest:,} tokens; the context has {limits.max_length:,}",
    "empty_tokens": "no token is left of a text",
    "identical_tokens": "chosen and rejected are different texts of the same tokens",
    "boundary_merged": "a token spans the prompt and the response: the prompt's ids are not a prefix",
    "holds_stop_token": "a response holds a stop token before its end",
}


@dataclass(kw_only=True)
class ModelCheck:
    """What the filter of every arm would leave out, and the tokenizer's pad and end tokens.

    Args:
        tokenizer: The policy's; anything that `workbench.tokens` takes.
        limits: In tokens.
        stops: Ids that end a response; empty: the tokenizer names none and none were given.
    """

    tokenizer: Any
    limits: Limits
    stops: Sequence[int]
    _rows: dict[str, list[int]] = field(default_factory=dict)
    _told: dict[str, list[str]] = field(default_factory=dict)

    def see(self, row: int, texts: Texts) -> None:
        stops = self.stops or (-1,)
        prompt = encode_prompt(self.tokenizer, texts.prompt)
        problem = self.limits.prompt_problem(prompt)
        if problem is not None:
            self._note(row, "empty_tokens" if problem == "empty_prompt" else problem, len(prompt), 0)
            return
        if texts.chosen is None or texts.rejected is None or texts.chosen == texts.rejected:
            return
        both = [encode_continuation(self.tokenizer, texts.prompt, one, stops) for one in (texts.chosen, texts.rejected)]
        longest = len(prompt) + max(len(one.ids) for one in both)
        for code, holds in (
            ("boundary_merged", any(one.boundary_merged for one in both)),
            ("holds_stop_token", any(one.cut_at_stop for one in both)),
        ):
            if holds:
                self._note(row, code, len(prompt), longest)
        if any(one.empty for one in both):
            self._note(row, "empty_tokens", len(prompt), longest)
        elif both[0].ids == both[1].ids:
            self._note(row, "identical_tokens", len(prompt), longest)
        elif self.limits.max_length is not None and longest > self.limits.max_length:
            self._note(row, "over_length_pair", len(prompt), longest)

    def _note(self, row: int, code: str, prompt: int, longest: int) -> None:
        self._rows.setdefault(code, []).append(row)
        told = self._told.setdefault(code, [])
        if len(told) < SHOWN:
            told.append(_SAY[code].format(prompt=prompt, longest=longest, limits=self.limits))

    def finish(self, findings: Findings) -> None:
        pad = self.tokenizer.pad_token_id
        if not self.stops:
            findings.add("no_eos", None, "the tokenizer has no eos token, and no stop id was given")
        if pad is None:
            findings.add("no_pad", None, "the tokenizer has no pad token")
        elif pad in self.stops:
            findings.add("pad_is_stop", None, f"the pad token (id {pad}) is also a stop id {list(self.stops)}")
        for code, rows in self._rows.items():
            told = self._told[code]
            add_rows(findings, code, rows, lambda place, told=told: told[place])  # type: ignore[misc]
