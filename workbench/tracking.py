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
from workbench.tracking_delivery import Limits, SyncReport, reason_of, sync_spools
from workbench.tracking_mlflow import Server, default_uri
from workbench.tracking_shown import Shown, now_ms
from workbench.tracking_spool import chosen_uri
from workbench.tracking_system import SystemMeter

EVERY_S = 5.0  # between looks at a running stage's metrics
METRICS_AT_ONCE = 800  # in one operation; MLflow takes 1000 in a call, parameters and tags included
MACHINE_AT_ONCE = 500  # readings of the machine that wait at most for a stage's next metrics


def _to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class Tracker(Shown):
    """One comparison's tracking. Make it with `Tracker.open` or `Tracker.disabled`; no method raises.

    Attributes:
        tracking_uri: Where to, with credentials hidden; None when disabled.
        experiment: The comparison's name.
    """

    def __init__(self, uri: str | None, home: Path, experiment: str, warn: Callable[[str], None], limits: Limits):
        super().__init__(uri, home, experiment, warn, limits)
        self._open: dict[str, str] = {}  # instance -> ref of its run, while it runs
        self._tails: dict[str, names.MetricsTail] = {}
        self._read_at: dict[str, float] = {}
        self._reused: list[dict[str, Any]] = []
        self._meter: SystemMeter | None = None
        self._machine: dict[str, list[names.Point]] = {}  # instance -> readings that wait for the next metrics
        self._readings: dict[str, int] = {}

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
    ) -> str | None:
        """Opens a nested run for a stage that is computed now.

        Args:
            tags: More tags of the run, beside what it is and where it belongs.

        Returns:
            Its run id, for the stage's record; None where it is spooled.
        """
        ref = self._open[instance] = uuid.uuid4().hex
        self._tails[instance] = names.MetricsTail()
        own = {
            "workbench.ref": ref,
            "workbench.comparison_ref": self.ref,
            "workbench.stage": name,
            "workbench.instance": names.clip_text(instance, names.MAX_TAG_VALUE),
            "kind": "stage",
        }
        self._send_run(ref, self.ref, instance, own | names.safe_tags(tags or {}))
        if params:
            self._send({"op": "batch", "ref": ref, "params": names.flatten(params)})
        return self._server.runs.get(ref) if self._server else None

    def stage_metrics(self, instance: str, metrics_path: Path, *, every_s: float = EVERY_S) -> None:
        """Sends what the stage has written to its metrics.jsonl since the last call, at most every `every_s`."""
        now = time.monotonic()
        if instance not in self._open or now - self._read_at.get(instance, -1e9) < every_s:
            return
        self._read_at[instance] = now
        points = self._new_points(instance, metrics_path)
        if points:
            self._send_points(instance, points)

    def _send_points(self, instance: str, points: Sequence[names.Point], **told: Mapping[str, str]) -> None:
        """A stage's metrics, with what the machine did meanwhile; the first operation carries what else is told.

        Each operation is one call, because each has its own deadline.
        """
        points = [*points, *self._machine.pop(instance, [])]
        for some in names.in_batches(points, METRICS_AT_ONCE) if points else [()]:
            self._send({"op": "batch", "ref": self._open[instance], "metrics": list(some), **told})
            told = {}

    def _new_points(self, instance: str, metrics_path: Path) -> list[names.Point]:
        """What a stage has written since it was read last."""
        try:
            return self._tails[instance].read(metrics_path)
        except OSError as error:
            self._fault("read", f"tracking: cannot read {metrics_path}: {reason_of(error)}")
            return []

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
        end_ms = int(float(entry.get("finished_unix_s") or time.time()) * 1000)
        self.system(now=True)
        points = self._new_points(instance, metrics_path) if metrics_path is not None else []
        points += [(key, value, end_ms, 0) for key, value in names.cost_metrics(entry).items()]
        self._send_points(instance, points, params=names.record_params(entry), tags=names.record_tags(entry))
        inputs = names.dataset_inputs(entry, datasets)
        if inputs:
            self._send({"op": "inputs", "ref": ref, "datasets": inputs})
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
        for instance in list(self._open) if values else ():
            points = self._machine.setdefault(instance, [])
            step = self._readings[instance] = self._readings.get(instance, -1) + 1
            points += [(key, value, unix_ms, step) for key, value in values.items()]
            if len(points) >= MACHINE_AT_ONCE:
                self._send({"op": "batch", "ref": self._open[instance], "metrics": self._machine.pop(instance)})

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
        """Logs the headline metrics, the certificate and the files, and ends the parent run.

        Args:
            results: results.json's content; None when the comparison failed (give `status`).
            figures: Images, under figures/.
            files: results.json, report.md and the like, at the top.
            note: Markdown shown as the run's description.
            datasets: What it was trained and measured on, as for `beside`.
            status: FINISHED, FAILED or KILLED.
            unix_ms: Time of the metrics, where others of the same numbers have it too; default: now.
        """
        for instance in list(self._open):
            self._end(instance, "KILLED", now_ms())
        self.leave_beside("FAILED" if status == "FINISHED" else status)
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
        self._send({"op": "end", "ref": self.ref, "status": status, "end_ms": now_ms()})
        self.close()

    def _end(self, instance: str, status: str, end_ms: int) -> None:
        self._send({"op": "end", "ref": self._open.pop(instance), "status": status, "end_ms": end_ms})

    @staticmethod
    def sync(home: Path, uri: str | None = None, *, limits: Limits | None = None) -> SyncReport:
        """Sends what earlier comparisons could not, and ends the runs that a kill left running. Never raises.

        Args:
            home: Folder whose spool/ is read; spools of live processes are left alone.
            uri: Only spools of this URI (it supplies the credentials, which a spool does not hold); None: all.
        """
        return sync_spools(home, default_uri(home), uri, Server, limits or Limits())
