"""Scripts for `judging_server.serving` that speak vLLM's completions protocol, token ids in and out."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from tests.ml_helpers import PAD, policy_of
from tests.workbench.judging_server import Answer, Asked
from workbench.sampling import Decoding, sample


def completion(ids: list[int] | None, finish: str, prompt: list[int] | None = None, **choice: Any) -> Answer:
    """A completion of one choice."""
    found = {"index": 0, "text": "", "token_ids": ids, "prompt_token_ids": prompt, "finish_reason": finish} | choice
    return Answer(raw=json.dumps({"model": "m", "choices": [found], "usage": {"completion_tokens": 3}}).encode())


class Policies:
    """Draws from the model in the folder that a request names.

    Args:
        known: Folders that are loaded now: beside a thread that loads models too, a server's must not.
        folder: Drawn from whatever is named.
        changes: To each request: the server's mistakes.
    """

    def __init__(self, *known: Path, folder: Path | None = None, **changes: Any) -> None:
        self._models = {str(one): policy_of(one) for one in known}
        self._folder, self._changes, self._lock = folder, changes, threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        body = {**asked.body, **self._changes}
        folder = str(self._folder or body["model"])
        decoding = Decoding(
            temperature=body["temperature"], top_p=body["top_p"], max_response_tokens=body["max_tokens"],
            stop_ids=tuple(body["stop_token_ids"]),
        )  # fmt: skip
        with self._lock:
            if folder not in self._models:
                self._models[folder] = policy_of(Path(folder))
            (one,) = sample(self._models[folder], [body["prompt"]], decoding, pad_id=PAD, seed=body["seed"])
        return completion(one.ids, one.finish_reason, body["prompt"])
