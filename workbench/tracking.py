"""MLflow tracking: a run per comparison and per arm, a nested run per stage. `tracking_mlflow` talks to MLflow.

Called by the driver alone; stages write their own metrics.jsonl, which is read here. `tracking_line` sees to it that
nothing that goes wrong stops or stalls a comparison.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import tracking_crossed as crossed
from workbench import tracking_names as names
from workbench.redact import redact, redact_text
from workbench.tracking_beside import Beside
from workbench.tracking_delivery import Limits, SyncReport, reason_of, sync_spools
from workbench.tracking_line import now_ms
from workbench.tracking_mlflow import Server, default_uri
from workbench.tracking_spool import chosen_uri
from workbench.tracking_stage import OpenStage
from workbench.tracking_system import SystemMeter

WAITING_AT_MOST = 500  # points of metrics of a stage that writes none: the machine's
METRICS_S = 5.0  # between two looks at what a running stage has written


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class Tracker(Beside):
    """One comparison's tracking. Make it with `Tracker.open` or `Tracker.disabled`; no method raises.

    Attributes:
        tracking_uri: Where to, with credentials hidden; None when disabled.
        experiment: The comparison's name.
    """

    def __init__(self, uri: str | None, home: Path, experiment: str, warn: Callable[[str], None], limits: Limits):
        super().__init__(uri, home, experiment, warn, limits)
        self._open: dict[str, OpenStage] = {}  # by instance
        self._reused: list[dict[str, Any]] = []
        self._meter: SystemMeter | None = None

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
            uri: MLflow tracking URI; None: MLFLOW_TRACKING_URI, else SQLite in `home`.
            home: Folder that all runs share; mlflow.db, artifacts/ and spool/ lie in it.
            experiment: The comparison's name.
            config: The whole config as JSON; secrets are redacted.
            tags: More tags of the parent run.
            warn: Takes one line for people.
        """
        tracker = cls(chosen_uri(uri), home, experiment, warn, limits or Limits())
        own = {"workbench.ref": tracker.ref, "workbench.comparison_ref": tracker.ref}
        try:
            tracker._spool.claim()
            tracker._begin()
        except Exception as error:
            tracker._fault("down", f"tracking: {reason_of(error)}")
        tracker._send_run(tracker.ref, None, run_name or experiment, own | names.safe_tags(tags or {}))
        tracker._send({"op": "batch", "ref": tracker.ref, "params": names.flatten(config)})
        text = json.dumps(redact(dict(config)), indent=2, default=str)
        tracker._send({"op": "text", "ref": tracker.ref, "text": text, "file": "config.json"})
        return tracker

    def describe(self) -> dict[str, Any]:
        """The `mlflow` block of results.json."""
        return {"tracking_uri": self.tracking_uri, "experiment": self.experiment, "run_id": self.run_id}

    # -- stages -------------------------------------------------------------------------------------------------

    def stage_started(
        self, instance: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Opens a nested run for a stage that is computed now. Its parameters follow with its first metrics.

        Args:
            tags: More tags of the run, beside what it is and where it belongs.
        """
        ref = uuid.uuid4().hex
        self._open[instance] = OpenStage(ref, names.flatten(params))
        own = {
            "workbench.ref": ref,
            "workbench.comparison_ref": self.ref,
            "workbench.stage": name,
            "workbench.instance": names.clip_text(instance, names.MAX_TAG_VALUE),
            "kind": "stage",
        }
        self._send_run(ref, self.ref, instance, own | names.safe_tags(tags or {}))

    def stage_run(self, instance: str) -> str | None:
        """Run id of a stage that goes on, for its record; None where it is spooled."""
        stage = self._open.get(instance)
        return self._run_of(stage.ref) if stage is not None else None

    def stage_metrics(self, instance: str, metrics_path: Path, *, every_s: float = METRICS_S) -> None:
        """Sends what waits of a stage and what it has written to its metrics.jsonl, at most every `every_s`.

        While something of it waits in the queue nothing is added: the queue is no longer than there are stages.
        """
        stage = self._open.get(instance)
        if stage is not None and time.monotonic() - stage.sent_s >= every_s and not self._waits(stage.ref):
            self._read(stage, metrics_path)
            self._send_waiting(stage)

    def _read(self, stage: OpenStage, metrics_path: Path | None) -> None:
        try:
            if metrics_path is not None:
                stage.read(metrics_path)
        except OSError as error:
            self._fault("read", f"tracking: cannot read {metrics_path}: {reason_of(error)}")

    def _send_waiting(self, stage: OpenStage) -> None:
        for operation in stage.take():
            self._send(operation)

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
        end_ms = int(float(entry.get("finished_unix_s") or time.time()) * 1000)
        stage = self._open[instance]
        self._read(stage, metrics_path)
        self.system(now=True)
        stage.metrics += [(key, value, end_ms, 0) for key, value in names.cost_metrics(entry).items()]
        stage.params |= names.record_params(entry)
        stage.tags |= names.record_tags(entry)
        inputs = names.dataset_inputs(entry, datasets)
        if inputs:
            self._send({"op": "inputs", "ref": stage.ref, "datasets": inputs})
        self._end(instance, "FINISHED", end_ms)

    def system(self, *, now: bool = False) -> None:
        """Notes what the machine does, for the runs of all open stages; they send it with their next metrics."""
        if self._off or not self._open:
            return
        try:
            self._meter = self._meter or SystemMeter(self.home)
            values = self._meter.read(now=now)
        except Exception as error:
            self._fault("system", f"tracking: no system metrics: {reason_of(error)}")
            return
        unix_ms = now_ms()
        for stage in self._open.values() if values else ():
            stage.machine(values, unix_ms)
            if len(stage.metrics) >= WAITING_AT_MOST:
                self._send_waiting(stage)

    def stage_failed(
        self, instance: str, reason: str, metrics_path: Path | None = None, *, status: str = "FAILED"
    ) -> None:
        """Ends a stage's run as FAILED (or KILLED when it was interrupted); its curves are kept."""
        stage = self._open.get(instance)
        if stage is None:
            return
        self._read(stage, metrics_path)
        stage.tags["workbench.error"] = names.clip_text(redact_text(reason), names.MAX_TAG_VALUE)
        self._end(instance, status, now_ms())

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
        datasets: Sequence[Mapping[str, str]] = (),
        status: str = "FINISHED",
        unix_ms: int | None = None,
    ) -> None:
        """Logs the headline metrics, the certificate and the files, and ends the parent run and all that are open.

        Args:
            results: results.json's content; None when the comparison failed (give `status`).
            figures: Images, under figures/.
            files: results.json, report.md and the like, at the top.
            note: Markdown shown as the run's description.
            datasets: What it was trained and measured on, as for `beside`.
            status: FINISHED, FAILED or KILLED.
            unix_ms: Time of the metrics, where others of the same numbers have it too; default: now.
        """
        self.send_all()
        for instance in list(self._open):
            self._end(instance, "KILLED", now_ms())
        for ref in self._beside:  # their numbers never came
            self._send_end(ref, "FAILED" if status == "FINISHED" else status)
        if results is not None:
            unix_ms, match = unix_ms or now_ms(), results.get("match") or {}
            points = [(key, value, unix_ms, 0) for key, value in names.headline_metrics(results).items()]
            points += names.frontier_points(results, unix_ms)
            points += names.agreement_points(results, unix_ms)
            points += [(key, value, unix_ms, 0) for key, value in crossed.gap_metrics(results).items()]
            points += crossed.tilt_points(results, unix_ms)
            self._send({"op": "batch", "ref": self.ref, "metrics": points, "tags": names.decision_tags(results)})
            text = json.dumps(redact(match), indent=2, default=str)
            self._send({"op": "text", "ref": self.ref, "text": text, "file": "match.json"})
        self._inputs(self.ref, datasets)
        for folder, paths in (("figures", figures), ("", files)):
            for path in paths:
                self._send({"op": "file", "ref": self.ref, "path": str(Path(path).resolve()), "folder": folder})
        self._send({"op": "note", "ref": self.ref, "text": redact_text(note), "reused": self._reused})
        self._send_end(self.ref, status)
        self.close()

    def _end(self, instance: str, status: str, end_ms: int) -> None:
        stage = self._open.pop(instance)
        self._send_waiting(stage)
        self._send_end(stage.ref, status, end_ms)

    @staticmethod
    def sync(home: Path, uri: str | None = None, *, limits: Limits | None = None) -> SyncReport:
        """Sends what earlier comparisons could not, and ends the runs that a kill left running. Never raises.

        Args:
            home: Folder whose spool/ is read; spools of live processes are left alone.
            uri: Only spools of this URI (it supplies the credentials, which a spool does not hold); None: all.
        """
        return sync_spools(home, default_uri(home), uri, Server, limits or Limits())
