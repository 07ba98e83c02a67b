"""How a reward model of another tokenizer reads what a policy wrote: ids to text to its own ids, one way for all.

    reader.json beside the model: {"policy": folder of the policy's tokenizer, "stop_ids", "template", "context"}

`models.load_reward_model` puts a reader on such a model, `scoring.last_token_scores` asks it: so PPO, best-of-n,
evaluation and every table read the same tokens. Template `text`: prompt and response as one text; `chat`: the prompt's
messages and the response through the reward model's own chat template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from workbench.batching import Batch, make_batch
from workbench.conversation import Conversations
from workbench.errors import DataError
from workbench.tokens import _special_prefix, decode_response, encode_prompt, encode_response, load_tokenizer

READER_FILE: Final = "reader.json"
POLICY_FOLDER: Final = "policy_tokenizer"


class Reader:
    """Re-tokenises a policy's ids for one reward model.

    Args:
        folder: The reward model's, with its tokenizer and reader.json.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        spec = json.loads((folder / READER_FILE).read_text(encoding="utf-8"))
        self.own = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.policy = load_tokenizer(folder / spec["policy"])
        self.stops: list[int] = spec["stop_ids"]
        self.template: str = spec["template"]
        self.context: int | None = spec["context"]
        self.conversations = Conversations(self.policy)
        self.ends = [self.own.eos_token_id] if self.own.eos_token_id is not None else []

    def texts(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> tuple[str, str, bool]:
        """Text of prompt and response, and whether the response ended by itself."""
        prefix = _special_prefix(self.policy)
        ids = list(prompt_ids)
        ids = ids[len(prefix) :] if prefix and ids[: len(prefix)] == prefix else ids
        prompt = str(self.policy.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        response = decode_response(self.policy, prompt_ids, response_ids, self.stops)
        return prompt, response, bool(response_ids) and response_ids[-1] in self.stops

    def ids(self, prompt: str, response: str, finished: bool) -> list[int]:
        """The reward model's ids of a prompt with its response.

        Raises:
            DataError: They are more than it reads; the prompt is no conversation that can be told.
        """
        if self.template == "chat":
            messages = [*self.conversations.messages(prompt), {"role": "assistant", "content": response.strip()}]
            found = self.own.apply_chat_template(messages, tokenize=True, return_dict=False)
        else:
            found = encode_prompt(self.own, prompt)
            if self.ends:
                found = found + encode_response(self.own, prompt, response, stop_ids=self.ends, finished=finished)
            else:
                found = found + encode_response(self.own, prompt, response, stop_ids=[-1], finished=False)
        if self.context is not None and len(found) > self.context:
            raise DataError(
                f"the reward model reads {self.context} tokens, but a prompt with its response has {len(found)} of "
                "them; lower evaluation.max_response_tokens or model.max_prompt_tokens, or take one with a longer "
                "context"
            )
        return [int(one) for one in found]

    def batch(self, batch: Batch) -> Batch:
        """The same rows in the reward model's ids. What is prompt and what response is not told apart any more."""
        rows = []
        for ids, prompt, response in zip(
            batch.input_ids.tolist(), batch.prompt_sizes.tolist(), batch.response_sizes.tolist(), strict=True
        ):
            rows.append(self.ids(*self.texts(ids[:prompt], ids[prompt : prompt + response])))
        return make_batch([row[:1] for row in rows], [row[1:] for row in rows], 0, batch.device)


def write_reader(folder: Path, policy: Any, stops: Sequence[int], template: str, context: int | None) -> None:
    """Puts reader.json and the policy's tokenizer beside a reward model."""
    policy.save_pretrained(folder / POLICY_FOLDER)
    told = {"policy": POLICY_FOLDER, "stop_ids": list(stops), "template": template, "context": context}
    (folder / READER_FILE).write_text(json.dumps(told, sort_keys=True), encoding="utf-8")


def copy_reader(source: Path, target: Path) -> None:
    """The same from where it was made first."""
    shutil.copytree(source / POLICY_FOLDER, target / POLICY_FOLDER, dirs_exist_ok=True)
    shutil.copyfile(source / READER_FILE, target / READER_FILE)


def check_reading(reader: Reader, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Any]:
    """Whether what the policy writes can be read by the reward model at all.

    Args:
        rows: (prompt ids, response ids) of the data, in the policy's ids.

    Returns:
        {"rows", "changed": rows whose ids differ after decoding and encoding, "unknown": share of unknown tokens,
        "longest": tokens, "growth": largest number of its tokens for one of the policy's}.

    Raises:
        DataError: Text is lost on the way (over 1% of the rows), or over 1% of the tokens are unknown to it.
    """
    unknown_id, policy_unknown = reader.own.unk_token_id, reader.policy.unk_token_id
    changed: list[int] = []
    tokens = unknown = longest = 0
    growth = 0.0
    for number, (prompt_ids, response_ids) in enumerate(rows):
        prompt, response, finished = reader.texts(prompt_ids, response_ids)
        again = encode_response(reader.policy, prompt, response, stop_ids=reader.stops, finished=finished)
        lost = policy_unknown is not None and policy_unknown in response_ids
        if lost or again != list(response_ids) or encode_prompt(reader.policy, prompt) != list(prompt_ids):
            changed.append(number)
        ids = reader.ids(prompt, response, finished)
        tokens, longest = tokens + len(ids), max(longest, len(ids))
        growth = max(growth, len(ids) / (len(prompt_ids) + len(response_ids)))
        unknown += sum(one == unknown_id for one in ids) if unknown_id is not None else 0
    if len(changed) > 0.01 * len(rows):
        prompt, response, _ = reader.texts(*rows[changed[0]])
        raise DataError(
            f"{len(changed)} of {len(rows)} texts do not survive decoding by the policy's tokenizer, first "
            f"{(prompt + response)[:80]!r}: a reward model of another tokenizer would read something else than was "
            "written; use one with the policy's tokenizer"
        )
    if unknown > 0.01 * tokens:
        raise DataError(
            f"{unknown} of {tokens} tokens are unknown to the reward model's tokenizer: it cannot read these texts"
        )
    return {
        "rows": len(rows), "changed": len(changed), "unknown": unknown / max(tokens, 1), "longest": longest,
        "growth": growth,
    }  # fmt: skip
