"""DPO: the policy trained on the pairs directly; its log-ratio to the reference is an implicit reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from workbench import processes
from workbench.data.subset import subset_rows
from workbench.errors import IntegrityError
from workbench.label_targets import read_targets
from workbench.lora import Lora, base_digest, operations_per_token, parametrization
from workbench.lora_files import load_trainee
from workbench.models import Placement
from workbench.numerics import numerics
from workbench.policy_set import keep_start, publish_checkpoints, read_policy_set, write_policy_set
from workbench.stage_log import StageLog
from workbench.staged import StagedPairs
from workbench.tokens import PackedPairs, load_tokenizer


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Trains the policy and writes its checkpoints.

    Args:
        config: An `arms.*` block of kind dpo, with `trust_remote_code`, and `lora` where adapters are trained instead
            of all weights; the checkpoints are whole models all the same, the adapters merged. `pairs` and `pairs_seed`
            where it sees a subset of the training pairs.
        inputs: `sft` (policy set), `pairs` (packed), `reference_logprobs`.
        out: Receives the policy set.
        log: Seed, resources, metrics, cost.

    Source: Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290); with `nll_coef` Pang et al. 2024
    (https://arxiv.org/abs/2404.19733).
    """
    from workbench.trl_adapter import TrainSpec, train_dpo, training_order

    # ---- 1. Load: the same SFT as everybody; the reference is present as its log-probabilities alone.
    placement = Placement.of(log.resources)
    trust = config["trust_remote_code"]
    sft = read_policy_set(inputs["sft"])
    tokenizer = load_tokenizer(sft.folder(), trust_remote_code=trust)
    lora = Lora.from_config(config.get("lora"))
    policy = load_trainee(sft.folder(), placement, lora, log.seed, trust_remote_code=trust)
    start = base_digest(policy)

    # ---- 2. Rows: the pairs that every arm shares, each with the reference's log-probabilities.
    pairs = PackedPairs(inputs["pairs"])
    reference = np.load(inputs["reference_logprobs"] / "logprobs.npz")
    digest = str(reference["pairs_digest"])
    if digest != pairs.ids_digest():
        raise IntegrityError(
            f"the reference log-probabilities are of pairs {digest[:12]}, expected {pairs.ids_digest()[:12]}; "
            "delete the stage's artifact and run again",
            where=str(inputs["reference_logprobs"]),
        )
    logprobs = {f"ref_{side}_logps": reference[side] for side in ("chosen", "rejected")}
    staged = StagedPairs(pairs, placement.device, values=logprobs | read_targets(pairs.folder, len(pairs)))

    # ---- 3. Train: sigmoid loss, eq. 7, and perhaps the likelihood of the chosen responses.
    train = pairs.split_rows("train")
    if config.get("pairs") is not None:
        train = subset_rows(pairs, config["pairs"], config["pairs_seed"])
    order = [train[i] for i in training_order(len(train), config["epochs"], log.seed)]
    kept = log.work / "policies"
    spec = TrainSpec.from_config(config, log.seed)
    coefficients = {"beta": config["beta"], "nll_coef": config["nll_coef"]}
    trained = train_dpo(policy, tokenizer, staged, order, spec, log, keep=kept, **coefficients)
    if not processes.is_main():
        return
    tokens = staged.tokens(order[: trained.steps * spec.batch_size])
    log.cost(tokens_trained=tokens, flops=operations_per_token(policy) * tokens)

    # ---- 4. Write.
    keep_start(kept, sft.folder(), tokenizer, placement, trust)
    listed = publish_checkpoints(kept, out, Placement(dtype=placement.dtype), trust)
    facts = {
        "sft_tensors": start,
        "reference_tensors": str(reference["reference_tensors"]),
        "consumed_pairs": trained.consumed,
        "consumed_labels": trained.consumed_labels,
        "pairs_filter": pairs.filter_digest(),
        "numerics": numerics(policy),
        "beta": config["beta"],
        "parametrization": parametrization(lora),
    }
    write_policy_set(out, listed, facts=facts, diverged=trained.diverged)
