"""A tuning as MLflow sees it: a parent run per study, a nested run per trial. Through `Tracker`; no mlflow here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import tracking_names as names
from workbench.config_comparison import Comparison
from workbench.redact import redact_text
from workbench.results_tuning import TrialRow, TunedArm, TuningResults
from workbench.tracking import Tracker
from workbench.tracking_spool import chosen_uri
from workbench.tuning_figures import figures_of

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class StudyTracker(Tracker):
    """One study's parent run."""

    def trial(self, row: TrialRow, metrics_path: Path | None, *, best: bool) -> None:
        """A nested run: settings, the training's curves, the score, how it ended."""
        instance = f"trial {row.number:03d}"
        self.stage_started(instance, "trial", dict(row.params))
        stage, now_ms = self._open[instance], int(time.time() * 1000)
        self._read(stage, metrics_path)
        stage.tags |= {"workbench.trial": str(row.number), "workbench.trial_state": row.state}
        stage.tags |= {"workbench.best": "true"} if best else {}
        stage.tags |= {"workbench.error": names.clip_text(row.reason, names.MAX_TAG_VALUE)} if row.reason else {}
        stage.metrics += [(key, value, now_ms, 0) for key, value in trial_metrics(row).items()]
        stage.metrics += [
            ("tuning/intermediate", value, now_ms, int(step)) for step, value in sorted(row.intermediate.items())
        ]
        self._end(instance, STATUS[row.state], now_ms)

    def study(self, arm: TunedArm) -> None:
        """The parent's own figures: the best so far after each trial, the choice and what it cost."""
        now_ms = int(time.time() * 1000)
        points = [("tuning/best_so_far", one.value, now_ms, one.trials) for one in arm.best_so_far]
        points += [(key, value, now_ms, 0) for key, value in study_metrics(arm).items()]
        tags = {"workbench.best_params": json.dumps(arm.best.params)} if arm.best is not None else {}
        self._send({"op": "batch", "ref": self.ref, "metrics": points, "tags": tags})


def trial_metrics(row: TrialRow) -> dict[str, float]:
    """Score, KL and cost of a trial."""
    found = names.estimate_metrics("tuning/value", _plain(row.value)) | names.estimate_metrics(
        "tuning/seq_kl", _plain(row.seq_kl)
    )
    found = {key.replace("tuning_low/", "tuning/low_").replace("tuning_high/", "tuning/high_"): value
             for key, value in found.items()}  # fmt: skip
    return found | {f"tuning/spent_{name}": float(value) for name, value in row.spent.model_dump().items()}


def study_metrics(arm: TunedArm) -> dict[str, float]:
    """What a study comes to."""
    counts = {"trials": arm.trials, "complete": arm.complete, "pruned": arm.pruned, "failed": arm.failed}
    found = {f"tuning/{name}": float(value) for name, value in counts.items()}
    found |= {f"tuning/spent_{name}": float(value) for name, value in arm.spent.model_dump().items()}
    for name, estimate in (
        ("best_value", arm.best.value if arm.best is not None else None),
        ("default_value", arm.default.value if arm.default is not None else None),
        ("gain", arm.gain),
        ("winners_curse", arm.winners_curse),
    ):
        if estimate is not None and estimate.value is not None:
            found[f"tuning/{name}"] = estimate.value
    return found | {names.safe_key(f"tuning_importance/{name}"): share for name, share in arm.importance.items()}


def _plain(estimate: Any) -> dict[str, Any] | None:
    return None if estimate is None else estimate.model_dump()


def track(
    found: TuningResults,
    comparison: Comparison,
    home: Path,
    figures: Sequence[Path],
    policies: Mapping[str, Mapping[int, str | None]],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Logs a finished tuning, a parent run per study; what was logged before with as many trials is not logged again.

    Args:
        policies: arm -> trial -> key of the stage whose metrics are its curves.

    Returns:
        {"tracking_uri", "experiment", "runs": {LABEL: run id}}.
    """
    marker = home / "tuning" / found.study / "tracked.json"
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    uri = chosen_uri(comparison.tracking.uri)
    place = redact_text(uri) if uri else None
    known: dict[str, Any] = before if before.get("uri") == place else {}
    runs: dict[str, Any] = dict(known.get("runs", {}))
    for label, arm in found.arms.items():
        state = f"{arm.trials}/{arm.best.number if arm.best is not None else None}/{len(arm.repeated)}"
        if runs.get(label, {}).get("state") == state:
            continue
        config = {"objective": found.objective.model_dump(), "budget": found.budget.model_dump(), "rule": found.rule}
        tracker = StudyTracker.open(
            uri, home, found.comparison, config,
            {"workbench.study": arm.study, "workbench.arm": label}, run_name=arm.study, warn=warn,
        )  # fmt: skip
        assert isinstance(tracker, StudyTracker)
        for row in arm.rows:
            key = policies.get(label, {}).get(row.number)
            path = home / "store" / key / "metrics.jsonl" if key is not None else None
            tracker.trial(row, path, best=arm.best is not None and row.number == arm.best.number)
        tracker.study(arm)
        tracker.finish(None, figures_of(label, figures), note=found.rule)
        runs[label] = {"state": state, "run_id": tracker.run_id, "tracking_uri": tracker.tracking_uri}
    marker.write_text(json.dumps({"uri": place, "runs": runs}), encoding="utf-8")
    uris = [one["tracking_uri"] for one in runs.values()]
    return {
        "tracking_uri": uris[0] if uris else None,
        "experiment": found.comparison,
        "runs": {label: one["run_id"] for label, one in runs.items()},
    }
