"""The training pairs with labels drawn from a reward: the same pairs, each turned round where that reward says so.

DPO on them optimizes that reward directly, where PPO optimizes it by rollouts: the two differ in the optimizer alone.

Rule `sample` (the default) draws each label from P(chosen preferred) = sigmoid(margin), the model behind both reward
modeling and DPO. With many pairs the Bradley-Terry likelihood of such labels is largest at the reward itself, so DPO's
optimum is pi_ref exp(r / beta), the same policy that PPO's KL-regularized objective has at kl_coef = beta.
Each pair carries one draw, as a pair labeled by an annotator does. Rule `argmax` takes the sign: its Bradley-Terry
maximum lies at infinite margins, where DPO's pull to the reference vanishes, whatever the size of the margins was
(Azar et al. 2023, section 4.2); the reward is sharpened, and its strength is lost.

Source: Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290), eq. 1 and 4-7; Azar et al. 2023
(https://arxiv.org/abs/2310.12036), deterministic preferences.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.data.records_io import FILTER_FILE
from workbench.errors import DivergenceError, IntegrityError
from workbench.packed import PackedPairs, row_hash, rows_digest, write_packed_pairs
from workbench.stage_log import StageLog

FLIPS_FILE = "flips.npy"
FACTS_FILE = "facts.json"


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes packed pairs whose training rows carry a reward's labels, and the reference's log-probabilities with them.

    Args:
        config: {"column": of the margins, "rule": "sample" | "argmax"}.
        inputs: `pairs` (packed), `margins` (of the train split, by that reward), `reference_logprobs`.
        out: Receives packed pairs, logprobs.npz (nothing is computed anew: what was the chosen response's is the
            rejected one's where a pair was turned), flips.npy (bool, one a pair) and facts.json.
        log: Seed of the draws; two rewards that draw from one seed share the chance of each pair.

    Raises:
        IntegrityError: The margins are not of these pairs.
        DivergenceError: A margin is not finite.
    """
    pairs = PackedPairs(inputs["pairs"])
    train = pairs.split_rows("train")
    found = json.loads((inputs["margins"] / "margins.json").read_text(encoding="utf-8"))
    if found["pair_id"] != [pairs.meta(row)["pair_id"] for row in train]:
        raise IntegrityError(
            f"margins of {len(found['pair_id'])} pairs, expected those of the {len(train)} training pairs in their "
            "order; delete the stage's artifact and run again",
            where=str(inputs["margins"]),
        )
    ordered = np.array(found[config["column"]], dtype=np.float64)
    flips = np.zeros(len(pairs), dtype=bool)
    flips[train] = turned(ordered, config["rule"], np.random.default_rng(log.seed))

    rows: list[tuple[list[int], list[int], list[int]]] = []
    meta: list[dict[str, Any]] = []
    for index, flip in enumerate(flips.tolist()):
        prompt, chosen, rejected = (ids.tolist() for ids in pairs.row(index))
        rows.append((prompt, rejected, chosen) if flip else (prompt, chosen, rejected))
        line = pairs.meta(index)
        # Annotators and margins belong to the labels that were replaced.
        meta.append(line | {"annotations": [], "target_margin": None} if line["split"] == "train" else line)
    write_packed_pairs(out, rows, meta)
    shutil.copyfile(inputs["pairs"] / FILTER_FILE, out / FILTER_FILE)
    np.save(out / FLIPS_FILE, flips, allow_pickle=False)

    made = PackedPairs(out)
    before = np.load(inputs["reference_logprobs"] / "logprobs.npz")
    if str(before["pairs_digest"]) != pairs.ids_digest():
        raise IntegrityError(
            "the reference log-probabilities are of other pairs; delete the stage's artifact and run again",
            where=str(inputs["reference_logprobs"]),
        )
    np.savez(
        out / "logprobs.npz",
        chosen=np.where(flips, before["rejected"], before["chosen"]),
        rejected=np.where(flips, before["chosen"], before["rejected"]),
        pairs_digest=made.ids_digest(),
        reference_tensors=before["reference_tensors"],
    )
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
        rule: "sample": with probability sigmoid(-margin); "argmax": where the margin is below 0, ties stay.
        rng: Seeded generator; draws one number a pair whatever the margins are.

    Raises:
        DivergenceError: A margin is not finite.
    """
    wrong = int((~np.isfinite(margins)).sum())
    if wrong:
        raise DivergenceError(f"{wrong} of {len(margins)} margins are not finite; the reward that labels has diverged")
    chance = rng.random(len(margins))
    if rule == "argmax":
        return np.asarray(margins < 0)
    return np.asarray(chance < 1 / (1 + np.exp(np.clip(margins, -500, 500))))


def train_digests(folder: Path) -> tuple[str, str]:
    """Digests of the training pairs as they stand, and with every turn undone: from the ids and flips themselves.

    Args:
        folder: What `run` wrote.

    Raises:
        IntegrityError: There is not one flip for each pair.
    """
    pairs = PackedPairs(folder)
    flips = np.load(folder / FLIPS_FILE, allow_pickle=False)
    if flips.shape != (len(pairs),):
        raise IntegrityError(f"{len(pairs)} pairs but flips of shape {flips.shape}", where=str(folder))
    rows: Sequence[int] = pairs.split_rows("train")
    restored = []
    for row in rows:
        prompt, chosen, rejected = pairs.row(row)
        restored.append(row_hash(prompt, rejected, chosen) if flips[row] else row_hash(prompt, chosen, rejected))
    return pairs.ids_digest(rows), rows_digest(restored)
