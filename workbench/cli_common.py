"""What the commands share: the guard, --json, --home, CONFIG and --set. Imports no more than click."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from workbench.errors import WorkbenchError

Command = Callable[..., int | None]


def guarded(command: Command) -> Command:
    """Turns failures into one message and the documented exit code; with --json into one object on stdout."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        as_json, debug = bool(options.get("as_json")), bool(options.pop("debug", False))
        try:
            code = command(**options) or 0
        except WorkbenchError as error:
            if debug:
                traceback.print_exc()
            fail(error.code, error.message, error.where, as_json, debug)
            code = error.exit_code
        except KeyboardInterrupt:
            fail("interrupted", "interrupted; run the same command again to go on from here", None, as_json, debug)
            code = 130
        except SystemExit as end:
            if end.code == 143:
                fail("terminated", "terminated; run the same command again to go on from here", None, as_json, debug)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do with these
        except Exception as error:
            if debug:
                traceback.print_exc()
            message = f"{type(error).__name__}: {error} (a fault of the workbench; --debug shows where)"
            fail("internal", message, None, as_json, debug)
            code = 1
        sys.exit(code)

    return run


def fail(code: str, message: str, where: str | None, as_json: bool, debug: bool) -> None:
    """Prints one failure: for people on stderr, and for programs on stdout."""
    from workbench.report.wording import clean

    lines = "\n".join(clean(line) for line in (f"{where}: {message}" if where else message).splitlines())
    click.echo(f"error: {lines}", err=True)
    if as_json:
        emit({"schema": 1, "error": {"code": code, "message": message, "where": where}})


def emit(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def home_option(command: Command) -> Command:
    """--home, with WORKBENCH_HOME and ./mlruns behind it."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: os.environ.get("WORKBENCH_HOME") or "mlruns",
        show_default="$WORKBENCH_HOME or ./mlruns",
        help="Folder of all that runs leave: store, MLflow database, results.",
    )(command)


def common(command: Command) -> Command:
    """--json and --debug, and the guard."""
    command = click.option("--debug", is_flag=True, help="Show tracebacks.")(guarded(command))
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)


def config_options(command: Command) -> Command:
    """CONFIG and --set."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field; the value is YAML. Repeatable."
    )(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)
