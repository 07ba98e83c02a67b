"""MLflow tracking: a parent run per comparison, a nested run per stage. The only file that imports mlflow.

Called by the driver alone; stages write their own metrics.jsonl, which is read here. Whatever goes wrong here is
warned about once, kept in ``home/spool`` and sent later; it never stops or stalls a comparison.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import tracking_crossed as crossed
from workbench import tracking_names as names
from workbench.redact import redact, redact_text
from workbench.tracking_delivery import Limits, Patience, SyncReport, deliver, reason_of, refused, replay, sync_spools
from workbench.tracking_spool import Operation, Spool, TrackingUnavailable, held, is_remote, probe

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


def default_uri(home: Path) -> str:
    """The tracking URI of a home without a server: SQLite, because MLflow's file store is gone."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


def _now_ms() -> int:
    return int(time.time() * 1000)


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class _Server:
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
        metrics = [Metric(key, value, unix_ms, step) for key, value, unix_ms, step in operation.get("metrics", ())]
        params = [Param(key, value) for key, value in operation.get("params", {}).items()]
        tags = [RunTag(key, value) for key, value in operation.get("tags", {}).items()]
        for some in names.in_batches(params, 100):
            self._client.log_batch(run_id, params=some)
        for some in names.in_batches(tags, 100):
            self._client.log_batch(run_id, tags=some)
        for some in names.in_batches(metrics, 1000):
            self._client.log_batch(run_id, metrics=some)

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
        """The parent's description, with a link to the run that made each reused stage; reused.json has them all."""
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
        tags = {"mlflow.note.content": names.clip_text("\n".join(lines).strip(), names.MAX_TAG_VALUE)}
        if operation["reused"]:
            tags["reused"] = f"{len(operation['reused'])} stages"
            self._do_text({"ref": operation["ref"], "text": json.dumps(made, indent=1), "file": "reused.json"})
        self._do_batch({"ref": operation["ref"], "tags": tags})

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

    def _do_end(self, operation: Operation) -> None:
        self._client.set_terminated(self._run_id(operation["ref"]), operation["status"], operation["end_ms"])

    def settle(self, ref: str) -> None:
        """Ends what a killed comparison left running."""
        self.connect()
        condition = f"tags.`workbench.comparison_ref` = '{ref}' and attributes.status = 'RUNNING'"
        for run in self._search(condition, [self.connect()], most=1000):
            self._client.set_terminated(run.info.run_id, "KILLED")


class Tracker:
    """One comparison's tracking. Make it with `Tracker.open` or `Tracker.disabled`; no method raises.

    Attributes:
        tracking_uri: Where to, with credentials hidden; None when disabled.
        experiment: The comparison's name.
    """

    def __init__(self, uri: str | None, home: Path, experiment: str, warn: Callable[[str], None], limits: Limits):
        self.home, self.experiment = home, experiment
        self.ref = uuid.uuid4().hex
        self._uri = uri or default_uri(home)
        self.tracking_uri: str | None = redact_text(self._uri)
        self._patience = Patience(limits)
        self._spool = Spool(home, self.ref, {"uri": redact_text(uri) if uri else None, "experiment": experiment})
        self._server: _Server | None = None
        self._warn, self._warned = warn, set[str]()
        self._off = self._down = self._spooled = False
        self._open: dict[str, str] = {}  # instance -> ref of its run, while it runs
        self._tails: dict[str, names.MetricsTail] = {}
        self._read_at: dict[str, float] = {}
        self._reused: list[dict[str, Any]] = []

    @classmethod
    def disabled(cls, experiment: str = "") -> Tracker:
        """A tracker that does nothing (`tracking: {enabled: false}`)."""
        tracker = cls(None, Path(), experiment, _to_stderr, Limits())
        tracker._off, tracker.tracking_uri = True, None
        return tracker

    @classmethod
    def open(
        cls,
        uri: str | None,
        home: Path,
        experiment: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        *,
        run_name: str | None = None,
        warn: Callable[[str], None] = _to_stderr,
        limits: Limits | None = None,
    ) -> Tracker:
        """Opens the parent run and logs the config. What earlier runs could not send is sent first.

        Args:
            uri: MLflow tracking URI; None is SQLite in `home`.
            home: Folder that all runs share; mlflow.db, artifacts/ and spool/ lie in it.
            experiment: The comparison's name.
            config: The whole config as JSON; secrets are redacted.
            tags: More tags of the parent run.
            warn: Takes one line for people.
        """
        tracker = cls(uri, home, experiment, warn, limits or Limits())
        own = {"workbench.ref": tracker.ref, "workbench.comparison_ref": tracker.ref}
        try:
            tracker._spool.claim()
            tracker._begin()
        except Exception as error:
            tracker._fault("down", f"tracking: {reason_of(error)}")
        extra = {names.safe_key(key): names.clip_text(redact_text(v), 8000) for key, v in (tags or {}).items()}
        tracker._send_run(tracker.ref, None, run_name or experiment, own | extra)
        tracker._send({"op": "batch", "ref": tracker.ref, "params": names.flatten(config)})
        text = json.dumps(redact(dict(config)), indent=2, default=str)
        tracker._send({"op": "text", "ref": tracker.ref, "text": text, "file": "config.json"})
        return tracker

    @property
    def run_id(self) -> str | None:
        """The parent run's id; None while it only exists in the spool."""
        return self._server.runs.get(self.ref) if self._server else None

    def describe(self) -> dict[str, Any]:
        """The `mlflow` block of results.json."""
        return {"tracking_uri": self.tracking_uri, "experiment": self.experiment, "run_id": self.run_id}

    # -- stages -------------------------------------------------------------------------------------------------

    def stage_started(self, instance: str, name: str, params: Mapping[str, Any]) -> str | None:
        """Opens a nested run for a stage that is computed now.

        Returns:
            Its run id, for the stage's record; None where it is spooled.
        """
        ref = self._open[instance] = uuid.uuid4().hex
        self._tails[instance] = names.MetricsTail()
        tags = {
            "workbench.ref": ref,
            "workbench.comparison_ref": self.ref,
            "workbench.stage": name,
            "workbench.instance": names.clip_text(instance, names.MAX_TAG_VALUE),
        }
        self._send_run(ref, self.ref, instance, tags)
        if params:
            self._send({"op": "batch", "ref": ref, "params": names.flatten(params)})
        return self._server.runs.get(ref) if self._server else None

    def stage_metrics(self, instance: str, metrics_path: Path, *, every_s: float = 2.0) -> None:
        """Sends what the stage has written to its metrics.jsonl since the last call, at most every `every_s`."""
        now = time.monotonic()
        if instance not in self._open or now - self._read_at.get(instance, -1e9) < every_s:
            return
        self._read_at[instance] = now
        try:
            points = self._tails[instance].read(metrics_path)
        except OSError as error:
            self._fault("read", f"tracking: cannot read {metrics_path}: {reason_of(error)}")
            return
        for some in names.in_batches(points, 1000):
            self._send({"op": "batch", "ref": self._open[instance], "metrics": list(some)})

    def stage_finished(
        self, record: Any, metrics_path: Path | None = None, datasets: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Completes a stage's run: parameters, provenance, lineage, the rest of its curves, cost.

        Args:
            record: StageRecord, or a dictionary of its fields.
            metrics_path: The stage's metrics.jsonl, in the work folder or in the store.
            datasets: ``{"name", "digest", "source"?, "context"?}``; default: the record's inputs.
        """
        entry = names.record_dict(record)
        instance = str(entry["instance"])
        if instance not in self._open:
            self.stage_started(instance, str(entry["name"]), {})
        ref = self._open[instance]
        if metrics_path is not None:
            self.stage_metrics(instance, metrics_path, every_s=0.0)
        end_ms = int(float(entry.get("finished_unix_s") or time.time()) * 1000)
        costs = [(key, value, end_ms, 0) for key, value in names.cost_metrics(entry).items()]
        self._send({"op": "batch", "ref": ref, "params": names.record_params(entry), "tags": names.record_tags(entry)})
        self._send({"op": "batch", "ref": ref, "metrics": costs})
        inputs = names.dataset_inputs(entry, datasets)
        if inputs:
            self._send({"op": "inputs", "ref": ref, "datasets": inputs})
        self._end(instance, "FINISHED", end_ms)

    def stage_failed(
        self, instance: str, reason: str, metrics_path: Path | None = None, *, status: str = "FAILED"
    ) -> None:
        """Ends a stage's run as FAILED (or KILLED when it was interrupted); its curves are kept."""
        if instance not in self._open:
            return
        if metrics_path is not None:
            self.stage_metrics(instance, metrics_path, every_s=0.0)
        tags = {"workbench.error": names.clip_text(redact_text(reason), names.MAX_TAG_VALUE)}
        self._send({"op": "batch", "ref": self._open[instance], "tags": tags})
        self._end(instance, status, _now_ms())

    def stage_reused(self, record: Any) -> None:
        """Notes a cache hit: no new run, but a link from the parent to the run that made the artifact."""
        entry = names.record_dict(record)
        self._reused.append({"instance": entry["instance"], "key": entry["key"], "run_id": entry.get("mlflow_run_id")})

    def finish(
        self,
        results: Mapping[str, Any] | None,
        figures: Sequence[Path] = (),
        files: Sequence[Path] = (),
        *,
        note: str = "",
        status: str = "FINISHED",
    ) -> None:
        """Logs the headline metrics, the certificate and the files, and ends the parent run.

        Args:
            results: results.json's content; None when the comparison failed (give `status`).
            figures: Images, under figures/.
            files: results.json, report.md and the like, at the top.
            note: Markdown shown as the run's description.
            status: FINISHED, FAILED or KILLED.
        """
        for instance in list(self._open):
            self._end(instance, "KILLED", _now_ms())
        if results is not None:
            now_ms, match = _now_ms(), results.get("match") or {}
            points = [(key, value, now_ms, 0) for key, value in names.headline_metrics(results).items()]
            points += names.frontier_points(results, now_ms)
            points += names.agreement_points(results, now_ms)
            points += [(key, value, now_ms, 0) for key, value in crossed.gap_metrics(results).items()]
            points += crossed.tilt_points(results, now_ms)
            self._send({"op": "batch", "ref": self.ref, "metrics": points, "tags": names.decision_tags(results)})
            text = json.dumps(redact(match), indent=2, default=str)
            self._send({"op": "text", "ref": self.ref, "text": text, "file": "match.json"})
        for folder, paths in (("figures", figures), ("", files)):
            for path in paths:
                self._send({"op": "file", "ref": self.ref, "path": str(Path(path).resolve()), "folder": folder})
        self._send({"op": "note", "ref": self.ref, "text": redact_text(note), "reused": self._reused})
        self._send({"op": "end", "ref": self.ref, "status": status, "end_ms": _now_ms()})
        self.close()

    def close(self) -> None:
        """Gives the server one more chance to take what was spooled, and lets go of the spool. Called by `finish`."""
        if self._off:
            return
        try:
            left = self._catch_up() if self._spooled else False
            self._spool.release(forget=not left)
        except Exception as error:
            self._fault("close", f"tracking: {reason_of(error)}")
        self._off = True

    # -- delivery -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        reason = probe(self._uri, self._patience.limits.probe_s) if is_remote(self._uri) else None
        if reason is not None:
            raise TrackingUnavailable(f"MLflow at {self.tracking_uri} is not reachable: {reason}")
        self._server = _Server(self._uri, self.home, self.experiment)
        if any(spool.ref != self.ref for spool in Spool.all(self.home)):
            Tracker.sync(self.home, self._uri, limits=self._patience.limits)

    def _send_run(self, ref: str, parent: str | None, name: str, tags: dict[str, str]) -> None:
        self._send({"op": "run", "ref": ref, "parent": parent, "name": name, "start_ms": _now_ms(), "tags": tags})

    def _end(self, instance: str, status: str, end_ms: int) -> None:
        self._send({"op": "end", "ref": self._open.pop(instance), "status": status, "end_ms": end_ms})

    def _send(self, operation: Operation) -> None:
        """Delivers an operation, or keeps it. Never raises."""
        if self._off:
            return
        if self._down or self._server is None:
            self._keep(operation)
            return
        try:
            deliver(self._server, operation, self._patience)
        except Exception as error:
            reason = reason_of(error)
            if refused(operation, error):
                self._keep(operation, refused=reason)
                self._fault("refused", f"tracking: MLflow refused a {operation['op']}: {reason}")
                return
            self._keep(operation)
            if operation["op"] in ("file", "text") and not self._unreachable():
                self._fault("artifact", f"tracking: an artifact could not be stored: {reason}")
            else:
                self._fault("down", f"tracking: MLflow at {self.tracking_uri} failed: {reason}")
        else:
            if self._patience.exhausted:
                self._fault("down", f"tracking: MLflow at {self.tracking_uri} is too slow")

    def _unreachable(self) -> bool:
        return is_remote(self._uri) and probe(self._uri, self._patience.limits.probe_s) is not None

    def _keep(self, operation: Operation, refused: str | None = None) -> None:
        try:
            if refused is not None:
                self._spool.reject(operation, refused)
            else:
                self._spool.append(operation)
                self._spooled = True
        except OSError as error:
            self._fault("spool", f"tracking: cannot write {self._spool.path}, so this is lost: {reason_of(error)}")

    def _fault(self, kind: str, message: str) -> None:
        if kind == "down":
            self._down = True
            message += (
                f". The comparison goes on; what it logs is kept in {self._spool.folder} and sent by the next "
                "comparison that reaches the server from this home."
            )
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)

    def _catch_up(self) -> bool:
        """Sends the own spool if the server is back; True when something is left."""
        if self._unreachable():
            return True
        server = self._server or _Server(self._uri, self.home, self.experiment)
        left = replay(server, self._spool, Patience(self._patience.limits))
        if not left:
            self._server, self._down = server, False
            self._warn(f"tracking: MLflow at {self.tracking_uri} took what was kept in the spool")
        return bool(left)

    @staticmethod
    def sync(home: Path, uri: str | None = None, *, limits: Limits | None = None) -> SyncReport:
        """Sends what earlier comparisons could not, and ends the runs that a kill left running. Never raises.

        Args:
            home: Folder whose spool/ is read; spools of live processes are left alone.
            uri: Only spools of this URI (it supplies the credentials, which a spool does not hold); None: all.
        """
        return sync_spools(home, default_uri(home), uri, _Server, limits or Limits())
