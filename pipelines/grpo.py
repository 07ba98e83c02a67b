"""GRPO: the policy trained on the explicit reward relative to the group of responses to the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench import processes
from workbench.online import OnlineArm
from workbench.stage_log import StageLog


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains the policy and writes its checkpoints.

    Args:
        config: An `arms.*` block of kind grpo, with `max_response_tokens`, `stop_ids` and `trust_remote_code`.
        inputs: `sft` and `reward_model` (policy sets), `prompts` (packed).
        out: Receives the policy set.
        log: Seed, resources, metrics, cost.

    Divergence ends the training, keeps the last good checkpoint (at worst the SFT) and is recorded in the index, so
    that the arm stays in the table.

    Source: Shao et al. 2024 (https://arxiv.org/abs/2402.03300).
    """
    from workbench.trl_online import train_grpo

    # ---- 1. Load: policy and reference are the SFT that everybody starts from; there is no critic.
    arm = OnlineArm(config, inputs, log)

    # ---- 2. Train: advantage = score less the mean of its group, over the deviation; KL stands in the loss.
    kept = log.work / "policies"
    trained = train_grpo(arm, kept)

    # ---- 3. Write: the first process for all.
    if not processes.is_main():
        return
    arm.publish(kept, out, trained.diverged)
