"""Sections of report.md on reward against KL: matched KL, areas, over-optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.report import wording_curves
from workbench.report.markup import escape, table


def matched(results: Mapping[str, Any]) -> str:
    """Every arm at the same KLs and its mean over the KLs in common; empty without curves."""
    tables = [_plain(wording_curves.matched_table(results)), _plain(wording_curves.area_table(results))]
    text = (
        "Read off each arm's curve of checkpoints (best-of-n: of n), linear in the root of KL between them; nothing is "
        "extrapolated, nor told where points lie too far apart. Mixed: best-of-n's KL is a bound, so it stands at most "
        "too far right, and its prompts are others, so the difference is unpaired."
    )
    beside = _plain(wording_curves.beside_table(results))
    if beside:
        beside += "\n\nOn the same test prompts, paired; a KL that best-of-n does not reach has no row."
    return "\n\n".join(["## At matched KL", *tables, text, *([beside] if beside else [])]) if all(tables) else ""


def overoptimization(results: Mapping[str, Any]) -> str:
    """What fell while the proxy rose, and Gao's forms; empty where nothing stands for the truth."""
    lines = "\n".join(f"- {escape(line)}" for _, line in wording_curves.overoptimization_lines(results))
    tables = [_plain(wording_curves.turn_table(results)), _plain(wording_curves.fit_table(results))]
    if not tables[0]:
        return ""
    text = (
        "Fall, the proxy's rise and onset hold for all points at once. Gap: the proxy's gain less gold's at the last "
    )
    text += (
        "point, in standard deviations of SFT samples. Beta above 0 alone is no fault: compare with the gold selector."
    )
    more = "\n".join(f"- {escape(line)}" for line in wording_curves.pairs_lines(results))
    told = "Each comparison at 95%, not corrected for their number. Later is told from five run seeds on."
    pairs = ["### More pairs behind the reward", more, told] if more else []
    return "\n\n".join(["## Over-optimization", *(part for part in (lines, *tables) if part), text, *pairs])


def _plain(parts: tuple[Sequence[str], Sequence[Sequence[str]]]) -> str:
    header, rows = parts
    return table(header, [[escape(cell) for cell in row] for row in rows]) if rows else ""
