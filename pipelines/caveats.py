"""What a reader must know before quoting a comparison's numbers: the `warnings` of results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workbench.config import Comparison
from workbench.outcome import Outcome
from workbench.results_tuning import TuningLedger


def rounded(outcome: Outcome) -> list[str]:
    """What `model.lora.quantize` did to the SFT, and to reward models' own bases."""
    found = []
    for instance, artifact in outcome.artifacts.items():
        if artifact.record.name not in ("sft", "reward_model"):
            continue
        index = json.loads((artifact.path / "index.json").read_text(encoding="utf-8"))
        told = index["facts"].get("quantized")
        if told is not None:
            what = "the SFT" if instance == "sft" else f"the base of {instance}"
            told = f"{told['scheme']}: the weights of its linear layers moved by {told['relative_error']:.1%}"
            found.append(f"4 bits: {what} was rounded to {told} (root mean square); what starts from it starts there.")
    return found


def warnings(
    comparison: Comparison,
    judges: Mapping[str, Mapping[str, Any]],
    unfinished: Mapping[str, str],
    tuned: TuningLedger | None = None,
) -> list[str]:
    """What a reader must know before quoting a number.

    Args:
        comparison: Without the judges that did not finish.
        judges: The section of results.json.
        unfinished: Judges that did not finish.
        tuned: Ledger of the tuning behind the arms' settings.
    """
    from workbench.report.wording import seeds_caveat

    caveat = seeds_caveat({"seeds": comparison.seeds.model_dump()})
    found = [caveat] if caveat else []
    if "proxy" in comparison.evaluation.judges:
        found.append("Judge 'proxy' is the reward model that PPO, RLOO, GRPO and best-of-n optimize: it favors them.")
    if comparison.selection.rule == "best" and comparison.selection.metric == "gold_reward":
        found.append("Checkpoints were chosen by the gold reward: an oracle that no user has.")
    if tuned is not None:
        found += [f"Tuning: {warning}" for warning in tuned.warnings]
        if tuned.objective.oracle and not any("gold reward" in warning for warning in tuned.warnings):
            found.append("Settings were tuned by the gold reward: an oracle that no user has.")
    headline = comparison.evaluation.judges[0]
    found += [f"Judge '{name}' did not finish: the headline is by '{headline}'." for name in unfinished]
    for name, judge in judges.items():
        if len(judge["models"]) > 1:
            found.append(f"Judge '{name}': the endpoint answered as {', '.join(judge['models'])}: different judges.")
        found += [f"Judge '{name}': {judge[reason]}" for reason in ("lineage", "uneven") if judge[reason]]
    return found
