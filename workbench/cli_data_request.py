"""What `workbench data` reads, and how: from its options or from a config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli_common import Command
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from workbench.config import Comparison
    from workbench.data.layout import Layout
    from workbench.data.validate import Options

SPLITS = (0.1, 0.1)


def reading(command: Command) -> Command:
    """How rows are read: the options that all three commands share."""
    options = (
        click.option("--config", type=click.Path(path_type=Path), metavar="CONFIG",
                     help="Take everything from a config."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of the config."),
        click.option("--layout", metavar="YAML", help="How rows make pairs: {format, columns, pairing, rating, ...}."),
        click.option("--limit", type=click.IntRange(min=1), help="Read only the first rows."),
        click.option("--splits", type=(float, float), metavar="VALIDATION TEST",
                     help="Fractions of the prompts, where rows have no 'split'.  [default: 0.1 0.1]"),
        click.option("--seed", type=click.IntRange(min=0), help="As seeds.data of a config.  [default: 0]"),
        click.option("--model", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                     help="Folder of the policy: its tokenizer reads the rows."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Request:
    """What is read, and how, from the options or from a config."""

    source: str | None
    options: Options
    model: Path | None
    comparison: Comparison | None


def request(
    source: str | None, config: Path | None, overrides: Sequence[str], layout: str | None, limit: int | None,
    splits: tuple[float, float] | None, seed: int | None, model: Path | None,
) -> Request:  # fmt: skip
    """Puts together what to read; an option that is given goes before the config's field."""
    from pipelines.graph_base import derive
    from workbench.data.splits import check_fractions
    from workbench.data.validate import Options

    comparison = None
    fields: dict[str, Any] = {}
    fractions = dict(zip(("validation", "test"), splits or SPLITS, strict=True))
    if config is not None:
        comparison, source, fields, from_config = _of_config(config, overrides, source)
        fractions = fractions if splits is not None else from_config
        model = model or _policy(comparison)
    elif overrides:
        raise ConfigError("--set changes a field of a config; give --config CONFIG")
    if limit is not None:
        fields["limit"] = limit
    if layout is not None:
        fields["layout"] = _layout(layout)
    number = seed if seed is not None else comparison.seeds.data if comparison is not None else 0
    options = Options(**fields, fractions=check_fractions(fractions), seed=derive(number, "pairs"))
    return Request(source, options, model, comparison)


def _of_config(
    config: Path, overrides: Sequence[str], source: str | None
) -> tuple[Comparison, str | None, dict[str, Any], dict[str, float]]:
    from pipelines.graph_data import _file_config
    from pipelines.sources import hub_name
    from workbench.config import check_paths, load_config
    from workbench.data.layout import Layout

    comparison = load_config(config, tuple(overrides))
    check_paths(comparison)
    data = comparison.data
    given = _file_config(comparison)
    names = ("drop_invalid", "deduplicate", "max_identical_fraction", "limit")
    fields = {name: given[name] for name in names}
    if given.get("layout") is not None:
        fields["layout"] = Layout.from_config(given["layout"])
    return comparison, source or hub_name(data), fields, data.splits.model_dump()


def _policy(comparison: Comparison) -> Path | None:
    """The config's model folder; None for a world's model, which has no folder yet."""
    from pipelines.sources_models import model_folder

    model = comparison.model
    return None if model.policy is None else model_folder(model.policy, model.revision)


def _layout(text: str) -> Layout:
    """A layout as the config's data block checks it.

    Raises:
        ConfigError: Names every field that is wrong.
    """
    import yaml
    from pydantic import ValidationError

    from workbench.config_data import LAYOUT, Data
    from workbench.data.layout import Layout

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--layout: {str(error).splitlines()[0]}; expected {{format: ..., pairing: ...}}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--layout: got {text[:40]!r}, expected {{format: ..., pairing: ...}}")
    if unknown := [str(name) for name in value if name not in LAYOUT]:
        raise ConfigError(f"--layout: no field {', '.join(unknown)}; the fields are {', '.join(sorted(LAYOUT))}")
    try:
        return Layout.from_config(Data.model_validate({"preferences": "SOURCE", **value}).layout())
    except ValidationError as error:
        raise ConfigError(f"--layout: {'; '.join(_faults(error))}") from error


def _faults(error: ValidationError) -> Iterator[str]:
    """Each fault with its field."""
    for one in error.errors():
        place = ".".join(str(step) for step in one["loc"])
        got = "" if one["type"] == "problems" else f", got {str(one['input'])[:40]!r}"
        yield f"{place + ': ' if place else ''}{one['msg']}{got}"


def source_of(asked: Request) -> str:
    if asked.source is None:
        made = "; data.world and data.simulate make their pairs in the run" if asked.comparison is not None else ""
        raise ConfigError(f"nothing to read: give SOURCE (a file, a datasets folder or a hub id){made}")
    return asked.source


def slug(source: str) -> str:
    """A source as a file name; a hub id keeps its dots (`mix-v1.2`)."""
    name = re.sub(r"\.(jsonl|ndjson|json|parquet|csv)$", "", Path(source).name.removesuffix(".gz"), flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", name or "data")
