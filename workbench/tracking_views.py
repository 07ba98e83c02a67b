"""A saved view of MLflow's runs page: one comparison's arms, the columns and charts that tell who won. No mlflow here.

The page keeps its views in tags of the experiment, `mlflow.sharedViewState.ID`: {"name", "createdAt", "updatedAt",
"state"}, the state being the page's own JSON (MLflow 3.17). A page that does not know a field leaves it out.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.tracking_arms import arms_filter

TAG = "mlflow.sharedViewState."
PREFIX = "arms-"  # of the ids of our views
KEPT = 10  # newest views of an experiment; older comparisons keep their link with a filter
COLUMNS = ("win_rate", "win_rate_low", "win_rate_high", "gold_reward", "proxy_reward", "seq_kl", "response_tokens",
           "cost_cpu_s_with_upstream")  # fmt: skip
# Section -> charts: a metric (bars), or two (y against x; with "line" along each arm's frontier).
SECTIONS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "Who won: win rate with the ends of its interval": (
        ("bar", "win_rate"), ("bar", "win_rate_low"), ("bar", "win_rate_high"),
    ),
    "At what KL": (
        ("scatter", "seq_kl", "gold_reward"), ("line", "frontier_seq_kl", "frontier_gold_reward"),
        ("line", "frontier_seq_kl", "frontier_proxy_reward"),
    ),
    "At what cost": (
        ("bar", "cost_cpu_s_with_upstream"), ("bar", "cost_tokens_generated_per_answer"), ("bar", "response_tokens"),
    ),
    "How far to trust it": (
        ("bar", "proxy_gold_gap"), ("bar", "win_rate_by_null_longest"), ("bar", "agreement/on_policy"),
    ),
}  # fmt: skip


def view_id(ref: str) -> str:
    """The id of a comparison's view, which is part of its link."""
    return PREFIX + ref[:12]


def view_link(ref: str) -> str:
    """Link to the chart page with the view; `{experiment_id}` is filled in where it is known."""
    facets = f"viewStateShareKey={view_id(ref)}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"#/experiments/{{experiment_id}}/runs?{facets}"


def saved_view(name: str, ref: str, metrics: frozenset[str], unix_ms: int) -> str:
    """The tag's value.

    Args:
        name: Shown in the list of views.
        ref: The comparison's reference.
        metrics: Names that the arms have; charts of others are left out.
        unix_ms: Now.
    """
    sections: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    for place, (title, wanted) in enumerate(SECTIONS.items()):
        known = [one for one in wanted if metrics.issuperset(one[1:])]
        if not known:
            continue
        section = f"{view_id(ref)}-{place}"
        sections.append({"uuid": section, "name": title, "display": True, "isReordered": True})
        charts += [_chart(one, section, f"{section}-{number}") for number, one in enumerate(known)]
    state = {
        "searchFilter": arms_filter(ref),
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["tags.`decision`", *(f"metrics.`{one}`" for one in COLUMNS if one in metrics)],
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": unix_ms, "updatedAt": unix_ms, "state": packed})


def oldest(tags: Mapping[str, str]) -> list[str]:
    """Names of the experiment's tags with our views beyond the newest `KEPT`.

    The page writes a view that people change anew: what cannot be read is left alone.
    """
    found: list[tuple[float, str]] = []
    for key, value in tags.items():
        if key.startswith(TAG + PREFIX):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found.append((float(json.loads(value)["createdAt"]), key))
    return [key for _, key in sorted(found)[:-KEPT]]


def _chart(one: tuple[str, ...], section: str, uuid: str) -> dict[str, Any]:
    kind, *axes = one
    shared = {"uuid": uuid, "metricSectionId": section, "deleted": False, "isGenerated": False}
    if kind == "bar":
        return shared | {"type": "BAR", "metricKey": axes[0], "displayName": axes[0], "runsCountToCompare": 20}
    x, y = axes
    if kind == "scatter":
        sides = {side: {"key": key, "type": "METRIC"} for side, key in (("xaxis", x), ("yaxis", y))}
        return shared | sides | {"type": "SCATTER", "runsCountToCompare": 20, "displayName": f"{y} by {x}"}
    return shared | {
        "type": "LINE",
        "metricKey": y,
        "selectedMetricKeys": [y],
        "displayName": f"{y} by KL",
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": x,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "displayPoints": True,
        "runsCountToCompare": 20,
    }
