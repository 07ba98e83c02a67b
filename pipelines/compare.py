"""Runs a comparison: resolve, plan, execute, certify, report, track. What the CLI's `compare` and `plan` call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.caveats import rounded, warnings
from pipelines.costs import answer_cost, arm_cost
from pipelines.graph import Graph, build_graph
from pipelines.judges import check_keys, silent_judges, unfinished_judges, without_judges
from pipelines.label_agreement import LabelWatch
from pipelines.sources import resolve_origin
from pipelines.sources_models import model_sources
from pipelines.tracked import Tracking
from workbench.config import Comparison, check_paths
from workbench.errors import DivergenceError, IntegrityError, JudgingError
from workbench.executors import run as execute
from workbench.executors import warm_up
from workbench.fsio import disk_errors
from workbench.manifest import Artifact
from workbench.outcome import Event, Outcome
from workbench.redact import redact
from workbench.report.files import write_all
from workbench.results import ArmCost, Results, StageRow
from workbench.results_base import CostRecord
from workbench.results_tuning import TuningLedger
from workbench.runs import SAMPLES_FILE
from workbench.side_process import side_process
from workbench.stages import Planned, Stage, dependencies
from workbench.stages import plan as plan_stages
from workbench.store import Store

OnEvent = Callable[[Event], None]
TABLES = (("measure", "judgments.jsonl"), ("measure", "disagreements.json"), ("samples", SAMPLES_FILE))  # stage, file


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished comparison: what it found, where it lies, and the exit code of what is wrong with it."""

    results: Results
    path: Path
    figures: tuple[Path, ...]
    exit_code: int


def prepare(comparison: Comparison, store: Store) -> Graph:
    """Checks what can be checked before anything runs, and builds the graph. Imports no torch."""
    check_paths(comparison)
    return build_graph(comparison, resolve_origin(comparison, store))


def plan_comparison(comparison: Comparison, home: Path) -> list[Planned]:
    """Hit or miss of every stage, and why."""
    store = Store.open(home)
    return plan_stages(list(prepare(comparison, store).stages.values()), store)


def run_comparison(
    comparison: Comparison,
    *,
    home: Path,
    wait_s: float = 0.0,
    on_event: OnEvent | None = None,
    warn: Callable[[str], None] | None = None,
    tuned: TuningLedger | None = None,
) -> Finished:
    """Runs what is not in the store yet and writes results, report and figures below `home/results/NAME`.

    Args:
        comparison: The validated config.
        home: Folder of all that runs leave.
        wait_s: How long to wait for a stage that another process builds.
        on_event: Sees every event of the executor (live view).
        warn: Receives lines for people.
        tuned: What it took to get the arms' settings, where they were tuned; the certificate carries it.

    Raises:
        WorkbenchError: A stage failed; all that completed is kept, and the next run goes on from there.
    """
    # ---- 1. Check and plan. Data errors come before anything heavy is imported or started.
    store = Store.open(home)
    graph = prepare(comparison, store)
    check_keys(graph, store)
    built = read_sources_first(graph, store, wait_s, on_event)

    # ---- 2. Run the misses; the driver alone talks to MLflow, whose imports take as long as the workers'.
    warm_up(list(graph.stages.values()), store)
    with ExitStack() as stack:
        tracking = Tracking(comparison, home, graph, built, warn, tuned=tuned is not None)
        stack.push(tracking.abandon)

        def attempt(on_event: OnEvent) -> Outcome:
            return execute(
                list(tracking.graph.stages.values()),
                store,
                workers=comparison.resources.workers,
                wait_s=wait_s,
                on_event=on_event,
                record_fields=tracking.record_fields,
                between=tracking.send_some,
            )

        labels = LabelWatch(comparison.data.min_alpha, warn)
        listen = fan_out(tracking.hear, labels.hear, all_but(built, on_event))
        outcome = attempt(listen)
        unfinished = unfinished_judges(graph, outcome)
        if unfinished:  # what the other judges say is worth having; the verdicts so far are kept for the next run
            first, before = outcome, graph
            graph = without_judges(graph, unfinished)
            kept = still_good(first.artifacts, before, graph)
            tracking.again(graph, kept)
            outcome = attempt(all_but(kept, listen) or listen)
            for instance in kept:
                outcome.cached[instance], outcome.why[instance] = first.cached[instance], first.why[instance]
        outcome.raise_if_failed()
        if outcome.skipped:
            raise IntegrityError(f"stages were skipped without a failure: {dict(outcome.skipped)}")
        outcome.cached |= dict.fromkeys(built, False)
        outcome.why |= built

        # ---- 3. Put the results together and certify them.
        results = assemble(graph, outcome, tracking.describe(), unfinished, tuned)
        results = results.model_copy(update={"warnings": [*results.warnings, *labels.found]})
        results = results.model_copy(update={"models": model_sources(comparison, graph.origin)})
        from workbench.decide import decide

        verdict = decide(results, comparison.decision, comparison.evaluation.judges[0])
        results = results.model_copy(update={"decision": verdict})
        folder = home / "results" / comparison.name
        path = folder / "results.json"
        results = results.model_copy(update={"report": str(folder / "report.md")})
        with disk_errors("Writing the results", home):
            folder.mkdir(parents=True, exist_ok=True)
            results.write(path)
            tables = [shutil.copyfile(outcome.artifacts[stage].path / name, folder / name) for stage, name in TABLES]
            settings = json.dumps(redact(comparison.model_dump(mode="json")), indent=1, ensure_ascii=False)
            (folder / "config.json").write_text(settings + "\n", encoding="utf-8")

            # ---- 4. Draw what people look at, and tell MLflow meanwhile.
            plain = results.model_dump(mode="json", by_alias=True)
            with side_process(write_all, plain, folder, alone=not comparison.tracking.enabled) as drawn:
                tracking.tell(plain)
                figures, pages = drawn()
        tracking.finish(plain, figures, [path, *pages, *tables])
    return Finished(results=results, path=path, figures=tuple(figures), exit_code=exit_code(results))


def read_sources_first(graph: Graph, store: Store, wait_s: float, on_event: OnEvent | None) -> dict[str, str]:
    """Runs the light stages at the head of the graph alone, so that a broken file ends the run before torch starts.

    Returns:
        instance -> why it was built, for those that were not in the store: the run after this one finds them there.
    """
    head: list[Stage] = []
    names: set[str] = set()
    for stage in graph.stages.values():
        if stage.inline and all(source in names for source in dependencies(stage)):
            head.append(stage)
            names.add(stage.instance)
    if not head:
        return {}
    outcome = execute(head, store, wait_s=wait_s, on_event=on_event, preload=())
    outcome.raise_if_failed()
    return {instance: outcome.why[instance] for instance, cached in outcome.cached.items() if not cached}


def still_good(artifacts: Mapping[str, Artifact], before: Graph, after: Graph) -> dict[str, Artifact]:
    """Of the artifacts of a graph those of stages that another graph of the same comparison has unchanged."""
    return {name: one for name, one in artifacts.items() if after.stages.get(name) == before.stages[name]}


def all_but(built: Collection[str], listener: OnEvent | None) -> OnEvent | None:
    """A listener that hears nothing more of stages whose end it has heard already."""
    if listener is None:
        return None
    hear = listener
    return lambda event: None if event.instance in built else hear(event)


def fan_out(*listeners: OnEvent | None) -> OnEvent:
    """One listener that passes each event on to several."""

    def hear(event: Event) -> None:
        for listener in listeners:
            if listener is not None:
                listener(event)

    return hear


# ---------------------------------------------------------------------------------------------- results


def assemble(
    graph: Graph,
    outcome: Outcome,
    mlflow: Mapping[str, Any],
    unfinished: Mapping[str, str] | None = None,
    tuned: TuningLedger | None = None,
) -> Results:
    """results.json from the measure stage, the records' costs and the certificate.

    Args:
        unfinished: Judge -> why it did not finish.
        tuned: Ledger of the tuning behind the arms' settings.
    """
    from workbench.match import certificate
    from workbench.sides import from_json, with_tuning

    comparison = graph.comparison
    folder = outcome.artifacts["measure"].path
    parts = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "sides.json").read_text(encoding="utf-8"))
    runs = comparison.seeds.runs
    costs = {(label, run): arm_cost(graph, outcome.records, label, [run]) for label, run in graph.arms}
    sides = []
    for side in facts["sides"]:
        own, total = costs[side["label"], runs[0] if side["seed"] is None else side["seed"]]
        sides.append(with_tuning(from_json(side, own=own, total=total), tuned))
    match = certificate(sides, facts["split_prompts"], comparison.evaluation.judges, train_pairs=facts["train_pairs"])
    order = ["sft", *comparison.arms]  # stages get their config with sorted keys
    measured, arms = parts.pop("arms"), {}
    parts["frontier"].sort(key=lambda point: order.index(point["arm"]))
    parts["overoptimization"].sort(key=lambda one: order.index(one["arm"]))
    for name in ("matched_kl", "frontier_area"):
        parts[name].sort(key=lambda one: (order.index(one["arm"]), order.index(one["against"] or "sft")))
    sets = ["heldout", *(f"on_policy/{label}" for label in order), "temperature_shift", "ood"]
    parts["agreement"] = {name: parts["agreement"][name] for name in sets if name in parts["agreement"]}
    parts["agreement_trajectory"].sort(key=lambda point: order.index(point["arm"]))
    for listed in (parts["disagreements"], (parts["generalization"] or {}).get("shifts", [])):
        listed.sort(key=lambda one: sets.index(one["set"]))
    for label in order:
        own, total = arm_cost(graph, outcome.records, label, runs)
        cost = ArmCost(
            own=CostRecord.of(own),
            with_upstream=CostRecord.of(total),
            side_by_side=comparison.resources.workers > 1,
            answer=CostRecord.of(answer_cost(graph, outcome, label, runs)),
        )
        arms[label] = measured[label] | {"cost": cost}
    stages = [
        StageRow(
            name=stage.name,
            instance=instance,
            key=outcome.keys[instance],
            cached=outcome.cached[instance],
            why=outcome.why[instance],
            wall_s=outcome.records[instance].cost.wall_s,
        )
        for instance, stage in graph.stages.items()
    ]
    return Results.model_validate(
        {
            "schema": 1, "comparison": comparison.name, "seeds": comparison.seeds.model_dump(), "mlflow": dict(mlflow),
            "report": None, "match": match, "arms": arms, "stages": stages, **parts, "tuning": tuned,
            "warnings": rounded(outcome) + warnings(comparison, parts["judges"], unfinished or {}, tuned),
            "judging_incomplete": dict(unfinished or {}) | silent_judges(parts["judges"]),
        }
    )  # fmt: skip


def exit_code(results: Results) -> int:
    """0, or the smallest of 4 (a certificate that failed), 5 (an arm that diverged), 6 (a judge that did not finish, or
    whose missing verdicts differ by arm)."""
    if not results.match.ok:
        return IntegrityError.exit_code
    if any(arm.diverged for arm in results.arms.values()):
        return DivergenceError.exit_code
    missing = results.judging_incomplete or any(judge.uneven for judge in results.judges.values())
    return JudgingError.exit_code if missing else 0
