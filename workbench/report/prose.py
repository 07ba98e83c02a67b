"""Sections of report.md as HTML: one source of words for both.

Raw HTML, links and images are switched off, so that a label can bring none in. Column alignment becomes a class, since
the page's policy refuses style attributes; a row's first cell becomes its header.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.report.shell import safe

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


def prose(markdown: str, label: str = "") -> str:
    """Markdown as HTML.

    Args:
        markdown: Of `workbench.report.summary` and its kin, generated text escaped by `markup.escape`.
        label: What its tables are about: the name under which a screen reader announces them.
    """
    parser = _parser()
    tokens = parser.parse(markdown)
    _headers(tokens)
    words = label
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in tokens[place + 1].children or ())
        elif token.type == "table_open":
            token.meta["label"] = words or "table"
    return str(parser.renderer.render(tokens, parser.options, {}))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _open_table(_self: Any, tokens: list[Token], place: int, *_: Any) -> str:
    label = safe(tokens[place].meta["label"])
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'


def _headers(tokens: list[Token]) -> None:
    """Gives cells what a page needs: classes for alignment, scopes for headers."""
    first, in_head = False, False
    for place, token in enumerate(tokens):
        if token.type in ("thead_open", "thead_close"):
            in_head = token.type == "thead_open"
        elif token.type == "tr_open":
            first = True
        elif token.type in ("th_open", "td_open"):
            if "right" in str(token.attrs.pop("style", "")):
                token.attrs["class"] = "n"
            if in_head:
                token.attrs["scope"] = "col"
            elif first:
                token.tag, token.attrs["scope"] = "th", "row"
                closing = next(one for one in tokens[place:] if one.type == "td_close")
                closing.tag = "th"
            first = False
