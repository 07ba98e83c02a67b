"""The one door to MLflow: carries operations out on one tracking store. Only `tracking_mlflow*` import mlflow.

Explicit run ids and client calls alone: MLflow's active-run state is never used. Each operation may be sent twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import tracking_mlflow_models as models
from workbench import tracking_mlflow_traces as traces
from workbench import tracking_names as names
from workbench import tracking_views as views
from workbench.tracking_moved import adopt_home
from workbench.tracking_spool import Operation, TrackingUnavailable, held, is_remote

SAFE_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

AT_ONCE = {"metrics": names.METRICS_AT_ONCE, "params": 100, "tags": 100}  # in one call


def default_uri(home: Path) -> str:
    """The tracking URI of a home without a server: SQLite, because MLflow's file store is gone."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


class Server:
    """Carries operations out on one MLflow store. Explicit run ids only: MLflow's active-run state is never used."""

    def __init__(self, uri: str, home: Path, experiment: str) -> None:
        for name, value in SAFE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: F401 - two seconds that the deadline of the first call should not pay

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri, self.home, self.experiment = uri, home, experiment
        self.runs: dict[str, str] = {}  # ref -> run id
        self._client: Any = None
        self._experiment_id: str | None = None

    def connect(self) -> str:
        """The experiment's id; makes database and experiment where they do not exist yet."""
        if self._experiment_id is None:
            if is_remote(self.uri):
                self._experiment_id = self._find_experiment()
            else:
                # First opens that run side by side crash while MLflow makes its tables; the client opens the store.
                with held(self.home / "mlflow.lock"):
                    self._make_database()
                    if self.uri == default_uri(self.home):
                        adopt_home(self.home)
                    self._experiment_id = self._find_experiment()
        return self._experiment_id

    def _make_database(self) -> None:
        database = self.home.resolve() / "mlflow.db"
        if self.uri != default_uri(self.home) or database.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # Made aside and renamed: a kill in the middle of MLflow's migrations would leave a file that it refuses.
        aside = database.with_name("mlflow.db.new")
        aside.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{aside}", (database.parent / "artifacts").as_uri()).engine.dispose()
        os.replace(aside, database)

    def _find_experiment(self) -> str:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            folder = names.safe_key(self.experiment).replace("/", "_")
            place = None if is_remote(self.uri) else (self.home.resolve() / "artifacts" / folder).as_uri()
            try:
                # The kind decides which pages the UI opens with: training runs, not evaluations of an application.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return str(self._client.create_experiment(self.experiment, artifact_location=place, tags=kind))
            except MlflowException:
                found = self._client.get_experiment_by_name(self.experiment)  # somebody else was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def apply(self, operation: Operation) -> None:
        """Carries one operation out; doing it twice changes nothing."""
        self.connect()
        getattr(self, f"_do_{operation['op']}")(operation)

    def _run_id(self, ref: str) -> str:
        if ref not in self.runs:
            found = self._search(f"tags.`workbench.ref` = '{ref}'", [self.connect()])
            if not found:
                raise TrackingUnavailable(f"the run {ref} is not there")
            self.runs[ref] = found[0].info.run_id
        return self.runs[ref]

    def _search(self, condition: str, experiments: list[str], most: int = 1) -> list[Any]:
        return list(self._client.search_runs(experiments, condition, max_results=most))

    def _do_run(self, operation: Operation) -> None:
        ref, tags = operation["ref"], dict(operation["tags"])
        if operation.get("replay"):
            found = self._search(f"tags.`workbench.ref` = '{ref}'", [self.connect()])
            if found:
                self.runs[ref] = found[0].info.run_id
                return
        if operation["parent"]:
            tags["mlflow.parentRunId"] = self._run_id(operation["parent"])
        run = self._client.create_run(
            self.connect(), start_time=operation["start_ms"], tags=tags, run_name=operation["name"]
        )
        self.runs[ref] = run.info.run_id

    def _do_batch(self, operation: Operation) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self._run_id(operation["ref"])
        left: dict[str, list[Any]] = {
            "metrics": [
                Metric(key, value, unix_ms, step) for key, value, unix_ms, step in operation.get("metrics", ())
            ],
            "params": [Param(key, value) for key, value in operation.get("params", {}).items()],
            "tags": [RunTag(key, value) for key, value in operation.get("tags", {}).items()],
        }
        refusals: list[Exception] = []
        while any(left.values()):
            refusals += self._log(run_id, {kind: left[kind][:most] for kind, most in AT_ONCE.items() if left[kind]})
            left = {kind: left[kind][most:] for kind, most in AT_ONCE.items()}
        if refusals:
            raise refusals[0]

    def _log(self, run_id: str, some: Mapping[str, list[Any]]) -> list[Exception]:
        """One call for all kinds: a call costs more than what it carries. What is refused (a parameter that has another
        value, say) costs its own kind alone; returns the refusals."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(run_id, **some)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(some) == 1:
                return [error]
            return [one for kind, listed in some.items() for one in self._log(run_id, {kind: listed})]
        return []

    def _do_inputs(self, operation: Operation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(entry["name"], entry["digest"], "local", json.dumps({"uri": entry["source"]})),
                [InputTag("mlflow.data.context", entry["context"])],
            )
            for entry in operation["datasets"]
        ]
        self._client.log_inputs(self._run_id(operation["ref"]), datasets=inputs)

    def _do_text(self, operation: Operation) -> None:
        self._client.log_text(self._run_id(operation["ref"]), operation["text"], operation["file"])

    def _do_file(self, operation: Operation) -> None:
        self._client.log_artifact(self._run_id(operation["ref"]), operation["path"], operation["folder"] or None)

    def _do_note(self, operation: Operation) -> None:
        """A run's description, with a link to the run that made each reused stage, which reused.json has all; and what
        else it is told at its end."""
        lines, made = [operation["text"]], {}
        if operation["reused"]:
            lines += ["", "| reused stage | made by |", "|---|---|"]
        for entry in operation["reused"]:
            maker = self._maker(entry)
            link = "(not tracked)"
            if maker is not None:
                link = f"[{maker.info.run_id}](#/experiments/{maker.info.experiment_id}/runs/{maker.info.run_id})"
                made[entry["instance"]] = maker.info.run_id
            lines.append(f"| {entry['instance']} | {link} |")
        text = self._linked("\n".join(lines).strip())
        tags = operation.get("tags", {}) | {"mlflow.note.content": names.clip_text(text, names.MAX_TAG_VALUE)}
        if operation["reused"]:
            tags["reused"] = f"{len(operation['reused'])} stages"
            self._do_text({"ref": operation["ref"], "text": json.dumps(made, indent=1), "file": "reused.json"})
        self._do_batch(operation | {"tags": tags})

    def _linked(self, text: str) -> str:
        """Fills in `{experiment_id}` and `{run_id:REF}`, which nobody knows before the server does."""
        text = text.replace("{experiment_id}", self.connect())

        def known(match: re.Match[str]) -> str:
            try:
                return self._run_id(match[1])
            except TrackingUnavailable:  # no run of ours: a text may say anything
                return match[0]

        return re.sub(r"\{run_id:([0-9a-f]{32})\}", known, text)

    def _maker(self, entry: Mapping[str, Any]) -> Any:
        from mlflow.exceptions import MlflowException

        if entry.get("run_id"):
            try:
                return self._client.get_run(entry["run_id"])
            except MlflowException:
                pass  # made under another server: look for the key here
        everywhere = [experiment.experiment_id for experiment in self._client.search_experiments()]
        condition = f"tags.`workbench.stage_key` = '{entry['key']}' and attributes.status = 'FINISHED'"
        found = self._search(condition, everywhere)
        return found[0] if found else None

    def _do_traces(self, operation: Operation) -> None:
        run_id = self._run_id(operation["ref"])
        traces.write(self.uri, self.connect(), run_id, operation["traces"], operation["unix_ms"])

    def _do_link(self, operation: Operation) -> None:
        traces.link(self._client, self._run_id(operation["ref"]), operation["traces"])

    def _do_count(self, operation: Operation) -> None:
        """Reads back how many traces a run has."""
        found = traces.count(self.uri, self.connect(), self._run_id(operation["ref"]))
        point = ("traces", float(found), operation["unix_ms"], 0)
        self._do_batch({"ref": operation["ref"], "metrics": [point]})
        if found != operation["sent"]:
            raise traces.TracesLost(f"{operation['sent']} traces were sent, {found} are there")

    def _do_model(self, operation: Operation) -> None:
        run_id = self._run_id(operation["ref"])
        models.register(self._client, self.uri, self.connect(), run_id, operation["model"])

    def _do_view(self, operation: Operation) -> None:
        """The saved view of a comparison's arms; the oldest of ours go."""
        place, ref = self.connect(), operation["ref"]
        view = views.saved_view(operation["name"], ref, frozenset(operation["metrics"]), operation["unix_ms"])
        self._client.set_experiment_tag(place, views.TAG + views.view_id(ref), view)
        tags = self._client.get_experiment(place).tags
        for key in views.oldest(tags):
            self._client.delete_experiment_tag(place, key)

    def _do_end(self, operation: Operation) -> None:
        self._client.set_terminated(self._run_id(operation["ref"]), operation["status"], operation["end_ms"])

    def settle(self, ref: str) -> None:
        """Ends what a killed comparison left running."""
        self.connect()
        condition = f"tags.`workbench.comparison_ref` = '{ref}' and attributes.status = 'RUNNING'"
        for run in self._search(condition, [self.connect()], most=1000):
            self._client.set_terminated(run.info.run_id, "KILLED")
