"""`workbench data`: find out what is wrong with preference data, and what is in it, before training on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli_common import common, emit
from workbench.cli_data_pages import annotators, describe
from workbench.cli_data_request import reading, request, slug, source_of
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.config import Comparison
    from workbench.data.validate import Options


@click.group()
def data() -> None:
    """Find out what is wrong with preference data, and what is in it, before training on it."""


data.add_command(describe)
data.add_command(annotators)


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
        source_of(asked),
        Settings(
            options=options, model=asked.model, lengths=lengths, near=near_duplicates or None,
            length_band=_band(length_band), position_band=_band(position_band), precision=precision,
            personal=not no_pii, levels=_levels(severities),
        ),
    )  # fmt: skip
    plain = found.to_json()
    if not as_json:
        print_check(plain, found.kept, make_console(stderr=False))
    if drop_invalid and found.ok:
        _drop(source_of(asked), options, out, asked.model)
    elif drop_invalid:
        click.echo("nothing was written: dropping rows does not help against the errors that are left", err=True)
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

    target = out or Path(f"{slug(source)}.valid.jsonl")
    dropped = drop_into(source, options, target, tokenizer=None if model is None else LightTokenizer(model))
    reasons = ", ".join(f"{count:,} {code}" for code, count in sorted(dropped.reasons.items())) or "none"
    click.echo(
        f"{dropped.kept:,} usable rows in {dropped.out}; dropped: {reasons}, listed in {dropped.listed}", err=True
    )
