"""The frame of every HTML page: one file that loads nothing, runs one known script, and that no text can break out of.

The policy names the sha256 of the one style and the one script. Whatever a sample smuggles in is therefore inert twice:
it is escaped, and would not be run if it were not.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from workbench.report.wording import clean

_JOINERS = "\u200c\u200d"  # Persian and emoji need them; they move nothing
_ENTITIES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def page(
    *,
    title: str,
    body: str,
    nav: Sequence[tuple[str, str]] = (),
    kicker: str = "",
    style: str = "",
    script: str = "",
    data: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained page.

    Args:
        title: Plain text; the page's heading as well.
        body: HTML, made with `safe`, `visible`, `section` and `prose`.
        nav: (id, words) of the sections, for the contents.
        kicker: Plain text over the heading.
        style: CSS after the frame's own.
        script: JavaScript after the frame's own.
        data: id -> value that the script finds as JSON in the element of this id.
    """
    css, js = asset("shell.css") + style, asset("shell.js") + script
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(js)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{safe(name)}">{safe(words)}</a></li>' for name, words in nav)
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if nav else ""
    over = f'<p class="kicker">{safe(kicker)}</p>' if kicker else ""
    blocks = "".join(embedded(name, value) for name, value in (data or {}).items())
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<header>{over}<h1>{safe(title)}</h1>'
        '<button type="button" id="theme" hidden>Theme: system</button></header>\n'
        f'{contents}\n<main id="main" tabindex="-1">\n{body}\n</main>\n'
        f"{blocks}<script>{js}</script>\n</body>\n</html>\n"
    )  # fmt: skip


def section(name: str, heading: str, body: str) -> str:
    """A section that the contents can link to; empty without a body."""
    if not body:
        return ""
    return f'<section id="{safe(name)}" aria-labelledby="{safe(name)}-h">' \
           f'<h2 id="{safe(name)}-h">{safe(heading)}</h2>\n{body}</section>\n'  # fmt: skip


def safe(text: object) -> str:
    """A short text (a name, a message) as HTML, on one line, without control and direction characters."""
    return html.escape(clean(text), quote=True)


def visible(text: str) -> str:
    """A long generated text, in which what would not be seen is: ESC as ``␛``, a right-to-left mark as ``⟨U+202E⟩``.

    Line ends and tabs stay. The result is plain text, yet to be escaped (`safe`, JSON, textContent).
    """
    return "".join(map(_shown, text)) if not text.isprintable() else text


def _shown(char: str) -> str:
    if char in "\n\t" or char in _JOINERS or char.isprintable():
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if unicodedata.category(char) == "Zs":
        return char
    return f"⟨U+{code:04X}⟩"


def embedded(name: str, value: Any) -> str:
    """A value as JSON for the script; no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ENTITIES)
    return f'<script type="application/json" id="{safe(name)}">{text}</script>\n'


def asset(name: str) -> str:
    """A style or script of this package."""
    return (files("workbench.report") / "assets" / name).read_text(encoding="utf-8")


def write_page(text: str, path: Path) -> Path:
    """Writes a page in one step: readers see the old one or the new one. Lone surrogates become question marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as out:
            out.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
