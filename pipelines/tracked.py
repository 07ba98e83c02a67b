"""A comparison's run as MLflow sees it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.graph import Graph
from workbench.config import Comparison
from workbench.config_base import BASELINE
from workbench.manifest import Artifact
from workbench.outcome import Event
from workbench.runs import SAMPLES_FILE
from workbench.stages import Stage
from workbench.tracking_samples import Told


class Tracking:
    """The executor's events, told to MLflow: a nested run per stage that runs, a link per stage that is reused.

    What an event brings waits for `send_some` or `finish`, because a stage that may start shall not.

    Args:
        built: Stages of this comparison that were built before tracking opened; they get their run from the record.
        tuned: The arms' settings come from a tuning.
    """

    def __init__(
        self,
        comparison: Comparison,
        home: Path,
        graph: Graph,
        built: Mapping[str, str],
        warn: Callable[[str], None] | None,
        *,
        tuned: bool = False,
    ) -> None:
        from workbench.tracking import Tracker

        self.graph, self.built, self.finished = graph, built, False
        self.artifacts: dict[str, Artifact] = {}
        self.running: set[str] = set()
        self.shared = provenance(comparison, graph, tuned=tuned)
        self.runs: dict[str | None, str] = {}  # label -> reference of its run; None: the comparison's
        self.texts = self._texts()
        self.told_ms: int | None = None  # the time of all numbers of the results
        if not comparison.tracking.enabled:
            self.tracker = Tracker.disabled(comparison.name)
            return
        self.tracker = Tracker.open(
            comparison.tracking.uri,
            home,
            comparison.name,
            comparison.model_dump(mode="json"),
            self.shared | {"kind": "comparison", "seeds": ",".join(map(str, comparison.seeds.runs))},
            warn=warn or (lambda line: print(line, file=sys.stderr)),
        )
        self.runs[None] = self.tracker.ref
        self.tracker.put_off()

    def again(self, graph: Graph, kept: Mapping[str, Artifact]) -> None:
        """The comparison goes on with another graph, of whose artifacts those are there that were kept."""
        self.graph, self.artifacts = graph, dict(kept)

    def hear(self, event: Event) -> None:
        """Takes one event of the executor."""
        stage = self.graph.stages[event.instance]
        if event.kind == "started":
            self.running.add(event.instance)
            tags = self.shared | stage_tags(event.instance, self.graph.comparison)
            self.tracker.stage_started(event.instance, stage.name, stage.config, tags)
        elif event.kind in ("metrics", "progress") and event.path is not None:
            self.tracker.stage_metrics(event.instance, event.path)
        elif event.kind == "finished" and event.artifact is not None:
            self.artifacts[event.instance] = event.artifact
            if event.cached and event.instance not in self.built:
                self.tracker.stage_reused(event.artifact.record)
            else:
                self.tracker.stage_finished(event.artifact.record, event.path)
        elif event.kind in ("failed", "interrupted"):
            status = "FAILED" if event.kind == "failed" else "KILLED"
            self.tracker.stage_failed(event.instance, event.message or event.kind, event.path, status=status)
        if event.kind in ("finished", "failed", "interrupted"):
            self.running.discard(event.instance)
        self.tracker.system()

    def send_some(self) -> bool:
        """Sends a little of what waits, while workers compute; returns whether more waits.

        The arms' texts are sent while `measure` runs: it is the last stage, no worker waits for the driver any more.
        """
        if self.tracker.send_one():
            return True
        if "measure" in self.running and "samples" in self.artifacts and self.graph.comparison.tracking.enabled:
            with self._guarded():
                return next(self.texts, False)
        return False

    def record_fields(self, stage: Stage) -> dict[str, Any]:
        """The run that makes an artifact, for its record."""
        return {"mlflow_run_id": self.tracker.stage_run(stage.instance)}

    def describe(self) -> dict[str, Any]:
        """The `mlflow` block of results.json."""
        return self.tracker.describe()

    def tell(self, plain: Mapping[str, Any]) -> None:
        """Gives every arm its numbers, its notes and its models. Needs no figure.

        Args:
            plain: results.json's content.
        """
        if not self.graph.comparison.tracking.enabled:
            return
        from workbench.tracking_line import now_ms

        self.told_ms = now_ms()
        self.tracker.send_all()
        with self._guarded():
            for _ in self.texts:  # what was not sent while `measure` ran: all of it where that was not computed
                pass
        with self._guarded():
            self._numbers(plain, self.told_ms)

    def finish(self, plain: Mapping[str, Any], figures: Sequence[Path], files: Sequence[Path]) -> None:
        """Ends the parent with headline metrics, certificate, figures and files."""
        if not self.graph.comparison.tracking.enabled:
            return
        from workbench import tracking_arms as arms
        from workbench.report.mlflow_pages import comparison_page

        page = ""
        with self._guarded():
            page = comparison_page(plain, self._links(arms.in_front(plain)[:2]))
        datasets = [*self._datasets("packed_pairs", "training"), *self._datasets("packed_prompts", "evaluation")]
        with self._guarded():
            self.tracker.finish(plain, figures, files, note=page, datasets=datasets, unix_ms=self.told_ms)
            self.finished = True

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What MLflow shows of a comparison must not fail it."""
        try:
            yield
        except Exception as error:
            self.tracker.problem(error)

    def _texts(self) -> Iterator[bool]:
        """A run per arm with its responses, and the sets of suspicious ones; in pieces, with True after each."""
        from workbench import tracking_samples as texts
        from workbench.report.samples import first_seed

        told = texts.tell(first_seed(self.artifacts["samples"].path / SAMPLES_FILE))
        yield True
        for label in (BASELINE, *self.graph.comparison.arms):
            run = self._run(label, {"responses.json": texts.arm_table(told, label)})
            self.tracker.traces(run, list(texts.traces(told, label, self.tracker.ref, self._traced)))
            yield True
        for name in texts.SETS:
            self._set(name, told)
            yield True

    def _run(self, label: str, tables: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """The run of an arm, which is opened where it is not there yet."""
        if label not in self.runs:
            arm = self.graph.comparison.arms.get(label)
            self.runs[label] = self.tracker.beside(
                label,
                self.shared | {"kind": "arm", "arm": label},
                params=arm.model_dump(mode="json") if arm is not None else None,
                datasets=self._datasets("packed_prompts", "evaluation"),
                tables=tables,
            )
        return self.runs[label]

    def _numbers(self, plain: Mapping[str, Any], unix_ms: int) -> None:
        """What the results say of every arm, on its run; the view of all arms; the models."""
        from pipelines.tracked_models import models
        from workbench import tracking_arms as arms
        from workbench.report.mlflow_pages import arm_page

        points = {label: arms.arm_points(plain, label, unix_ms) for label in plain["arms"]}
        self.tracker.save_view(key for some in points.values() for key, *_ in some)
        back = ("the comparison", arms.run_page(self.tracker.ref))
        for label in plain["arms"]:
            run = self._run(label)
            links = self._links([label, BASELINE] if label != BASELINE else [])
            note = arm_page(plain, label, [back, *links])
            self.tracker.end_beside(run, points[label], arms.arm_tags(plain, label), note=note)
        for one in models(self.graph, self.artifacts, plain, self.shared, unix_ms):
            self.tracker.model(self.runs[one["arm"]], one)

    def _links(self, pair: Sequence[str]) -> list[tuple[str, str]]:
        """Where to look: arms side by side, the texts of two of them, all texts."""
        from workbench import tracking_arms as arms
        from workbench import tracking_views as views

        found = [("arms side by side", views.view_link(self.tracker.ref))]
        if self._traced and len(pair) == 2 and all(label in self.runs for label in pair):
            two = arms.two_arms(*(self.runs[label] for label in pair))
            found.append((f"responses of {pair[0]} and {pair[1]}", two))
        return [*found, ("all responses", arms.all_responses(self.tracker.ref))]

    @property
    def _traced(self) -> int:
        return self.graph.comparison.tracking.traces

    def _set(self, name: str, told: Told) -> None:
        """A set of suspicious responses as a run of its own; traces of the arms stand in it, too."""
        from workbench import tracking_samples as texts

        rows = texts.set_rows(told, name)
        if not rows:
            return
        run = self.tracker.beside(
            name.replace("_", " "),
            self.shared | {"kind": "set", "set": name},
            tables={f"{name}.json": texts.set_table(rows)},
        )
        traced = set(told.prompts[: self._traced])
        ids = [texts.trace_id(self.tracker.ref, row) for row in rows
               if row["sample_index"] == 0 and row["prompt_id"] in traced]  # fmt: skip
        self.tracker.link(run, ids)
        self.tracker.end_beside(run, note=texts.SETS[name][1])

    def abandon(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the runs of a comparison that did not finish; called as the `__exit__` of a context.

        Args:
            kind: What ended it.
        """
        if not self.finished:
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
            self.tracker.finish(None, status="KILLED" if interrupted else "FAILED")

    def _datasets(self, stage: str, context: str) -> list[dict[str, str]]:
        """The output of the data stage of that name as lineage."""
        found = [one.record for one in self.artifacts.values() if one.record.name == stage]
        return [{"name": one.name, "digest": one.output, "context": context} for one in found[:1]]


def provenance(comparison: Comparison, graph: Graph, *, tuned: bool) -> dict[str, str]:
    """Tags that all runs of a comparison share: which settings, which code, where, tuned or not."""
    from workbench.build import checkout_state

    commit, dirty = checkout_state()
    known = {"git.commit": commit, "mlflow.source.git.commit": commit, "git.dirty": dirty}
    told = {name: str(value).lower() for name, value in known.items() if value is not None}
    return told | {
        "config.digest": comparison.digest(),
        "device": graph.origin.device,
        "tuned": str(tuned).lower(),
        "mlflow.source.name": f"workbench compare {comparison.name}",
        "mlflow.source.type": "LOCAL",
    }


def stage_tags(instance: str, comparison: Comparison) -> dict[str, str]:
    """Arm and run seed of a stage, from its instance: `ppo[ppo,seed=0]`."""
    name, _, rest = instance.removesuffix("]").partition("[")
    first = rest.split(",")[0] if rest else name
    tags = {"arm": first} if first == "sft" or first in comparison.arms else {}
    seed = re.search(r"\bseed=(\d+)", rest)
    return tags | ({"seed": seed[1]} if seed else {})
