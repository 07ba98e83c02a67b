"""What stages that look at policies share: decoding, progress, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import StageInterrupted
from workbench.sampling import Decoding
from workbench.stage_log import StageLog
from workbench.tokens import decode_response


def decoding_of(config: Mapping[str, Any]) -> Decoding:
    """How a stage draws."""
    return Decoding(
        temperature=config["temperature"],
        top_p=config["top_p"],
        max_response_tokens=config["max_response_tokens"],
        stop_ids=tuple(config["stop_ids"]),
    )


def splits_of(split: str | Sequence[str]) -> tuple[str, ...]:
    """One split or several."""
    return (split,) if isinstance(split, str) else tuple(split)


def texts_of(
    tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], stop_ids: Sequence[int]
) -> list[str]:
    """Responses as text."""
    return [
        decode_response(tokenizer, prompt, response, stop_ids)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def progress_of(log: StageLog, total: int, before: int = 0) -> Callable[[int], None]:
    """What a batched call tells after each batch; stops the stage when that is asked for."""

    def on_batch(done: int) -> None:
        log.progress(before + done, total)
        if log.stop_requested():
            raise StageInterrupted

    return on_batch


def digest_of(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def write_sorted(path: Path, value: Any) -> None:
    """Writes a JSON value in one line, keys sorted; NaN is refused."""
    path.write_text(json.dumps(value, indent=None, sort_keys=True, allow_nan=False), encoding="utf-8")
