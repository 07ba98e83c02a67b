"""`workbench report`: a comparison as one HTML page, or two side by side."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.cli_common import common, emit, home_option
from workbench.errors import ConfigError, ResourceError


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN] [RUN_B]")
@home_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; default: beside the results.")
@click.option("--open", "open_page", is_flag=True, help="Show it in the browser.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of results.json instead.")
@click.option("--quiet", "-q", is_flag=True, help="No tables; errors only.")
@common
def report(
    runs: tuple[str, ...], home: Path, out: Path | None, open_page: bool, schema: bool, quiet: bool, as_json: bool
) -> None:
    """Write a comparison as one HTML page that needs no network: the verdict, figures, samples, certificate, limits.

    RUN is a comparison's name, its folder or its results.json; without it the one that finished last. With RUN_B:
    what changed between two comparisons in config, data and numbers, with intervals of every difference.
    """
    from workbench.fsio import disk_errors
    from workbench.runs import find_run

    if schema:
        from workbench.results import emit_json_schema

        emit(emit_json_schema())
        return
    if len(runs) > 2:
        raise ConfigError(f"expected one or two comparisons, got {len(runs)}: {' '.join(runs)}")
    home = home.absolute()
    paths = [find_run(home, name) for name in runs or (None,)]
    if out is not None and out.absolute() in {path.absolute() for path in paths}:
        raise ConfigError("would overwrite the results; give --out another name", where=str(out))
    with disk_errors("Writing the report", home):
        page, told = _compare(paths[0], paths[1], out, quiet, as_json) if len(paths) == 2 else (_one(paths[0], out), {})
    if as_json:
        emit({"schema": 1, "page": str(page)} | told)
    click.echo(f"wrote {page}", err=True)
    if open_page and not click.launch(str(page)) == 0:
        raise ResourceError("no browser could be started; open the file yourself", where=str(page))


def _one(path: Path, out: Path | None) -> Path:
    from workbench.report.page import write_report_page
    from workbench.results import load_results

    results = load_results(path).model_dump(mode="json", by_alias=True)
    return write_report_page(results, path.parent, out)


def _compare(a: Path, b: Path, out: Path | None, quiet: bool, as_json: bool) -> tuple[Path, dict[str, object]]:
    from workbench.report.terminal import make_console
    from workbench.report.versus import print_versus, write_versus_page
    from workbench.versus import versus
    from workbench.versus_base import Run

    sides = [Run.read(path) for path in (a, b)]
    found = versus(*sides).model_dump(mode="json", by_alias=True)
    page = write_versus_page(found, sides[1].results, out or b.parent / f"against-{a.parent.name}.html")
    if not quiet:
        print_versus(found, make_console(stderr=as_json))
    return page, {"versus": found}
