"""A comparison with the settings that a tuning chose: what `workbench compare --tuned STUDY` runs."""

from __future__ import annotations

from pathlib import Path

from workbench.config import Comparison
from workbench.config_tuning import REWARD_MODEL
from workbench.errors import ConfigError
from workbench.results_tuning import TuningLedger, TuningResults, ledger_of, load_tuning
from workbench.tuned_blocks import behind, untuned
from workbench.tuning_spaces import upstream_digest, with_params

SUFFIX = "-tuned"
SHOWN = 5  # settings that a message names


def with_tuned(comparison: Comparison, study: str, home: Path) -> tuple[Comparison, TuningLedger]:
    """The comparison under a name of its own, with each tuned arm's chosen settings, and the ledger.

    An arm without a complete trial keeps the config's settings; the ledger shows that. An arm that was not tuned
    keeps them too, and the certificate fails for it.

    Args:
        study: Name of a tuning of this home, or path of a tuning.json.

    Raises:
        DataError: There is no such tuning.
        ConfigError: It tuned other arms, or on another model, other data, another SFT or with other settings beside
            those that it varied; a run seed of the comparison is one that settings were chosen by, or a judge of it is
            who chose them.
    """
    found = load_tuning(home, study)
    unknown = sorted(set(found.arms) - {*comparison.arms, REWARD_MODEL})
    if unknown:
        known = ", ".join(comparison.arms)
        raise ConfigError(f"tuned {', '.join(unknown)}, which this config does not have ({known})", where=found.study)
    if found.upstream != upstream_digest(comparison):
        message = "tuned on another model, other data, another gold or SFT; run `workbench tune` with this config"
        raise ConfigError(message, where=found.study)
    if shared := sorted({*found.seeds} & {*comparison.seeds.runs}):
        message = f"its settings were chosen by runs of seeds {shared}, which seeds.runs has too; choose others"
        raise ConfigError(message, where=found.study)
    _check_judge(found, comparison)
    _check_untuned(found, comparison)
    ledger = ledger_of(found)
    warnings = list(ledger.warnings)
    if found.untuned is None:
        warnings.append("The tuning is an older version's: settings that it did not vary could not be compared.")
    declared = list(comparison.tuning.declared) if comparison.tuning is not None else []
    ledger = ledger.model_copy(
        update={"behind": behind(comparison, found.arms), "declared": declared, "warnings": warnings}
    )
    for label, arm in found.arms.items():
        if arm.best is not None:
            comparison = with_params(comparison, label, arm.best.params)
    name = comparison.name[: 64 - len(SUFFIX)] + SUFFIX
    return comparison.model_copy(update={"name": name}), ledger


def _check_judge(found: TuningResults, comparison: Comparison) -> None:
    """Refuses to let who chose the settings judge them; gold may, and is labeled."""
    scorer = found.objective.judge or found.objective.metric.removesuffix("_reward")
    if scorer != "gold" and scorer in comparison.evaluation.judges and set(found.arms) - {REWARD_MODEL}:
        message = (
            f"its settings were chosen by '{scorer}', which is in evaluation.judges: who selects must not be a judge; "
            "take it out of evaluation.judges, or tune by another tuning.objective"
        )
        raise ConfigError(message, where=found.study)


def _check_untuned(found: TuningResults, comparison: Comparison) -> None:
    """Refuses settings that were others when the values were found."""
    if found.untuned is None:
        return
    now = untuned(comparison, found.arms)
    changed = [place for place in {**found.untuned, **now} if found.untuned.get(place) != now.get(place)]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        message = (
            f"{', '.join(changed[:SHOWN])}{more}: not as they were when its settings were found, which may not hold "
            "here; set them back, or run `workbench tune` with this config"
        )
        raise ConfigError(message, where=found.study)
