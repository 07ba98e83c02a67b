"""Markdown that generated text cannot break out of, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workbench.report.wording import clean


def escape(text: object) -> str:
    """Text that stays text in markdown and in HTML made from it: no tags, links, images or table cells of its own."""
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An interval like [0.68, 0.74] is left readable, unless what follows would make a link of it.
    parts = re.split(r"(\[[-\d., ]+\](?![\[(:]))", plain)
    return "".join(part if i % 2 else re.sub(r"([\\`*_\[\]|#!~$])", r"\\\1", part) for i, part in enumerate(parts))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], ruled: str | None = None) -> str:
    """A table; every column but the first is set right, or as `ruled` says: ``---|---:|``."""
    lines = ["| " + " | ".join(header) + " |", "|" + (ruled or "---|" + "---:|" * (len(header) - 1))]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
