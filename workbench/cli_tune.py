"""`workbench tune`: sweeps with the same chance for every arm."""

from __future__ import annotations

import math
from pathlib import Path

import click

from workbench.cli_common import common, config_options, emit, home_option


@click.command()
@config_options
@click.option(
    "--arm", "arms", multiple=True, required=True, metavar="ARM",
    help="Label or kind of an arm, reward_model, or all. Repeatable.",
)  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), help="Settings tried for each arm, the config's own among them.")
@click.option("--budget-s", type=click.FloatRange(min=0, min_open=True), help="Or: compute of each arm, in seconds.")
@click.option("--budget-tokens", type=click.IntRange(min=1), help="Or: tokens trained on and generated for each arm.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Trials at a time.  [default: resources.workers; 1 on a GPU]"
)
@click.option("--storage", metavar="URL", help="Optuna's database.  [default: optuna.db in the home]")
@home_option
@click.option("--wait", is_flag=True, help="Wait for another driver of the same tuning, instead of exiting with 75.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no table; errors only.")
@common
def tune(
    config: Path,
    overrides: tuple[str, ...],
    arms: tuple[str, ...],
    trials: int | None,
    budget_s: float | None,
    budget_tokens: int | None,
    workers: int | None,
    storage: str | None,
    home: Path,
    wait: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Tune arms of CONFIG with equal budgets, on validation prompts.

    The same command goes on where it was stopped; a larger budget adds to what is there. Then run
    `workbench compare CONFIG --tuned STUDY` for the head-to-head with the tuned values on the test prompts.
    """
    from pipelines.tune import tune as run
    from pipelines.tune import with_tuning
    from workbench.config import load_config
    from workbench.config_tuning import Budget
    from workbench.errors import ConfigError
    from workbench.report.wording import clean
    from workbench.tuning_table import print_tuning

    given = {"trials": trials, "seconds": budget_s, "tokens": budget_tokens}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        raise ConfigError("got several, expected one of --trials, --budget-s, --budget-tokens", where="budget")
    comparison = with_tuning(load_config(config, overrides), Budget.model_validate(asked) if asked else None, arms)

    def say(line: str) -> None:
        if not quiet:
            click.echo(clean(line), err=True)

    tuned = run(
        comparison, arms, home=home.absolute(), workers=workers, storage=storage, wait_s=math.inf if wait else 0.0,
        say=say,
    )  # fmt: skip
    plain = tuned.results.model_dump(mode="json", by_alias=True)
    if not quiet:
        print_tuning(plain, str(tuned.path))
    if as_json:
        emit(plain)
    return tuned.exit_code
