"""Every evaluation sample with all that is known of it, as one table: what the report's browser and MLflow show.

A stage of its own, so that the texts are there while the figures are still being measured.

samples.jsonl.gz, one row a (run seed, prompt, arm, sample), run seeds first, so that a reader who wants the first one
may stop early. The same samples give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.data.records_io import read_jsonl
from workbench.evidence import ArmRun, Artifacts
from workbench.measure_scope import Scope
from workbench.packed import read_packed_prompts
from workbench.runs import SAMPLES_FILE
from workbench.stage_log import StageLog
from workbench.verdicts import Verdicts

DIGITS = 6  # significant ones


def run(config: dict[str, Any], inputs: dict[str, Path], out: Path, log: StageLog) -> None:
    """Writes the table.

    Args:
        config: As of the measure stage (`workbench.measure.run`), but for what only figures need.
        inputs: As of the measure stage.
        out: Receives samples.jsonl.gz.
        log: Nothing is drawn at random.
    """
    scope = Scope(config, Artifacts(inputs), log.seed)
    write_samples(out / SAMPLES_FILE, scope, Verdicts(scope.artifacts, scope.arms, scope.judge_kinds, scope.proxy))


def write_samples(path: Path, scope: Scope, verdicts: Verdicts) -> int:
    """Writes the table; returns how many rows it has."""
    count = 0
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        for row in sample_rows(scope, verdicts):
            out.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace"))
            count += 1
    return count


def sample_rows(scope: Scope, verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    """The rows: run seeds in order, in each the prompts, in each the arms, the SFT first, in each its samples.

    gold_reward, proxy_reward and implicit_reward are null where there is none; seq_kl is log pi/pi_ref of this
    response, nats, null for best-of-n, whose own probabilities are not known; wins: judge -> 1 this response beat the
    SFT's of the same index, 0 it lost, 0.5 a tie, null no verdict, the mean over both orders; rewards: the scores of
    reward models beside the shared one.
    """
    prompts = {one["prompt_id"]: one["prompt"] for one in read_packed_prompts(scope.artifacts.inputs["prompts"])}
    wins = _wins(scope, verdicts)
    for place, seed in enumerate(scope.seeds):
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for label, runs in scope.arms.items():
            for row in _of_arm(scope, label, runs[place], wins):
                by_prompt.setdefault(row["prompt_id"], []).append(row)
        for prompt_id, rows in by_prompt.items():
            for row in rows:
                yield {"seed": seed, "prompt_id": prompt_id, "prompt": prompts.get(prompt_id, "")} | row


def _of_arm(
    scope: Scope, label: str, run: ArmRun, wins: Mapping[tuple[str, int, str], dict[str, float | None]]
) -> Iterator[dict[str, Any]]:
    path = scope.artifacts.path(label, run.seed, "generations") / "generations.jsonl"
    told = {one["generation_id"]: one for one in read_jsonl(path)}
    columns = run.samples.columns
    named = {
        "gold_reward": "gold",
        "proxy_reward": f"proxy/{scope.proxy}",
        "implicit_reward": f"implicit/{scope.implicit}",
    }
    others = [name for name in columns if name.startswith("proxy/") and name != named["proxy_reward"]]
    for number, (prompt_id, generation_id) in enumerate(zip(run.samples.prompts, run.samples.ids, strict=True)):
        one = told[generation_id]
        values = {
            name: _plain(columns[column][number]) if column in columns else None for name, column in named.items()
        }
        yield {
            "prompt_id": prompt_id,
            "arm": label,
            "sample_index": one["sample_index"],
            "response": one["response"],
            **values,
            "seq_kl": None if run.kind == "best_of_n" else _plain(columns["seq_kl"][number]),
            "response_tokens": int(columns["response_tokens"][number]),
            "finish_reason": one["finish_reason"],
            "wins": wins.get((label, run.seed, generation_id), {}),
            **({"rewards": {name[6:]: _plain(columns[name][number]) for name in others}} if others else {}),
        }


def _wins(scope: Scope, verdicts: Verdicts) -> dict[tuple[str, int, str], dict[str, float | None]]:
    """(arm, run seed, generation) -> judge -> how it did against the SFT's sample."""
    found: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    for judge in scope.judges:
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
