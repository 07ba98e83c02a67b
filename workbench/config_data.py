"""The config's data section: where preference pairs come from, how they are read, split and labeled."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, model_validator

from workbench.config_base import Count, Fraction, Problem, Section, World, exactly_one, refuse
from workbench.config_label_use import LabelUse, labeling_problems
from workbench.data.columns import COLUMNS
from workbench.data.layout import Format, Margins, Rule

LAYOUT: Final = {"format", "columns", "pairing", "rating", "min_gap", "margins", "margin_scale", "split"}


class Annotator(Section):
    """Prefers a over b with probability sigmoid((gold difference + biases) / temperature)."""

    name: str = Field(default="", description="Name in reports; empty: annotator-1, annotator-2 and so on.")
    temperature: float = Field(
        default=1.0, gt=0, description="Noise, in units of gold reward; scale it by gold's spread."
    )
    length_bias: float = Field(
        default=0.0, description="Added per five words that a is longer, in units of gold reward."
    )
    position_bias: float = Field(
        default=0.0, description="Added to the response that is shown first, in units of gold reward."
    )
    careless: Fraction = Field(default=0.0, description="Probability of a coin flip instead of a judgment.")


def default_annotators() -> list[Annotator]:
    """The helpdesk world's five annotators."""
    return [
        Annotator(name="careful", temperature=0.8, careless=0.02),
        Annotator(name="average", temperature=1.0, length_bias=0.1, careless=0.05),
        Annotator(name="wordy", temperature=1.2, length_bias=0.3, position_bias=0.2, careless=0.05),
        Annotator(name="distracted", temperature=1.0, careless=0.15),
        Annotator(name="hasty", temperature=1.5, length_bias=0.1, position_bias=0.3, careless=0.05),
    ]


def _named(annotators: list[Annotator]) -> list[Annotator]:
    """Fills empty names and refuses equal ones: annotators are told apart by name."""
    named = [a if a.name else a.model_copy(update={"name": f"annotator-{i}"}) for i, a in enumerate(annotators, 1)]
    names = [a.name for a in named]
    refuse(
        ((i, "name"), f"got '{name}' a second time, expected different names")
        for i, name in enumerate(names)
        if name in names[:i]
    )
    return named


Annotators = Annotated[list[Annotator], Field(min_length=1), AfterValidator(_named)]


class Simulate(Section):
    """Pairs sampled from the SFT policy and labeled by annotators who know the gold reward."""

    prompts: str = Field(min_length=1, description="File of prompts (one `prompt` a row), split by data.splits.")
    pairs: Count = Field(default=2000, description="Training pairs to make.")
    validation_pairs: Count = Field(default=400, description="Validation pairs to make.")
    test_pairs: Count = Field(default=400, description="Test pairs to make.")
    annotators: Annotators = Field(default_factory=default_annotators, description="Who labels the pairs.")


class Splits(Section):
    """Shares of the prompts (not of the pairs) that are kept from training."""

    validation: float = Field(default=0.1, gt=0, lt=1, description="Fraction of prompts for validation.")
    test: float = Field(default=0.1, gt=0, lt=1, description="Fraction of prompts for the final evaluation.")

    @model_validator(mode="after")
    def _check(self) -> Splits:
        if self.validation + self.test >= 1:
            total = f"got {self.validation:g} + {self.test:g} for validation and test"
            refuse([((), f"{total}, expected a sum below 1: the rest is for training")])
        return self


class Data(Section):
    """The preference pairs, the same for every arm: a world's, a file's, or simulated ones."""

    world: World | None = Field(default=None, description="Pairs of an embedded world, whose gold reward is known.")
    pairs: Count = Field(default=2000, description="Training pairs that the world makes.")
    validation_pairs: Count = Field(default=400, description="Validation pairs that the world makes.")
    test_pairs: Count = Field(default=400, description="Test pairs that the world makes.")
    preferences: str | None = Field(
        default=None, description="Or: pairs from jsonl(.gz), parquet, csv, a datasets folder or a hub id."
    )
    simulate: Simulate | None = Field(
        default=None, description="Or: pairs sampled from the SFT policy, labeled by gold."
    )
    splits: Splits = Field(default_factory=Splits, description="Shares of prompts, for preferences and simulate.")
    ood: str | None = Field(default=None, description="File of out-of-distribution pairs for the agreement of rewards.")
    ood_prompts: Count = Field(default=128, description="Out-of-distribution prompts that the world makes.")
    annotators: Annotators = Field(default_factory=default_annotators, description="Who labels the world's pairs.")
    labels_per_pair: Count = Field(default=1, description="Annotators asked per pair; the majority decides.")
    labels: LabelUse = Field(
        default_factory=LabelUse, description="How an annotated pair becomes a training label, the same for every arm."
    )
    label_noise: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="Probability with which a training label is turned, from seeds.data; a larger one turns the same "
        "labels and more. Validation and test labels stay.",
    )
    drop_invalid: bool = Field(default=False, description="Drops and lists invalid rows instead of stopping.")
    deduplicate: bool = Field(default=False, description="Keeps the first of equal pairs.")
    max_identical_fraction: Fraction = Field(
        default=0.01, description="Largest fraction of rows whose chosen equals rejected before it is an error."
    )
    limit: Count | None = Field(default=None, description="Uses only the first rows of the file, in rows.")
    min_alpha: float = Field(
        default=0.2,
        ge=-1,
        le=1,
        description="Warns before training where annotators agree less (Krippendorff's alpha); 0.2: on 60% of pairs.",
    )
    format: Format | None = Field(default=None, description="What the rows hold; null: told by their columns.")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Renames columns, as in {prompt: instruction, chosen: better}; null hides one of the file's.",
    )
    pairing: Rule | None = Field(
        default=None, description="How pairs are made of rated or ranked responses; needed for those."
    )
    rating: str | dict[str, float] | None = Field(
        default=None, description="Which rating is compared, or weights by name; null: the only one there is."
    )
    min_gap: float = Field(
        default=0.0, ge=0, description="Smallest difference in rating that makes a pair; equal ones never do."
    )
    margins: Margins = Field(
        default="none", description="score_difference: a pair's difference in score becomes its target margin."
    )
    margin_scale: float = Field(default=1.0, gt=0, description="Target margin per unit of score, in nats.")
    split: str | None = Field(
        default=None, min_length=1, description="Which split of a hub id or datasets folder; null: train, or the only."
    )
    revision: str | None = Field(default=None, min_length=1, description="Commit, tag or branch of the hub id.")
    folder: str | None = Field(
        default=None, min_length=1, description="Folder inside the hub id, such as harmless-base of Anthropic/hh-rlhf."
    )

    def layout(self) -> dict[str, Any]:
        """How rows are read: the fields of `workbench.data.layout.Layout`."""
        return self.model_dump(include=LAYOUT)

    @model_validator(mode="after")
    def _check(self) -> Data:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        found: list[Problem] = []
        sources = [name for name in ("world", "preferences", "simulate") if getattr(self, name) is not None]
        if len(sources) != 1:
            return [((), exactly_one(self, ("world", "preferences", "simulate")))]
        source = sources[0]
        if self.preferences is not None and not self.preferences.strip():
            found.append((("preferences",), "got an empty text, expected a file, a folder or a hub id"))
        used = {
            "world": {"pairs", "validation_pairs", "test_pairs", "ood_prompts", "annotators", "labels_per_pair"},
            "preferences": {"splits", "ood", "limit", *LAYOUT, "revision", "folder"},
            "simulate": {"splits", "ood", "limit", "labels_per_pair", "columns"},
        }
        hints = {"preferences": "; data.limit bounds the rows", "simulate": "; see data.simulate"}
        # Against the defaults rather than fields_set: a dumped config names every field and must load again.
        for name in sorted(set().union(*used.values()) - used[source]):
            if getattr(self, name) != Data.model_fields[name].get_default(call_default_factory=True):
                hint = hints.get(source, "") if name not in {"splits", "ood", "limit"} else ""
                found.append(((name,), f"has no effect with data.{source}; remove it{hint}"))
        found += self._layout_problems()
        annotators = self.simulate.annotators if self.simulate else self.annotators
        if source != "preferences" and self.labels_per_pair > len(annotators):
            message = f"got {self.labels_per_pair}, expected at most the number of annotators ({len(annotators)})"
            found.append((("labels_per_pair",), message))
        names = None if source == "preferences" else [one.name for one in annotators]
        return found + labeling_problems(self.labels, annotators=names, labels_per_pair=self.labels_per_pair)

    def _layout_problems(self) -> list[Problem]:
        """Names of columns that nothing reads, and options without effect."""
        found: list[Problem] = []
        for name in self.columns:
            if name not in COLUMNS:
                message = f"no such column is read, expected one of {', '.join(COLUMNS)}"
                found.append((("columns", name), message))
        own = [name for name in self.columns.values() if name is not None]
        if twice := next((name for name in own if own.count(name) > 1), None):
            found.append((("columns",), f"got '{twice}' for two columns, expected one each"))
        if self.margin_scale != 1 and self.margins == "none":
            found.append((("margin_scale",), "has no effect with data.margins none; remove it, or ask for margins"))
        if self.rating is not None and not self.rating:
            found.append((("rating",), "got nothing, expected a rating's name, or weights by name"))
        return found
