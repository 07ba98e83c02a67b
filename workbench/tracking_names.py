"""What is logged, as plain data: metric names, parameters, tags and dataset lineage. No mlflow here.

Every name that this module makes is listed in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.redact import redact, redact_text

# MLflow's own limits; beyond them it raises or cuts silently.
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
METRICS_AT_ONCE = 800  # in one call, which takes 1000 of metrics, parameters and tags together
MAX_DATASET_DIGEST = 36

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step

ARM_ESTIMATES = (  # in the order in which MLflow lists them
    "win_rate",
    "gold_gain",
    "seq_kl",
    "gold_reward",
    "proxy_gain",
    "proxy_reward",
    "own_objective",
    "win_rate_length_controlled",
    "minority_win_rate",
    "minority_gap",
    "response_tokens",
    "eos_rate",
)
AGREEMENT_ESTIMATES = (
    "implicit_accuracy",
    "explicit_accuracy",
    "agreement",
    "kappa",
    "accuracy_difference",
    "chance",
    "spearman_margins",
    "spearman_within_prompt",
    "kendall_tau",
)
CALIBRATION_ESTIMATES = tuple(
    f"{side}_{name}" for side in ("implicit", "explicit") for name in ("ece", "brier", "slope")
)
DIVERSITY_ESTIMATES = (
    "distinct_1",
    "distinct_2",
    "self_bleu",
    "similarity_within",
    "similarity_between",
    "entropy_per_token",
)
REWARD_MODEL_ESTIMATES = ("accuracy", "accuracy_gold", "ece", "brier", "tie_rate")
JUDGE_ESTIMATES = ("ties", "flip_rate", "first_shown_preferred", "null_model")
COST_FIELDS = (
    "wall_s",
    "cpu_s",
    "gpu_s",
    "flops",
    "tokens_trained",
    "tokens_generated",
    "reward_queries",
    "peak_memory_bytes",
)


def safe_key(name: str) -> str:
    """A name in the characters that MLflow takes as a key: ``ppo[a,seed=0]`` -> ``ppo_a_seed_0``.

    MLflow also refuses a key that looks like an absolute or upward path, so leading dots and slashes go.
    """
    cleaned = re.sub(r"[^\w.\- :/]+", "_", name, flags=re.ASCII)
    cleaned = "/".join(part for part in cleaned.split("/") if part.strip(".") and part.strip())
    return cleaned.strip("_ ")[:MAX_KEY] or "_"


def clip_text(text: str, limit: int) -> str:
    """Text cut to `limit` characters, with the cut marked."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def safe_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags in the names and lengths that MLflow takes, credentials hidden."""
    return {safe_key(key): clip_text(redact_text(value), MAX_TAG_VALUE) for key, value in tags.items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config -> dotted parameters as text; secrets redacted, long values cut at MLflow's limit."""
    flat: dict[str, str] = {}
    for key, value in redact(tree).items() if not prefix else tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
            flat[safe_key(name)] = clip_text(text, MAX_PARAM_VALUE)
    return flat


def estimate_metrics(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float]:
    """``{"win_rate/ppo": .., "win_rate_low/ppo": .., "win_rate_high/ppo": ..}``; absent parts are left out."""
    head, _, label = name.partition("/")
    found: dict[str, float] = {}
    for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
        value = (estimate or {}).get(part)
        if isinstance(value, int | float) and math.isfinite(value):
            found[safe_key(f"{head}{suffix}/{label}")] = float(value)
    return found


def headline_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The parent run's metrics, in chartable names: one chart per quantity, one series per arm.

    Args:
        results: results.json, schema 1.
    """
    metrics: dict[str, float] = {}
    match = results.get("match") or {}
    if "ok" in match:
        metrics["match/ok"] = float(bool(match["ok"]))
        metrics["match/failed"] = float(sum(check.get("ok") is False for check in match.get("checks", ())))
    for label, arm in (results.get("arms") or {}).items():
        for field in ARM_ESTIMATES:
            metrics |= estimate_metrics(f"{field}/{label}", arm.get(field))
        headline = arm.get("win_rate") or {}
        for field, name in (("p_holm", "win_rate_p_holm"), ("minimum_detectable_effect", "win_rate_detectable")):
            if isinstance(headline.get(field), int | float):
                metrics[safe_key(f"{name}/{label}")] = float(headline[field])
        for rate in arm.get("win_rates") or ():
            metrics |= estimate_metrics(f"win_rate_by/{rate['judge']}/{label}", rate)
        for rate in arm.get("null_win_rates") or ():
            metrics |= estimate_metrics(f"win_rate_by_{rate['judge'].replace('/', '_')}/{label}", rate)
        for name, rate in (arm.get("by_annotator") or {}).items():
            metrics |= estimate_metrics(f"by_annotator_{name}/{label}", rate)
        for field in DIVERSITY_ESTIMATES:
            metrics |= estimate_metrics(f"{field}/{label}", (arm.get("diversity") or {}).get(field))
        for part, suffix in (("own", ""), ("with_upstream", "_with_upstream"), ("answer", "_per_answer")):
            for field, value in ((arm.get("cost") or {}).get(part) or {}).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    metrics[safe_key(f"cost_{field}{suffix}/{label}")] = float(value)
    for name, model in (results.get("reward_models") or {}).items():
        for field in REWARD_MODEL_ESTIMATES:
            metrics |= estimate_metrics(f"reward_model_{field}/{name}", model.get(field))
    for name, judge in (results.get("judges") or {}).items():
        for field in JUDGE_ESTIMATES:
            metrics |= estimate_metrics(f"judge_{field}/{name}", judge.get(field))
        metrics[safe_key(f"judge_unscored/{name}")] = float(sum((judge.get("unscored") or {}).values()))
    for name, entry in (results.get("agreement") or {}).items():
        for field in AGREEMENT_ESTIMATES:
            metrics |= estimate_metrics(f"{field}/{name}", (entry or {}).get(field))
        for field in CALIBRATION_ESTIMATES:
            metrics |= estimate_metrics(f"{field}/{name}", ((entry or {}).get("calibration") or {}).get(field))
        standardized = ((entry or {}).get("standardized") or {}).get("agreement")
        metrics |= estimate_metrics(f"agreement_standardized/{name}", standardized)
    found = results.get("generalization") or {}
    for shift in found.get("shifts") or ():
        metrics |= estimate_metrics(f"accuracy_difference_change/{shift['set']}", shift.get("difference_change"))
    return metrics | curve_metrics(results)


def curve_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Areas under the frontier and what over-optimization came to, of each arm's own line."""
    metrics: dict[str, float] = {}
    for row in results.get("frontier_area") or ():
        if row.get("against") is None:
            metrics |= estimate_metrics(f"frontier_area/{row['arm']}", row.get("estimate"))
    for row in results.get("overoptimization") or ():
        if row.get("selector", "own") != "own" or row.get("seed") is not None:
            continue
        for field, name in (("drop_from_peak", "drop_from_peak"), ("gap", "proxy_gold_gap"), ("onset_kl", "onset_kl")):
            metrics |= estimate_metrics(f"{name}/{row['arm']}", row.get(field))
        if isinstance(row.get("goodhart"), bool):
            metrics[safe_key(f"goodhart/{row['arm']}")] = float(row["goodhart"])
    return metrics


def decision_tags(results: Mapping[str, Any]) -> dict[str, str]:
    """The parent's tags to filter by; the certificate's tick is among them."""
    ok = (results.get("match") or {}).get("ok")
    tags = {"match.ok": str(ok).lower() if isinstance(ok, bool) else "unknown"}
    found = results.get("decision")
    if found:
        tags |= {
            "decision": found["verdict"],
            "decision.arms": ", ".join(found["arms"]),
            "decision.scope": found["scope"],
        }
        tags["decision.sentence"] = redact_text(found["sentence"])
    return {key: clip_text(value, MAX_TAG_VALUE) for key, value in tags.items() if value}


def frontier_points(results: Mapping[str, Any], unix_ms: int) -> list[Point]:
    """The frontier as curves on the parent: the i-th point of an arm at step i (MLflow's steps are integers)."""
    points: list[Point] = []
    seen: dict[str, int] = {}
    several = len({entry.get("seed") for entry in results.get("frontier") or ()}) > 1
    for entry in results.get("frontier") or ():
        if entry.get("selector", "own") != "own":
            continue  # what gold would pick is no arm's curve
        arm = str(entry["arm"])
        arm += f"/seed_{entry['seed']}" if several and entry.get("seed") is not None else ""
        step = seen[arm] = seen.get(arm, -1) + 1
        for field in ("seq_kl", "proxy_reward", "gold_reward", "win_rate"):
            value = (entry.get(field) or {}).get("value")
            if isinstance(value, int | float) and math.isfinite(value):
                points.append((safe_key(f"frontier_{field}/{arm}"), float(value), unix_ms, step))
    return points


def agreement_points(results: Mapping[str, Any], unix_ms: int) -> list[Point]:
    """The implicit reward over DPO's training as curves on the parent; step = DPO's step."""
    points: list[Point] = []
    for entry in results.get("agreement_trajectory") or ():
        for field in ("agreement", "implicit_accuracy", "seq_margin"):
            value = (entry.get(field) or {}).get("value")
            if isinstance(value, int | float) and math.isfinite(value):
                key = safe_key(f"{field}_over_training/{entry['arm']}/{entry['set']}")
                points.append((key, float(value), unix_ms, int(entry["step"])))
    return points


def record_dict(record: Any) -> dict[str, Any]:
    """A StageRecord (or a dictionary of its fields) as a plain dictionary."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return dataclasses.asdict(record)
    return dict(record)


def record_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Provenance tags of a stage's run."""
    tags = {
        "workbench.stage": record.get("name"),
        "workbench.instance": record.get("instance"),
        "workbench.stage_key": record.get("key"),
        "workbench.output": record.get("output"),
        "workbench.commit": record.get("commit"),
        "workbench.dirty": record.get("dirty"),
        "workbench.packages": json.dumps(dict(record.get("packages") or {}), sort_keys=True),
    }
    return {key: clip_text(str(value), MAX_TAG_VALUE) for key, value in tags.items() if value is not None}


def record_params(record: Mapping[str, Any]) -> dict[str, str]:
    """Parameters of a stage's run: its config, seed, version and where it ran."""
    params = flatten(dict(record.get("config") or {}))
    own = {name: record.get(name) for name in ("seed", "version", "device", "threads", "processes", "dtype")}
    return params | flatten({f"stage.{name}": value for name, value in own.items() if value is not None})


def cost_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """``cost/<field>`` metrics of a stage's run, summed over its resumes."""
    cost = record.get("cost") or {}
    return {f"cost/{name}": float(cost[name]) for name in COST_FIELDS if cost.get(name) is not None}


def dataset_inputs(record: Mapping[str, Any], datasets: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Lineage of a stage: what it read, as name, digest and source. Nothing is loaded.

    Args:
        record: StageRecord fields; its `inputs` (role -> content digest) are used where `datasets` is empty.
        datasets: ``{"name", "digest", "source"?, "context"?}`` each.
    """
    entries = list(datasets) or [
        {"name": role, "digest": digest, "source": f"artifact:{digest}"}
        for role, digest in (record.get("inputs") or {}).items()
    ]
    return [
        {
            "name": clip_text(str(entry["name"]), 500),
            "digest": str(entry["digest"]).removeprefix("sha256:")[:MAX_DATASET_DIGEST],
            "source": str(redact({"source": entry.get("source") or f"artifact:{entry['digest']}"})["source"]),
            "context": str(entry.get("context") or entry["name"])[:500],
        }
        for entry in entries
    ]


def in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class MetricsTail:
    """Reads a stage's metrics.jsonl from where it stopped; each (metric, step) is given out once.

    The file may be replaced (a resume drops the lines after its checkpoint) or move into the store at the end. The
    steps that are computed again are the same bit for bit, so what was given out before is skipped, not repeated.
    """

    def __init__(self) -> None:
        self._places: dict[Path, tuple[int, int]] = {}  # path -> inode, offset
        self._given: set[tuple[str, int]] = set()

    def read(self, path: Path) -> list[Point]:
        """New points of complete lines; a torn last line waits for its rest. A missing file has none."""
        try:
            with open(path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                known, offset = self._places.get(path, (inode, 0))
                if known != inode or os.fstat(file.fileno()).st_size < offset:
                    offset = 0
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._places[path] = (inode, offset + len(whole))
        points: list[Point] = []
        for line in whole.splitlines():
            points.extend(self._parse(line))
        return points

    def _parse(self, line: bytes) -> Iterator[Point]:
        try:
            entry = json.loads(line)
            step, unix_ms = int(entry["step"]), int(float(entry["unix_s"]) * 1000)
            values = dict(entry["values"])
        except (ValueError, TypeError, KeyError):
            return  # a line torn by a kill: its step is computed again on resume
        for name, value in values.items():
            key = safe_key(str(name))
            if isinstance(value, int | float) and (key, step) not in self._given:
                self._given.add((key, step))
                yield key, float(value), unix_ms, step
