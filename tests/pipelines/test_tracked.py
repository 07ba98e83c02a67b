"""What MLflow is told and when: events wait their turn, texts go out while `measure` runs, every way ends alike."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare import prepare
from pipelines.tracked import Tracking
from workbench.config import load_config
from workbench.errors import DataError
from workbench.manifest import Artifact
from workbench.outcome import Event, EventKind
from workbench.results import Results, load_results
from workbench.store import Store
from workbench.tracking import Tracker, default_uri
from workbench.tracking_mlflow import Server

TEXTS = {"traces", "count", "link"}
TRACES = 3  # of an arm
OF_THE_RUN = ("ref", "mlflow.note.content", "mlflow.user")  # tags that tell of one run alone


class Comparison:
    """A comparison that was computed before, told to MLflow once more, event by event."""

    def __init__(self, home: Path, *overrides: str) -> None:
        comparison = load_config(Path("smoke"), [f"tracking.traces={TRACES}", *overrides])
        store = Store.open(home)
        self.home, self.said = home, list[str]()
        self.folder = home / "results" / "smoke"
        self.results: Results = load_results(self.folder / "results.json")
        self.graph = prepare(comparison, store)
        self.tracking = Tracking(comparison, home, self.graph, {}, self.said.append)
        found = {row.instance: store.find(row.key) for row in self.results.stages}
        self.artifacts: dict[str, Artifact] = {name: one for name, one in found.items() if one is not None}

    def tell(self, kind: EventKind, instance: str, *, cached: bool = False) -> None:
        """An event of the executor; the end of a stage brings its artifact."""
        more: dict[str, Any] = {}
        if kind == "finished":
            artifact = self.artifacts[instance]
            more = {"artifact": artifact, "path": artifact.metrics_path, "cached": cached}
        self.tracking.hear(Event(kind=kind, instance=instance, name=self.graph.stages[instance].name, **more))

    def tell_all_but(self, *instances: str) -> None:
        """Everything else is in the store already."""
        for instance in self.graph.stages:
            if instance not in instances:
                self.tell("finished", instance, cached=True)

    def send(self) -> None:
        """What the executor does while workers compute."""
        while self.tracking.send_some():
            pass

    def finish(self) -> None:
        plain = self.results.model_dump(mode="json", by_alias=True)
        self.tracking.tell(plain)
        self.tracking.finish(plain, [], [self.folder / "results.json"])


def side_by_side(one: Comparison) -> None:
    one.tell_all_but("samples", "measure")
    for stage in ("samples", "measure"):
        one.tell("started", stage)
    one.send()
    one.tell("finished", "samples")
    one.send()
    one.tell("finished", "measure")


def all_cached(one: Comparison) -> None:
    one.tell_all_but()
    one.send()


def only_samples_cached(one: Comparison) -> None:
    one.tell_all_but("measure")
    one.tell("started", "measure")
    for _ in range(7):  # and then the last stage ends
        assert one.tracking.send_some()
    one.tell("finished", "measure")


def figures_first(one: Comparison) -> None:
    one.tell_all_but("samples", "measure")
    for kind in ("started", "finished"):
        one.tell(kind, "measure")
    one.tell("started", "samples")
    one.tell("finished", "samples")
    one.send()


WAYS = (side_by_side, all_cached, only_samples_cached, figures_first)


@pytest.fixture
def home(smoke_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_home, tmp_path / "home"))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Every operation that reaches a server."""
    found: list[dict[str, Any]] = []
    apply = Server.apply

    def applied(self: Server, operation: dict[str, Any]) -> None:
        found.append(operation)
        apply(self, operation)

    monkeypatch.setattr(Server, "apply", applied)
    return found


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(home), registry_uri=default_uri(home))


def shown(home: Path, ref: str) -> dict[str, Any]:
    """What MLflow shows of a comparison's arms, sets and of itself, without ids and times."""
    from mlflow.tracing.client import TracingClient

    store, tracing = client(home), TracingClient(default_uri(home))
    place = store.get_experiment_by_name("smoke").experiment_id
    found: dict[str, Any] = {}
    for run in store.search_runs([place], f"tags.`workbench.comparison_ref` = '{ref}'"):
        if run.data.tags["kind"] == "stage":
            continue
        traces = tracing.search_traces(locations=[place], run_id=run.info.run_id, max_results=500)
        found[run.info.run_name] = {
            "status": run.info.status,
            "params": run.data.params,
            "metrics": run.data.metrics,
            "tags": {key: value for key, value in run.data.tags.items() if not key.endswith(OF_THE_RUN)},
            "note": len(run.data.tags["mlflow.note.content"].splitlines()),
            "datasets": sorted(one.dataset.digest for one in run.inputs.dataset_inputs),
            "files": sorted(item.path for item in store.list_artifacts(run.info.run_id)),
            "traces": sorted(json.dumps(one.data.spans[0].inputs) for one in traces),
        }
    found["models"] = {
        alias: store.get_run(store.get_model_version_by_alias("smoke", alias).run_id).info.run_name
        for alias in ("sft", "reward-main", "best-ppo", "best-dpo")
    }
    return found


def without_reused(found: dict[str, Any]) -> dict[str, Any]:
    """The parent's list of reused stages is as long as they are many."""
    for name in ("note", "files"):
        del found["smoke"][name]
    found["smoke"]["tags"].pop("reused")
    return found


def test_every_way_ends_with_the_same_pages_and_sends_nothing_twice(home: Path, sent: list[dict[str, Any]]) -> None:
    found = []
    for way in WAYS:
        sent.clear()
        one = Comparison(home)
        way(one)
        one.finish()
        one.tracking.abandon(None)
        assert one.said == []
        runs = Counter(operation["name"] for operation in sent if operation["op"] == "run")
        assert set(runs.values()) == {1}
        assert sum(operation["op"] == "count" for operation in sent) == len(one.results.arms)
        ids = [trace["id"] for operation in sent if operation["op"] == "traces" for trace in operation["traces"]]
        assert len(ids) == len(set(ids)) == TRACES * len(one.results.arms)
        found.append(without_reused(shown(home, one.tracking.tracker.ref)))
    first = found[0]
    assert {one["status"] for name, one in first.items() if name != "models"} == {"FINISHED"}
    assert {"sft", "ppo", "dpo", "smoke"} <= set(first)
    assert first["ppo"]["metrics"]["win_rate"] == first["smoke"]["metrics"]["win_rate/ppo"]
    assert first["ppo"]["params"]["updates"] == "3"
    assert first["ppo"]["tags"]["arm.kind"] == "ppo"
    assert first["ppo"]["files"] == ["responses.json"]
    assert len(first["ppo"]["traces"]) == TRACES
    for way, other in zip(WAYS[1:], found[1:], strict=True):
        assert other == first, way.__name__


def test_texts_go_out_while_the_last_figures_are_computed(home: Path, sent: list[dict[str, Any]]) -> None:
    one = Comparison(home)
    one.tell_all_but("samples", "measure")
    one.tell("started", "samples")
    one.send()
    one.tell("finished", "samples")
    one.send()
    assert not TEXTS & {operation["op"] for operation in sent}  # a worker that is free may wait for the driver
    one.tell("started", "measure")
    one.send()
    before = Counter(operation["op"] for operation in sent)
    assert set(before) >= TEXTS
    one.tell("finished", "measure")
    one.send()
    one.finish()
    after = Counter(operation["op"] for operation in sent)
    assert {name: after[name] for name in TEXTS} == {name: before[name] for name in TEXTS}
    assert before["model"] == before["view"] == 0  # they stand on the figures
    assert after["model"] == 4


def test_events_wait_until_there_is_time(home: Path, sent: list[dict[str, Any]]) -> None:
    one = Comparison(home)
    opened = len(sent)
    one.tell("started", "sft")
    one.tell("finished", "sft")
    assert len(sent) == opened
    assert one.tracking.send_some()
    assert [operation["op"] for operation in sent[opened:]] == ["run"]
    one.send()
    assert [operation["op"] for operation in sent[opened:]] == ["run", "inputs", "batch", "end"]
    assert not one.tracking.send_some()
    one.tell("started", "samples")
    one.tell("finished", "samples")
    one.tell("started", "dpo[dpo,seed=0]")
    before = len(sent)
    fields = one.tracking.record_fields(one.graph.stages["dpo[dpo,seed=0]"])  # what a record needs is sent for it
    assert client(home).get_run(fields["mlflow_run_id"]).info.run_name == "dpo[dpo,seed=0]"
    assert [operation["op"] for operation in sent[before:]] == ["run", "run"]  # no metrics of another stage
    one.tracking.abandon(None)


@pytest.mark.parametrize(
    ("kind", "status"), [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (DataError, "FAILED")]
)
def test_what_ended_a_comparison_is_told_of_all_that_is_open(
    kind: type[BaseException], status: str, home: Path, sent: list[dict[str, Any]]
) -> None:
    one = Comparison(home)
    one.tell_all_but("measure")
    one.tell("started", "measure")
    while not any(operation["op"] == "count" for operation in sent):
        assert one.tracking.send_some()
    told = len(sent)
    one.tracking.abandon(kind)
    assert not TEXTS & {operation["op"] for operation in sent[told:]}  # nobody waits for texts that no figures follow
    store = client(home)
    place = store.get_experiment_by_name("smoke").experiment_id
    runs = store.search_runs([place], f"tags.`workbench.comparison_ref` = '{one.tracking.tracker.ref}'")
    assert {run.info.run_name: run.info.status for run in runs} == {
        "smoke": status, "sft": status, "measure": "KILLED",
    }  # fmt: skip


def test_texts_that_cannot_be_read_cost_themselves_alone(home: Path) -> None:
    one = Comparison(home)
    (one.artifacts["samples"].path / "samples.jsonl.gz").write_bytes(b"torn")
    side_by_side(one)
    one.finish()
    assert len(one.said) == 1
    assert "samples.jsonl.gz" in one.said[0]
    found = shown(home, one.tracking.tracker.ref)
    assert found["ppo"]["status"] == found["smoke"]["status"] == "FINISHED"
    assert found["ppo"]["metrics"]["win_rate"] == found["smoke"]["metrics"]["win_rate/ppo"]
    assert found["ppo"]["traces"] == []


def test_a_dead_server_s_spool_ends_with_the_same_pages(home: Path) -> None:
    live, dead = Comparison(home), Comparison(home, "tracking.uri=http://127.0.0.1:9")
    for one in (live, dead):
        side_by_side(one)
        one.finish()
    assert len(dead.said) == 1
    (spool,) = (home / "spool").glob("*.jsonl")
    files = [line for line in spool.read_text().splitlines() if '"op": "file"' in line]
    kept = [line for line in spool.read_text().splitlines() if line not in files]  # its copies go with the first time
    assert len(files) == 1
    for _ in range(2):  # sent twice it is there once
        spool.write_text("\n".join([json.dumps(json.loads(kept[0]) | {"uri": None}), *kept[1:]]) + "\n")
        report = Tracker.sync(home)
        assert (len(report.sent), report.left, report.refused) == (1, {}, 0)
        found = [shown(home, one.tracking.tracker.ref) for one in (live, dead)]
        for pages in found:
            pages["smoke"]["params"].pop("tracking.uri")
            pages["smoke"]["files"] = [name for name in pages["smoke"]["files"] if name != "results.json"]
        assert found[1] == found[0]


def test_a_graph_without_a_judge_does_not_take_over_its_samples(home: Path, sent: list[dict[str, Any]]) -> None:
    one = Comparison(home)
    one.tell_all_but("measure")
    kept = {name: artifact for name, artifact in one.tracking.artifacts.items() if name != "samples"}
    one.tracking.again(one.graph, kept)
    one.tell("started", "measure")
    one.send()
    assert not TEXTS & {operation["op"] for operation in sent}
    one.tell("started", "samples")
    one.tell("finished", "samples")
    one.send()
    assert {operation["op"] for operation in sent} >= TEXTS
    one.tracking.abandon(None)
