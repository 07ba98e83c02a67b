"""What an update of PPO costs: ours, and TRL 1.12's at equal settings, alternating in one run. Prints one JSON object.

    python benchmarks/ppo.py (--model DIR | --size 10m) [--against-trl DIR] [--cases separate head ...] [--updates N]
        [--rounds R] [--batch 64] [--response 48] [--epochs 4] [--minibatches 4] [--prompt LOW HIGH] [--threads T]
        [--stop-ids ID]

A case is a kind of critic (separate, head, detached_head), with `+compile` for compiled training passes. Every case,
and TRL, runs `rounds` times for `updates` updates in a process of its own, in turn; the first update of each process
warms up and is left out; medians are reported. Both sides get the same prompts of random ids, the same model, a reward
model with a random head, float32, and no stop id, so that every response is full, unless --stop-ids names one. CPU
seconds are of the process, so that neighbors on the machine, who slow the clock down, disturb them less than wall
seconds; ratios are of both.

`floor_s` is what the multiplications of the models alone would take: their operations over the rate at which this
machine multiplies matrices of the shape (tokens of a minibatch, width) x (width, inner width), measured in between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

PHASES = ("generate", "score", "train", "rest")
TRL = "trl-1.12"
HERE = Path(__file__).parent


# ------------------------------------------------------------------------------------------------ one process of ours


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Some updates of our trainer, in this process."""
    import torch
    from ppo_trl import resident_peak
    from ppo_world import make_artifacts, stage_log

    from pipelines import ppo
    from workbench.config import PPO

    torch.set_num_threads(options.threads)
    imports = resident_peak()
    critic, _, compiled = options.case.partition("+")
    block = PPO(
        updates=options.updates, batch_size=options.batch, epochs=options.epochs, minibatches=options.minibatches,
        learning_rate=options.learning_rate, schedule="constant", critic_warmup_updates=0, critic=critic,
        compile=bool(compiled),
    )  # fmt: skip
    config = block.model_dump() | {
        "max_response_tokens": options.response,
        "stop_ids": options.stop_ids,
        "trust_remote_code": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_artifacts(options.model, json.loads(options.prompts.read_text()), Path(folder))
        log = stage_log(Path(folder) / "work", seed=0, threads=options.threads, device=options.device)
        trainer = ppo.Trainer(config, inputs, log)
        updates = [one_update(trainer) for _ in range(options.updates)]
    return {
        "updates": updates,
        "imports_memory_bytes": imports,
        "peak_memory_bytes": resident_peak(),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if options.device == "cuda" else None,
    }


def one_update(trainer: Any) -> dict[str, Any]:
    """One update as the stage runs it, but for logs and checkpoints; wall and CPU seconds by phase."""
    marks = [now()]
    draw = trainer._draw

    def drawing(*args: Any, **options: Any) -> Any:
        try:
            return draw(*args, **options)
        finally:
            marks.append(now())

    trainer._draw = drawing
    rollout = trainer.roll_out()
    trainer._draw = draw
    marks.append(now())
    trainer.note_scores(rollout.score)
    found = trainer.advantages(rollout)
    values = trainer.report(rollout, found)
    marks.append(now())
    trainer.guard(values | trainer.optimize(rollout, found))
    trainer.state.update += 1
    marks.append(now())
    steps = [[b - a for a, b in zip(first, second, strict=True)] for first, second in pairwise(marks)]
    generate, score, rest, train = steps
    by_phase = {"generate": generate, "score": score, "train": train, "rest": rest}
    return {
        "wall_s": {name: by_phase[name][0] for name in PHASES},
        "cpu_s": {name: by_phase[name][1] for name in PHASES},
    }


def now() -> tuple[float, float]:
    """Wall and CPU seconds; waits for a GPU first."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


# ------------------------------------------------------------------------------------------------ all of them in turn


def command(case: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """The process of one case."""
    shared = [
        "--model", str(options.model), "--prompts", str(folder / "prompts.json"),
        "--json", str(folder / "result.json"),
    ]  # fmt: skip
    for name in ("batch", "response", "epochs", "minibatches", "updates", "threads", "device", "learning_rate"):
        shared += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.stop_ids:
        shared += ["--stop-ids", *map(str, options.stop_ids)]
    if case == TRL:
        trl = ["--trl", str(options.against_trl), "--reward-seed", "1"]
        return [sys.executable, str(HERE / "ppo_trl.py"), *trl, *shared]
    return [sys.executable, str(HERE / "ppo.py"), "--case", case, *shared]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every case `rounds` times in turn."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(HERE.parent)}
    cases = [*options.cases, *([TRL] if options.against_trl else [])]
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    rates = [matrix_rate(options)]
    for number in range(options.rounds):
        for case in cases:
            print(f"round {number + 1}: {case}", file=sys.stderr, flush=True)
            subprocess.run(
                command(case, options, folder), check=True, env=environment, stdout=subprocess.DEVNULL,
                stderr=None if options.verbose else subprocess.DEVNULL,
            )  # fmt: skip
            runs[case].append(json.loads((folder / "result.json").read_text()))
        rates.append(matrix_rate(options))
    found = {case: summary(rows, options.batch) for case, rows in runs.items()}
    floors = floor_operations(options)
    for case, one in found.items():
        one["floor_s"] = floors["shared" if "head" in case else "separate"] / max(rates)
        if options.against_trl:
            one["episodes_per_s_over_trl"] = {
                clock: found[TRL][f"{clock}_s"]["update"] / one[f"{clock}_s"]["update"] for clock in ("wall", "cpu")
            }
    return {"cases": found, "matrix_rate_flops": rates, "pass_cost": pass_cost(options)}


def summary(runs: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Medians over all updates but the first of each process."""
    told: dict[str, Any] = {}
    for clock in ("wall_s", "cpu_s"):
        rows = [one[clock] for run in runs for one in run["updates"][1:]]
        whole = [sum(row.values()) for row in rows]
        told[clock] = {name: statistics.median(row[name] for row in rows) for name in PHASES}
        told[clock] |= {"update": statistics.median(whole), "lowest": min(whole), "highest": max(whole)}
        told["updates"] = len(rows)
    told["episodes_per_s"] = {clock: batch / told[f"{clock}_s"]["update"] for clock in ("wall", "cpu")}
    for name in ("peak_memory_bytes", "imports_memory_bytes", "device_peak_bytes"):
        values = [run[name] for run in runs if run[name] is not None]
        told[name] = max(values) if values else None
    return told


def shape(options: argparse.Namespace) -> tuple[Any, int, int]:
    """The model's config, tokens of one sequence, and parameters of its trunk that multiply."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(options.model)
    length = sum(options.prompt) // 2 + options.response
    width, inner = config.hidden_size, config.intermediate_size
    share = config.num_key_value_heads / config.num_attention_heads
    layer = width * width * (2 + 2 * share) + 3 * width * inner
    return config, length, int(config.num_hidden_layers * layer)


def floor_operations(options: argparse.Namespace) -> dict[str, float]:
    """Operations of one update: sample, reference, reward (and critic) forward; policy and critic 3 times that."""
    config, length, trunk = shape(options)
    tokens, spoken = options.batch * length, options.batch * options.response
    head = config.hidden_size * config.vocab_size
    attention = 2 * config.num_hidden_layers * config.hidden_size * length // 2
    forward = 2.0 * (trunk + attention) * tokens
    to_words = 2.0 * head * spoken
    found = {}
    for name, networks in (("separate", 2), ("shared", 1)):
        rollout = 2 * forward + 2 * to_words + networks * forward  # sample, reference; reward, own critic
        found[name] = rollout + options.epochs * 3 * (networks * forward + to_words)
    return found


def matrix_rate(options: argparse.Namespace) -> float:
    """Most operations a second of the clock, of the model's widest layer on one minibatch's tokens.

    The best of many tries: a neighbor on the machine can only lower it, which would raise the floor.
    """
    import torch

    config, length, _ = shape(options)
    torch.set_num_threads(options.threads)
    rows = options.batch // options.minibatches * length
    a = torch.randn(rows, config.hidden_size, device=options.device)
    b = torch.randn(config.hidden_size, config.intermediate_size, device=options.device)
    best = float("inf")
    for _ in range(30):
        start = now()[0]
        for _ in range(5):
            a @ b
        best = min(best, (now()[0] - start) / 5)
    return 2.0 * a.numel() * b.shape[1] / best


def pass_cost(options: argparse.Namespace) -> dict[str, float]:
    """What a forward and backward pass of the trunk costs besides its tokens: a line fitted to passes of several sizes.

    Returns:
        "s_per_token" and "tokens": the intercept over the slope, which `pipelines.ppo.PASS_TOKENS` rounds.
    """
    import numpy as np
    import torch

    from workbench.models import Placement, load_policy

    torch.set_num_threads(options.threads)
    trunk = load_policy(options.model, Placement(device=options.device), trainable=True).base_model
    sizes, best = [(1, 16), (2, 24), (4, 32), (8, 48), (16, 58)], []
    for rows, length in sizes:
        ids = torch.randint(3, trunk.config.vocab_size, (rows, length), device=options.device)
        spent = []
        for _ in range(12):
            start = now()
            trunk(input_ids=ids, use_cache=False).last_hidden_state.square().mean().backward()
            spent.append(now()[1] - start[1])
        best.append(min(spent))
    slope, intercept = np.polyfit([rows * length for rows, length in sizes], best, 1)
    return {"s_per_token": float(slope), "tokens": float(intercept / slope)}


def versions() -> dict[str, str]:
    """What was measured with."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path)
    source.add_argument("--size", choices=["10m"])
    parser.add_argument("--against-trl", type=Path, metavar="DIR")
    parser.add_argument("--cases", nargs="+", default=["separate", "head"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, nargs=2, default=[10, 10], metavar=("LOW", "HIGH"))
    for name, default in (("updates", 4), ("batch", 64), ("response", 48), ("epochs", 4), ("minibatches", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stop-ids", type=int, nargs="*", default=[], help="one, with --against-trl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what follows is for the processes of single cases
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if options.case:
        options.json.write_text(json.dumps(run_ours(options)))
        return
    from ppo_world import make_model, make_prompts, write_prompts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.size:
            options.model = make_model(options.size, folder / "model")
        vocabulary = shape(options)[0].vocab_size
        write_prompts(folder / "prompts.json", make_prompts(1024, *options.prompt, vocabulary))
        found = measure(options, folder)
    settings = {name: value for name, value in vars(options).items() if isinstance(value, (int, float, list))}
    told = {
        "benchmark": "ppo", "model": options.size or options.model.name, "settings": settings,
        "versions": versions(), "load": os.getloadavg(), "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(told | found, indent=1))


if __name__ == "__main__":
    main()
