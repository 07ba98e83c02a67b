"""The samples browser of report.html: its controls, and what stands there without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.report.samples import KINDS, MAX_SAMPLES, MAX_TEXT
from workbench.report.shell import safe
from workbench.report.wording import number

FILTERS = {
    "loss": "Worst losses against sft",
    "hack": "Suspected reward hacks",
    "disagreement": "The two rewards disagree",
    "all": "All, in order",
}
WITHOUT_SCRIPT = 3  # examples of each kind


def samples_section(shown: Mapping[str, Any] | None) -> str:
    """The section; without samples it says why."""
    if shown is None:
        return (
            "<p>No samples lie beside the results: run <code>workbench compare</code> again, which reuses the rest.</p>"
        )
    return f'<p class="note">{_told(shown)}</p>{_controls(shown)}{_fallback(shown)}'


def _told(shown: Mapping[str, Any]) -> str:
    total, here = shown["total"], len(shown["prompts"])
    told = (
        f"{here} of {total} prompts" + (f": {shown['rule']}" if here < total else "") + f". Run seed {shown['seed']}, "
    )
    told += f"up to {MAX_SAMPLES} samples a prompt and arm; texts over {MAX_TEXT} characters are cut. "
    told += f"Loss: by {shown['truth']}, less the sft sample of the same index. Suspected hack: the proxy is above the "
    told += (
        "sft's mean on the prompt and the truth below it; the size is in standard deviations. Disagreement: implicit "
    )
    told += "and explicit reward order the response and the sft's in opposite ways. Signs that a text hides are shown, "
    told += "such as ⟨U+202E⟩."
    return safe(told)


def _controls(shown: Mapping[str, Any]) -> str:
    judged = [name for name in FILTERS if name == "all" or _any(shown, name)]
    kinds = "".join(f'<option value="{name}">{FILTERS[name]}</option>' for name in judged)
    arms = [(place, safe(arm)) for place, arm in enumerate(shown["arms"])]
    others = "".join(f'<option value="{place}">{arm}</option>' for place, arm in arms if shown["arms"][place] != "sft")
    against = "".join(f'<option value="{place}">{arm}</option>' for place, arm in arms)
    return (
        '<form id="browse" class="controls screen" hidden>'
        f'<label>Show <select id="kind">{kinds}</select></label>'
        f'<label>Arm <select id="arm"><option value="">any</option>{others}</select></label>'
        f'<label>beside <select id="against">{against}</select></label>'
        '<label>Prompt or response contains <input id="search" type="search" autocomplete="off"></label>'
        '<label class="check"><input id="marks" type="checkbox" checked> mark the words that differ</label></form>'
        '<p id="found" role="status" class="note" hidden></p><div id="cards"></div>'
        '<p><button type="button" id="more" class="screen" hidden>Show more</button></p>'
    )


def _any(shown: Mapping[str, Any], kind: str) -> bool:
    place = 6 + KINDS.index(kind)
    return any(row[place] is not None for prompt in shown["prompts"] for row in prompt["rows"])


def _fallback(shown: Mapping[str, Any]) -> str:
    """A few examples for readers without scripts."""
    parts = []
    for number_of, kind in enumerate(KINDS):
        rows = [(row[6 + number_of], prompt["text"], row) for prompt in shown["prompts"] for row in prompt["rows"]
                if row[6 + number_of] is not None]  # fmt: skip
        rows.sort(key=lambda one: -one[0])
        items = "".join(
            f"<li><b>{safe(shown['arms'][row[0]])}</b>, {number(size)}: {safe(text)}<br>{safe(row[2])}</li>"
            for size, text, row in rows[:WITHOUT_SCRIPT]
        )
        parts.append(f"<h3>{FILTERS[kind]}</h3><ol>{items}</ol>" if items else "")
    return f"<noscript><p>Without scripts: a few examples; all are in samples.jsonl.gz.</p>{''.join(parts)}</noscript>"
