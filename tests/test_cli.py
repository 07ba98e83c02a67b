"""The command line: what it prints, its exit codes, and that nothing that was built is ever lost to a mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests import bench
from tests.bench import copy_home, file_config, pair_rows, rows, write_rows
from workbench.cli import main
from workbench.config import load_config
from workbench.locks import key_lock, store_lock
from workbench.store import Store


def call(*words: str | Path, code: int = 0) -> Result:
    """Runs the command in this process."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def refused(*words: str | Path, code: int) -> dict[str, Any]:
    """The error object of a command that must fail with `code`, in JSON and for people alike."""
    result = call(*words, "--json", code=code)
    found: dict[str, Any] = json.loads(result.stdout)  # one object, nothing beside it
    assert found.keys() == {"schema", "error"}
    assert found["schema"] == 1
    error: dict[str, Any] = found["error"]
    assert error.keys() == {"code", "message", "where"}
    assert result.stderr.count("error: ") >= 1
    return error


@pytest.fixture
def home(smoke_home: Path, tmp_path: Path) -> Path:
    """A copy of the finished smoke home."""
    return copy_home(smoke_home, tmp_path / "home")


@pytest.fixture
def files(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config on the given preference rows (dictionaries or raw lines)."""

    def write(items: list[Any]) -> Path:
        return file_config(tmp_path, model_folder, write_rows(tmp_path / "pairs.jsonl", items))

    return write


# --- what there is ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_the_exit_codes() -> None:
    text = call("--help").stdout
    listed = set(re.findall(r"^  ([a-z]+) ", text.partition("Commands:")[2], re.MULTILINE))
    assert listed == set(main.commands)
    assert listed >= {"compare", "plan", "ui", "init", "doctor", "store"}
    assert "75 store busy" in text
    for name in main.commands:
        assert call(name, "--help").stdout.startswith("Usage:")


def test_wrong_usage_is_two() -> None:
    assert "No such command" in call("compair", code=2).stderr
    assert "CONFIG" in call("compare", code=2).stderr
    call("plan", "smoke", "--nonsense", code=2)


def test_plan_on_an_empty_home(tmp_path: Path) -> None:
    found = json.loads(call("plan", "smoke", "--json", "--home", tmp_path / "home").stdout)
    assert found.keys() == {"schema", "stages"}
    assert found["schema"] == 1
    assert all(row.keys() == {"name", "instance", "key", "cached", "why"} for row in found["stages"])
    assert not any(row["cached"] for row in found["stages"])
    by_instance = rows(found)
    assert by_instance["prompts"]["key"]
    assert by_instance["measure"]["key"] is None
    assert by_instance["sft"]["why"] == "waits for base_model, sft_corpus"


def test_plan_for_people_is_short(tmp_path: Path) -> None:
    text = " ".join(call("plan", "smoke", "--home", tmp_path / "home").stderr.split())
    assert re.search(r"and \d+ more", text)
    assert "stages: 0 in the store" in text


def test_plan_of_a_finished_comparison(home: Path) -> None:
    found = json.loads(call("plan", "smoke", "--json", "--home", home).stdout)
    assert all(row["cached"] and row["why"] == "cached" and row["key"] for row in found["stages"])


def test_starter_and_schema(tmp_path: Path) -> None:
    starter = tmp_path / "mine.yaml"
    assert json.loads(call("init", starter, "--json").stdout)["path"] == str(starter)
    assert load_config(starter).arms
    error = refused("init", starter, code=2)
    assert "--force" in error["message"]
    call("init", starter, "--force")
    schema = tmp_path / "schema.json"
    call("init", schema, "--schema")
    assert json.loads(schema.read_text())["properties"]["arms"]
    assert refused("init", tmp_path / "no" / "such.yaml", code=2)["where"]
    assert json.loads(call("report", "--schema").stdout)["properties"]["head_to_head"]


def test_starter_can_be_planned(tmp_path: Path) -> None:
    starter = tmp_path / "mine.yaml"
    call("init", starter)
    assert json.loads(call("plan", starter, "--json", "--home", tmp_path / "home").stdout)["stages"]


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("doctor", "--json", "--home", tmp_path / "home").stdout)
    assert found["ok"] is True
    assert {check["name"] for check in found["checks"]} >= {"python", "packages", "device", "memory", "home", "disk"}
    assert "ok   python" in call("doctor", "--home", tmp_path / "home").stdout
    monkeypatch.setattr("workbench.doctor.MINIMUM_FREE_BYTES", 2**63)
    sick = json.loads(call("doctor", "--json", "--home", tmp_path / "home", code=3).stdout)
    assert [check["name"] for check in sick["checks"] if not check["ok"]] == ["disk"]


# --- the store -------------------------------------------------------------------------------------------------------


def test_store_ls_verify_gc(home: Path) -> None:
    stages = rows(json.loads((home / "results" / "smoke" / "results.json").read_text()))
    keys = {row["key"] for row in stages.values()}
    listed = json.loads(call("store", "ls", "--home", home, "--json").stdout)["artifacts"]
    assert {one["key"] for one in listed} == keys
    assert all(one["bytes"] > 0 for one in listed)
    assert "ppo[ppo,seed=0]" in call("store", "ls", "--home", home).stdout

    verified = json.loads(call("store", "verify", "--home", home, "--json").stdout)
    assert verified == {"schema": 1, "artifacts": len(keys), "damaged": {}}
    assert json.loads(call("store", "gc", "--home", home, "--json").stdout)["freed_bytes"] == 0  # results need all

    damaged = stages["dpo[dpo,seed=0]"]["key"]
    victim = next((home / "store" / damaged / "out").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    broken = json.loads(call("store", "verify", "--home", home, "--json", code=4).stdout)
    assert broken["damaged"].keys() == {damaged}
    assert damaged not in set(Store(home).keys())
    planned = rows(json.loads(call("plan", "smoke", "--home", home, "--json").stdout))
    assert "quarantined" in planned["dpo[dpo,seed=0]"]["why"]


def test_gc_removes_what_nothing_needs(home: Path) -> None:
    before = set(Store(home).keys())
    (home / "results" / "smoke" / "results.json").unlink()
    kept = json.loads(call("store", "gc", "--home", home, "--json", "--keep", "smoke").stdout)
    assert (kept["freed_bytes"], kept["kept"]) == (0, len(before))
    assert json.loads(call("store", "gc", "--home", home, "--json").stdout)["freed_bytes"] > 0
    assert not Store(home).keys()


# --- what is wrong with a config (2) ---------------------------------------------------------------------------------


def test_unknown_key_says_where_and_what_was_meant(tmp_path: Path) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text((bench.ROOT / "configs" / "smoke.yaml").read_text().replace("kind: best_of_n", "knd: best_of_n"))
    error = refused("compare", config, "--home", tmp_path / "home", code=2)
    assert error["code"] == "config"
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if "knd:" in text)
    assert error["where"].startswith(f"{config}:{line}:")
    assert "did you mean" in error["message"]
    assert "kind" in error["message"]
    assert not (tmp_path / "home").exists()


def test_wrong_override(tmp_path: Path) -> None:
    error = refused("plan", "smoke", "--set", "arms.dpo.betta=0.1", "--home", tmp_path, code=2)
    assert "beta" in error["message"]
    assert error["where"].startswith("--set 1")


def test_missing_config_and_shipped_name(tmp_path: Path) -> None:
    error = refused("compare", "smoky", "--home", tmp_path, code=2)
    assert "smoke" in error["message"]


def test_missing_data_file(model_folder: Path, tmp_path: Path) -> None:
    config = file_config(tmp_path, model_folder, tmp_path / "nowhere.jsonl")
    error = refused("compare", config, "--home", tmp_path / "home", code=2)
    assert (error["code"], error["where"]) == ("data", "data.preferences")
    assert "nowhere.jsonl" in error["message"]


def test_gold_module_is_missing(files: Callable[..., Path], tmp_path: Path) -> None:
    config = files(pair_rows(20))
    config.write_text(config.read_text() + 'gold: {python: "no_such_module_here:score"}\n')
    error = refused("compare", config, "--home", tmp_path / "home", code=2)
    assert error["where"] == "gold.python"
    assert "no_such_module_here" in error["message"]


def test_gold_module_without_the_function_is_found_at_the_start(
    files: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gold_without.py").write_text("def other(prompts, responses):\n    return []\n")
    config = files(pair_rows(20))
    config.write_text(config.read_text() + 'gold: {python: "gold_without:score"}\n')
    error = refused("compare", config, "--home", tmp_path / "home", code=2)
    assert "score" in error["message"]
    assert not Store(tmp_path / "home").keys()  # nothing was trained first


def test_model_folder_without_weights(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    error = refused("compare", file_config(tmp_path, folder, data), "--home", tmp_path / "home", code=2)
    assert error["where"] == "model.policy"
    assert "safetensors" in error["message"]

    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    error = refused("compare", file_config(tmp_path, folder, data), "--home", tmp_path / "home", code=4)
    assert error["code"] == "integrity"
    assert "pickle" in error["message"]


# --- what is wrong with data (2) -------------------------------------------------------------------------------------

BROKEN: list[tuple[str, Callable[[list[Any]], list[Any]], str, str]] = [
    ("malformed line", lambda good: [*good[:6], '{"prompt": "a", \n', *good[6:]], "line 7|:7", "JSON"),
    ("missing column", lambda good: [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in good], "", "rejected"),
    ("empty chosen", lambda good: [*good[:4], good[4] | {"chosen": "  "}, *good[5:]], "line 5|:5", "chosen"),
    ("number for text", lambda good: [*good[:2], good[2] | {"chosen": 3}, *good[3:]], "line 3|:3", "chosen"),
    ("identical pairs", lambda good: [r | {"rejected": r["chosen"]} for r in good[:2]] + good[2:], "", "allowed 1.0%"),
    ("no rows", lambda good: [], "", "row|empty"),
]


@pytest.mark.parametrize(("name", "spoil", "place", "says"), BROKEN, ids=[case[0] for case in BROKEN])
def test_bad_data_names_the_row(
    files: Callable[..., Path], tmp_path: Path, name: str, spoil: Callable[..., list[Any]], place: str, says: str
) -> None:
    error = refused("compare", files(spoil(pair_rows(40))), "--home", tmp_path / "home", code=2)
    whole = f"{error['where']}: {error['message']}"
    assert error["code"] == "data", whole
    assert "pairs.jsonl" in whole
    assert re.search(place, whole), whole
    assert re.search(says, whole), whole


def test_bad_data_ends_the_run_before_torch_is_imported(files: Callable[..., Path], tmp_path: Path) -> None:
    config = files([*pair_rows(20), "{"])
    assert loaded("compare", config, "--home", tmp_path / "home", "--set", "tracking.enabled=true", code=2) == []


def test_every_prompt_over_the_context(model_folder: Path, tmp_path: Path) -> None:
    long = [{"prompt": f"{n} " + "hello " * 300, "chosen": "thank you", "rejected": "hello"} for n in range(20)]
    config = file_config(tmp_path, model_folder, write_rows(tmp_path / "pairs.jsonl", long))
    done = bench.workbench("compare", config, "--home", tmp_path / "home", "--json")
    assert done.code == 2, done.stderr
    assert "prompt" in done.json["error"]["message"]


# --- what is wrong with the machine (3, 75): nothing that was built is lost ------------------------------------------

OTHER_PROMPTS = ("--set", "data.ood_prompts=17")  # makes `prompts` a miss, which the driver itself computes


def test_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Store(home).keys())

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr("workbench.fsio.fsync_tree", full)
    error = refused("compare", "smoke", "--home", home, *OTHER_PROMPTS, code=3)
    assert error["code"] == "resources"
    assert "disk" in error["message"]
    assert set(Store(home).keys()) == before
    assert not list((home / "store").glob(".tmp-*"))
    monkeypatch.undo()
    call("plan", "smoke", "--home", home)


def test_full_disk_while_the_results_are_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (home / "results" / "smoke" / "results.json").read_text()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("workbench.results.Results.write", full)
    error = refused("compare", "smoke", "--home", home, "--set", "tracking.enabled=false", code=3)
    assert error["code"] == "resources"
    assert (home / "results" / "smoke" / "results.json").read_text() == old


def test_too_little_disk_is_found_before_the_stage_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.store.MINIMUM_FREE_BYTES", 2**63)
    error = refused("compare", "smoke", "--home", home, *OTHER_PROMPTS, code=3)
    assert "MB" in error["message"]


def test_read_only_home_is_found_at_the_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Store(home).keys())
    write = Path.write_text

    def refuse(path: Path, *rest: Any, **more: Any) -> int:
        if path.is_relative_to(home):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return write(path, *rest, **more)

    monkeypatch.setattr(Path, "write_text", refuse)
    error = refused("compare", "smoke", "--home", home, code=3)
    assert error["where"] == str(home)
    assert "--home" in error["message"]
    assert set(Store(home).keys()) == before


def test_busy_store(home: Path) -> None:
    before = set(Store(home).keys())
    planned = rows(json.loads(call("plan", "smoke", "--home", home, "--json", *OTHER_PROMPTS).stdout))
    lock = key_lock(home, planned["prompts"]["key"], "prompts")
    assert lock.try_acquire()
    try:
        error = refused("compare", "smoke", "--home", home, *OTHER_PROMPTS, code=75)
        assert error["code"] == "busy"
        assert f"pid {os.getpid()}" in error["message"]
        assert "--wait" in error["message"]
    finally:
        lock.release()
    assert set(Store(home).keys()) == before


def test_gc_waits_for_builders(home: Path) -> None:
    lock = store_lock(home, shared=True)
    assert lock.try_acquire()
    try:
        assert refused("store", "gc", "--home", home, code=75)["code"] == "busy"
    finally:
        lock.release()
    assert Store(home).keys()


# --- imports ---------------------------------------------------------------------------------------------------------

WATCH = """
import json, sys
from workbench.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "mlflow", "trl"})
print(json.dumps([code or 0, heavy]))
"""


def loaded(*words: str | Path, code: int = 0) -> list[str]:
    """Heavy packages that a command imported."""
    script = [bench.PYTHON, "-c", WATCH, json.dumps([str(word) for word in words])]
    done = subprocess.run(script, env=bench.environment(), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found[0] == code, done.stderr
    names: list[str] = found[1]
    return names


def test_help_plan_and_config_errors_load_nothing_heavy(smoke_home: Path, tmp_path: Path) -> None:
    home = copy_home(smoke_home, tmp_path / "home")
    assert loaded("--help") == []
    assert loaded("plan", "smoke", "--home", home) == []
    assert loaded("compare", "smoke", "--home", home, "--set", "arms.ppo.kl_coeff=1", code=2) == []
    assert loaded("doctor", "--home", home) == []
    # All in the store: nothing trains, so nothing that trains is loaded.
    assert loaded("compare", "smoke", "--home", home, "--set", "tracking.enabled=false", "--quiet") == []


# --- messages --------------------------------------------------------------------------------------------------------


def test_faults_of_the_workbench_have_no_traceback_without_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("workbench.config.load_config", broken)
    error = refused("plan", "smoke", "--home", tmp_path, code=1)
    assert error["code"] == "internal"
    assert "--debug" in error["message"]
    shown = CliRunner().invoke(main, ["plan", "smoke", "--home", str(tmp_path), "--debug"])
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize(("stop", "code", "name"), [(KeyboardInterrupt(), 130, "interrupted"),
                                                    (SystemExit(143), 143, "terminated")])  # fmt: skip
def test_signals_end_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int, name: str
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise stop

    monkeypatch.setattr("pipelines.compare.run_comparison", stopped)
    error = refused("compare", "smoke", "--home", tmp_path, code=code)
    assert error["code"] == name
    assert "again" in error["message"]


# --- docs ------------------------------------------------------------------------------------------------------------


def documented() -> set[str]:
    """Names in backticks in docs/metrics.md; what stands for a label is left out."""
    text = (bench.ROOT / "docs" / "metrics.md").read_text()
    return {name.partition("/")[0] if "ARM" in name or "SET" in name or "NAME" in name else name
            for name in re.findall(r"`([^`]+)`", text)}  # fmt: skip


def test_every_logged_metric_is_documented(smoke_home: Path) -> None:
    stages = rows(json.loads((smoke_home / "results" / "smoke" / "results.json").read_text()))
    logged: dict[str, set[str]] = {}
    for row in stages.values():
        for _, values in bench.metric_rows(smoke_home / "store" / row["key"] / "metrics.jsonl"):
            logged.setdefault(row["name"], set()).update(values)
    assert logged.keys() >= {"sft", "reward_model", "dpo", "ppo"}
    missing = {stage: sorted(names - documented()) for stage, names in logged.items() if names - documented()}
    assert not missing


def test_every_headline_metric_is_documented(smoke_home: Path) -> None:
    import sqlite3

    results = json.loads((smoke_home / "results" / "smoke" / "results.json").read_text())
    with sqlite3.connect(f"file:{smoke_home / 'mlflow.db'}?mode=ro", uri=True) as database:
        found = database.execute("SELECT DISTINCT key FROM metrics WHERE run_uuid = ?", [results["mlflow"]["run_id"]])
        keys = {key for (key,) in found}
    assert "win_rate/ppo" in keys
    names = documented()

    def known(key: str) -> bool:
        first = re.sub(r"_(low|high)$", "", key.partition("/")[0])
        first = re.sub(r"^by_annotator_.*", "by_annotator_NAME", first)
        cost = re.sub(r"_(with_upstream|per_answer)$", "", first)
        return key in names or first in names or cost in names

    assert sorted(key for key in keys if not known(key)) == []
