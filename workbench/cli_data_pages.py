"""`workbench data describe` and `annotators`: what the data hold and who labeled them, as pages with figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli_common import Command, common, emit, home_option
from workbench.cli_data_request import Request, reading, request, slug, source_of
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.config import Comparison


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


@click.command("describe")
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
    found = run(source_of(asked), asked.options, model=asked.model, n_topics=topics)
    if not quiet:
        print_describe(found, headline(found), make_console(stderr=as_json))
    folder = out or home.absolute() / "data" / slug(source_of(asked))
    files = _write("describe", found, describe_page(found), figures(found), folder)
    _track(track, asked.comparison, home, "describe", source_of(asked), files)
    if as_json:
        emit(found)


@click.command("annotators")
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
    folder = out or home.absolute() / "data" / slug(names[0])
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
        return source_of(asked)
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
