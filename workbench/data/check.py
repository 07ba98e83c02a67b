"""`workbench data check`: everything that is known to go wrong with preference data, reported at once.

What makes rows unusable is found by `scan_pairs`, as `compare` would find it; the rest comes from observers that see
every parsed row once and keep a few bytes of it. Nothing is repaired: `drop_into` writes the rows that are usable to
another file, and beside it a list of those that are not, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workbench.data.check_model import ModelCheck
from workbench.data.check_near import THRESHOLD, NearCheck
from workbench.data.check_rows import (
    LENGTH_BAND,
    POSITION_BAND,
    PRECISION,
    LengthCheck,
    PersonalCheck,
    PositionCheck,
    SplitCheck,
    split_rule,
)
from workbench.data.findings import CODES, SEVERITIES, Finding, option_of
from workbench.data.light_tokenizer import LightTokenizer
from workbench.data.packing import Limits
from workbench.data.validate import Observer, Options, scan_pairs
from workbench.errors import ConfigError
from workbench.tokens import stop_ids

Level = Literal["error", "warning", "info", "off"]
LEVELS: tuple[Level, ...] = (*SEVERITIES, "off")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `data check` looks for.

    Args:
        options: How rows are read, as `compare` reads them; its seed and fractions make the splits.
        model: Folder with the policy's tokenizer; None: nothing is tokenized.
        lengths: {"max_prompt_tokens", "max_length", "max_response_tokens", "stop_token_ids"} in tokens; any missing.
        near: Similarity from which on two texts are near duplicates; None: not looked for.
        length_band, position_band: Shares that are no imbalance.
        precision: Half width of a win rate's interval that the test split should give.
        personal: Count strings that look like personal data.
        levels: Code -> severity to report it with, or "off".
    """

    options: Options
    model: Path | None = None
    lengths: Mapping[str, Any] = field(default_factory=dict)
    near: float | None = THRESHOLD
    length_band: tuple[float, float] = LENGTH_BAND
    position_band: tuple[float, float] = POSITION_BAND
    precision: float = PRECISION
    personal: bool = True
    levels: Mapping[str, Level] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What came out: rows read, rows that are usable, all findings."""

    rows: int
    kept: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(one.severity != "error" for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The documented object."""
        return {"schema": 1, "rows": self.rows, "ok": self.ok, "findings": [one.to_json() for one in self.findings]}


def check(source: str | Path, settings: Settings) -> Checked:
    """Checks one source of preference pairs.

    Args:
        source: Path or hub id.
        settings: What to look for.

    Raises:
        DataError: The source does not exist.
        ConfigError: The tokenizer cannot be read, or a severity cannot be changed.
    """
    check_levels(settings.levels)
    options = settings.options
    split_of = split_rule(options.fractions or {}, options.seed)
    wanted = ["train", *(name for name, share in (options.fractions or {}).items() if share > 0)]
    observers: list[Observer] = [
        SplitCheck(split_of=split_of, wanted=wanted, precision=settings.precision),
        LengthCheck(band=settings.length_band),
        PositionCheck(band=settings.position_band),
    ]
    if settings.near is not None:
        observers.append(NearCheck(split_of=split_of, threshold=settings.near))
    if settings.personal:
        observers.append(PersonalCheck())
    tokenizer = None if settings.model is None else LightTokenizer(settings.model)
    if tokenizer is not None and settings.model is not None:
        observers.append(_model_check(tokenizer, settings.model, settings.lengths))
    _, report = scan_pairs(source, options, tokenizer=tokenizer, stop=False, observers=observers)
    return Checked(rows=report.rows, kept=report.kept, findings=_leveled(report.findings, settings.levels))


def _model_check(tokenizer: LightTokenizer, folder: Path, lengths: Mapping[str, Any]) -> ModelCheck:
    given = lengths.get("stop_token_ids")
    stops: Sequence[int] = ()
    if given or tokenizer.eos_token_id is not None:
        stops = stop_ids(tokenizer, {"stop_token_ids": given})
    return ModelCheck(tokenizer=tokenizer, limits=Limits.from_config(lengths, folder, tokenizer), stops=stops)


def check_levels(levels: Mapping[str, Level]) -> None:
    """Refuses to make an error less than one: unusable rows are dropped with --drop-invalid, and counted.

    Raises:
        ConfigError: The code or the severity is unknown, or the code is an error.
    """
    for code, level in levels.items():
        if code not in CODES:
            raise ConfigError(f"--severity: no check is named {code!r}; the codes are {', '.join(sorted(CODES))}")
        if level not in LEVELS:
            raise ConfigError(f"--severity {code}: got {level!r}, expected {', '.join(LEVELS)}")
        if CODES[code].scope in ("row", "file") and level != "error":
            what = option_of(code) or "nothing but mending the source"
            raise ConfigError(f"--severity {code}: this is an error, because such data cannot be used; {what} helps")


def _leveled(findings: Sequence[Finding], levels: Mapping[str, Level]) -> tuple[Finding, ...]:
    found = []
    for one in findings:
        level = levels.get(one.code, one.severity)
        if level != "off":
            found.append(replace(one, severity=level))
    return tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))
