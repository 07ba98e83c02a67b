"""Reward against episodes and against seconds, ours beside TRL 1.12's PPOTrainer, over seeds.

    pip install --no-deps --target DIR trl==1.12.0
    python benchmarks/ppo_learning.py --home HOME --against-trl DIR [--seeds 5] [--updates N] [--work FOLDER]
        [--figure docs/figures/ppo-learning.png] [--json]

HOME is that of a finished comparison on the helpdesk world (`workbench compare quickstart --home HOME`): both sides
start from its SFT and reward model, roll out on its training prompts and take the settings of its ppo arm. What TRL
1.12 cannot do is left out of ours too: no value warm-up, the critic learns at the policy's rate. What it does
otherwise stays: its gradients are not clipped. See docs/ppo.md.

Every run is a process of one thread; seconds are its CPU seconds in training (machines are shared), loading and saving
left out. The score of an update is the mean over its rollouts, less the reward model's center. At the end each policy
is sampled on held-out prompts and judged by the reward model and by the world's gold. Intervals are t-intervals over
seeds at 95%. Prints a table in markdown, or with --json everything. Runs found in FOLDER are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ppo_learning_report import draw, markdown, summarize

SIDES = ("ours", "trl")
HELD_OUT, SAMPLES = 256, 4


def artifacts(home: Path, name: str | None) -> dict[str, Any]:
    """Folders of the SFT, the reward model and the prompts of a comparison, and its ppo arm's settings.

    Raises:
        SystemExit: There is no finished comparison with a ppo arm, or it is not on the helpdesk world.
    """
    found = sorted((home / "results").glob(f"{name or '*'}/results.json"))
    if len(found) != 1:
        sys.exit(f"{home}: expected one finished comparison, found {[one.parent.name for one in found]}; give --name")
    stages = json.loads(found[0].read_text())["stages"]
    keys: dict[str, str] = {}
    for stage in stages:
        keys.setdefault(stage["name"], stage["key"])
    missing = {"sft", "reward_model", "packed_prompts", "ppo"} - set(keys)
    if missing:
        sys.exit(f"{found[0]}: no stage {sorted(missing)}")
    folders = {name: home / "store" / keys[name] / "out" for name in ("sft", "reward_model", "packed_prompts")}
    record = json.loads((home / "store" / keys["ppo"] / "manifest.json").read_text())["record"]
    return {"inputs": folders, "recorded": record["config"]}


def settings(recorded: Mapping[str, Any], updates: int | None) -> dict[str, Any]:
    """The ppo arm's settings without what TRL 1.12 has no word for."""
    from workbench.config import PPO

    own = {name: value for name, value in recorded.items() if name in PPO.model_fields}
    changed = own | {"critic_warmup_updates": 0, "critic_learning_rate": own["learning_rate"]}
    if updates is not None:
        changed["updates"] = updates
    changed["checkpoint_every_updates"] = changed["updates"]
    rest = {name: recorded[name] for name in ("stop_ids", "max_response_tokens", "trust_remote_code")}
    return PPO(**changed).model_dump() | rest


def train_ours(plan: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Our run in this process: the arm's stage itself."""
    import threading

    import torch

    from pipelines import ppo
    from workbench.policy_set import read_policy_set
    from workbench.stage_log import StageLog
    from workbench.stages import Resources

    torch.set_num_threads(1)
    curve: list[dict[str, float]] = []

    class Timed(StageLog):
        """Notes the CPU seconds since training began: `rewind` is called when everything is loaded."""

        def rewind(self, step: int) -> None:
            super().rewind(step)
            self.began = time.process_time()

        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            curve.append(
                {
                    "episodes": values["episodes"],
                    "cpu_s": time.process_time() - self.began,
                    "score": values["score"],
                    "seq_kl": values["seq_kl"],
                }
            )
            super().metrics(step, values)

    (out := folder / "out").mkdir(parents=True)
    (work := folder / "work").mkdir()
    log = Timed(
        work=work, seed=seed, resources=Resources(), instance="ppo", send=lambda _: None, stop=threading.Event()
    )
    inputs = {name: Path(path) for name, path in plan["inputs"].items()}
    ppo.run(dict(plan["settings"]), inputs | {"prompts": inputs["packed_prompts"]}, out, log)
    index = read_policy_set(out)
    return {"curve": curve, "policy": str(index.folder()), "diverged": index.diverged}


def train_trl(plan: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """TRL's run, in a process of its own."""
    from workbench.packed import read_packed_prompts
    from workbench.policy_set import read_policy_set

    given, inputs = plan["settings"], {name: Path(path) for name, path in plan["inputs"].items()}
    reward = read_policy_set(inputs["reward_model"])
    folder.mkdir(parents=True)
    rows = [row["ids"] for row in read_packed_prompts(inputs["packed_prompts"]) if row["split"] == "train"]
    (prompts := folder / "prompts.json").write_text(json.dumps(rows))
    options = {
        "trl": plan["trl"], "model": read_policy_set(inputs["sft"]).folder(), "reward": reward.folder(),
        "prompts": prompts, "batch": given["batch_size"], "response": given["max_response_tokens"],
        "epochs": given["epochs"], "minibatches": given["minibatches"], "updates": given["updates"],
        "learning-rate": given["learning_rate"], "schedule": given["schedule"], "kl-coef": given["kl_coef"],
        "temperature": given["temperature"], "adam-eps": given["adam_eps"], "seed": seed, "threads": 1,
        "save": folder / "policies", "json": folder / "trl.json",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("ppo_trl.py"))]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command += ["--stop-ids", *map(str, given["stop_ids"])]
    subprocess.run(command, check=True, stdout=sys.stderr, stderr=(folder / "stderr").open("w"))
    found = json.loads((folder / "trl.json").read_text())
    center, spent, curve = float(reward.facts["center"]), 0.0, []
    for one in found["updates"]:
        spent += sum(one["cpu_s"].values())
        curve.append(
            {
                "episodes": one["episodes"],
                "cpu_s": spent,
                "score": one["score"] - center,
                "seq_kl": one["seq_kl"],
            }
        )
    return {"curve": curve, "policy": found["policy"], "diverged": None}


def held_out(plan: Mapping[str, Any], policy_folder: Path, seed: int) -> dict[str, float]:
    """Means over samples at temperature 1 on test prompts: gold, score, KL to the SFT (k1, nats), tokens."""
    import numpy as np

    from workbench.models import Placement, load_policy, load_reward_model
    from workbench.packed import read_packed_prompts
    from workbench.policy_set import read_policy_set
    from workbench.sampling import Decoding, sample
    from workbench.scoring import reward_scores, sequence_logprobs
    from workbench.tokens import decode_response, load_tokenizer
    from workbench.worlds.helpdesk_gold import gold_rewards

    inputs = {name: Path(path) for name, path in plan["inputs"].items()}
    sft, reward = (read_policy_set(inputs[name]) for name in ("sft", "reward_model"))
    tokenizer = load_tokenizer(sft.folder())
    pad, stops = int(tokenizer.pad_token_id), tuple(plan["settings"]["stop_ids"])
    rows = [row for row in read_packed_prompts(inputs["packed_prompts"]) if row["split"] == "test"][:HELD_OUT]
    rows = [row for row in rows for _ in range(SAMPLES)]
    ids = [row["ids"] for row in rows]
    decoding = Decoding(max_response_tokens=plan["settings"]["max_response_tokens"], stop_ids=stops)
    policy = load_policy(policy_folder, Placement())
    drawn = sample(policy, ids, decoding, pad_id=pad, seed=10_007 + seed)
    responses = [one.ids for one in drawn]
    texts = [decode_response(tokenizer, row, one, stops) for row, one in zip(ids, responses, strict=True)]
    gold = gold_rewards([row["prompt"] for row in rows], texts, [one.finish_reason == "stop" for one in drawn])
    score = reward_scores(load_reward_model(reward.folder(), Placement()), ids, responses, pad_id=pad)
    under_policy, under_sft = (
        sequence_logprobs(one, ids, responses, pad_id=pad) for one in (policy, load_policy(sft.folder(), Placement()))
    )
    return {
        "gold": float(np.mean(gold)),
        "score": float(np.mean(score)) - float(reward.facts["center"]),
        "seq_kl": float(np.mean(np.array(under_policy) - np.array(under_sft))),
        "response_tokens": float(np.mean([len(one) for one in responses])),
    }


def one_run(plan_file: Path, side: str, seed: int, out: Path) -> None:
    """Trains, evaluates and writes one run's JSON."""
    plan = json.loads(plan_file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        train = train_ours if side == "ours" else train_trl
        found = train(plan, seed, Path(folder) / side)
        found |= {"side": side, "seed": seed, "held_out": held_out(plan, Path(found["policy"]), seed)}
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.rename(out)


def run_all(plan: Mapping[str, Any], seeds: int, work: Path) -> list[dict[str, Any]]:
    """All runs, a process each, the sides in turn; those already in `work` are read."""
    plan_file = work / "plan.json"
    text = json.dumps(plan, indent=1, default=str)
    if plan_file.exists() and plan_file.read_text() != text:
        sys.exit(f"{work}: holds runs of another plan; choose another --work")
    plan_file.write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = []
    for seed in range(seeds):
        for side in SIDES:
            out = work / f"{side}-{seed}.json"
            if not out.exists():
                command = [sys.executable, __file__, "--one", side, str(seed), str(plan_file), str(out)]
                subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
            found.append(json.loads(out.read_text()))
            last = found[-1]["curve"][-1]
            print(f"{side} seed {seed}: score {last['score']:+.2f}, {last['cpu_s']:.0f} CPU s", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both sides and prints the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--one"]:
        _, side, seed, plan_file, out = given
        one_run(Path(plan_file), side, int(seed), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", help="of the comparison, where HOME has several")
    parser.add_argument("--against-trl", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, help="default: the arm's own")
    parser.add_argument("--work", type=Path, help="keeps finished runs; default: a temporary folder")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(given)
    taken = artifacts(options.home.resolve(), options.name)
    plan = {
        "inputs": {name: str(path) for name, path in taken["inputs"].items()},
        "settings": settings(taken["recorded"], options.updates),
        "trl": str(options.against_trl.resolve()),
    }
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        runs = run_all(plan, options.seeds, work)
    summary = summarize(runs)
    if options.figure is not None:
        draw(runs, options.figure)
    if options.json:
        print(json.dumps({"settings": plan["settings"], "summary": summary, "runs": runs}, indent=1))
    else:
        print(markdown(summary))


if __name__ == "__main__":
    main()
