"""`workbench data`: find out what is wrong with preference data, and what is in it, before training on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli_common import Command, common, emit, home_option
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.config import Comparison
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

    comparison = load_config(config, tuple(overrides))
    check_paths(comparison)
    data = comparison.data
    given = _file_config(comparison)
    names = ("drop_invalid", "deduplicate", "max_identical_fraction", "limit")
    fields = {name: given[name] for name in names}
    if given.get("layout") is not None:
        fields["layout"] = _layout(json.dumps(given["layout"]))
    return comparison, source or hub_name(data), fields, data.splits.model_dump()


def _policy(comparison: Comparison) -> Path | None:
    """The config's model folder; None for a world's model, which has no folder yet."""
    from pipelines.sources import model_folder

    model = comparison.model
    return None if model.policy is None else model_folder(model.policy, model.revision)


def _layout(text: str) -> Any:
    import yaml

    from workbench.data.layout import Layout

    try:
        value = yaml.safe_load(text)
        return Layout.from_config(value)
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"--layout: {str(error).splitlines()[0]}; expected {{format: ..., pairing: ...}}") from error


def _source(asked: Request) -> str:
    if asked.source is None:
        made = "; data.world and data.simulate make their pairs in the run" if asked.comparison is not None else ""
        raise ConfigError(f"nothing to read: give SOURCE (a file, a datasets folder or a hub id){made}")
    return asked.source


@click.group()
def data() -> None:
    """Find out what is wrong with preference data, and what is in it, before training on it."""


# ------------------------------------------------------------------------------------------ check


@data.command("check")
@click.argument("source", required=False)
@reading
@click.option("--drop-invalid", is_flag=True, help="Write the usable rows to --out, and the others with their reasons.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where --drop-invalid writes.  [default: ./NAME.valid.jsonl]")  # fmt: skip
@click.option("--deduplicate", is_flag=True, help="Of equal pairs keep the first.")
@click.option("--max-identical", type=click.FloatRange(0, 1), help="Share of equal responses that is an error above.")
@click.option("--near-duplicates", type=click.FloatRange(0, 1), default=0.8, show_default=True,
              help="Similarity from which two texts are near; 0: do not look.")  # fmt: skip
@click.option("--length-band", type=(float, float), default=(0.4, 0.6), show_default=True, metavar="LOW HIGH",
              help="Share of pairs whose longer response is chosen.")  # fmt: skip
@click.option("--position-band", type=(float, float), default=(0.45, 0.55), show_default=True, metavar="LOW HIGH",
              help="Share of labels for the response shown first.")  # fmt: skip
@click.option("--precision", type=click.FloatRange(0, 0.5, min_open=True), default=0.05, show_default=True,
              help="Half width of a win rate's interval that the test split should give.")  # fmt: skip
@click.option("--no-pii", is_flag=True, help="Do not look for strings like personal data.")
@click.option("--severity", "severities", multiple=True, metavar="CODE=LEVEL",
              help="Report a finding as error, warning, info or off. Repeatable.")  # fmt: skip
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), help="Longest prompt, in tokens of --model.")
@click.option("--max-length", type=click.IntRange(min=1), help="Prompt and response.  [default: the model's context]")
@click.option("--max-response-tokens", type=click.IntRange(min=1), help="Room that prompts must leave.")
@click.option("--stop-token-id", "stop_token_ids", multiple=True, type=int, help="Ends a response; default: EOS.")
@common
def check(
    as_json: bool, source: str | None, drop_invalid: bool, out: Path | None, deduplicate: bool,
    max_identical: float | None, near_duplicates: float, length_band: tuple[float, float],
    position_band: tuple[float, float], precision: float, no_pii: bool, severities: tuple[str, ...],
    max_prompt_tokens: int | None, max_length: int | None, max_response_tokens: int | None,
    stop_token_ids: tuple[int, ...], **read: Any,
) -> int:  # fmt: skip
    """Check SOURCE (a file, a datasets folder or a hub id): everything at once, with rows and fixes.

    Nothing is repaired. Exit code 2 if there is an error.
    """
    from workbench.data.check import Settings
    from workbench.data.check import check as run
    from workbench.report.data_terminal import print_check
    from workbench.report.terminal import make_console

    if out is not None and not drop_invalid:
        raise ConfigError("--out says where --drop-invalid writes; give both")
    asked = request(source, **read)
    options = asked.options
    changes: dict[str, Any] = {} if max_identical is None else {"max_identical_fraction": max_identical}
    options = replace(
        options,
        drop_invalid=options.drop_invalid or drop_invalid,
        deduplicate=options.deduplicate or deduplicate,
        **changes,
    )
    lengths = _lengths(asked.comparison) | _given(
        max_prompt_tokens=max_prompt_tokens, max_length=max_length, max_response_tokens=max_response_tokens,
        stop_token_ids=list(stop_token_ids) or None,
    )  # fmt: skip
    found = run(
        _source(asked),
        Settings(
            options=options, model=asked.model, lengths=lengths, near=near_duplicates or None,
            length_band=_band(length_band), position_band=_band(position_band), precision=precision,
            personal=not no_pii, levels=_levels(severities),
        ),
    )  # fmt: skip
    plain = found.to_json()
    if not as_json:
        print_check(plain, found.kept, make_console(stderr=False))
    if drop_invalid:
        _drop(_source(asked), options, out, asked.model)
    if as_json:
        emit(plain)
    return 0 if found.ok else 2


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _lengths(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    model = comparison.model
    return _given(
        max_prompt_tokens=model.max_prompt_tokens, max_length=model.max_length, stop_token_ids=model.stop_token_ids,
        max_response_tokens=comparison.evaluation.max_response_tokens,
    )  # fmt: skip


def _band(band: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= band[0] <= band[1] <= 1:
        raise ConfigError(f"a band goes from a smaller to a larger share in [0, 1], got {band[0]:g} {band[1]:g}")
    return band


def _levels(words: Sequence[str]) -> dict[str, Any]:
    levels = {}
    for word in words:
        code, sign, level = word.partition("=")
        if not sign:
            raise ConfigError(f"--severity: got {word!r}, expected CODE=LEVEL, such as near_duplicate=error")
        levels[code] = level
    return levels


def _drop(source: str, options: Options, out: Path | None, model: Path | None) -> None:
    from workbench.data.check_drop import drop_into
    from workbench.data.light_tokenizer import LightTokenizer

    target = out or Path(f"{_slug(source)}.valid.jsonl")
    dropped = drop_into(source, options, target, tokenizer=None if model is None else LightTokenizer(model))
    reasons = ", ".join(f"{count:,} {code}" for code, count in sorted(dropped.reasons.items())) or "none"
    click.echo(
        f"{dropped.kept:,} usable rows in {dropped.out}; dropped: {reasons}, listed in {dropped.listed}", err=True
    )


def _slug(source: str) -> str:
    """A source as a file name."""
    name = Path(source).name.removesuffix(".gz")
    return re.sub(r"[^\w.-]+", "_", name.removesuffix(Path(name).suffix) or "data")


# ------------------------------------------------------------------------------------------ describe and annotators


def paged(command: Command) -> Command:
    """Where pages and figures go, and whether MLflow gets them."""
    options = (
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                     help="Folder of page, figures and JSON.  [default: HOME/data/NAME]"),
        click.option("--track/--no-track", default=None, help="Log them to MLflow.  [default: as the config has it]"),
        home_option,
        click.option("--quiet", "-q", is_flag=True, help="No tables; errors only."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@data.command("describe")
@click.argument("source", required=False)
@reading
@click.option(
    "--topics", default=8, show_default=True, type=click.IntRange(0, 100), help="Topics of the prompts; 0: none."
)
@paged
@common
def describe(
    as_json: bool,
    source: str | None,
    topics: int,
    out: Path | None,
    track: bool | None,
    home: Path,
    quiet: bool,
    **read: Any,
) -> None:
    """Describe SOURCE: lengths, splits, win by length, vocabulary, topics, margins; one HTML page with figures."""
    from workbench.data.describe import describe as run
    from workbench.data.describe import headline
    from workbench.report.data_terminal import print_describe
    from workbench.report.describe_page import describe_page, figures
    from workbench.report.terminal import make_console

    asked = request(source, **read)
    found = run(_source(asked), asked.options, model=asked.model, n_topics=topics)
    if not quiet:
        print_describe(found, headline(found), make_console(stderr=as_json))
    folder = out or home.absolute() / "data" / _slug(_source(asked))
    files = _write("describe", found, describe_page(found), figures(found), folder)
    _track(track, asked.comparison, home, "describe", _source(asked), files)
    if as_json:
        emit(found)


@data.command("annotators")
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@reading
@click.option("--min-alpha", type=click.FloatRange(-1, 1), help="alpha under which `compare` warns.  [default: 0.2]")
@click.option("--relabel-below", type=click.FloatRange(0, 1), default=0.75, show_default=True,
              help="List pairs whose label is right with a smaller chance.")  # fmt: skip
@paged
@common
def annotators(
    as_json: bool, sources: tuple[str, ...], min_alpha: float | None, relabel_below: float, out: Path | None,
    track: bool | None, home: Path, quiet: bool, **read: Any,
) -> None:  # fmt: skip
    """Say who agrees with whom, who errs, and which pairs to label again; one HTML page with figures.

    SOURCE is a preference source with annotations (the pairs of a run too), or several files of judgments (ours or
    AlpacaEval's), whose judges count as annotators. With --config and no SOURCE: the pairs of that comparison.
    """
    from workbench.data.light_tokenizer import LightTokenizer
    from workbench.data.opinions import read_opinions
    from workbench.measure_opinions import MINIMUM_ALPHA
    from workbench.measure_opinions import annotators as run
    from workbench.report.annotators_page import annotators_page, figures
    from workbench.report.data_terminal import print_annotators
    from workbench.report.terminal import make_console

    asked = request(sources[0] if sources else None, **read)
    comparison = asked.comparison
    paths: list[str] = list(sources) or [_pairs_of(asked, home)]
    tokenizer = None if asked.model is None else LightTokenizer(asked.model)
    threshold = min_alpha if min_alpha is not None else comparison.data.min_alpha if comparison else None
    opinions = read_opinions(paths, asked.options, tokenizer=tokenizer)
    names = [comparison.name] if comparison is not None and not sources else [_named(path) for path in paths]
    found = run(
        opinions, names, relabel_below=relabel_below, threshold=MINIMUM_ALPHA if threshold is None else threshold
    ).model_dump(mode="json", by_alias=True)
    if not quiet:
        print_annotators(found, make_console(stderr=as_json))
    folder = out or home.absolute() / "data" / _slug(names[0])
    files = _write("annotators", found, annotators_page(found), figures(found), folder)
    _track(track, comparison, home, "annotators", ", ".join(names), files)
    if as_json:
        emit(found)


def _named(source: str) -> str:
    """A source as people know it; a store's artifact by its key."""
    path = Path(source)
    return f"{path.parent.name[:12]} pairs" if (path / "pairs.jsonl").is_file() and path.name == "out" else path.name


def _pairs_of(asked: Request, home: Path) -> str:
    """The config's preference file, or the pairs that a finished run of it has in the store."""
    if asked.source is not None or asked.comparison is None:
        return _source(asked)
    from pipelines.compare import plan_comparison
    from workbench.results import load_results
    from workbench.store import Store

    home, name = home.absolute(), asked.comparison.name
    store = Store.open(home)
    pairs = next(one for one in plan_comparison(asked.comparison, home) if one.instance == "pairs")
    if pairs.cached and pairs.key is not None:
        return str(store.fetch(pairs.key).path)
    results = home / "results" / name / "results.json"
    if results.is_file():  # the code or the config has changed since: what the last run made is still there
        key = next((row.key for row in load_results(results).stages if row.instance == "pairs"), None)
        if key is not None and store.has(key):
            click.echo(f"the pairs of the last run of {name}; the next one would make others ({pairs.why})", err=True)
            return str(store.fetch(key).path)
    raise ConfigError(
        f"the pairs of {name} are not in the store yet ({pairs.why}); run `workbench compare` first, or give SOURCE",
        where=str(home),
    )


def _write(
    name: str, found: Mapping[str, Any], page: str, figures: Mapping[str, str], folder: Path
) -> tuple[list[Path], list[Path]]:
    """Writes page, JSON and figures; returns figures, and the other files."""
    from workbench.fsio import disk_errors
    from workbench.report.shell import write_page
    from workbench.report.svg import standalone

    with disk_errors("Writing the page", folder):
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        others = [write_page(page, folder / f"{name}.html"), write_page(text, folder / f"{name}.json")]
        drawn = [write_page(standalone(svg), folder / "figures" / f"{name}_{key}.svg") for key, svg in figures.items()]
    click.echo(f"page: {others[0]}", err=True)
    return drawn, others


def _track(
    track: bool | None, comparison: Comparison | None, home: Path, what: str, name: str,
    files: tuple[list[Path], list[Path]],
) -> None:  # fmt: skip
    """Logs figures, page and JSON as one run; where tracking is on."""
    on = track if track is not None else comparison is not None and comparison.tracking.enabled
    if not on:
        return
    from workbench.tracking import Tracker

    uri = comparison.tracking.uri if comparison is not None else None
    experiment = f"{comparison.name}-data" if comparison is not None else "data"
    tracker = Tracker.open(
        uri, home.absolute(), experiment, {"command": what, "source": name}, run_name=f"{what} {name}"[:200]
    )
    tracker.finish(None, *files, note=f"`workbench data {what}` of {name}")
