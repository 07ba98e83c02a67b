"""Every evaluation sample with all that is known of it, as one table: what the report's browser and MLflow show.

samples.jsonl.gz, one row a (run seed, prompt, arm, sample), run seeds first, so that a reader who wants the first one
may stop early. The same samples give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config_base import BASELINE
from workbench.data.records_io import GENERATIONS_FILE, read_jsonl
from workbench.evidence import ArmRun, Artifacts
from workbench.packed import read_packed_prompts
from workbench.runs import SAMPLES_FILE
from workbench.stage_log import StageLog
from workbench.verdicts import Verdicts

SAMPLED = ("generations", "scores")  # roles of an arm's artifacts that are read
DIGITS = 6  # significant ones


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes the table.

    Args:
        config: {"arms": kinds by label, "runs": run seeds, "proxy": the reward model that scores every arm, "implicit":
            the DPO arm whose reward is compared, or None, "judges": in use, "judge_kinds": name -> kind of those that
            are no scorers}.
        inputs: `prompts`; every arm's `LABEL/RUN/generations`, `LABEL/RUN/scores` and verdicts against the SFT.
        out: Receives samples.jsonl.gz.
        log: Not used.
    """
    artifacts = Artifacts(inputs)
    arms = {
        label: [
            ArmRun(label=label, kind=kind, seed=one, samples=artifacts.responses(label, one, *SAMPLED), kl=None)
            for one in config["runs"]
        ]
        for label, kind in {BASELINE: BASELINE, **config["arms"]}.items()
    }
    verdicts = Verdicts(artifacts, arms, config["judge_kinds"], config["proxy"])
    write_samples(out / SAMPLES_FILE, sample_rows(verdicts, config["judges"], config["implicit"]))


def write_samples(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as the table."""
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        for row in rows:
            out.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace"))


def sample_rows(verdicts: Verdicts, judges: Sequence[str], implicit: str | None) -> Iterator[dict[str, Any]]:
    """The rows: run seeds in order, in each the prompts, in each the arms, the SFT first, in each its samples.

    gold_reward, proxy_reward and implicit_reward are null where there is none; seq_kl is log pi/pi_ref of this
    response, nats, null for best-of-n, whose own probabilities are not known; wins: judge -> 1 this response beat the
    SFT's of the same index, 0 it lost, 0.5 a tie, null no verdict, the mean over both orders; rewards: the scores of
    reward models beside the shared one.
    """
    prompts = {one["prompt_id"]: one["prompt"] for one in read_packed_prompts(verdicts.artifacts.inputs["prompts"])}
    wins = _wins(verdicts, judges)
    for runs in zip(*verdicts.arms.values(), strict=True):  # all arms in one run seed
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            for row in _of_arm(verdicts, run, implicit, wins):
                by_prompt.setdefault(row["prompt_id"], []).append(row)
        for prompt_id, rows in by_prompt.items():
            for row in rows:
                yield {"seed": runs[0].seed, "prompt_id": prompt_id, "prompt": prompts.get(prompt_id, "")} | row


def _of_arm(
    verdicts: Verdicts, run: ArmRun, implicit: str | None, wins: Mapping[tuple[str, int, str], dict[str, float | None]]
) -> Iterator[dict[str, Any]]:
    path = verdicts.artifacts.path(run.label, run.seed, "generations") / GENERATIONS_FILE
    told = {one["generation_id"]: one for one in read_jsonl(path)}
    columns = run.samples.columns
    named = {
        "gold_reward": "gold",
        "proxy_reward": f"proxy/{verdicts.proxy}",
        "implicit_reward": f"implicit/{implicit}",
    }
    others = [name for name in columns if name.startswith("proxy/") and name != named["proxy_reward"]]
    for number, (prompt_id, generation_id) in enumerate(zip(run.samples.prompts, run.samples.ids, strict=True)):
        one = told[generation_id]
        values = {
            name: _plain(columns[column][number]) if column in columns else None for name, column in named.items()
        }
        yield {
            "prompt_id": prompt_id,
            "arm": run.label,
            "sample_index": one["sample_index"],
            "response": one["response"],
            **values,
            "seq_kl": None if run.kind == "best_of_n" else _plain(columns["seq_kl"][number]),
            "response_tokens": int(columns["response_tokens"][number]),
            "finish_reason": one["finish_reason"],
            "wins": wins.get((run.label, run.seed, generation_id), {}),
            **({"rewards": {name[6:]: _plain(columns[name][number]) for name in others}} if others else {}),
        }


def _wins(verdicts: Verdicts, judges: Sequence[str]) -> dict[tuple[str, int, str], dict[str, float | None]]:
    """(arm, run seed, generation) -> judge -> how it did against the SFT's sample."""
    found: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    for judge in judges:
        for one in verdicts.told(judge):
            seed, _, generation_id = one.second_id.removeprefix("seed=").partition("/")
            told = found.setdefault((str(one.second), int(seed), generation_id), {}).setdefault(judge, [])
            if one.preference is not None:
                told.append(one.preference)
    return {
        place: {judge: _plain(sum(told) / len(told)) if told else None for judge, told in judges.items()}
        for place, judges in found.items()
    }


def _plain(value: float) -> float | None:
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None
