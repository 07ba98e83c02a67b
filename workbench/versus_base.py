"""A finished comparison on disk, as `workbench report A B` reads it, and the parts of what that prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench.config_base import BASELINE
from workbench.report.samples import read_samples
from workbench.results import load_results
from workbench.results_base import Count, E, Model
from workbench.runs import SAMPLES_FILE, read_config

PAIRED = "paired by prompt"
INDEPENDENT = "independent runs"


class Change(Model):
    """A setting, a fact or a stage that is not the same on both sides; null: not there."""

    name: str
    a: str | None
    b: str | None


class Difference(Model):
    """One number on both sides."""

    of: str = Field(description="Arm, set of pairs, or reward model")
    figure: str
    judge: str | None = None
    a: E | None
    b: E | None
    difference: E = Field(description="B less A; null with the reason in `method` where the two cannot be compared")


class Versus(Model):
    """What `workbench report A B --json` prints."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    a: str
    b: str
    a_seeds: list[int]
    b_seeds: list[int]
    pairing: str = Field(description="Whether the runs share their test prompts, and what was made of it")
    config: list[Change] | None = Field(description="null: one of the runs kept no config.json")
    facts: list[Change] = Field(description="Details of the match certificate that differ: data, decoding, weights")
    stages_same: Count
    stages_changed: list[Change] = Field(description="Keys of stages of the same instance that differ")
    arms_only_a: list[str]
    arms_only_b: list[str]
    numbers: list[Difference]
    notes: list[str] = Field(default_factory=list, description="What to know before quoting a difference")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished comparison on disk."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Run:
        """From its results.json, checked.

        Raises:
            DataError: It is missing or broken.
        """
        return cls(folder=path.parent, results=load_results(path).model_dump(mode="json", by_alias=True))

    @property
    def name(self) -> str:
        return str(self.results["comparison"])

    @cached_property
    def config(self) -> dict[str, Any] | None:
        return read_config(self.folder)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        path = self.folder / SAMPLES_FILE
        return list(read_samples(path)) if path.is_file() else []

    @cached_property
    def by_arm(self) -> dict[str, list[dict[str, Any]]]:
        """arm -> its samples."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.samples:
            found.setdefault(row["arm"], []).append(row)
        return found

    @cached_property
    def prompts(self) -> dict[str, str]:
        """prompt id -> text."""
        return {row["prompt_id"]: row["prompt"] for row in self.samples}

    def keys(self, name: str | None = None) -> dict[str, str]:
        """instance -> key of the stages, of one name or of all."""
        return {one["instance"]: one["key"] for one in self.results["stages"] if name in (None, one["name"])}

    def by_prompt(self, arm: str, field: str, judge: str | None, *, gain: bool) -> dict[str, float]:
        """prompt id -> mean of a sample's field over samples and run seeds; `gain`: less the SFT's."""
        found: dict[str, list[float]] = {}
        base: dict[str, list[float]] = {}
        for row in self.samples:
            into = found if row["arm"] == arm else base if row["arm"] == BASELINE else None
            value = _of_sample(row, field, judge) if into is not None else None
            if into is not None and value is not None:
                into.setdefault(row["prompt_id"], []).append(value)
        own = {prompt: sum(values) / len(values) for prompt, values in found.items()}
        if not gain:
            return own
        return {
            prompt: value - sum(base[prompt]) / len(base[prompt]) for prompt, value in own.items() if prompt in base
        }


def _of_sample(row: Mapping[str, Any], field: str, judge: str | None) -> float | None:
    if judge is not None:
        return (row.get("wins") or {}).get(judge)
    if field == "finished":
        return float(row["finish_reason"] == "stop")
    value = row.get(field)
    return None if value is None else float(value)
