"""Responses as MLflow traces with assessments, through its clients' calls alone: explicit ids and times.

One call a trace (MLflow takes assessments with a trace, but not many traces at once) and one for the texts of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench import tracking_names as names

LINKED_AT_ONCE = 100  # MLflow's own limit
PAGE = 500
MAX_PREVIEW = 1000  # characters; MLflow cuts none itself, and PostgreSQL refuses a longer one


class TracesLost(Exception):
    """Fewer traces are there than were sent. Counting again brings none back: it is not kept in the spool."""

    error_code = "INVALID_PARAMETER_VALUE"


def write(uri: str, experiment_id: str, run_id: str, traces: Sequence[Mapping[str, Any]], unix_ms: int) -> None:
    """Writes traces of a run; those that are there already are written over with the same.

    Args:
        uri: Tracking URI.
        experiment_id: Where they lie.
        run_id: Whose they are.
        traces: {"id": 32 hex digits, "place": 0 is listed first, "name", "prompt", "response", "tags",
            "feedback": [[name, value, source]]}.
        unix_ms: The time of the one that is listed first: MLflow lists the youngest first.
    """
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    client = TracingClient(uri)
    for one in traces:
        info = TraceInfo(
            trace_id=_trace_id(one["id"]),
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=unix_ms - one["place"],
            execution_duration=0,
            state=TraceState.OK,
            request_preview=names.clip_text(one["prompt"], MAX_PREVIEW),
            response_preview=names.clip_text(one["response"], MAX_PREVIEW),
            trace_metadata={"mlflow.sourceRun": run_id},
            tags={"mlflow.traceName": one["name"], **one["tags"]},
            assessments=[_feedback(one["id"], name, value, by, unix_ms) for name, value, by in one["feedback"]],
        )
        client.start_trace(info)
    client.log_spans(experiment_id, [_span(one, (unix_ms - one["place"]) * 10**6) for one in traces])


def _trace_id(digits: str) -> str:
    return f"tr-{digits}"


def _feedback(digits: str, name: str, value: Any, source: str, unix_ms: int) -> Any:
    from mlflow.entities import AssessmentSource, Feedback

    found = Feedback(
        name=name,
        value=value,
        source=AssessmentSource(source_type="CODE", source_id=source),
        trace_id=_trace_id(digits),
        create_time_ms=unix_ms,
        last_update_time_ms=unix_ms,
    )
    found.assessment_id = "a-" + hashlib.sha256(f"{digits}/{name}".encode()).hexdigest()[:32]
    return found


def _span(one: Mapping[str, Any], unix_ns: int) -> Any:
    """The one span of a trace, with the whole texts."""
    from mlflow.entities import Span
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    attributes = {
        "mlflow.traceRequestId": _trace_id(one["id"]),
        "mlflow.spanType": "LLM",
        "mlflow.spanInputs": {"prompt": one["prompt"]},
        "mlflow.spanOutputs": one["response"],
    }
    context = SpanContext(int(one["id"], 16), int(one["id"][:16], 16), False, TraceFlags(TraceFlags.SAMPLED))
    return Span(
        ReadableSpan(
            name=one["name"],
            context=context,
            start_time=unix_ns,
            end_time=unix_ns,
            attributes={key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
            status=Status(StatusCode.OK),
        )
    )


def link(client: Any, run_id: str, ids: Sequence[str]) -> None:
    """Lets traces of other runs stand in this one, too."""
    for start in range(0, len(ids), LINKED_AT_ONCE):
        client.link_traces_to_run([_trace_id(one) for one in ids[start : start + LINKED_AT_ONCE]], run_id)


def count(uri: str, experiment_id: str, run_id: str) -> int:
    """How many traces of a run the store gives back."""
    from mlflow.tracing.client import TracingClient

    client, found, token = TracingClient(uri), 0, None
    while True:
        page = client.search_traces(
            locations=[experiment_id], run_id=run_id, include_spans=False, max_results=PAGE, page_token=token
        )
        found, token = found + len(page), page.token
        if not token:
            return found
