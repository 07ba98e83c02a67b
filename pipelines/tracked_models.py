"""The models that a comparison trained, as MLflow's registry gets them: SFT, reward models, each arm's checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.graph import Graph
from workbench.config_base import BASELINE
from workbench.manifest import Artifact
from workbench.report.model_card import model_card
from workbench.tracking_arms import arm_points
from workbench.tracking_names import headline_metrics, safe_key


def models(
    graph: Graph, artifacts: Mapping[str, Artifact], results: Mapping[str, Any], tags: Mapping[str, str], unix_ms: int
) -> Iterator[dict[str, Any]]:
    """What is registered, of the first run seed: choosing the best of several by their test figures would flatter it.

    Args:
        artifacts: instance -> artifact.
        results: results.json, schema 1.
        tags: Of all runs of the comparison.

    Yields:
        What `workbench.tracking_mlflow_models.register` takes, and "arm": whose run it belongs to, or None.
    """
    data = {name: one.content for name, one in artifacts.items() if name in ("packed_pairs", "packed_prompts")}
    for label, kind, alias, instance, selected in trained(graph):
        artifact = artifacts.get(instance)
        checkpoint = chosen(artifact, artifacts.get(selected)) if artifact is not None else None
        if artifact is None or checkpoint is None:
            continue  # the model was given, not trained
        folder = artifact.path / checkpoint["path"]
        place = f"store/{artifact.key}/{folder.relative_to(artifact.path.parent)}"
        run = str(graph.comparison.seeds.runs[0])
        facts = data | {"files": artifact.content, "trunk": checkpoint["tensors"], "checkpoint": checkpoint["name"]}
        facts |= {} if label == BASELINE else {"run seed": run}
        registry = safe(graph.comparison.name)
        yield {
            "arm": label if kind == "policy" else None,
            "registry": registry,
            "about": f"Models of the comparison {graph.comparison.name}; its aliases: sft, reward-NAME, best-ARM.",
            "label": label,
            "kind": kind,
            "alias": safe(alias),
            # Of the files: the trunk's digest leaves a head out.
            "key": f"{kind}/{label}/{artifact.content}/{checkpoint['name']}",
            "folder": str(folder.resolve()),
            "card": model_card(results, label, kind, f"models:/{registry}@{safe(alias)}", facts, place),
            "tags": {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
            | {"role": kind, "label": label, "store": place},
            "params": {"checkpoint": checkpoint["name"], "step": str(checkpoint["step"])},
            "metrics": numbers(results, label, kind, unix_ms),
            "unix_ms": unix_ms,
        }


def trained(graph: Graph) -> Iterator[tuple[str, str, str, str, str]]:
    """(label, kind, alias, instance of its training, instance of its selection or "") in the first run seed."""
    run = graph.comparison.seeds.runs[0]
    yield BASELINE, "policy", "sft", "sft", ""
    for name in graph.comparison.reward_models:
        yield name, "reward_model", f"reward-{name}", f"reward_model[{name},seed={run}]", ""
    for label in graph.comparison.arms:
        roles = graph.arms[label, run]
        if "selected" in roles:
            yield label, "policy", f"best-{label}", roles["policy"], roles["selected"]


def numbers(results: Mapping[str, Any], label: str, kind: str, unix_ms: int) -> dict[str, float]:
    """A model's metrics, under the names that its run has."""
    if kind == "policy":
        return {key: value for key, value, _, step in arm_points(results, label, unix_ms) if step == 0}
    end = f"/{safe_key(label)}"
    found = headline_metrics(results).items()
    return {key: value for key, value in found if key.startswith("reward_model_") and key.endswith(end)}


def chosen(policy: Artifact, selected: Artifact | None) -> dict[str, Any] | None:
    """The index entry of the checkpoint that was selected, else of the last; None where the model was given."""
    if not (policy.path / "index.json").is_file():
        return None
    index = json.loads((policy.path / "index.json").read_text(encoding="utf-8"))
    if index["facts"].get("adopted") or index["facts"].get("external"):
        return None
    name = index["last"]
    if selected is not None:
        name = json.loads((selected.path / "selected.json").read_text(encoding="utf-8"))["checkpoint"]
    found: dict[str, Any] | None = next((one for one in index["checkpoints"] if one["name"] == name), None)
    return found


def safe(name: str) -> str:
    """A name that MLflow takes for a model or an alias."""
    return re.sub(r"[^\w\-]", "_", name)
