"""Keeps secrets out of what is written down: config dumps, MLflow parameters, spool files, warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# The last part of the key decides: `stop_token_ids` and `pad_token` are no secrets, `hub_token` is one.
_SECRET_KEY = re.compile(
    r"(^|[^a-z0-9])(passwords?|passwd|pwd|secrets?|token|api_?keys?|access_?keys?|private_?keys?|"
    r"credentials?|authorization|cookies?)$"
)
_VOCABULARY_TOKEN = re.compile(r"(^|_)(pad|eos|bos|unk|sep|cls|mask|stop|special)_token$")
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_ASSIGNED = re.compile(
    r"(?i)\b((?:[a-z0-9]+[_-])*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|signature|sig)"
    r"\s*=\s*)[^&\s'\",;)]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}")
_KNOWN_FORMS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"
)


def redact_text(text: str) -> str:
    """Text with URI credentials, `token=...` assignments, bearer headers and well-known key forms replaced by ***."""
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _ASSIGNED.sub(lambda found: found.group(1) + HIDDEN, text)
    text = _BEARER.sub(lambda found: f"{found.group(1)} {HIDDEN}", text)
    return _KNOWN_FORMS.sub(HIDDEN, text)


def is_secret_key(key: str) -> bool:
    """True when a field of this name holds a secret by its name (`hub_token`, `password`)."""
    lowered = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return bool(_SECRET_KEY.search(lowered)) and not _VOCABULARY_TOKEN.search(lowered)


def redact(value: Any) -> Any:
    """A JSON-like value with the secrets in it replaced; everything else is returned as it was."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and is_secret_key(key) and isinstance(item, str | list | tuple | Mapping)
            else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value
