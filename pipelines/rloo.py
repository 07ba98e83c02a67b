"""RLOO: the policy trained on the explicit reward, with the other responses to a prompt as a response's baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench import processes
from workbench.online import OnlineArm
from workbench.stage_log import StageLog


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains the policy and writes its checkpoints.

    Args:
        config: An `arms.*` block of kind rloo, with `max_response_tokens`, `stop_ids` and `trust_remote_code`.
        inputs: `sft` and `reward_model` (policy sets), `prompts` (packed).
        out: Receives the policy set.
        log: Seed, resources, metrics, cost.

    Divergence ends the training, keeps the last good checkpoint (at worst the SFT) and is recorded in the index, so
    that the arm stays in the table.

    Source: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740).
    """
    from workbench.trl_online import train_rloo

    # ---- 1. Load: policy and reference are the SFT that everybody starts from; there is no critic.
    arm = OnlineArm(config, inputs, log)

    # ---- 2. Train: advantage = score - kl_coef KL, less the mean of the same over the other responses to the prompt.
    kept = log.work / "policies"
    trained = train_rloo(arm, kept)

    # ---- 3. Write: the first process for all.
    if not processes.is_main():
        return
    arm.publish(kept, out, trained.diverged)
