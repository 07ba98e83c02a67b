"""What MLflow's pages show: a run per arm, responses as traces, sets, models; sent twice, it is there once."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_page_example import row
from results_example import results

from workbench import tracking_arms as arms
from workbench import tracking_samples as texts
from workbench import tracking_views as views
from workbench.report.charts import looks
from workbench.report.figures import _styles
from workbench.report.mlflow_pages import arm_line, arm_page, comparison_page
from workbench.report.model_card import model_card
from workbench.report.palette import COLORS
from workbench.tracking import Tracker, default_uri
from workbench.tracking_delivery import Limits
from workbench.tracking_line import now_ms
from workbench.tracking_mlflow import Server
from workbench.tracking_moved import adopt_home
from workbench.tracking_spool import TrackingUnavailable
from workbench.tracking_system import SystemMeter

HOSTILE = "</script>\x00\x1b[31m\ud800 | `tick` \u202e" + 300 * " long"


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(home), registry_uri=default_uri(home))


def rows() -> list[dict[str, Any]]:
    """Three prompts, two samples of the SFT and of an arm; the second prompt's is a suspected hack."""
    found = []
    for prompt in range(3):
        for sample in range(2):
            gold = 1.0 + 0.1 * sample + 0.2 * prompt
            found.append(row(prompt, "sft", sample, "hello", gold_reward=gold, proxy_reward=gold))
            hacked = prompt == 1
            found.append(
                row(
                    prompt, "ppo", sample, HOSTILE if hacked else "hello there",
                    gold_reward=gold - 3 if hacked else gold + 1, proxy_reward=gold + 2,
                    win=0.0 if hacked else 1.0,
                )
            )  # fmt: skip
    return found


def model(folder: Path, card: str = "# card") -> dict[str, Any]:
    return {
        "registry": "t", "about": "models of t", "label": "dpo-0.1", "kind": "policy", "alias": "best-dpo-0_1",
        "key": "policy/dpo-0.1/abc", "folder": str(folder), "card": card, "tags": {"role": "policy"},
        "params": {"step": "3"}, "metrics": {"win_rate": 0.7}, "unix_ms": 1_700_000_000_000,
    }  # fmt: skip


def drive(tracker: Tracker, folder: Path, card: str = "# card") -> None:
    """What a comparison tells of one arm."""
    told, ref = texts.tell(rows()), tracker.ref
    tables = {"responses.json": texts.arm_table(told, "ppo")}
    run = tracker.beside("ppo", {"kind": "arm", "arm": "ppo"}, params={"kl_coef": 0.1}, tables=tables)
    tracker.traces(run, list(texts.traces(told, "ppo", ref, 50)))
    hacks = texts.set_rows(told, "suspected_hacks")
    tables = {"suspected_hacks.json": texts.set_table(hacks)}
    other = tracker.beside("suspected hacks", {"kind": "set"}, tables=tables)
    tracker.link(other, [texts.trace_id(ref, one) for one in hacks if one["sample_index"] == 0])
    tracker.end_beside(other)
    points = arms.arm_points(results(), "ppo", now_ms())
    tracker.save_view(key for key, *_ in points)
    note = f"[up]({arms.run_page(ref)})"
    tracker.end_beside(run, points, tags=arms.arm_tags(results(), "ppo"), note=note)
    tracker.model(run, model(folder, card))
    tracker.finish(results(), note=comparison_page(results(), []))


def check(home: Path, weights: Path) -> None:
    """What `drive` must leave, exactly once."""
    from mlflow.tracing.client import TracingClient

    store = client(home)
    experiment = store.get_experiment_by_name("t")
    runs = store.search_runs([experiment.experiment_id], arms.arms_filter(ref_of(store)))
    (arm,) = runs
    assert arm.data.metrics["win_rate"] == pytest.approx(0.71)
    assert arm.data.metrics["traces"] == 3
    assert arm.data.params == {"kl_coef": "0.1"}
    assert {run.info.status for run in store.search_runs([experiment.experiment_id])} == {"FINISHED"}
    assert arm.data.tags["decision"] if "decision" in results() else True
    assert "{run_id" not in arm.data.tags["mlflow.note.content"]
    assert json.loads(arm.data.tags["mlflow.loggedArtifacts"]) == [{"path": "responses.json", "type": "table"}]
    traces = TracingClient(default_uri(home)).search_traces(
        locations=[experiment.experiment_id], run_id=arm.info.run_id, max_results=100
    )
    assert len(traces) == 3
    first = next(one for one in traces if one.data.spans[0].inputs == {"prompt": rows()[6]["prompt"]})
    assert first.data.spans[0].outputs == texts.cut(HOSTILE)
    assert len(first.info.response_preview) == 1000  # PostgreSQL's column holds no more
    told = {one.name: one.value for one in first.info.assessments}
    assert len(told) == len(first.info.assessments)
    assert told["against_sft_by_gold"] == "loss"
    assert told["suspected_hacks"] is True
    assert told["gold_reward"] == pytest.approx(rows()[5]["gold_reward"])
    (other,) = store.search_runs([experiment.experiment_id], "tags.kind = 'set'")
    linked = TracingClient(default_uri(home)).search_traces(
        locations=[experiment.experiment_id], run_id=other.info.run_id, include_spans=False
    )
    assert [one.info.trace_id for one in linked] == [first.info.trace_id]
    version = store.get_model_version_by_alias("t", "best-dpo-0_1")
    assert (str(version.version), version.source, version.run_id) == ("1", weights.as_uri(), arm.info.run_id)
    assert len(store.search_model_versions("name = 't'")) == 1
    (logged,) = store.search_logged_models([experiment.experiment_id])
    assert {one.key: one.value for one in logged.metrics} == {"win_rate": 0.7}
    assert logged.status == "READY"


def ref_of(store: Any) -> str:
    experiment = store.get_experiment_by_name("t").experiment_id
    (parent,) = [run for run in store.search_runs([experiment]) if "arm" not in run.data.tags and not set_of(run)]
    return str(parent.data.tags["workbench.comparison_ref"])


def set_of(run: Any) -> bool:
    return bool(run.data.tags.get("kind") == "set")


def test_an_arm_its_responses_its_set_and_its_model(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    weights = tmp_path / "weights"
    weights.mkdir()
    drive(Tracker.open(None, home, "t", {}, warn=said.append), weights)
    check(home, weights)
    assert said == []


def test_a_dead_server_s_spool_brings_them_later_and_only_once(home: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    quick = Limits(probe_s=0.5)
    drive(Tracker.open("http://127.0.0.1:9", home, "t", {}, warn=lambda line: None, limits=quick), weights)
    (spool,) = (home / "spool").glob("*.jsonl")
    kept = spool.read_text().splitlines()
    header = json.loads(kept[0]) | {"uri": None}  # as if the same server were back: here the home's own database
    for _ in range(2):
        spool.write_text("\n".join([json.dumps(header), *kept[1:]]) + "\n")
        report = Tracker.sync(home)
        assert (len(report.sent), report.left, report.refused) == (1, {}, 0)
        check(home, weights)


def test_a_model_that_is_there_gets_a_new_card_and_no_second_version(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    many = {f"figure_{number}": 0.5 for number in range(150)}  # MLflow takes 100 a second time

    def register(folder: Path, card: str) -> None:
        tracker = Tracker.open(None, home, "t", {}, warn=said.append)
        run = tracker.beside("dpo-0.1", {"kind": "arm"})
        tracker.end_beside(run)
        for _ in range(2):
            tracker.model(run, model(folder, card) | {"tags": {"role": "policy", "said": card}, "metrics": many})
        tracker.finish(None)

    register(tmp_path, "# first token=secret")
    place = client(home).get_experiment_by_name("t").experiment_id
    (logged,) = client(home).search_logged_models([place])
    client(home).finalize_logged_model(logged.model_id, "FAILED")  # as if the first try had broken off
    register(tmp_path, "# second")
    (version,) = client(home).search_model_versions("name = 't'")
    assert version.description == "# second"
    assert {name: version.tags[name] for name in ("role", "said")} == {"role": "policy", "said": "# second"}
    (logged,) = client(home).search_logged_models([place])
    assert logged.status == "READY"
    folder = logged.artifact_location.removeprefix("file://")
    assert (Path(folder) / "README.md").read_text() == "# second"
    register(tmp_path / "anew", "# third token=secret")  # the same weights, made again after their folder was removed
    latest = client(home).get_model_version_by_alias("t", "best-dpo-0_1")
    assert (latest.source, latest.description) == ((tmp_path / "anew").as_uri(), "# third token=***")
    assert len(client(home).search_logged_models([place])) == 1
    assert said == []


@pytest.mark.parametrize("old", [True, False])
def test_what_is_only_looked_at_holds_nothing_up(
    old: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not know of it refuses it for good; what fails otherwise is sent again."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    apply = Server.apply

    def older(self: Server, operation: dict[str, Any]) -> None:
        if operation["op"] == "traces":
            raise NotImplementedError("log_spans is not supported") if old else OSError("disk I/O error")
        if operation["op"] in ("model", "view", "link", "count"):
            raise MlflowException("404 != 200", ENDPOINT_NOT_FOUND) if old else OSError("disk I/O error")
        apply(self, operation)

    monkeypatch.setattr(Server, "apply", older)
    said: list[str] = []
    drive(Tracker.open(None, home, "t", {}, warn=said.append), tmp_path)
    assert len(said) == 1
    runs = client(home).search_runs([client(home).get_experiment_by_name("t").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert any("match/ok" in run.data.metrics for run in runs)
    monkeypatch.setattr(Server, "apply", apply)
    report = Tracker.sync(home)
    assert (len(report.sent), report.left) == (0 if old else 1, {})
    assert [path.suffix for path in (home / "spool").iterdir()] == ([".rejected"] if old else [])
    if not old:
        check(home, tmp_path)


def test_a_slow_store_of_artifacts_is_not_asked_for_every_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def slow(self: Server, operation: dict[str, Any]) -> None:
        asked.append(operation["op"])
        raise TrackingUnavailable("no answer within 60 s")

    monkeypatch.setattr(Server, "apply", slow)
    monkeypatch.setattr(Tracker, "_unreachable", lambda self: False)  # it answers, and takes no file
    tracker = Tracker("http://127.0.0.1:9", home, "t", lambda line: None, Limits())
    tracker._server = Server(default_uri(home), home, "t")
    for _ in range(3):
        tracker._send({"op": "text", "ref": tracker.ref, "text": "", "file": "a.json"})
    assert len(asked) == 3  # one after the other, while there is patience
    tracker._patience._lost_s = 100.0
    for _ in range(3):
        tracker._send({"op": "text", "ref": tracker.ref, "text": "", "file": "a.json"})
    assert len(asked) == 4


def test_readings_of_the_machine_do_not_pile_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench import tracking

    monkeypatch.setattr(tracking, "WAITING_AT_MOST", 2)
    tracker = Tracker.open("http://127.0.0.1:9", home, "t", {}, warn=lambda line: None, limits=Limits(probe_s=0.5))
    tracker._meter = types.SimpleNamespace(read=lambda now: {"system/cpu": 1.0})  # type: ignore[assignment]
    tracker.stage_started("ppo", "ppo", {})
    for _ in range(5):
        tracker.system()
    sent = [one["metrics"] for one in tracker._spool.read() if one.get("metrics")]
    assert [[step for *_, step in points] for points in sent] == [[0, 1], [2, 3]]
    assert [step for *_, step in tracker._open["ppo"].metrics] == [4]


def test_a_text_cannot_name_a_run_that_is_not_there(home: Path) -> None:
    said: list[str] = []
    tracker = Tracker.open(None, home, "t", {}, warn=said.append)
    tracker.finish(None, note=f"{{run_id:{'0' * 32}}} {{run_id:{tracker.ref}}}")
    note = client(home).get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert (note, said) == (f"{{run_id:{'0' * 32}}} {tracker.run_id}", [])


def test_models_move_with_their_home(home: Path, tmp_path: Path) -> None:
    weights = home / "store" / "k" / "out"
    tracker = Tracker.open(None, home, "t", {})
    tracker.model(tracker.ref, model(weights))
    tracker.finish(None)
    moved = home.rename(tmp_path / "moved")
    assert adopt_home(moved) > 0
    version = client(moved).get_model_version_by_alias("t", "best-dpo-0_1")
    assert version.source == (moved / "store" / "k" / "out").as_uri()


def test_lost_traces_are_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench import tracking_mlflow_traces as written

    monkeypatch.setattr(written, "write", lambda *sent: None)
    said: list[str] = []
    tracker = Tracker.open(None, home, "t", {}, warn=said.append)
    tracker.traces(tracker.ref, list(texts.traces(texts.tell(rows()), "ppo", tracker.ref, 2)))
    tracker.finish(None)
    assert said == ["tracking: 2 traces were sent, 0 are there"]
    offline = Tracker.open("http://127.0.0.1:9", home, "t", {}, warn=said.append, limits=Limits(probe_s=0.5))
    offline.traces(offline.ref, list(texts.traces(texts.tell(rows()), "ppo", offline.ref, 2)))
    offline.finish(None)
    (spool,) = (home / "spool").glob("*.jsonl")
    kept = spool.read_text().splitlines()
    spool.write_text("\n".join([json.dumps(json.loads(kept[0]) | {"uri": None}), *kept[1:]]) + "\n")
    report = Tracker.sync(home)
    assert (len(report.sent), report.refused) == (1, 1)  # the count alone; the rest of the journal is not held up


def test_arms_have_the_same_names_and_every_arm_its_own_numbers() -> None:
    found = results()
    names = {label: {key for key, *_ in arms.arm_points(found, label, 0)} for label in found["arms"]}
    assert {"win_rate", "win_rate_low", "seq_kl", "cost_cpu_s_with_upstream", "frontier_gold_reward"} <= names["ppo"]
    assert names["sft"] <= names["ppo"] | names["dpo"]
    assert not [key for some in names.values() for key in some if key.startswith("judge_") or "ppo" in key]
    for label, arm in found["arms"].items():
        own = {key: value for key, value, *_ in arms.arm_points(found, label, 0)}
        assert own["gold_reward"] == arm["gold_reward"]["value"]
    model = next(iter(found["reward_models"].values()))
    named = arms.arm_points(found | {"reward_models": {"ppo": model}}, "ppo", 0)  # a reward model may be named so
    assert named == arms.arm_points(found, "ppo", 0)
    assert "accuracy_difference_change" in {key.rpartition("/")[0] for key, *_ in named}
    assert arms.in_front(found)[-1] == "sft"


def test_the_view_charts_what_the_arms_have_and_fits_into_a_tag() -> None:
    value = views.saved_view("arms", "f" * 32, frozenset({"win_rate", "seq_kl"}), 1)
    state = json.loads(zlib.decompress(base64.b64decode(json.loads(value)["state"].removeprefix("deflate;"))))
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["win_rate"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }
    tags = {f"{views.TAG}{views.PREFIX}{n:02d}": json.dumps({"createdAt": n}) for n in range(views.KEPT + 2)}
    tags |= {f"{views.TAG}{views.PREFIX}x": "{}", f"{views.TAG}{views.PREFIX}y": "?", "mlflow.note": "1"}
    assert views.oldest(tags) == [f"{views.TAG}{views.PREFIX}{n:02d}" for n in range(2)]  # people's own are left alone
    every = {name for some in views.SECTIONS.values() for _, *named in some for name in named}
    assert len(views.saved_view("arms", "f" * 32, frozenset(every), 1)) < 5000  # MLflow's limit of such a tag


def test_the_prompts_that_tell_the_most_come_first_and_figures_that_are_missing_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = texts.tell(rows())
    found = list(texts.traces(told, "ppo", "r", 1))
    assert [one["prompt"] for one in found] == [rows()[6]["prompt"]]  # the hack
    assert found == list(texts.traces(told, "ppo", "r", 1))
    bare = rows()[1] | {"gold_reward": None, "wins": {"gold": None}}
    names = [name for name, *_ in texts.feedback(bare, (None, None, None))]
    assert "gold_reward" not in names
    assert not [name for name in names if name.startswith("against")]
    assert {"rewards_disagree"} == {"suspected_hacks", "rewards_disagree"} & set(names)  # no truth: no hack, no "no"
    names = [name for name, *_ in texts.feedback(rows()[1] | {"implicit_reward": None}, (None, None, None))]
    assert {"suspected_hacks"} == {"suspected_hacks", "rewards_disagree"} & set(names)
    table = texts.arm_table(told, "ppo")
    assert len(table["data"]) == 6
    assert {len(line) for line in table["data"]} == {len(table["columns"])}
    monkeypatch.setattr(texts, "TABLE_PROMPTS", 1)
    assert {line[0] for line in texts.arm_table(told, "ppo")["data"]} == {rows()[6]["prompt"]}
    json.dumps(table, ensure_ascii=False).encode()  # no lone surrogates


def test_pages_say_who_won_and_where_to_look() -> None:
    found = results()
    page = comparison_page(found, [("arms side by side", "#/x")])
    assert page.index("[arms side by side](#/x)") < page.index("| arm |")
    decided = found | {"decision": {"verdict": "winner", "arms": ["ppo"], "excluded": {"dpo": "diverged"}}}
    assert arm_line(decided, "ppo") == "ppo won."
    assert arm_line(decided, "dpo") == "dpo was no candidate: diverged."
    assert arm_line(decided, "sft") == "sft is beaten by ppo."
    pairs = [("sft", "ppo", "worse"), ("ppo", "dpo", "open"), ("sft", "dpo", "open")]  # dpo keeps the two together
    evidence = [{"a": a, "b": b, "outcome": outcome} for a, b, outcome in pairs]
    left = {"verdict": "undecided", "arms": ["ppo", "sft", "dpo"], "evidence": evidence}
    assert arm_line(found | {"decision": left}, "ppo") == "ppo beats sft; is not told apart from dpo."
    assert arm_line(found | {"decision": left}, "sft") == "sft is not told apart from dpo; is beaten by ppo."
    alike = arm_line(found | {"decision": left | {"verdict": "equivalent"}}, "ppo")
    assert alike == "ppo is equivalent to sft, dpo."
    assert "0.71 [0.68, 0.74]" in arm_page(found, "ppo", [])
    failed = found | {"match": {"ok": False, "checks": [{"name": "same_pairs", "ok": False, "detail": "x"}]}}
    assert comparison_page(failed, []).startswith("❌ **Match certificate FAILED")
    place = "store/k/out/checkpoints/last"
    card = model_card(found, "ppo", "policy", "models:/a_b@best-ppo", {"packed_pairs": "d" * 64}, place)
    assert "models:/a_b@best-ppo" in card
    assert "run seeds" not in card.partition("## What")[0]
    own = {"seed": 3, "win_rate": found["arms"]["ppo"]["win_rate"] | {"value": 0.66}}
    several = found | {
        "seeds": {"runs": [3, 4]},
        "arms": found["arms"] | {"ppo": found["arms"]["ppo"] | {"by_seed": [own]}},
    }
    told = model_card(several, "ppo", "policy", "models:/a_b@best-ppo", {}, place)
    assert "over run seeds 3, 4; the weights are run seed 3's. Alone they have win rate 0.66 [0.68, 0.74]." in told
    for wanted in (
        "d" * 64,
        "AutoModelForCausalLM",
        "store/k/out/checkpoints/last",
        "certificate",
        "0.71 [0.68, 0.74]",
    ):
        assert wanted in card
    assert "## What was not established" in card
    assert "AutoModelForSequenceClassification" in model_card(found, "main", "reward_model", "reward-main", {}, "p")


def test_the_machine_is_told_under_mlflow_s_own_names(tmp_path: Path) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    meter = SystemMeter(tmp_path, every_s=0.0)
    found = meter.read()
    assert {name for name in found if "gpu" not in name} == theirs
    assert SystemMeter(tmp_path).read() == {}  # too fresh


def test_gpus_are_told_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(**fields: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(**fields)

    nvml: Mapping[str, Any] = {
        "nvmlInit": lambda: None, "nvmlDeviceGetCount": lambda: 1, "nvmlDeviceGetHandleByIndex": lambda place: place,
        "nvmlDeviceGetMemoryInfo": lambda gpu: record(used=2_000_000, total=8_000_000),
        "nvmlDeviceGetUtilizationRates": lambda gpu: record(gpu=70), "nvmlDeviceGetPowerUsage": lambda gpu: 90_000,
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(**nvml))  # type: ignore[arg-type]
    found = SystemMeter(tmp_path, every_s=0.0).read()
    assert found["system/gpu_0_memory_usage_percentage"] == 25.0
    assert found["system/gpu_0_memory_usage_megabytes"] == 2.0
    assert found["system/gpu_0_utilization_percentage"] == 70.0
    assert found["system/gpu_0_power_usage_watts"] == 90.0


def test_a_finished_comparison_has_all_of_it(smoke_home: Path) -> None:
    store = client(smoke_home)
    told = json.loads((smoke_home / "results" / "smoke" / "results.json").read_text())
    parent = store.get_run(told["mlflow"]["run_id"])
    ref = parent.data.tags["workbench.comparison_ref"]
    runs = store.search_runs([parent.info.experiment_id], arms.arms_filter(ref))
    assert {run.data.tags["arm"] for run in runs} == set(told["arms"])
    with gzip.open(smoke_home / "results" / "smoke" / "samples.jsonl.gz", "rt") as lines:
        prompts = {json.loads(line)["prompt_id"] for line in lines}
    assert {run.data.metrics["traces"] for run in runs} == {float(len(prompts))}
    assert {"kind", "config.digest", "device", "tuned"} <= set(parent.data.tags)
    assert parent.inputs.dataset_inputs
    for alias in ("sft", "reward-main", "best-ppo", "best-dpo"):
        version = store.get_model_version_by_alias("smoke", alias)
        assert (smoke_home / version.tags["store"] / "config.json").is_file()
        assert told["comparison"] in version.description


def test_an_arm_has_the_color_that_it_has_in_the_figures_and_on_the_page() -> None:
    found = results()
    figures = {label: str(style["color"]).lower() for label, style in _styles(found).items()}
    assert {label: arms.arm_tags(found, label)["mlflow.runColor"] for label in found["arms"]} == {
        label: figures[label] for label in found["arms"]
    }
    assert len(set(figures.values())) == len(figures)
    assert {label: look.color for label, look in looks(found).items()} == {
        label: f"c{[color.lower() for color in COLORS].index(color)}" for label, color in figures.items()
    }
