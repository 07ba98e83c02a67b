"""The `workbench` command: thin. Each command imports what it needs inside its body, so that --help, plan and config
errors load no torch, transformers or mlflow.

People's output and progress go to stderr; stdout holds what --json prints, or what a command is asked for.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from workbench import __version__
from workbench.cli_common import common, config_options, emit, home_option
from workbench.cli_data import data
from workbench.cli_report import report
from workbench.cli_tune import tune
from workbench.errors import ConfigError

EXIT_CODES = """\b
Exit codes: 0 fine · 1 a fault of the workbench · 2 usage, config or data · 3 resources ·
4 integrity or certificate · 5 divergence · 6 judging, or sampling by a server, incomplete ·
75 store busy · 130/143 signals"""


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="workbench")
def main() -> None:
    """Settle, fairly and with proof, whether RM+PPO, DPO or best-of-n is the better way to use your preference data."""


@main.command()
@config_options
@home_option
@click.option("--wait", is_flag=True, help="Wait for stages that another process builds, instead of exiting with 75.")
@click.option("--tuned", metavar="STUDY", help="With the settings that `workbench tune` chose; STUDY or tuning.json.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no tables; errors only.")
@common
def compare(
    config: Path, overrides: tuple[str, ...], home: Path, wait: bool, tuned: str | None, quiet: bool, as_json: bool
) -> int:
    """Run the head-to-head of CONFIG (a file, or a shipped name such as quickstart).

    What is in the store already is reused, and what was interrupted goes on.
    """
    from pipelines.compare import run_comparison
    from workbench.config import load_config
    from workbench.report.live import LiveView
    from workbench.report.terminal import print_results

    comparison, ledger = load_config(config, overrides), None
    if tuned is not None:
        from pipelines.tuned import with_tuned

        comparison, ledger = with_tuned(comparison, tuned, home.absolute())
    with LiveView(quiet=quiet) as view:
        finished = run_comparison(
            comparison, home=home.absolute(), wait_s=math.inf if wait else 0.0, on_event=view, warn=view.say,
            tuned=ledger,
        )  # fmt: skip
    plain = finished.results.model_dump(mode="json", by_alias=True)
    if not quiet:
        print_results(plain, results_path=str(finished.path))
    if as_json:
        emit(plain)
    return finished.exit_code


@main.command()
@config_options
@home_option
@common
def plan(config: Path, overrides: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Show what `compare` would run, what is cached, and why."""
    from pipelines.compare import plan_comparison
    from workbench.config import load_config
    from workbench.report.terminal import print_plan

    planned = plan_comparison(load_config(config, overrides), home.absolute())
    names = ("name", "instance", "key", "cached", "why")
    rows = {"schema": 1, "stages": [{name: getattr(one, name) for name in names} for one in planned]}
    if as_json:
        emit(rows)
    else:
        print_plan(rows)


@main.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, help="Port to listen on.")
@click.option("--sync", is_flag=True, help="Only send what a tracking server missed (HOME/spool), and end.")
@common
def ui(home: Path, host: str, port: int, sync: bool, as_json: bool) -> int:
    """Serve the home's runs in the MLflow UI until Ctrl-C.

    With --sync: send to MLflow servers what they could not take while they were away.
    """
    from workbench.ui import send_spool, serve

    if not sync:
        return serve(home.absolute(), host, port)
    told, code = send_spool(home.absolute(), lambda line: click.echo(line, err=True))
    if as_json:
        emit(told)
    return code


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("comparison.yaml"))
@click.option("--schema", is_flag=True, help="Write the JSON schema for editors instead.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@common
def init(path: Path, schema: bool, force: bool, as_json: bool) -> None:
    """Write a commented starter config to PATH."""
    from workbench.config import json_schema, starter_yaml

    if schema and path == Path("comparison.yaml"):
        path = Path("comparison.schema.json")
    text = json.dumps(json_schema(), indent=2) + "\n" if schema else starter_yaml()
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError("exists already; give another name, or --force to overwrite it", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(path)) from error
    click.echo(f"wrote {path}" + ("" if schema else f"; next: workbench compare {path}"), err=True)
    if as_json:
        emit({"schema": 1, "path": str(path)})


@main.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of CONFIG. Repeatable.")
@home_option
@common
def doctor(config: Path | None, overrides: tuple[str, ...], home: Path, as_json: bool) -> int:
    """Check this machine: Python, packages, device, memory, disk, home.

    With CONFIG also what that comparison would need of it: memory, time, and what would not fit.
    """
    from workbench.doctor import examine

    findings = examine(home.absolute())
    found: dict[str, Any] = {}
    lines: list[str] = []
    if config is not None:
        from pipelines.forecast import forecast
        from workbench.config import check_paths, load_config
        from workbench.forecast import lines_of

        comparison = load_config(config, overrides)
        check_paths(comparison)
        needed, checks = forecast(comparison, home.absolute())
        findings, lines, found = [*findings, *checks], lines_of(needed), {"forecast": needed.to_json()}
    fine = all(one.ok for one in findings)
    if as_json:
        emit({"schema": 1, "ok": fine, "checks": [one.to_json() for one in findings]} | found)
    else:
        for one in findings:
            click.echo(f"{'ok  ' if one.ok else 'FAIL'} {one.name:10} {one.detail}")
        for line in lines:
            click.echo(f"     {line}")
    return 0 if fine else 3


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--baseline", metavar="NAME", help="System to compare with; default: the one that meets the most.")
@click.option("--quiet", "-q", is_flag=True, help="No tables; errors only.")
@common
def winrate(files: tuple[Path, ...], baseline: str | None, quiet: bool, as_json: bool) -> None:
    """Win rates, raw and at equal length, and a ranking, from files of judgments.

    FILE is the judgments.jsonl of a comparison or AlpacaEval's annotations.json, gzipped or not; several are read
    together. Judges stay apart.
    """
    from workbench.judgment_files import read_judgments
    from workbench.report.terminal import make_console
    from workbench.report.winrate import print_win_rates
    from workbench.winrate import win_rates

    plain = win_rates(read_judgments(files), baseline=baseline).model_dump(mode="json", by_alias=True)
    if not quiet:
        print_win_rates(plain, make_console(stderr=as_json))
    if as_json:
        emit(plain)


@main.command()
@click.option("--policy", required=True, metavar="P", help="Trained policy: folder or hub id.")
@click.option("--reference", required=True, metavar="R", help="The policy that it was trained from.")
@click.option("--reward-model", required=True, metavar="M", help="Sequence classifier with one output.")
@click.option("--data", required=True, metavar="FILE", help="Pairs (any format of compare); prompts, with --samples.")
@click.option("--beta", default=0.1, show_default=True, help="DPO's beta: scales the implicit reward.")
@click.option("--per-token", is_flag=True, help="Divide the implicit reward by the response's length in tokens.")
@click.option("--samples", default=0, metavar="N", help="Also compare on N samples a prompt of policy and reference.")
@click.option("--max-response-tokens", default=128, show_default=True, help="Longest sample.")
@click.option("--stop-token-id", "stop_token_ids", multiple=True, type=int, help="Ends a response; default: EOS.")
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first rows.")
@click.option("--drop-invalid", is_flag=True, help="Count broken rows instead of stopping.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of samples and resampling.")
@click.option("--batch-size", default=64, show_default=True, help="Sequences at once.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@home_option
@click.option("--quiet", "-q", is_flag=True, help="No progress, no table; errors only.")
@common
def agree(home: Path, quiet: bool, as_json: bool, **request: Any) -> None:
    """Compare DPO's implicit reward with a reward model on any checkpoints. Nothing is trained.

    P and R need no training of ours: any DPO checkpoint and what it started from. All three must share a tokenizer.
    """
    from pipelines.agree import agree as measure
    from pipelines.agree_inputs import Request
    from workbench.report.agreement import print_agreement
    from workbench.report.terminal import make_console
    from workbench.report.wording import clean

    def say(line: str) -> None:
        if not quiet:
            click.echo(clean(line), err=True)

    found = measure(Request(**request), home.absolute(), say)
    if not quiet:
        print_agreement(found["sets"], make_console(stderr=as_json))
    if as_json:
        emit(found)


main.add_command(tune)
main.add_command(report)
main.add_command(data)


@main.group()
def judge() -> None:
    """Give pairs of responses to people, blind."""


@judge.command("export")
@config_options
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@home_option
@common
def judge_export(config: Path, name: str, folder: Path, overrides: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Write the sheet of pairs that judge NAME of CONFIG is to fill in to FOLDER.

    The comparison must have run, with another judge. Put the filled-in file's path into judges.NAME.verdicts, and
    NAME into evaluation.judges, and run compare again.
    """
    from pipelines.judge_sheet import export_sheet
    from workbench.config import load_config

    sheet = export_sheet(load_config(config, overrides), name, folder, home.absolute())
    click.echo(f"{sheet.pairs} pairs in {', '.join(map(str, sheet.files))}", err=True)
    if as_json:
        emit({"schema": 1, "pairs": sheet.pairs, "files": [str(path) for path in sheet.files]})


@main.group()
def store() -> None:
    """Look at, verify and clean the store of artifacts."""


@store.command("ls")
@home_option
@common
def store_ls(home: Path, as_json: bool) -> None:
    """List artifacts, oldest first."""
    from workbench.store import Store

    artifacts = Store(home.absolute()).ls()
    if as_json:
        rows = [
            {"key": one.key, "instance": one.record.instance, "bytes": one.size_bytes, "wall_s": one.record.cost.wall_s}
            for one in artifacts
        ]
        emit({"schema": 1, "artifacts": rows})
        return
    for one in artifacts:
        size, wall = f"{one.size_bytes / 1e6:.1f} MB", f"{one.record.cost.wall_s:.1f} s"
        click.echo(f"{one.key[:12]}  {one.record.instance:48} {size:>10} {wall:>10}")
    click.echo(f"{len(artifacts)} artifacts, {sum(one.size_bytes for one in artifacts) / 1e6:.1f} MB", err=True)


@store.command("verify")
@home_option
@common
def store_verify(home: Path, as_json: bool) -> int:
    """Hash every artifact anew; what is damaged goes to the quarantine (exit 4)."""
    from workbench.store import Store

    verdicts = Store(home.absolute()).verify_all()
    damaged = {key: why for key, why in verdicts.items() if why is not None}
    if as_json:
        emit({"schema": 1, "artifacts": len(verdicts), "damaged": damaged})
    for key, why in damaged.items():
        click.echo(f"{key[:12]}: {why}; moved to the quarantine, the next run builds it anew", err=True)
    click.echo(f"{len(verdicts)} artifacts, {len(damaged)} damaged", err=True)
    return 4 if damaged else 0


@store.command("gc")
@home_option
@click.option("--keep", "keep", multiple=True, type=click.Path(path_type=Path), help="Keep what this config needs.")
@click.option("--wait", is_flag=True, help="Wait for running comparisons instead of exiting with 75.")
@click.option("--quarantine", is_flag=True, help="Empty the quarantine too.")
@common
def store_gc(home: Path, keep: tuple[Path, ...], wait: bool, quarantine: bool, as_json: bool) -> None:
    """Remove artifacts that neither the results of this home nor the configs given with --keep need."""
    from pipelines.compare import plan_comparison
    from workbench.config import load_config
    from workbench.results import load_results
    from workbench.store import Store

    home = home.absolute()
    kept = {row.key for path in sorted(home.glob("results/*/results.json")) for row in load_results(path).stages}
    for path in keep:
        kept |= {one.key for one in plan_comparison(load_config(path), home) if one.key is not None}
    freed = Store.open(home).gc(kept, wait_s=math.inf if wait else 0.0, drop_quarantine=quarantine)
    click.echo(f"freed {freed / 1e6:.1f} MB", err=True)
    if as_json:
        emit({"schema": 1, "freed_bytes": freed, "kept": len(kept)})


if __name__ == "__main__":
    main()
