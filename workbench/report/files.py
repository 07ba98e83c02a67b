"""All that a comparison leaves for people to look at: its figures, report.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_all(results: Mapping[str, Any], folder: Path) -> tuple[list[Path], list[Path]]:
    """Draws the figures and writes the reports.

    Args:
        results: results.json, schema 1.
        folder: Where they go; the samples and the config lie there, if they do.

    Returns:
        The figures, and report.md and report.html.
    """
    from workbench.report.figures import draw_all
    from workbench.report.page import write_report_page
    from workbench.report.summary import write_report

    figures = draw_all(results, folder / "figures")
    page = write_report(results, folder / "report.md", figures)
    return figures, [page, write_report_page(results, folder)]
