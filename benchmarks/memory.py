"""Peak memory of DPO and PPO, with all weights and with adapters on one base, on the same model, batch and lengths.

    python benchmarks/memory.py [--model DIR | --size 10m] [--batch 64] [--prompt 24] [--response 48] [--updates 3]
        [--rank 16] [--device cpu|cuda] [--dtype float32|bfloat16] [--threads 1] [--repeats 1] [--cases NAME ...]
        [--against-trl DIR] [--json]

Every case is the stage that a comparison runs, in a fresh process of its own, fed with random pairs and prompts:

    dpo_full, dpo_lora                  B/2 pairs a step, so B sequences in one forward and backward pass
    ppo_full, ppo_full_head             B episodes, one minibatch: policy, reference, reward model, critic or value head
    ppo_shared, ppo_shared_head         policy, critic and reward model are adapters on one frozen base (critic: a head)
    dpo_qlora, ppo_shared_qlora         the base in 4 bits; only where --cases names them
    ppo_trl                             TRL 1.12's PPO, from DIR (pip install --no-deps --target DIR trl==1.12.0)

Measured, in bytes:

    training    peak until the last optimizer step, above what the process held before the stage began: on a GPU
                allocated device memory, on a CPU resident memory (freed blocks go back to the system at once)
    stage       the same until the stage's end: saving and reading back the published policy are in it
    counted     in another process, tensor by tensor, whatever the device: parameters, gradients, optimizer states and
                what the graph keeps for the backward pass (`benchmarks/memory_count.py`)

`ratios` holds PPO on a shared trunk over DPO with adapters (the goal is at most 1.3), and packed bases over plain ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PACKED = ("dpo_qlora", "ppo_shared_qlora")  # need bitsandbytes
NAMES = ("dpo_full", "dpo_lora", "ppo_full", "ppo_full_head", "ppo_shared", "ppo_shared_head")
GOAL = 1.3
# Freed tensors leave the process at once: what is resident is what is held, not what the allocator keeps for later.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


# ------------------------------------------------------------------------------------------------ one process, one case


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since the last `forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status; this benchmark needs Linux")


def measure(root: Path, case: str, scratch: Path, *, count: bool, trl: Path | None) -> dict[str, Any]:
    """Runs one case in this process; bytes."""
    import torch

    from benchmarks.memory_cases import CASES, TRL, Shape, preload
    from benchmarks.memory_count import Counter

    shape = Shape(**json.loads((root / "shape.json").read_text()))
    torch.set_num_threads(shape.threads)
    cuda = shape.device == "cuda"
    if case == TRL:
        assert trl is not None
        return _measure_trl(root, shape, trl, count=count)
    preload(case)
    if count:
        with Counter() as counter:
            CASES[case](root, scratch, shape)
        return counter.peak | {"total": counter.total, "steps": counter.steps}
    peak, seen = _watch(cuda)
    CASES[case](root, scratch, shape)
    return {"training": seen["training"], "stage": peak()}


def _watch(cuda: bool) -> tuple[Any, dict[str, int]]:
    """A function that gives the peak since now, above now; and that peak as it was at the last optimizer step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")

    def peak() -> int:
        return (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before

    seen: dict[str, int] = {}
    register_optimizer_step_post_hook(lambda *_: seen.update(training=peak()))
    return peak, seen


def _measure_trl(root: Path, shape: Any, trl: Path, *, count: bool) -> dict[str, Any]:
    from contextlib import redirect_stdout

    from benchmarks.memory_count import Counter
    from benchmarks.ppo_trl import Settings, run

    settings = Settings(
        trl=trl, model=root / "sft" / "checkpoints" / "sft", prompts=root / "prompts.json", batch=shape.batch,
        response=shape.response, epochs=1, minibatches=1, updates=shape.updates, learning_rate=1e-5,
        threads=shape.threads, device=shape.device,
    )  # fmt: skip
    with redirect_stdout(sys.stderr):
        if count:
            with Counter() as counter:
                run(settings)
            return counter.peak | {"total": counter.total, "steps": counter.steps}
        found = run(settings)
    if shape.device == "cuda":
        return {"training": found["device_peak_bytes"], "stage": None}
    return {"training": found["peak_memory_bytes"] - found["imports_memory_bytes"], "stage": None}


# ------------------------------------------------------------------------------------------------ all of them


def child(root: Path, case: str, *words: str, threads: int) -> dict[str, Any]:
    """One measurement in a fresh process."""
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, __file__, "--inside", case, "--root", str(root), *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def everything(given: argparse.Namespace) -> dict[str, Any]:
    """All cases, each measured `repeats` times and counted once; and the ratios."""
    shape = {name: getattr(given, name) for name in ("batch", "prompt", "response", "updates", "rank", "threads")}
    shape |= {"device": given.device, "dtype": given.dtype, "model": str(given.model or given.size)}
    names = [*(given.cases or NAMES), *(["ppo_trl"] if given.against_trl else [])]
    shape["packed"] = any(name in PACKED for name in names)
    trl = ["--against-trl", str(given.against_trl.resolve())] if given.against_trl else []
    found: dict[str, Any] = {"shape": shape, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "wanted.json").write_text(json.dumps(shape))
        child(root, "prepare", threads=given.threads)
        for name in names:
            runs = []
            for place in range(given.repeats + 1):  # the last one counts
                words = ["--scratch", str(root / "runs" / f"{name}-{place}"), *trl]
                words += ["--count"] if place == given.repeats else []
                runs.append(child(root, name, *words, threads=given.threads))
            found["cases"][name] = summary(runs[:-1], runs[-1])
            print(name, json.dumps(found["cases"][name]), file=sys.stderr, flush=True)
    found["ratios"] = ratios(found["cases"])
    return found


def summary(measured: list[dict[str, Any]], counted: dict[str, Any]) -> dict[str, Any]:
    """Medians of one case's measurements, each run's own, and the count; bytes. `stage` is not known of TRL's."""
    stage = [one["stage"] for one in measured if one["stage"] is not None]
    training = [one["training"] for one in measured]
    return {
        "training_bytes": statistics.median(training),
        "training_bytes_runs": training,
        "stage_bytes": statistics.median(stage) if stage else None,
        "counted_bytes": counted,
    }


def ratios(cases: dict[str, Any]) -> dict[str, Any]:
    """PPO on a shared trunk over DPO with adapters, and packed bases over plain ones; absent where a case is."""
    made: dict[str, Any] = {}
    goals = {("ppo_shared", "dpo_lora"): GOAL, ("ppo_shared_head", "dpo_lora"): GOAL}
    for name, other in (*goals, ("dpo_qlora", "dpo_lora"), ("ppo_shared_qlora", "ppo_shared")):
        if name in cases and other in cases:
            over, under = cases[name], cases[other]
            made[f"{name}/{other}"] = {
                "training": over["training_bytes"] / under["training_bytes"],
                "counted": over["counted_bytes"]["total"] / under["counted_bytes"]["total"],
            }
            if (name, other) in goals:
                made[f"{name}/{other}"]["goal"] = GOAL
    return made


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path)
    which.add_argument("--size", choices=["0.1m", "1m", "10m", "60m"], default="10m")
    for name, value in (("batch", 64), ("prompt", 24), ("response", 48), ("updates", 3), ("rank", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cases", nargs="+", choices=(*NAMES, *PACKED))
    parser.add_argument("--against-trl", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside == "prepare":
        from benchmarks.memory_cases import Shape, prepare

        prepare(given.root, Shape(**json.loads((given.root / "wanted.json").read_text())))
        print("{}")
    elif given.inside:
        found = measure(given.root, given.inside, given.scratch, count=given.count, trl=given.against_trl)
        print(json.dumps(found))
    elif given.against_trl and given.dtype != "float32":
        parser.error("TRL 1.12 is measured in float32; leave --against-trl out with another --dtype")
    elif given.batch % 2 or given.updates < 2:
        parser.error("expected an even --batch (DPO takes half as many pairs) and at least 2 --updates")
    else:
        found = everything(given)
        print(json.dumps(found, indent=1) if given.json else json.dumps(found["ratios"], indent=1))


if __name__ == "__main__":
    main()
