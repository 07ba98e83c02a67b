"""What MLflow's pages show, read through its REST API as they read it, in a form that two servers can be compared by.

Ids, times and costs differ from run to run; names, nesting, settings, steps, tags, files and digests do not.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Pages = dict[str, Any]
TIMED = re.compile(r"^(cost|system)[/_]|_s$|_s/|per_s|memory|seconds|time|cpu")  # metrics that measure the machine
# Tags whose values name ids or the home: that they are there is compared, not what they say.
TOLD_BY_ID = re.compile(r"^mlflow\.(parentRunId|note|log-model|loggedArtifacts|runColor)|ref$|digest$|home$")


def ask(uri: str, path: str, body: Mapping[str, Any] | None = None, /, **query: str) -> Any:
    """One REST call; GET without a body."""
    address = f"{uri}/api/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def read_pages(uri: str) -> Pages:
    """Everything that the pages of every experiment show."""
    pages: Pages = {"experiments": {}, "models": models(uri)}
    found = ask(uri, "2.0/mlflow/experiments/search", {"max_results": 1000})
    for experiment in found.get("experiments", ()):
        if experiment["experiment_id"] == "0":
            continue
        listed = runs(uri, experiment["experiment_id"])
        pages["experiments"][experiment["name"]] = {
            "artifacts_at": experiment["artifact_location"],
            "tags": {one["key"]: one["value"] for one in experiment.get("tags", ())},
            "runs": listed,
            "traces": traces(uri, experiment["experiment_id"]),
            "logged_models": logged_models(uri, experiment["experiment_id"]),
        }
    return pages


def runs(uri: str, experiment: str) -> dict[str, Any]:
    """Name of the parent and of the run -> what its page shows."""
    found: list[Any] = []
    body: dict[str, Any] = {"experiment_ids": [experiment], "max_results": 500}
    while True:
        answer = ask(uri, "2.0/mlflow/runs/search", body)
        found += answer.get("runs", ())
        if not answer.get("next_page_token"):
            break
        body["page_token"] = answer["next_page_token"]
    names = {one["info"]["run_id"]: one["info"]["run_name"] for one in found}
    told = {}
    for one in sorted(found, key=lambda one: int(one["info"]["start_time"])):
        tags = {tag["key"]: tag["value"] for tag in one["data"].get("tags", ())}
        parent = names.get(tags.get("mlflow.parentRunId", ""), "")
        told[f"{parent} > {one['info']['run_name']}"] = run_page(uri, one, tags)
    return told


def run_page(uri: str, run: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """One run's page."""
    run_id = run["info"]["run_id"]
    metrics = {}
    for one in run["data"].get("metrics", ()):
        points = history(uri, run_id, one["key"])
        metrics[one["key"]] = [(step, None if TIMED.search(one["key"]) else value) for step, value in points]
    return {
        "status": run["info"]["status"],
        "artifact_uri": run["info"]["artifact_uri"],
        "params": {one["key"]: one["value"] for one in run["data"].get("params", ())},
        "tags": {key: "" if TOLD_BY_ID.search(key) else value for key, value in tags.items()},
        "metrics": metrics,
        "datasets": sorted(
            (one["dataset"]["name"], one["dataset"]["digest"], *(tag["value"] for tag in one.get("tags", ())))
            for one in run.get("inputs", {}).get("dataset_inputs", ())
        ),
        "artifacts": artifacts(uri, run_id),
    }


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in order."""
    points: list[tuple[int, float]] = []
    query = {"run_id": run_id, "metric_key": key, "max_results": "20000"}
    while True:
        answer = ask(uri, "2.0/mlflow/metrics/get-history", **query)
        points += [(int(one.get("step", 0)), one["value"]) for one in answer.get("metrics", ())]
        if not answer.get("next_page_token"):
            return sorted(points)
        query["page_token"] = answer["next_page_token"]


def artifacts(uri: str, run_id: str, path: str = "") -> list[str]:
    """All files of a run; each can be fetched as the page does, and is not empty."""
    found = []
    for one in ask(uri, "2.0/mlflow/artifacts/list", run_id=run_id, path=path).get("files", ()):
        if one.get("is_dir"):
            found += artifacts(uri, run_id, one["path"])
            continue
        query = urllib.parse.urlencode({"path": one["path"], "run_id": run_id})
        with urllib.request.urlopen(f"{uri}/get-artifact?{query}", timeout=60) as answer:
            found.append(one["path"] if answer.read(1) else f"{one['path']} (empty)")
    return sorted(found)


def traces(uri: str, experiment: str) -> dict[str, int]:
    """Name of a trace -> how many there are."""
    counts: Counter[str] = Counter()
    body: dict[str, Any] = {
        "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}],
        "max_results": 500,
    }
    while True:
        answer = ask(uri, "3.0/mlflow/traces/search", body)
        counts.update(one.get("tags", {}).get("mlflow.traceName", "") for one in answer.get("traces", ()))
        if not answer.get("next_page_token"):
            return dict(counts)
        body["page_token"] = answer["next_page_token"]


def logged_models(uri: str, experiment: str) -> list[str]:
    """Names of the models on the experiment's page."""
    answer = ask(uri, "2.0/mlflow/logged-models/search", {"experiment_ids": [experiment], "max_results": 50})
    return sorted(one["info"]["name"] for one in answer.get("models", ()))


def models(uri: str) -> dict[str, Any]:
    """Registered model -> its versions and aliases."""
    answer = ask(uri, "2.0/mlflow/registered-models/search", max_results="100")
    return {
        one["name"]: {
            "versions": len(one.get("latest_versions", ())),
            "aliases": sorted(alias["alias"] for alias in one.get("aliases", ())),
            "tags": sorted(tag["key"] for tag in one.get("tags", ())),
        }
        for one in answer.get("registered_models", ())
    }


def totals(pages: Pages) -> dict[str, int]:
    """How much there is."""
    counts: Counter[str] = Counter(registered_models=len(pages["models"]))
    for experiment in pages["experiments"].values():
        counts["traces"] += sum(experiment["traces"].values())
        counts["logged_models"] += len(experiment["logged_models"])
        for run in experiment["runs"].values():
            counts["runs"] += 1
            counts["metric_points"] += sum(map(len, run["metrics"].values()))
            for what in ("params", "tags", "metrics", "datasets", "artifacts"):
                counts[what] += len(run[what])
    return dict(counts)


def differences(here: Pages, there: Pages, homes: Sequence[str] = ()) -> list[str]:
    """What the server lacks or shows otherwise, and addresses of artifacts that name a folder of the client.

    Args:
        here: Of the home's own database.
        there: Of the remote server.
        homes: Folders of the client.
    """
    found: list[str] = []
    for name, experiment in there["experiments"].items():
        places = [experiment["artifacts_at"], *(run["artifact_uri"] for run in experiment["runs"].values())]
        found += [
            f"{name}: artifacts at {place}"
            for place in places
            if any(home in place for home in homes) or not place.startswith("mlflow-artifacts:/")
        ]
    _walk("", _comparable(here), _comparable(there), found)
    return found


def _comparable(value: Any) -> Any:
    """Without what must differ: addresses, readings of the machine (one every so many seconds), names after a run."""
    if isinstance(value, Mapping):
        return {
            key.partition(".arms-")[0]: _comparable(one)
            for key, one in value.items()
            if key not in ("artifacts_at", "artifact_uri", "tracking.uri") and not key.startswith("system/")
        }
    return value


def _walk(place: str, here: Any, there: Any, found: list[str]) -> None:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in sorted(here.keys() | there.keys()):
            if key not in there or key not in here:
                found.append(f"{place}/{key}: {'only in the home' if key in here else 'only on the server'}")
            else:
                _walk(f"{place}/{key}", here[key], there[key], found)
    elif here != there:
        found.append(f"{place}: {str(here)[:200]} in the home, {str(there)[:200]} on the server")
