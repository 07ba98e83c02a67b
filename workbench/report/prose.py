"""Sections of report.md as HTML: one source of words for both.

Raw HTML, links and images are switched off, so that a label can bring none in. Alignment is a class, since the page's
policy refuses style attributes, and goes by what a cell holds; a row's first cell becomes its header.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.report.shell import safe
from workbench.report.wording import MISSING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SHORT = 12  # characters: a column of numbers may hold a "no", but no reason
_NUMBER = re.compile(
    r"[-\u2212≤<] ?\.?\d|\d[\d.,]*([eE][-+]?\d+)?( ?[\[(%/]| ?[a-zA-Zµ]{0,3}\b|$)(?! [a-z]{4})|inf|nan"
)


def prose(markdown: str, label: str = "", fold: int | None = None) -> str:
    """Markdown as HTML.

    Args:
        markdown: Of `workbench.report.summary` and its kin, generated text escaped by `markup.escape`.
        label: What its tables are about: the name under which a screen reader announces them.
        fold: Tables of more rows are folded up.
    """
    parser = _parser()
    tokens = parser.parse(markdown)
    _headers(tokens, fold)
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
    parser.add_render_rule("table_close", _close_table)
    return parser


def _open_table(_self: Any, tokens: list[Token], place: int, *_: Any) -> str:
    label, rows = safe(tokens[place].meta["label"]), tokens[place].meta.get("fold")
    head = f"<details><summary>Table of {rows} rows</summary>" if rows else ""
    return head + f'<div class="scroll" role="group" tabindex="0" aria-label="{label}"><table>\n'


def _close_table(_self: Any, tokens: list[Token], place: int, *_: Any) -> str:
    return "</table></div>\n" + ("</details>\n" if tokens[place].meta.get("fold") else "")


def _headers(tokens: list[Token], fold: int | None) -> None:
    """Gives cells what a page needs: scopes for headers, and classes by what they hold, numbers to the right."""
    table = 0
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            table = place
        elif token.type == "table_close":
            rows = _cells(tokens[table:place])
            if fold is not None and rows > fold:
                tokens[table].meta["fold"] = token.meta["fold"] = rows


def _cells(tokens: list[Token]) -> int:
    """Returns how many rows the table has below its head."""
    rows: list[list[tuple[Token, str, Token]]] = []
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            token.attrs.pop("style", None)
            words = "".join(child.content for child in tokens[place + 1].children or ())
            rows[-1].append((token, words, tokens[place + 2]))
    head, *body = rows
    for column, (token, _, _) in enumerate(head):
        token.attrs["scope"] = "col"
        held = [row[column][1] for row in body if row[column][1] not in ("", MISSING)]
        short = all(_is_number(words) or len(words) <= SHORT for words in held)
        if column and short and 2 * sum(map(_is_number, held)) >= len(held) > 0:
            token.attrs["class"] = "n"
    for row in body:
        opening, _, closing = row[0]
        opening.tag = closing.tag = "th"
        opening.attrs["scope"] = "row"
        for (token, _, _), (above, _, _) in zip(row[1:], head[1:], strict=True):
            if "class" in above.attrs:
                token.attrs["class"] = "n"
    return len(body)


def _is_number(words: str) -> bool:
    return bool(_NUMBER.match(words))
