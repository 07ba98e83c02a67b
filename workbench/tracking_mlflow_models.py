"""Trained models as MLflow's logged models and registered versions: the weights stay where they are.

A model is known by its weights: what is there already gets new numbers and a new card, not a second version.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import tracking_names as names
from workbench.tracking_spool import is_remote

MAX_DESCRIPTION = 4900  # characters; MLflow's column holds 5000
METRICS_AT_ONCE = 100  # more than these MLflow 3.17 refuses when they come a second time
CARD = "README.md"


def register(client: Any, uri: str, experiment_id: str, run_id: str, one: Mapping[str, Any]) -> None:
    """Logs and registers a model.

    Args:
        client: MlflowClient of `uri`.
        run_id: The run whose numbers are the model's.
        one: {"registry": name of the registered model, "about": its description, "label", "kind", "alias", "key": by
            which its weights are known, "folder": where they lie, "card": markdown, "tags", "params", "metrics",
            "unix_ms"}.
    """
    from mlflow.entities import Metric

    # Not as the run's output: MLflow lists no run with one among its evaluation runs. The metrics link the two.
    model_id = _logged_model(client, experiment_id, run_id, one)
    points = [Metric(key, value, one["unix_ms"], 0, model_id=model_id) for key, value in one["metrics"].items()]
    for some in names.in_batches(points, METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=some)
    version = _version(client, uri, run_id, model_id, one)
    client.set_registered_model_alias(one["registry"], one["alias"], version)
    # A server notes on the logged model what was registered of it, the database alone does not.
    listed = json.dumps([{"name": one["registry"], "version": version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": listed})


def _logged_model(client: Any, experiment_id: str, run_id: str, one: Mapping[str, Any]) -> str:
    """The logged model of these weights, with the card of now among its files."""
    condition = f"tags.`workbench.key` = '{one['key']}'"
    found = client.search_logged_models([experiment_id], condition, max_results=1)
    tags = {**one["tags"], "workbench.key": one["key"]}
    if found:
        model_id = str(found[0].model_id)
        client.set_logged_model_tags(model_id, tags)
    else:
        model = client.create_logged_model(
            experiment_id, one["label"].replace(".", "_"), run_id, tags, dict(one["params"]), one["kind"]
        )
        model_id = str(model.model_id)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CARD).write_text(one["card"], encoding="utf-8")
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, "READY")  # also one that an earlier try left unfinished
    return model_id


def _version(client: Any, uri: str, run_id: str, model_id: str, one: Mapping[str, Any]) -> str:
    """The registered version of these weights in this folder; `one["registry"]` is made where it does not exist."""
    from mlflow.exceptions import MlflowException

    name, card = one["registry"], names.clip_text(one["card"], MAX_DESCRIPTION)
    try:
        client.create_registered_model(name, description=one["about"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A server takes no folder of another machine; there the card says where the weights are.
    source = f"models:/{model_id}" if is_remote(uri) else Path(one["folder"]).as_uri()
    condition = f"name = '{name}' and tags.`workbench.key` = '{one['key']}'"
    found = client.search_model_versions(condition, max_results=100)
    # MLflow cannot change a source: the version of a folder that was removed since stays, and a new one is made.
    known = next((version for version in found if is_remote(uri) or version.source == source), None)
    tags = {**one["tags"], "workbench.key": one["key"]}
    if known is not None:
        client.update_model_version(name, known.version, card)
        for key, value in tags.items():
            if known.tags.get(key) != value:
                client.set_model_version_tag(name, known.version, key, value)
        return str(known.version)
    made = client.create_model_version(
        name, source, run_id, tags, description=card, await_creation_for=0, model_id=model_id
    )
    return str(made.version)
