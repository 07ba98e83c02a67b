"""Runs one trial through the store: its graph, its checkpoints on the way, its score. Called in a worker process."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.graph import Graph
from pipelines.graph_base import gold
from pipelines.sources import Origin
from pipelines.tune_graph import SPLIT, own_stages, trial_comparison, trial_graph
from workbench.config import Comparison, Tuning
from workbench.config_base import BASELINE
from workbench.errors import ConfigError, DivergenceError, IntegrityError, ResourceError, WorkbenchError
from workbench.executors import run as execute
from workbench.outcome import Event, Outcome
from workbench.stage_log import total_cost
from workbench.stages import Stage
from workbench.store import Store
from workbench.tuning_measure import Trial, measured
from workbench.tuning_spaces import Params
from workbench.types import Cost

if TYPE_CHECKING:
    from workbench.tuning_probe import Probe

_log = logging.getLogger(__name__)
DEATHS = ("ran out of memory", "because memory ran out", "'s process ended with", "the model does not fit the device")
Report = Callable[[int, Mapping[str, float]], None]
"""(rung, prompt -> score there)"""


class TrialRunner:
    """Runs trials of one comparison, one after another, in this process.

    Args:
        comparison: With its `tuning` section.
        origin: What it takes from outside.
        wait_s: How long to wait for stages that another process builds.
    """

    def __init__(self, comparison: Comparison, origin: Origin, store: Store, *, wait_s: float) -> None:
        self.comparison, self.origin, self.store, self.wait_s = comparison, origin, store, wait_s
        self.tuning = comparison.tuning or Tuning()
        self._probes: dict[int, Probe] = {}

    def share(self, labels: list[str], run: int, on_event: Callable[[Event], None]) -> None:
        """Builds what all trials of a run seed stand on, side by side, before the first of them starts."""
        stages: dict[str, Stage] = {}
        for label in labels:
            graph = self._graph(label, {}, run)
            own = set(own_stages(graph, label, run))
            apart = {instance for instance, stage in graph.stages.items() if own & set(_inputs(stage.inputs))} | own
            stages |= {instance: stage for instance, stage in graph.stages.items() if instance not in apart}
        outcome = execute(
            list(stages.values()), self.store, workers=self.comparison.resources.workers, wait_s=self.wait_s,
            on_event=on_event,
        )  # fmt: skip
        outcome.raise_if_failed()

    def run(
        self,
        label: str,
        params: Params,
        run: int,
        on_event: Callable[[Event], None],
        report: Report | None = None,
    ) -> Trial:
        """One trial.

        Args:
            params: Its settings.
            run: Its run seed.
            on_event: Hears the executor; what it raises ends nothing.
            report: Takes the scores of checkpoints while the arm trains; None: nobody asks for them.

        Raises:
            WorkbenchError: A stage failed for a reason that is not the settings'.
            KeyboardInterrupt, SystemExit: This process was told to stop; the stage has written a checkpoint.
        """
        try:
            graph = self._graph(label, params, run)
        except ConfigError as error:
            return Trial(status="failed", reason=f"settings that do not fit: {error}")
        watch = Watch(self, graph, label, run, report)

        def hear(event: Event) -> None:
            on_event(event)
            watch(event)

        self.pruned = Trial(status="pruned", reason="pruned")
        try:
            outcome = execute(list(graph.stages.values()), self.store, workers=1, wait_s=self.wait_s, on_event=hear)
        finally:
            self.pruned = Trial(status="pruned", reason="pruned", costs=watch.costs(), policy=watch.policy_key)
        known: dict[str, Any] = {"costs": watch.costs(), "policy": watch.policy_key, "warning": watch.warning}
        if outcome.failures:
            instance, failure = min(outcome.failures.items(), key=lambda one: one[1].exit_code)
            if isinstance(failure, DivergenceError):
                return Trial(status="failed", reason=failure.message, **known)
            if instance in watch.charged and is_death(failure):
                return Trial(status="died", reason=failure.message.partition(". Nothing was changed")[0], **known)
            raise failure
        if outcome.skipped:
            raise IntegrityError(f"stages were skipped without a failure: {dict(outcome.skipped)}")
        return self._measure(graph, outcome, label, run, known)

    def _graph(self, label: str, params: Params, run: int) -> Graph:
        return trial_graph(trial_comparison(self.comparison, label, params, run), self.origin, label, self.tuning)

    def _measure(self, graph: Graph, outcome: Outcome, label: str, run: int, known: dict[str, Any]) -> Trial:
        inputs = self._inputs(graph, outcome, label, run)
        index = inputs.get(f"{label}/{run}/policy", Path()) / "index.json"
        diverged = json.loads(index.read_text())["diverged"] if index.is_file() else None
        if diverged:
            return Trial(status="failed", reason=f"{diverged['reason']} (step {diverged['step']})", **known)
        judge = graph.comparison.judges.get(self.tuning.objective.scorer)
        arms = graph.comparison.model_dump(mode="json")["arms"]
        scores, kl, bound = measured(
            inputs, label, run, arms, graph.comparison.proxy, self.tuning.objective, judge.kind if judge else None
        )
        return Trial(status="complete", scores=scores, kl=kl, bound=bound, **known)

    def _inputs(self, graph: Graph, outcome: Outcome, label: str, run: int) -> dict[str, Path]:
        found = {
            f"{name}/{run}/{role}": outcome.artifacts[instance].path
            for name in (BASELINE, label)
            for role, instance in graph.arms.get((name, run), {}).items()
            if instance in outcome.artifacts
        }
        for name in graph.comparison.reward_models:
            if (instance := f"reward_model[{name},seed={run}]") in outcome.artifacts:
                found[f"reward/{name}/{run}"] = outcome.artifacts[instance].path
        return found

    def probe(self, graph: Graph, run: int, artifacts: Mapping[str, Path]) -> Probe:
        """What scores checkpoints of a run seed; made once."""
        if run not in self._probes:
            from workbench.tuning_probe import Probe

            gold_source = self.origin.gold
            self._probes[run] = Probe(
                sft=artifacts["sft"], prompts=artifacts["packed_prompts"],
                reward_model=artifacts[f"reward_model[{graph.comparison.proxy},seed={run}]"],
                gold={"gold": gold(graph)}, gold_input=Path(gold_source.path) if gold_source is not None else None,
                decoding=next(s.config for s in graph.stages.values() if s.name == "generations"),
                seed=run, objective=self.tuning.objective, prompts_per_score=self.tuning.pruner.prompts,
                device=self.origin.device, dtype=self.origin.dtype, split=SPLIT,
            )  # fmt: skip
        return self._probes[run]


class Watch:
    """Hears a trial's run: scores the training's checkpoints at the rungs, and keeps count of what it costs."""

    def __init__(self, runner: TrialRunner, graph: Graph, label: str, run: int, report: Report | None) -> None:
        self.runner, self.graph, self.run, self.report = runner, graph, run, report
        self.charged = set(own_stages(graph, label, run))
        self.policy = graph.arms[label, run].get("policy")
        self.paths: dict[str, Path] = {}
        self.keys: dict[str, str] = {}  # of stages that have started and not ended
        self.done: dict[str, Cost] = {}
        at = list(runner.tuning.pruner.at)
        self.rungs = [at[len(at) // 2]] if runner.tuning.pruner.kind == "wilcoxon" else at
        self.next_rung = 0
        self.policy_key: str | None = None
        self.look = f"probe-{uuid.uuid4().hex}"
        self.probed = Cost()
        self.warning: str | None = None

    def __call__(self, event: Event) -> None:
        """Takes one event of the executor."""
        if event.instance == self.policy and event.key is not None:
            self.policy_key = event.key
        if event.kind == "finished" and event.artifact is not None:
            self.paths[event.instance] = event.artifact.path
            self.keys.pop(event.instance, None)
            if event.instance in self.charged and event.cost is not None and event.key is not None:
                self.done[event.key] = event.cost
        elif event.kind == "started" and event.key is not None and event.instance in self.charged:
            self.keys[event.instance] = event.key
        elif event.kind == "progress" and event.instance == self.policy and event.total and self.report is not None:
            self._look(event)

    def costs(self) -> dict[str, Cost]:
        """Costs of the arm's stages by key, those that did not end among them, and of scoring checkpoints."""
        unfinished = {key: total_cost(self.runner.store.work(key)) for key in self.keys.values()}
        return self.done | unfinished | ({self.look: self.probed} if self.probed.cpu_s else {})

    def _look(self, event: Event) -> None:
        """Scores the first checkpoint at or after the next rung, if it is there."""
        while self.next_rung < len(self.rungs) and event.key is not None:
            least = self.rungs[self.next_rung] * event.total
            kept = sorted((self.runner.store.work(event.key) / "policies").glob("step-*"))
            ready = [one for one in kept if int(one.name.removeprefix("step-")) >= least]
            if not ready:
                return
            self.next_rung += 1
            if self.report is None or event.done >= event.total:
                continue  # too late to save anything
            scores = self._scores(ready[0])
            if scores is None:
                return
            self.report(self.next_rung, scores)

    def _scores(self, folder: Path) -> dict[str, float] | None:
        """Scores of a checkpoint; None, and a warning, where it cannot be scored: the trial goes on unpruned."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        try:
            scores, cost = self.runner.probe(self.graph, self.run, self.paths).scores(folder)
            if not all(map(math.isfinite, scores.values())):
                raise ValueError("a score is not finite")
        except Exception as error:  # whatever it is, the executor would swallow it, and nobody would know
            self.report = None
            told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            self.warning = f"{folder.name} could not be scored ({told}); it was not pruned"
            _log.warning("%s", self.warning, exc_info=True)
            wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
            gpu_s = wall_s if self.runner.origin.device == "cuda" else 0.0
            self.probed = self.probed.plus(Cost(wall_s=wall_s, cpu_s=cpu_s, gpu_s=gpu_s))
            return None
        self.probed = self.probed.plus(cost)
        return scores


def is_death(failure: WorkbenchError) -> bool:
    """Whether a stage ran out of memory or was killed, which other settings may not; a full disk is none."""
    return isinstance(failure, ResourceError) and any(words in failure.message for words in DEATHS)


def _inputs(inputs: Mapping[str, Any]) -> list[str]:
    return [source for source in inputs.values() if isinstance(source, str)]
