"""Controls of what must change nothing: row order, names and order of arms, number of workers."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.honesty_base import Differences, Finding, Runs, artifact, differences, plain, told
from pipelines import compare
from tests import bench
from workbench import measure
from workbench.config import Comparison, load_config
from workbench.data.records_io import GENERATIONS_FILE, PROMPTS_FILE, SCORES_FILE, read_jsonl, write_json, write_jsonl
from workbench.stage_log import StageLog
from workbench.stages import Stage
from workbench.store import Store


def workers(runs: Runs) -> list[Finding]:
    """One stage at a time, or two side by side: the same artifacts and the same results.json."""
    one, two = runs.compare("smoke", "one-worker", "--set", "resources.workers=1"), runs.smoke
    made, again = bench.contents(one, runs.folder / "one-worker"), bench.contents(two, runs.folder / "smoke")
    return [
        unchanged("1 worker against 2: results.json without times and costs", differences(plain(one), plain(two)), 1),
        unchanged("1 worker against 2: digests of all artifacts", differences(made, again), len(made)),
    ]


# --------------------------------------------------------------------------------- names and order of arms

RENAMED = {"ppo": "zulu", "dpo": "yankee", "best_of_n": "mike", "best_of_n-implicit": "alpha"}


def names(runs: Runs) -> list[Finding]:
    """The same arms in the opposite order under other names: every figure goes with its arm."""
    before = plain(runs.smoke)
    dump = load_config(Path("smoke"), ["tracking.enabled=false"]).model_dump(mode="json")
    arms = {RENAMED[label]: block for label, block in reversed(dump["arms"].items())}
    for block in arms.values():
        if block.get("reward") in RENAMED:
            block["reward"] = RENAMED[block["reward"]]
    home = runs.folder / "smoke"
    after = compare.run_comparison(Comparison.model_validate(dump | {"arms": arms, "name": "renamed"}), home=home)
    computed = sorted({row.name for row in after.results.stages if not row.cached})
    found = differences(by_arm(before, {}), by_arm(plain(after.results), {new: old for old, new in RENAMED.items()}))
    return [
        Finding(
            case="arms renamed and in the opposite order: what is computed again",
            expected="nothing is trained or sampled (DPO's name stands in the columns of its scores)",
            found=computed,
            n=len(after.results.stages),
            ok=set(computed) <= {"measure", "samples", "scores", "margins", "best_of_n"},
        ),
        unchanged("arms renamed and in the opposite order: figures of every arm", found, len(arms)),
    ]


def by_arm(results: Mapping[str, Any], old_names: Mapping[str, str]) -> dict[str, Any]:
    """The figures of results.json keyed by the arms' old names, every duel with the earlier name first."""
    old = {"sft": "sft", **{label: old_names.get(label, label) for label in results["arms"]}}

    def renamed(name: str) -> str:
        head, slash, label = name.rpartition("/")
        return f"{head}{slash}{old.get(label, label)}"

    duels = {}
    for row in results["head_to_head"]:
        a, b = old[row["a"]], old[row["b"]]
        turned = a > b
        rate = dict(row["win_rate"])
        if turned:
            rate |= {"value": 1 - rate["value"], "low": 1 - rate["high"], "high": 1 - rate["low"]}
        rest = {key: value for key, value in row.items() if key not in ("a", "b", "win_rate")}
        duels[f"{min(a, b)} {max(a, b)} {row['judge']}"] = rest | {"win_rate": rate}
    agreement = {
        renamed(name): block | {"implicit": old[block["implicit"]]}
        for name, block in results["agreement"].items()
        if block
    }
    return {
        "reward_models": results["reward_models"],
        "arms": {old[label]: arm for label, arm in results["arms"].items()},
        "head_to_head": duels,
        "ranking": {old[row["arm"]]: row["rating"] for row in results["ranking"]},
        "frontier": {f"{of_pool(point, old)} {point['label']}": point | {"arm": 0} for point in results["frontier"]},
        "overoptimization": {
            f"{of_pool(row, old)} {row['form']}": row | {"arm": 0} for row in results["overoptimization"]
        },
        "matched_kl": dict(same_way_round(row, old, "kl") for row in results["matched_kl"]),
        "frontier_area": dict(same_way_round(row, old, "kl_to") for row in results["frontier_area"]),
        "agreement": agreement,
        "match": {check["name"]: check["ok"] for check in results["match"]["checks"]},
    }


def of_pool(row: Mapping[str, Any], old: Mapping[str, str]) -> str:
    """Whose row it is; what gold picks from the pool stands at one of the arms that draw from it, whichever."""
    return "gold selector" if row["selector"] == "gold" else old[row["arm"]]


def same_way_round(row: Mapping[str, Any], old: Mapping[str, str], at: str) -> tuple[str, dict[str, Any]]:
    """A row of matched KL or area under the old names, every difference with the earlier name first."""
    a, b = old[row["arm"]], None if row["against"] is None else old[row["against"]]
    one = dict(row["estimate"])
    if b is not None and a > b and one["value"] is not None:
        a, b = b, a
        ends = {"low": one["high"], "high": one["low"]}
        one |= {"value": -one["value"]} | {name: None if end is None else -end for name, end in ends.items()}
    rest = {key: value for key, value in row.items() if key not in ("arm", "against", "estimate", at)}
    return f"{a} {b} {row[at] if at == 'kl' else ''}", rest | {"estimate": one, at: row[at]}


def unchanged(case: str, found: Differences, n: int) -> Finding:
    """Nothing may differ by more than rounding: also what is resampled must not hang on names and orders."""
    return Finding(case=case, expected="no difference", found=told(found) or "no difference", n=n, ok=not found)


# --------------------------------------------------------------------------------- rows of artifacts


def rows(runs: Runs) -> list[Finding]:
    """The measure stage on artifacts whose rows were shuffled, scores with their responses."""
    home = runs.folder / "smoke"
    stage, inputs = measure_inputs(runs.smoke, home)
    scratch = runs.folder / "shuffled-rows"
    shutil.rmtree(scratch, ignore_errors=True)
    before = measured(stage, inputs, scratch / "as-they-are")
    after = measured(stage, shuffled(inputs, scratch / "inputs"), scratch / "shuffled")
    return [unchanged("rows of every artifact shuffled: all figures", differences(before, after), len(inputs))]


def measure_inputs(results: Mapping[str, Any], home: Path) -> tuple[Stage, dict[str, Path]]:
    """The measure stage of the smoke comparison and where its inputs lie."""
    graph = compare.prepare(load_config(Path("smoke")), Store.open(home))
    stage = graph.stages["measure"]
    return stage, {role: artifact(results, home, str(source)) for role, source in stage.inputs.items()}


def measured(stage: Stage, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """What the measure stage says about these artifacts."""
    out.mkdir(parents=True)
    log = StageLog(
        work=out, seed=stage.seed, resources=stage.resources, instance="measure", send=lambda message: None,
        stop=threading.Event(),
    )  # fmt: skip
    measure.run(dict(stage.config), dict(inputs), out, log)
    found: dict[str, Any] = json.loads((out / "measured.json").read_text())
    return found


def shuffled(inputs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Copies of the artifacts with their rows in another order; rows that belong together stay together."""
    places: dict[Path, Path] = {}
    for source in inputs.values():
        if source not in places:
            places[source] = folder / str(len(places))
            shutil.copytree(source, places[source])
            _shuffle(places[source])
    return {role: places[source] for role, source in inputs.items()}


def _mixed(name: str) -> str:
    """A place in another order, the same at every run."""
    return hashlib.sha256(f"another order/{name}".encode()).hexdigest()


def _shuffle(folder: Path) -> None:
    for name, key in ((GENERATIONS_FILE, "generation_id"), (PROMPTS_FILE, "prompt_id")):
        if (path := folder / name).exists():
            write_jsonl(path, sorted(read_jsonl(path), key=lambda row: _mixed(row[key])))
    for name in (SCORES_FILE, "margins.json", "trajectory.json"):
        if (path := folder / name).exists():
            write_json(path, _shuffled_columns(json.loads(path.read_text())))


def _shuffled_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Columns (one list each), or a trajectory's points of columns, in another order of rows."""
    name = next((one for one in ("generation_id", "pair_id", "prompt_id") if one in columns), None)
    if name is None:
        return dict(sorted(columns.items(), key=lambda item: _mixed(item[0])))  # by pair: a mapping, not columns
    ids = columns[name]
    order = sorted(range(len(ids)), key=lambda row: _mixed(f"{ids[row]}/{row}" if name == "prompt_id" else ids[row]))

    def mixed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mixed(one) for key, one in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [mixed(one) for one in value]
        return [value[row] for row in order] if isinstance(value, list) and len(value) == len(ids) else value

    return {key: mixed(value) for key, value in columns.items()}


# --------------------------------------------------------------------------------- rows of the preferences file


def file_rows(runs: Runs) -> list[Finding]:
    """The same preferences in another order of rows: the same splits, pairs and results, nothing trained again."""
    folder = runs.folder / "files"
    folder.mkdir(exist_ok=True)
    model = folder / "model" if (folder / "model").exists() else bench.small_model(folder / "model")
    pairs = bench.pair_rows(60)

    def compared(order: list[dict[str, Any]]) -> dict[str, Any]:
        data = bench.write_rows(folder / "pairs.jsonl", order)
        found: dict[str, Any] = bench.compare(bench.file_config(folder, model, data), folder / "home")
        return found

    given, mixed = compared(pairs), compared(sorted(pairs, key=lambda row: _mixed(row["prompt"])))
    apart = {path: pair for path, pair in differences(plain(given), plain(mixed)).items() if path[0] != "stages"}
    computed = [row["instance"] for row in mixed["stages"] if not row["cached"]]
    return [
        unchanged("rows of the preferences file shuffled: results.json without times and costs", apart, len(pairs)),
        Finding(
            case="rows of the preferences file shuffled: what is computed again",
            expected="pairs alone",
            found=computed if len(computed) < 4 else f"{len(computed)} of {len(mixed['stages'])} stages",
            n=len(mixed["stages"]),
            ok=set(computed) <= {"pairs"},
        ),
    ]


# --------------------------------------------------------------------------------- twins


def twins(runs: Runs) -> list[Finding]:
    """An arm and its twin, equal but for the name, in one comparison: the same responses, 50%, p = 1."""
    twin = "arms.dpo-twin={kind: dpo, beta: 0.3, epochs: 2, batch_size: 16, checkpoint_every_steps: 2}"
    assert runs.smoke["match"]["ok"]  # what the twin reuses
    results = runs.compare("smoke", "smoke", "--set", twin)
    (row,) = (one for one in results["head_to_head"] if {one["a"], one["b"]} == {"dpo", "dpo-twin"})
    rate = row["win_rate"]
    computed = [one["instance"] for one in results["stages"] if not one["cached"]]
    return [
        Finding(
            case="DPO and its twin in one comparison",
            expected="win rate 0.5 exactly, low < 0.5 < high, p = 1, nothing trained or sampled again",
            found={"win_rate": rate, "p": row["p_value"], "computed": computed},
            n=rate["n"],
            ok=rate["value"] == 0.5 and rate["low"] < 0.5 < rate["high"] and row["p_value"] == 1.0
            and set(computed) <= {"samples", "measure"},
        )
    ]  # fmt: skip
