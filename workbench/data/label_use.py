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
    # Lines are read from the disk anew each time, not held: a dict a row is a kilobyte.
    check_labels((pairs.meta(row) for row in train), use)

    share, given, wrong = np.ones(len(pairs)), np.zeros(len(pairs)), np.zeros(len(pairs), dtype=bool)
    annotated = 0
    for row in train:
        line = pairs.meta(row)
        share[row] = preferring_share(line["annotations"], use["rule"], use["weights"] or {})
        wrong[row] = noisy([line["pair_id"]], noise, log.seed)[0]
        given[row] = line["target_margin"] or 0.0
        annotated += bool(line["annotations"])
    margin = margins_of(given, share, use)
    share = np.where(wrong, 1.0 - share, share)
    flips = share < 0.5
    share = np.where(flips, 1.0 - share, share)
    smoothing = np.zeros(len(pairs))
    smoothing[train] = use["smoothing"]
    target = np.where(smoothing > 0, smoothed(share, use["smoothing"]), share)

    lines = (_line(pairs.meta(row), flip) for row, flip in enumerate(flips.tolist()))
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
        "annotated": annotated,
        "mean_target": float(target[train].mean()),
        "mean_margin": float(margin[train].mean()),
    }
    (out / LABELS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    log.say(
        f"labels: {facts['told']}; {facts['turned']} of {len(train)} turned, mean target {facts['mean_target']:.3f}"
    )


def margins_of(given: NDArray[np.float64], share: NDArray[np.float64], use: dict[str, Any]) -> NDArray[np.float64]:
    """(N,) offsets in log-odds. Where no majority of the annotators shares the data's choice, its margin speaks for
    neither response: 0.

    Args:
        given: (N,) the data's margins; 0 outside the training pairs.
        share: (N,) of the annotators who prefer the chosen response.
        use: `data.labels`.
    """
    if not use["margins"]:
        return np.zeros(len(given))
    return np.asarray(np.where(share > 0.5, use["margin_scale"] * given, 0.0))


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
