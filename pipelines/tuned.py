"""A comparison with the settings that a tuning chose: what `workbench compare --tuned STUDY` runs."""

from __future__ import annotations

from pathlib import Path

from workbench.config import Comparison
from workbench.config_tuning import REWARD_MODEL
from workbench.errors import ConfigError
from workbench.results_tuning import TuningLedger, ledger_of, load_tuning
from workbench.tuning_spaces import upstream_digest, with_params

SUFFIX = "-tuned"


def with_tuned(comparison: Comparison, study: str, home: Path) -> tuple[Comparison, TuningLedger]:
    """The comparison under a name of its own, with each tuned arm's chosen settings, and the ledger.

    An arm without a complete trial keeps the config's settings; the ledger shows that. An arm that was not tuned
    keeps them too, and the certificate fails for it.

    Args:
        study: Name of a tuning of this home, or path of a tuning.json.

    Raises:
        DataError: There is no such tuning.
        ConfigError: It tuned other arms, or on another model, other data or another SFT; or a run seed of the
            comparison is one that settings were chosen by.
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
    for label, arm in found.arms.items():
        if arm.best is not None:
            comparison = with_params(comparison, label, arm.best.params)
    name = comparison.name[: 64 - len(SUFFIX)] + SUFFIX
    return comparison.model_copy(update={"name": name}), ledger_of(found)
