"""The training pairs with labels drawn from a reward: the same pairs, each turned round where that reward says so.

DPO on them optimizes that reward directly, where PPO optimizes it by rollouts: the two differ in the optimizer alone.

Rule `sample` (the default) draws each label from P(chosen preferred) = sigmoid(margin), the model behind both reward
modeling and DPO. With many pairs the Bradley-Terry likelihood of such labels is largest at the reward itself, so DPO's
optimum is pi_ref exp(r / beta), the same policy that PPO's KL-regularized objective has at kl_coef = beta.
Each pair carries one draw, as a pair labeled by an annotator does. Rule `argmax` takes the sign: its Bradley-Terry
maximum lies at infinite margins, where DPO's pull to the reference vanishes, whatever the size of the margins was
(Azar et al. 2023, section 4.2); the reward is sharpened, and its strength is lost. Rule `soft` keeps both: a pair is
turned by the sign and its target is sigmoid(|margin|), the label that `sample` draws in expectation and without its
noise.

Source: Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290), eq. 1 and 4-7; Azar et al. 2023
(https://arxiv.org/abs/2310.12036), deterministic preferences.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.data.records_io import FILTER_FILE
from workbench.data.turned import FLIPS_FILE, train_digests, write_turned
from workbench.errors import DivergenceError, IntegrityError
from workbench.label_targets import write_targets
from workbench.packed import PackedPairs
from workbench.stage_log import StageLog

FACTS_FILE = "facts.json"
__all__ = ["FACTS_FILE", "FLIPS_FILE", "run", "train_digests", "turned"]


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes packed pairs whose training rows carry a reward's labels, and the reference's log-probabilities with them.

    Args:
        config: {"column": of the margins, "rule": "sample" | "argmax" | "soft"}.
        inputs: `pairs` (packed), `margins` (of the train split, by that reward), `reference_logprobs`.
        out: Receives packed pairs, logprobs.npz (nothing is computed anew: what was the chosen response's is the
            rejected one's where a pair was turned), flips.npy (bool, one a pair), facts.json, and targets.npz with
            rule soft.
        log: Seed of the draws; two rewards that draw from one seed share the chance of each pair.

    Raises:
        IntegrityError: The margins are not of these pairs.
        DivergenceError: A margin is not finite.
    """
    pairs = PackedPairs(inputs["pairs"])
    train = pairs.split_rows("train")
    found = json.loads((inputs["margins"] / "margins.json").read_text(encoding="utf-8"))
    ids = (pairs.meta(row)["pair_id"] for row in train)
    if len(found["pair_id"]) != len(train) or any(one != own for one, own in zip(found["pair_id"], ids, strict=True)):
        raise IntegrityError(
            f"margins of {len(found['pair_id'])} pairs, expected those of the {len(train)} training pairs in their "
            "order; delete the stage's artifact and run again",
            where=str(inputs["margins"]),
        )
    ordered = np.array(found[config["column"]], dtype=np.float64)
    flips = np.zeros(len(pairs), dtype=bool)
    flips[train] = turned(ordered, config["rule"], np.random.default_rng(log.seed))

    # Annotators and margins belong to the labels that were replaced.
    meta = (
        line | {"annotations": [], "target_margin": None} if line["split"] == "train" else line
        for line in (pairs.meta(row) for row in range(len(pairs)))
    )
    write_turned(inputs["pairs"], inputs["reference_logprobs"], flips, meta, out)
    shutil.copyfile(inputs["pairs"] / FILTER_FILE, out / FILTER_FILE)
    if config["rule"] == "soft":
        target = np.ones(len(pairs))
        target[train] = 1 / (1 + np.exp(-np.minimum(np.abs(ordered), 500)))
        write_targets(out, target, np.zeros(len(pairs)))
    facts = {
        "column": config["column"],
        "rule": config["rule"],
        "pairs": len(train),
        "turned": int(flips.sum()),
        "margin_sd": float(ordered.std()),
        "expected_turned": float(np.mean(1 / (1 + np.exp(np.clip(ordered, -500, 500))))),
    }
    (out / FACTS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    log.say(f"{log.instance}: {facts['turned']} of {len(train)} labels turned")


def turned(margins: NDArray[np.float64], rule: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which pairs change their label.

    Args:
        margins: (N,) of the response that is chosen now less the rejected one, in log-odds.
        rule: "sample": with probability sigmoid(-margin); "argmax" and "soft": where the margin is below 0, ties stay.
        rng: Seeded generator; draws one number a pair whatever the margins are.

    Raises:
        DivergenceError: A margin is not finite.
    """
    wrong = int((~np.isfinite(margins)).sum())
    if wrong:
        raise DivergenceError(f"{wrong} of {len(margins)} margins are not finite; the reward that labels has diverged")
    chance = rng.random(len(margins))
    if rule in ("argmax", "soft"):
        return np.asarray(margins < 0)
    return np.asarray(chance < 1 / (1 + np.exp(np.clip(margins, -500, 500))))
