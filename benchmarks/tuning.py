"""A sweep of DPO settings twice: by `workbench tune`, and by one run of TRL's DPOTrainer per setting.

    python benchmarks/tuning.py [--config smoke] [--trials 20] [--side-by-side 2] [--set A.B=C]... [--out FILE]

Both get the SFT policy and the pairs before their clock starts, and train the same settings for the same steps on the
same pairs: those that the sweep asked for. Theirs is `benchmarks/scripts_today/dpo.py`, a process per setting that
loads, tokenizes, passes the reference once and trains; as many at a time as ours has workers. Ours also samples and
scores every setting on validation prompts and keeps the ledger; theirs does not. Goal: at most half their time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.head_to_head import say
from benchmarks.head_to_head_plan import read_records
from benchmarks.metered import metered
from pipelines.tune import with_tuning
from workbench.config import DPO, load_config
from workbench.config_tuning import Budget

ROOT = Path(__file__).parents[1]
GOAL = 0.5
SHARE = ("tuning.repeats.seeds=0", "tracking.enabled=false")


def tune(config: str, arm: str, trials: int, workers: int, overrides: list[str], home: Path) -> dict[str, Any]:
    """One `workbench tune`: what it took, and what it found."""
    words = [word for setting in (*overrides, *SHARE) for word in ("--set", setting)]
    command = [sys.executable, "-m", "workbench.cli", "tune", config, "--arm", arm, "--trials", str(trials)]
    command += ["--workers", str(workers), "--home", str(home), "--json", *words]
    errors, answer = home.with_name(f"{arm}.stderr"), home.with_name(f"{arm}.json")
    done = metered(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=answer, stderr=errors)
    if done.code:
        raise SystemExit(f"workbench tune ended with {done.code}:\n{errors.read_text()[-3000:]}")
    return {"wall_s": done.wall_s, "cpu_s": done.cpu_s, "found": json.loads(answer.read_text())}


def theirs(folder: Path, plan: dict[str, Any], side_by_side: int) -> dict[str, float]:
    """A process per setting, so many at a time."""
    (folder / "plan.json").write_text(json.dumps(plan))
    script = str(ROOT / "benchmarks" / "scripts_today" / "dpo.py")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)
    }  # fmt: skip

    def run(name: str) -> None:
        import subprocess

        with (folder / f"{name}.stderr").open("wb") as errors:
            command = [sys.executable, script, str(folder / "plan.json"), name]
            code = subprocess.run(command, env=environment, stdout=errors, stderr=errors, check=False).returncode
        if code:
            raise SystemExit(f"{name} ended with {code}:\n{(folder / f'{name}.stderr').read_text()[-3000:]}")

    before, start = os.times(), time.monotonic()
    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(run, plan["dpo"]))
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": time.monotonic() - start, "cpu_s": cpu_s}


def main() -> None:
    """Runs both, prints and writes what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="smoke")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--side-by-side", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    comparison = with_tuning(load_config(Path(options.config), options.overrides), Budget(trials=options.trials))
    label, arm = next((label, arm) for label, arm in comparison.arms.items() if isinstance(arm, DPO))
    with tempfile.TemporaryDirectory(prefix="tuning-") as name:
        folder = Path(name)
        home = folder / "home"
        say("given to both: SFT policy and pairs (and, ours alone, the reward model that scores)")
        given = tune(options.config, "best_of_n", 1, options.side_by_side, options.overrides, home)
        say(f"ours: {options.trials} settings of {label}")
        ours = tune(options.config, label, options.trials, options.side_by_side, options.overrides, home)
        rows = ours.pop("found")["arms"][label]["rows"]
        plan = plan_of(comparison.model_dump(mode="json")["arms"][label], arm, rows, read_records(home), folder)
        say(f"theirs: {len(plan['dpo'])} runs of TRL's DPOTrainer")
        other = theirs(folder, plan, options.side_by_side)
        steps = [json.loads((folder / f"{name}.json").read_text())["steps"] for name in plan["dpo"]]
        if steps != [block["steps"] for block in plan["dpo"].values()]:
            raise SystemExit(f"their runs took {steps} steps, expected {[b['steps'] for b in plan['dpo'].values()]}")
    found = {
        "config": options.config, "trials": len(rows), "steps_each": steps[0], "side_by_side": options.side_by_side,
        "ours": ours, "theirs": other, "given": {name: given[name] for name in ("wall_s", "cpu_s")}, "goal": GOAL,
        "wall_ratio": ours["wall_s"] / other["wall_s"], "cpu_ratio": ours["cpu_s"] / other["cpu_s"],
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


def plan_of(
    block: dict[str, Any], arm: DPO, rows: list[dict[str, Any]], records: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """What their script reads, with the SFT policy and the pairs written out."""
    sft = records["sft"]["folder"]
    index = json.loads((sft / "index.json").read_text())
    path = next(one["path"] for one in index["checkpoints"] if one["name"] == index["last"])
    shutil.copytree(sft / path, folder / "sft")
    pairs = [json.loads(line) for line in (records["pairs"]["folder"] / "pairs.jsonl").read_text().splitlines()]
    train = [row for row in pairs if row["split"] == "train"]
    kept = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in train]
    (folder / "pairs-train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    steps = math.ceil(round(len(kept) * arm.epochs) / arm.batch_size)
    return {
        "context": 128,
        "dpo": {
            f"run{row['number']:03d}": block | row["params"]
            | {"steps": steps, "save_steps": arm.checkpoint_every_steps, "seed": 0}
            for row in rows
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
