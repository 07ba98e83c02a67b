"""A chat template without a tokenizer behind it."""

from __future__ import annotations


class Template:
    """Renders `<role>content</s>`; enough of a tokenizer for the formats."""

    chat_template = "x"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        text = "".join(f"<{one['role']}>{one['content']}</s>" for one in messages)
        return text + ("<assistant>" if add_generation_prompt else "")
