"""One color per arm, the same in every figure, on the report's page and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config_base import BASELINE

# Okabe and Ito's colors, told apart by the color-blind, ordered so that neighbors differ in lightness as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def places(results: Mapping[str, Any]) -> dict[str, int]:
    """The place of every arm, by which it gets its color and marker: as in the results, the SFT last."""
    labels = [label for label in results.get("arms") or {} if label != BASELINE]
    labels += [point["arm"] for point in results.get("frontier") or () if point["arm"] != BASELINE]
    return {label: place for place, label in enumerate(dict.fromkeys([*labels, BASELINE]))}
