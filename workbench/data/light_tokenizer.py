"""A fast tokenizer read from its JSON files, without transformers: importing it would load torch.

It has what `workbench.tokens` and the readers of rows use, and gives the same ids and texts as transformers does (a
test compares them). Chat templates run in a sandbox, as they do there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError


class LightTokenizer:
    """Tokenizer of a model folder.

    Args:
        folder: Holds tokenizer.json; tokenizer_config.json and chat_template.jinja are optional.

    Raises:
        ConfigError: There is no such folder, no tokenizer.json, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                "no tokenizer.json; expected a model folder with a fast tokenizer (load and save it with transformers "
                "to get one)",
                where=str(folder),
            )
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise ConfigError(f"cannot be read: {str(error)[:200]}", where=str(path)) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._folder = Path(folder)
        self._config = {
            **_read(self._folder / "special_tokens_map.json"),
            **_read(self._folder / "tokenizer_config.json"),
        }
        self.model_max_length = self._config.get("model_max_length")

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def special(self, name: str) -> str | None:
        """Text of a special token such as "pad_token", or None."""
        value = self._config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        return value if isinstance(value, str) else None

    def _id(self, name: str) -> int | None:
        text = self.special(name)
        return None if text is None else self._tokenizer.token_to_id(text)

    @property
    def pad_token(self) -> str | None:
        return self.special("pad_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id("pad_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> list[int]:
        """Ids of a text; `verbose` is there for callers that also take transformers' tokenizers."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    @cached_property
    def chat_template(self) -> str | None:
        """The template's text, or None. Of several named ones the one named "default"."""
        beside = self._folder / "chat_template.jinja"
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
        value = self._config.get("chat_template")
        if isinstance(value, list):
            value = next((one.get("template") for one in value if one.get("name") == "default"), None)
        return value if isinstance(value, str) else None

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """Renders a conversation as text."""
        assert not tokenize
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: text for name in names if (text := self.special(name)) is not None}
        return str(
            self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **special)
        )

    @cached_property
    def _template(self) -> Any:
        from jinja2.exceptions import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.chat_template or "")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else {}
