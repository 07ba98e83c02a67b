"""A comparison's arms as MLflow sees them: one run each, with the same metric names in all, so that its pages can
set arms side by side. No mlflow here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from workbench import tracking_names as names
from workbench.config_base import BASELINE
from workbench.report.palette import COLORS, places
from workbench.tracking_names import Point


def arm_points(results: Mapping[str, Any], label: str, unix_ms: int) -> list[Point]:
    """An arm's numbers without its label in the name (`win_rate`, `win_rate_low`, ...) and its frontier by step.

    Args:
        results: results.json, schema 1.
        label: The arm.
    """
    end, own = f"/{names.safe_key(label)}", own_part(results, label)
    points = [
        (key.removesuffix(end), value, unix_ms, 0)
        for key, value in names.headline_metrics(own).items()
        if key.endswith(end)
    ]
    points += [
        (key.replace(end, "", 1), value, unix_ms, step) for key, value, _, step in names.frontier_points(own, unix_ms)
    ]
    return points


def own_part(results: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What results.json says of one arm alone: a reward model or a judge may have an arm's name."""
    samples, agreement = f"on_policy/{label}", results.get("agreement") or {}
    shifts = (results.get("generalization") or {}).get("shifts") or ()
    curves = ("frontier", "frontier_area", "overoptimization")
    return {name: [row for row in results.get(name) or () if str(row["arm"]) == label] for name in curves} | {
        "arms": {label: results["arms"][label]},
        "agreement": {name: found for name, found in agreement.items() if name == samples},
        "generalization": {"shifts": [shift for shift in shifts if shift["set"] == samples]},
    }


def arm_tags(results: Mapping[str, Any], label: str) -> dict[str, str]:
    """What an arm's run is filtered by, beside the provenance that all runs of the comparison share."""
    arm, found = results["arms"][label], results.get("decision") or {}
    tags = {"kind": "arm", "arm": label, "arm.kind": str(arm["kind"]), "checkpoint": arm.get("selected") or ""}
    in_front = label in (found.get("arms") or ())
    tags["decision"] = (
        str(found["verdict"]) if in_front else "excluded" if label in (found.get("excluded") or ()) else ""
    )
    # MLflow draws a run in a color by chance, so that two may look alike, and another one than in the report.
    tags["mlflow.runColor"] = COLORS[places(results)[label] % len(COLORS)].lower()
    tags["diverged"] = str(arm.get("diverged") or "")
    return {key: names.clip_text(value, names.MAX_TAG_VALUE) for key, value in tags.items() if value}


def arms_filter(ref: str) -> str:
    """MLflow's search for the arms of one comparison."""
    return f"tags.kind = 'arm' and tags.`workbench.comparison_ref` = '{ref}'"


def run_page(ref: str) -> str:
    """Link to a run's page; `{run_id:REF}` is filled in where it is known."""
    return f"#/experiments/{{experiment_id}}/runs/{{run_id:{ref}}}"


def all_responses(ref: str) -> str:
    """Link to the table of all responses, a column an arm."""
    facets = f"searchFilter={quote(arms_filter(ref))}&compareRunsMode=ARTIFACT&workflowType=machine_learning"
    return f"#/experiments/{{experiment_id}}/runs?{facets}"


def two_arms(first: str, second: str) -> str:
    """Link to the responses of two arms, paired by prompt, by the references of their runs."""
    facets = f"selectedRunUuid={{run_id:{first}}}&compareToRunUuid={{run_id:{second}}}"
    return f"#/experiments/{{experiment_id}}/evaluation-runs?{facets}"


def in_front(results: Mapping[str, Any]) -> list[str]:
    """Arms as the decision names them, the others by win rate; the baseline last."""
    found = (results.get("decision") or {}).get("arms") or []

    def place(label: str) -> tuple[bool, int, float]:
        rate = (results["arms"][label].get("win_rate") or {}).get("value")
        rank = found.index(label) if label in found else len(found)
        return label == BASELINE, rank, -(rate if rate is not None else -1.0)

    return sorted(results["arms"], key=place)
