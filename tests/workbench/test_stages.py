"""Keys, reasons and graph checks."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # toy stages are named "tests.workbench.toy_stages:..." wherever pytest is started

from tests.workbench.toy_stages import number, stage, walk  # noqa: E402
from workbench import keys, stages  # noqa: E402
from workbench.errors import ConfigError  # noqa: E402
from workbench.executors import run  # noqa: E402
from workbench.stage_log import StageLog, read_metrics, total_cost  # noqa: E402
from workbench.stages import External, Planned, Resources, Stage, check_graph, plan  # noqa: E402
from workbench.store import Store  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


def graph(**changes: Any) -> list[Stage]:
    """data -> sft -> dpo and rm -> ppo, all inline."""
    value = {"data": 1, "sft": 2, "dpo": 3, "rm": 4, "ppo": 5} | changes
    return [
        number("data", value["data"], inline=True),
        number("sft", value["sft"], inline=True, data="data"),
        number("dpo", value["dpo"], inline=True, sft="sft"),
        number("rm", value["rm"], inline=True, sft="sft"),
        number("ppo", value["ppo"], inline=True, sft="sft", rm="rm"),
    ]


def whys(planned: list[Planned]) -> dict[str, str]:
    return {one.instance: one.why for one in planned}


def build(stages_: list[Stage], store: Store) -> None:
    assert run(stages_, store, preload=()).ok


# --- plan ------------------------------------------------------------------------------------------------------------


def test_first_plan_and_second(store: Store) -> None:
    assert whys(plan(graph(), store)) == {
        "data": "never built",
        "sft": "waits for data",
        "dpo": "waits for sft",
        "rm": "waits for sft",
        "ppo": "waits for sft, rm",
    }
    build(graph(), store)
    planned = plan(graph(), store)
    assert all(one.cached and one.key and one.why == "cached" for one in planned)


def test_change_reruns_dependents_only_and_says_why(store: Store) -> None:
    build(graph(), store)
    assert whys(plan(graph(rm=4.5), store)) == {
        "data": "cached",
        "sft": "cached",
        "dpo": "cached",
        "rm": "config.value 4 -> 4.5",
        "ppo": "waits for rm",
    }
    outcome = run(graph(rm=4.5), store, preload=())
    assert [i for i, cached in outcome.cached.items() if not cached] == ["rm", "ppo"]
    assert outcome.why["ppo"] == "input rm changed"


def test_same_content_upstream_is_a_hit_downstream(store: Store) -> None:
    build(graph(), store)
    changed = graph()
    changed[0] = replace(changed[0], config={**changed[0].config, "unused": 1})
    outcome = run(changed, store, preload=())
    assert [i for i, cached in outcome.cached.items() if not cached] == ["data"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": {"value": 1, "nested": {"kept": [1, 3]}}}, "config.nested.kept [1, 2] -> [1, 3]"),
        ({"config": {"value": 1, "nested": {"kept": [1, 2], "x": True}}}, "config.nested.x is new (true)"),
        ({"config": {"value": 1}}, "config.nested is gone"),
        ({"seed": 7}, "seed 0 -> 7"),
        ({"version": 2}, "version 1 -> 2"),
        ({"resources": Resources(threads=2)}, "threads 1 -> 2"),
        ({"resources": Resources(device="cuda", dtype="bfloat16")}, "device cpu -> cuda, dtype float32 -> bfloat16"),
        ({"packages": ()}, "package numpy is gone"),
        ({"inputs": {"extra": External(path="/nowhere", digest="d")}}, "input extra is new"),
    ],
)
def test_reasons(store: Store, changes: dict[str, Any], why: str) -> None:
    one = number("data", 1, inline=True)
    build([one], store)
    planned = plan([replace(one, **changes)], store)[0]
    assert not planned.cached
    assert planned.why == why


@pytest.mark.parametrize(
    "changes",
    [{"cosmetic": {"log_every": 9}}, {"instance": "data[elsewhere]"}, {"resources": Resources(memory_bytes=5, gpus=1)}],
)
def test_what_cannot_change_a_result_is_not_in_the_key(store: Store, changes: dict[str, Any]) -> None:
    one = number("data", 1, inline=True)
    build([one], store)
    assert plan([replace(one, **changes)], store)[0].cached


def test_package_and_code_reasons(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = number("data", 1, inline=True)
    build([one], store)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "package_version", lambda name: "9.9")
        assert plan([one], store)[0].why.endswith("-> 9.9")
        assert plan([one], store)[0].why.startswith("package numpy ")
    real = keys.module_hashes
    changed = {"tests.workbench.toy_stages": "other", "workbench.objectives": "new"}
    monkeypatch.setattr(keys, "module_hashes", lambda function: {**real(function), **changed})
    assert (
        plan([one], store)[0].why == "code of tests.workbench.toy_stages changed, code of workbench.objectives is new"
    )


def test_reason_against_another_instance_and_removal(store: Store) -> None:
    build([number("data[a]", 1, inline=True)], store)
    planned = plan([number("data[b]", 2, inline=True)], store)[0]
    assert planned.why == "never built; against data[a]: config.value 1 -> 2"
    store.gc(set())
    assert plan([number("data[a]", 1, inline=True)], store)[0].why == "artifact was removed from the store"


def test_corrupt_artifact_is_reported_and_rebuilt(store: Store) -> None:
    build(graph(), store)
    key = plan(graph(), store)[1].key
    assert key is not None
    (store.root / key / "out" / "number").write_text("666")
    planned = plan(graph(), store)
    assert planned[1].why.startswith("artifact was corrupt and quarantined")
    assert planned[2].why == "waits for sft"
    assert whys(plan(graph(), store))["sft"].startswith("artifact was corrupt and quarantined: out/number")  # still
    outcome = run(graph(), store, preload=())
    assert [i for i, cached in outcome.cached.items() if not cached] == ["sft"]
    assert (outcome.artifacts["sft"].path / "number").read_text() == "3.0"


def test_plan_writes_nothing_and_imports_neither_torch_nor_the_stage(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from workbench.stages import Stage, plan
from workbench.store import Store
import workbench.executors
stage = Stage(name="n", instance="n", function="tests.workbench.toy_stages:walk", config={{}}, inputs={{}}, seed=0)
assert plan([stage], Store({str(tmp_path / "home")!r}))[0].why == "never built"
bad = {{"torch", "numpy", "transformers", "trl", "mlflow", "tests.workbench.toy_stages"}} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert not (tmp_path / "home").exists()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_key_does_not_depend_on_process_or_order() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.workbench.toy_stages import number
from workbench import keys, stages
from dataclasses import replace
one = replace(number("data", 1), config={{"nested": {{"kept": (1, 2)}}, "value": 1}})
print(keys.digest(stages.key_material(one, {{"b": "2", "a": "1"}})))
"""
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True)
    here = keys.digest(stages.key_material(number("data", 1), {"a": "1", "b": "2"}))
    assert other.stdout.strip() == here
    assert len(here) == 64


def test_nan_and_objects_have_no_key() -> None:
    for value in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            stages.key_material(number("data", value), {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `toyproject` whose module `arm` imports in every way there is."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "toyproject"
    (package / "deep").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "arm.py": (
            '"""An arm."""\nfrom __future__ import annotations\nimport json\nfrom typing import TYPE_CHECKING\n'
            "from toyproject import losses\nfrom . import masks as m\nfrom .deep.inner import f\n"
            "if TYPE_CHECKING:\n    from toyproject.only_types import T\n"
            "def run(config, inputs, out, log):\n    '''Runs.'''\n    import toyproject.lazy\n    return 1  # one\n"
        ),
        "losses.py": "import workbench.store\nx = 1\n",
        "masks.py": "y = 1\n",
        "lazy.py": "import importlib\nimportlib.import_module('toyproject.named')\n",
        "named.py": "n = 1\n",
        "only_types.py": "T = int\n",
        "unrelated.py": "u = 1\n",
        "deep/__init__.py": "",
        "deep/inner.py": "from ..masks import y\nfrom ...outside import z\ndef f(): pass\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    return package


def test_code_closure(project: Path) -> None:
    found = keys.module_hashes("toyproject.arm:run")
    assert set(found) == {
        "toyproject",
        "toyproject.arm",
        "toyproject.losses",
        "toyproject.masks",
        "toyproject.lazy",
        "toyproject.named",
        "toyproject.deep",
        "toyproject.deep.inner",
    }
    assert "toyproject" not in sys.modules  # nothing was imported to find this out


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("arm.py", "# one", "# the number one", False),
        ("arm.py", "'''Runs.'''\n    ", "", False),
        ("arm.py", '"""An arm."""', '"""Another text."""\n\n', False),
        ("losses.py", "x = 1", "x = 1\n'''documents x'''", False),
        ("arm.py", "return 1", "return 2", True),
        ("losses.py", "x = 1", "x = 1.0", True),
        ("named.py", "n = 1", "n = 2", True),
        ("deep/inner.py", "pass", "return 0", True),
        ("unrelated.py", "u = 1", "u = 2", False),
        ("only_types.py", "int", "str", False),
    ],
)
def test_code_changes_the_key_and_words_do_not(project: Path, file: str, old: str, new: str, changes: bool) -> None:
    before = keys.module_hashes("toyproject.arm:run")
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    assert (keys.module_hashes("toyproject.arm:run") != before) == changes


def test_a_worker_parses_nothing_that_its_driver_has_parsed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = keys.module_hashes("toyproject.arm:run")
    known = keys.parsed_sources()
    monkeypatch.setattr(keys, "_PARSED", {})  # as in a new process
    keys.adopt_parsed(known)
    monkeypatch.setattr(keys.ast, "parse", lambda source: pytest.fail("parsed again"))
    assert keys.module_hashes("toyproject.arm:run") == found
    (project / "arm.py").write_text("changed = 1\n")
    with pytest.raises(pytest.fail.Exception):  # other content, wherever it lies, is read for itself
        keys.module_hashes("toyproject.arm:run")


def test_only_a_docstring_is_the_same_as_pass() -> None:
    trees = [ast.parse(text) for text in ('def f():\n    """Doc."""\n', "def f():\n    pass\n")]
    assert keys.syntax_digest(trees[0]) == keys.syntax_digest(trees[1])


def test_plumbing_exists_and_is_left_out() -> None:
    found = keys.module_hashes("tests.workbench.toy_stages:walk")
    assert set(found) == {"tests.workbench.toy_stages"}  # though it imports checkpoints, errors, stages, stage_log
    for module in keys.PLUMBING:
        assert keys._source(module) is not None, f"{module} was renamed: the list is out of date"


def test_missing_function_module_is_explained(store: Store) -> None:
    one = replace(number("data", 1), function="workbench.no_such:run")
    with pytest.raises(ConfigError, match=r"no module 'workbench\.no_such'"):
        plan([one], store)


# --- graph -----------------------------------------------------------------------------------------------------------


def test_order_follows_dependencies_then_the_list() -> None:
    assert [one.instance for one in check_graph(graph()[::-1])] == ["data", "sft", "rm", "dpo", "ppo"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([number("a", 1), number("a", 2)], "two stages are called 'a'"),
        ([number("a", 1, x="b")], "'b', which no stage makes"),
        ([number("a", 1, x="b"), number("b", 1, x="a")], "in a circle"),
    ],
)
def test_broken_graphs(broken: list[Stage], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_graph(broken)


# --- the stage's log -------------------------------------------------------------------------------------------------


def make_log(work: Path, sent: list[Any]) -> StageLog:
    import threading

    return StageLog(work=work, seed=0, resources=Resources(), instance="x", send=sent.append, stop=threading.Event())


def test_metrics_rewind_with_a_torn_last_line(tmp_path: Path) -> None:
    log = make_log(tmp_path, [])
    for step in range(5):
        log.metrics(step, {"loss": 1 / (step + 1), "bad": float("nan")})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as stream:
        stream.write('{"step":5,"unix_s":1,"val')  # killed here
    log = make_log(tmp_path, [])
    log.rewind(2)
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    log.metrics(3, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    log.rewind(-1)
    assert path.read_text() == ""


def test_torn_line_is_dropped_without_a_rewind_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"unix_s":1,"values":{}}\n{"st')
    log = make_log(tmp_path, [])
    log.metrics(2, {})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_cost_sums_over_attempts_and_survives_a_kill(tmp_path: Path) -> None:
    for _ in range(2):
        log = make_log(tmp_path, [])
        log.cost(tokens_trained=5, flops=2.5)
        log.close()
    make_log(tmp_path, []).cost(tokens_trained=1)  # killed: never closed
    with (tmp_path / "cost.jsonl").open("a") as stream:
        stream.write('{"counters":{"tokens_tr')
    cost = total_cost(tmp_path)
    assert (cost.tokens_trained, cost.flops, cost.reward_queries) == (11, 5.0, 0)
    assert isinstance(cost.tokens_trained, int)
    assert cost.peak_memory_bytes > 1_000_000
    assert cost.gpu_s == 0
    with pytest.raises(ValueError, match="unknown cost counters"):
        log.cost(tokens=1)


def test_progress_is_throttled_but_for_the_last(tmp_path: Path) -> None:
    sent: list[Any] = []
    log = make_log(tmp_path, sent)
    for done in range(1, 101):
        log.progress(done, 100)
    assert sent[0] == ("progress", 1, 100, "")
    assert sent[-1] == ("progress", 100, 100, "")
    assert len(sent) < 10


def test_unfinished_attempt_is_mentioned(store: Store) -> None:
    key = plan([walk()], store)[0].key
    assert key is not None
    store.work(key).mkdir(parents=True)
    (store.work(key) / "metrics.jsonl").touch()
    assert plan([walk()], store)[0].why == "never built; goes on from an unfinished attempt"


def test_cosmetic_fields_reach_the_function(store: Store) -> None:
    one = replace(stage("report_environment", "env", inline=True, rate=1), cosmetic={"log_every": 3})
    # Inline, the environment of a worker is not there: the test is about the config alone.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    outcome = run([one], store, preload=())
    found = json.loads((outcome.artifacts["env"].path / "found.json").read_text())
    assert found["config"] == {"rate": 1, "log_every": 3}
    assert outcome.records["env"].config == {"rate": 1}
