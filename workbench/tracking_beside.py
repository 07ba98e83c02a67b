"""Runs that are no stages: a comparison's arms and sets of samples; their responses, models, view. No mlflow here."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import tracking_names as names
from workbench.redact import redact_text
from workbench.tracking_delivery import Limits
from workbench.tracking_line import Line, now_ms
from workbench.tracking_samples import AT_ONCE


class Beside(Line):
    """A comparison's line that opens runs beside the parent."""

    def __init__(self, uri: str | None, home: Path, experiment: str, warn: Callable[[str], None], limits: Limits):
        super().__init__(uri, home, experiment, warn, limits)
        self._beside: list[str] = []  # references of those that are open

    def beside(
        self,
        name: str,
        tags: Mapping[str, str],
        *,
        params: Mapping[str, Any] | None = None,
        datasets: Sequence[Mapping[str, str]] = (),
        tables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """Opens a run that is no stage: an arm, a set of samples. `end_beside` ends it.

        It is not nested: MLflow's lists start with children folded away, and its charts leave them out. The tag
        `workbench.comparison_ref` says where it belongs.

        Args:
            tags: To filter by.
            params: Its settings.
            datasets: What it was measured on: {"name", "digest", "source"?, "context"?} each.
            tables: File name -> {"columns", "data"}, shown as tables.

        Returns:
            Its reference.
        """
        ref = uuid.uuid4().hex
        own = {"workbench.ref": ref, "workbench.comparison_ref": self.ref}
        if tables:
            own["mlflow.loggedArtifacts"] = json.dumps([{"path": file, "type": "table"} for file in tables])
        self._beside.append(ref)
        self._send_run(ref, None, name, own | names.safe_tags(tags))
        if params:
            self._send({"op": "batch", "ref": ref, "params": names.flatten(params)})
        self._inputs(ref, datasets)
        for file, table in (tables or {}).items():
            self._send({"op": "text", "ref": ref, "text": json.dumps(table, ensure_ascii=False), "file": file})
        return ref

    def end_beside(
        self, ref: str, points: Sequence[names.Point] = (), tags: Mapping[str, str] | None = None, *, note: str = ""
    ) -> None:
        """Ends a run that `beside` opened.

        Args:
            points: Its metrics.
            tags: Further ones to filter by.
            note: Markdown shown as its description; `{experiment_id}` and `{run_id:REF}` are filled in.
        """
        told = {"metrics": list(points), "tags": names.safe_tags(tags or {})}
        self._send({"op": "note", "ref": ref, "text": redact_text(note), "reused": []} | told)
        self._beside.remove(ref)
        self._send_end(ref, "FINISHED")

    def traces(self, ref: str, traces: Sequence[Mapping[str, Any]]) -> None:
        """Responses of a run, as traces; they are counted afterwards. `tracking_mlflow_traces.write` says of what."""
        if not traces:
            return
        unix_ms = now_ms()
        for some in names.in_batches(traces, AT_ONCE):
            self._send({"op": "traces", "ref": ref, "traces": list(some), "unix_ms": unix_ms})
        self._send({"op": "count", "ref": ref, "sent": len(traces), "unix_ms": unix_ms})

    def model(self, ref: str, model: Mapping[str, Any]) -> None:
        """Registers a trained model as what a run measured. `tracking_mlflow_models.register` says of what."""
        told = {"card": redact_text(model["card"]), "tags": names.safe_tags(model["tags"])}
        self._send({"op": "model", "ref": ref, "model": {**model, **told}})

    def link(self, ref: str, traces: Sequence[str]) -> None:
        """Lets traces of other runs stand in this one, too."""
        if traces:
            self._send({"op": "link", "ref": ref, "traces": list(traces)})

    def save_view(self, metrics: Iterable[str]) -> None:
        """Saves a view of the runs page with the arms' charts; `metrics` are the names that they have."""
        unix_ms = now_ms()
        name = f"arms, {time.strftime('%Y-%m-%d %H:%M', time.gmtime(unix_ms / 1000))} UTC"
        known = sorted(set(metrics))
        self._send({"op": "view", "ref": self.ref, "name": name, "metrics": known, "unix_ms": unix_ms})

    def _inputs(self, ref: str, datasets: Sequence[Mapping[str, str]]) -> None:
        if datasets:
            self._send({"op": "inputs", "ref": ref, "datasets": names.dataset_inputs({}, datasets)})

    def _send_run(self, ref: str, parent: str | None, name: str, tags: dict[str, str]) -> None:
        self._send({"op": "run", "ref": ref, "parent": parent, "name": name, "start_ms": now_ms(), "tags": tags})

    def _send_end(self, ref: str, status: str, end_ms: int | None = None) -> None:
        self._send({"op": "end", "ref": ref, "status": status, "end_ms": end_ms or now_ms()})
