"""The stage that turns annotated pairs into training labels: targets, margins and noise, once for every arm.

    share     of the (weighted) annotators who prefer the response that the data has as chosen
    noise     with probability data.label_noise a training pair's label is the other one: its share becomes 1 - share
    turn      where the share is below a half, chosen and rejected change places, so that "chosen" is what the label
              prefers for everyone: for the loss, for likelihood terms and for demonstrations
    target    (1 - 2 smoothing) share + smoothing

Training pairs alone; validation and test pairs stay as they came. The SFT that was trained on chosen responses saw them
before this stage, so a sweep over noise has one SFT.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workbench.data.label_check import check_labels
from workbench.data.records_io import FILTER_FILE
from workbench.data.turned import write_turned
from workbench.label_targets import noisy, preferring_share, smoothed, write_targets
from workbench.packed import PackedPairs
from workbench.stage_log import StageLog

LABELS_FILE: Final = "labels.json"


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes packed pairs whose training rows carry their labels, and the reference's log-probabilities with them.

    Args:
        config: {"labels": the config's `data.labels`, "noise": probability that a training label is turned}.
        inputs: `pairs` (packed), `reference_logprobs`.
        out: Receives packed pairs, logprobs.npz, flips.npy (bool, one a pair), labels.json, and targets.npz where
            labels are not all hard.
        log: Seed of the noise.

    Raises:
        DataError: No training pair has annotations though the rule needs them; an annotator has no weight; margins are
            asked for and a training pair has none.
    """
    use, noise = config["labels"], float(config["noise"])
    pairs = PackedPairs(inputs["pairs"])
    train = pairs.split_rows("train")
    meta = [pairs.meta(row) for row in range(len(pairs))]
    check_labels((meta[row] for row in train), use)

    share = np.ones(len(pairs))
    share[train] = [preferring_share(meta[row]["annotations"], use["rule"], use["weights"] or {}) for row in train]
    wrong = np.zeros(len(pairs), dtype=bool)
    wrong[train] = noisy([meta[row]["pair_id"] for row in train], noise, log.seed)
    margin = margins_of(meta, train, use, given_wrong=share < 0.5)
    share = np.where(wrong, 1.0 - share, share)
    flips = share < 0.5
    share = np.where(flips, 1.0 - share, share)
    smoothing = np.zeros(len(pairs))
    smoothing[train] = use["smoothing"]
    target = np.where(smoothing > 0, smoothed(share, use["smoothing"]), share)

    lines = [_line(line, flip) for line, flip in zip(meta, flips.tolist(), strict=True)]
    write_turned(inputs["pairs"], inputs["reference_logprobs"], flips, lines, out)
    shutil.copyfile(inputs["pairs"] / FILTER_FILE, out / FILTER_FILE)
    soft = bool((target != 1.0).any() or (margin != 0.0).any())
    if soft:
        write_targets(out, target, margin)
    facts = {
        "told": words(use, noise),
        "pairs": len(train),
        "turned": int(flips.sum()),
        "noisy": int(wrong.sum()),
        "annotated": sum(bool(meta[row]["annotations"]) for row in train),
        "mean_target": float(target[train].mean()),
        "mean_margin": float(margin[train].mean()),
    }
    (out / LABELS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    log.say(
        f"labels: {facts['told']}; {facts['turned']} of {len(train)} turned, mean target {facts['mean_target']:.3f}"
    )


def margins_of(
    meta: list[dict[str, Any]], train: list[int], use: dict[str, Any], given_wrong: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(N,) offsets in log-odds. Where the annotators overrule the data's choice its margin speaks for neither: 0."""
    margin = np.zeros(len(meta))
    if use["margins"]:
        margin[train] = [use["margin_scale"] * meta[row]["target_margin"] for row in train]
        margin[given_wrong] = 0.0
    return margin


def words(use: dict[str, Any], noise: float) -> str:
    """The rule in words, as the certificate shows it."""
    parts = [f"{use['rule']} labels"]
    if use["rule"] == "weighted":
        parts.append("weights " + ", ".join(f"{name} {weight:g}" for name, weight in sorted(use["weights"].items())))
    parts += [f"smoothing {use['smoothing']:g}"] * bool(use["smoothing"])
    parts += [f"margins times {use['margin_scale']:g}"] * bool(use["margins"])
    parts += [f"noise {noise:g}"] * bool(noise)
    return ", ".join(parts)


def _line(line: dict[str, Any], flip: bool) -> dict[str, Any]:
    """A pair's line of rows.jsonl after its turn: annotations are about (chosen, rejected)."""
    if not flip:
        return line
    return line | {
        "annotations": [one | {"prefers_first": not one["prefers_first"]} for one in line["annotations"]],
        "target_margin": None,
    }
