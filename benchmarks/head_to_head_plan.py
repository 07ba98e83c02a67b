"""What both sides of `head_to_head.py` are given, and what the workbench's side really did.

One config is the source: scaled, it is what `workbench compare` runs; translated, with the world's prompts, corpus,
tokenizer and untrained model written out, it is the plan that the scripts of today read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.graph import Graph
from pipelines.graph_base import implicit_arm
from workbench.config import DPO, PPO, BestOfN, Comparison

# The workbench's stages by the step that a user of scripts would call them.
STEPS = {
    "prompts": "sft", "sft_corpus": "sft", "tokenizer": "sft", "base_model": "sft", "packed_prompts": "sft",
    "sft": "sft", "rollouts": "pairs", "pairs": "pairs", "packed_pairs": "pairs",
    "reference_logprobs": "reference", "reward_model": "reward", "candidates": "best_of_n", "best_of_n": "best_of_n",
    "generations": "evaluate", "scores": "evaluate", "trajectory": "evaluate", "margins": "evaluate",
    "select": "evaluate", "measure": "measure", "samples": "measure",
}  # fmt: skip
SAMPLED = ("test", "ood")  # the scripts draw no further sets
HEADS = ("prompts", "sft_corpus", "tokenizer", "base_model")  # data, given to the scripts before their clock starts


def scaled(raw: Mapping[str, Any], scale: float, *, with_ppo: bool) -> dict[str, Any]:
    """A config with all steps, pairs and prompts shrunk; batch sizes, n and lengths stay.

    Checkpoints are kept at even steps alone: TRL's trainers know no others.

    Args:
        raw: A validated config as plain values.
        scale: In (0, 1]; 1 shrinks nothing.
        with_ppo: Keep arms of kind ppo.
    """
    found: dict[str, Any] = json.loads(json.dumps(raw))
    if not with_ppo:
        found["arms"] = {label: arm for label, arm in found["arms"].items() if arm["kind"] != "ppo"}
    for arm in found["arms"].values():
        for name in ("checkpoint_at_steps", "checkpoint_at_kl"):
            if name in arm:
                arm[name] = []
    if scale == 1.0:
        return found

    def shrink(block: dict[str, Any], name: str, least: int = 1) -> None:
        block[name] = max(min(least, block[name]), round(block[name] * scale))

    rollouts = [arm["batch_size"] for arm in found["arms"].values() if arm["kind"] == "ppo"]
    shrink(found["data"], "pairs", max([16, *rollouts]))  # TRL's PPO wants a whole batch of different prompts
    for name in ("validation_pairs", "test_pairs", "ood_prompts"):
        shrink(found["data"], name, 8)
    shrink(found["sft"], "steps", 4)
    shrink(found["sft"], "examples", found["sft"]["batch_size"])
    shrink(found["sft"], "checkpoint_every_steps")
    for block in found["reward_models"].values():
        shrink(block, "checkpoint_every_steps")
        shrink(block, "center_samples", 16)
    for arm in found["arms"].values():
        if arm["kind"] == "ppo":
            shrink(arm, "updates", 2)
            shrink(arm, "checkpoint_every_updates")
            arm["critic_warmup_updates"] = min(round(arm["critic_warmup_updates"] * scale), arm["updates"] - 1)
        elif arm["kind"] == "dpo":
            shrink(arm, "checkpoint_every_steps")
    shrink(found["evaluation"], "prompts", 8)
    if found["evaluation"]["trajectory_prompts"]:
        shrink(found["evaluation"], "trajectory_prompts", 8)
    return found


def export(graph: Graph, folder: Path) -> dict[str, str]:
    """Writes what is data and not work — prompts, corpus, tokenizer, untrained model — with the stages' own code."""
    from pipelines.sft import new_model
    from workbench.data import stages

    functions = {
        "prompts": stages.world_prompts, "sft_corpus": stages.world_sft_corpus,
        "tokenizer": stages.world_model_files, "base_model": new_model,
    }  # fmt: skip
    for name in HEADS:
        stage = graph.stages[name]
        (folder / name).mkdir(parents=True)
        inputs = {role: folder / str(source) for role, source in stage.inputs.items()}
        log: Any = SimpleNamespace(seed=stage.seed, say=lambda line: None)
        functions[name](dict(stage.config), inputs, folder / name, log)
    return {
        "prompts": str(folder / "prompts" / "prompts.jsonl"),
        "corpus": str(folder / "sft_corpus" / "corpus.jsonl"),
        "base_model": str(folder / "base_model"),
    }


def make_plan(comparison: Comparison, graph: Graph, files: Mapping[str, str]) -> dict[str, Any]:
    """The plan that the scripts read: the config's numbers, epochs as steps."""
    config = comparison.model_dump(mode="json")
    data, arms = comparison.data, comparison.arms
    implicit = implicit_arm(comparison)
    if data.world is None or comparison.sft is None or len(comparison.reward_models) != 1 or implicit is None:
        raise SystemExit("the head-to-head needs data.world, an sft block, one reward model and at least one dpo arm")

    def steps(block: Mapping[str, Any]) -> int:
        return math.ceil(round(data.pairs * block["epochs"]) / block["batch_size"])

    reward = config["reward_models"][comparison.proxy]
    dpo = {label: config["arms"][label] for label, arm in arms.items() if isinstance(arm, DPO)}
    ppo = [config["arms"][label] for label, arm in arms.items() if isinstance(arm, PPO)]
    best = {label: arm for label, arm in arms.items() if isinstance(arm, BestOfN)}
    candidates = [stage for stage in graph.stages.values() if stage.name == "candidates"]
    return {
        **files,
        "context": graph.origin.context,
        "seed": comparison.seeds.runs[0],
        "sft": config["sft"] | {"seed": 0},
        "pairs": {"train": data.pairs, "validation": data.validation_pairs, "test": data.test_pairs},
        "annotators": config["data"]["annotators"],
        "labels_per_pair": data.labels_per_pair,
        "reward": reward | {"steps": steps(reward), "seed": 0},
        "dpo": {
            label: block | {"steps": steps(block), "save_steps": block["checkpoint_every_steps"], "seed": 0}
            for label, block in dpo.items()
        },
        "ppo": ppo[0] | {"save_updates": ppo[0]["checkpoint_every_updates"], "seed": 0} if ppo else None,
        "best_of_n": {label: arm.n for label, arm in best.items()},
        "best_of_n_reward": {
            label: "reward" if arm.reward in comparison.reward_models else arm.reward for label, arm in best.items()
        },
        "reward_models": list(comparison.reward_models),
        "selectors": sorted({arm.reward for arm in best.values()} & set(dpo)),
        "pool": candidates[0].config["samples_per_prompt"] if candidates else 0,
        "policies": ["sft", *(label for label, arm in arms.items() if not isinstance(arm, BestOfN))],
        "implicit": implicit,
        "evaluation": config["evaluation"],
    }  # fmt: skip


def scripts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name of the step, script) in the order of running."""
    return [
        ("sft", "sft.py"), ("pairs", "pairs.py"), ("reward", "reward.py"),
        *((label, "dpo.py") for label in plan["dpo"]),
        *([("ppo", "ppo.py")] if plan["ppo"] else []),
        *([("best_of_n", "best_of_n.py")] if plan["best_of_n"] else []),
        ("evaluate", "evaluate.py"),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- what the workbench did


def read_records(home: Path) -> dict[str, dict[str, Any]]:
    """instance -> record of every artifact in a home, with `folder`."""
    found = {}
    for path in (home / "store").glob("*/manifest.json"):
        record = json.loads(path.read_text())["record"]
        found[record["instance"]] = record | {"folder": path.parent / "out"}
    return found


def step_of(record: Mapping[str, Any]) -> str:
    """The step that a stage belongs to: an arm's label, best_of_n for a pool's scores, `ours alone` for what the
    scripts have no counterpart of."""
    name, instance = record["name"], record["instance"]
    if name in ("dpo", "ppo"):
        return str(instance.partition("[")[2].partition(",")[0])
    if name == "scores" and instance.startswith("scores[candidates"):
        return "best_of_n"
    if name in ("generations", "scores") and purpose(instance) not in SAMPLED:
        return "ours alone"
    return STEPS.get(name, "ours alone")


def purpose(instance: str) -> str:
    """What samples are for: `test` of `generations[dpo,test,seed=0]`."""
    return [*instance.partition("[")[2].split(","), ""][1]


def work_of_ours(records: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]) -> dict[str, int]:
    """Steps and samples, counted in the artifacts."""

    def lines(instance: str) -> int:
        return sum(1 for _ in (records[instance]["folder"] / "generations.jsonl").open())

    def index(name: str) -> dict[str, Any]:
        # Whole names, or starts that end in a bracket or comma: sft is not sft_corpus.
        begins = name if name[-1] in "[," else f"{name}["
        found = next(one for one in records.values() if one["instance"] == name or one["instance"].startswith(begins))
        return dict(json.loads((found["folder"] / "index.json").read_text()))

    def last_step(name: str) -> int:
        return int(index(name)["checkpoints"][-1]["step"])

    names = list(records)
    done = {"sft: optimizer steps": last_step("sft"), "pairs: samples": lines("rollouts")}
    done["reward: optimizer steps"] = last_step("reward_model[")
    kept = 0
    for label in plan["policies"][1:]:
        kind = "dpo" if label in plan["dpo"] else "ppo"
        done[f"{label}: {'optimizer steps' if kind == 'dpo' else 'updates'}"] = last_step(f"{kind}[{label},")
        kept += len(index(f"{kind}[{label},")["checkpoints"])
    if plan["best_of_n"]:
        pool = next(name for name in names if name.startswith("candidates["))
        done["best_of_n: samples"] = lines(pool)
        wanted = {"gold", *plan["selectors"], *plan["reward_models"]}
        scorers = [name for name in names if name.startswith("scores[candidates") and name.split(",")[2] in wanted]
        done["best_of_n: scored"] = len(scorers) * done["best_of_n: samples"]
    drawn = [name for name in names if name.startswith("generations[") and purpose(name) in SAMPLED]
    done["evaluate: samples"] = sum(map(lines, drawn))
    done["evaluate: checkpoints"] = kept if plan["evaluation"]["trajectory_prompts"] else 0
    done["evaluate: samples of checkpoints"] = kept * plan["evaluation"]["trajectory_prompts"]
    return done


def work_of_theirs(reports: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]) -> dict[str, int]:
    """Steps and samples, as the scripts counted them."""
    done = {"sft: optimizer steps": reports["sft"]["steps"], "pairs: samples": reports["pairs"]["samples"]}
    done["reward: optimizer steps"] = reports["reward"]["steps"]
    for label in plan["policies"][1:]:
        kind = "dpo" if label in plan["dpo"] else "ppo"
        word, field = ("optimizer steps", "steps") if kind == "dpo" else ("updates", "updates")
        done[f"{label}: {word}"] = reports[label if kind == "dpo" else "ppo"][field]
    if plan["best_of_n"]:
        done["best_of_n: samples"] = reports["best_of_n"]["samples"]
        done["best_of_n: scored"] = reports["best_of_n"]["scored"]
    evaluated = reports["evaluate"]
    done["evaluate: samples"] = evaluated["samples"]
    done["evaluate: checkpoints"] = evaluated["checkpoints"]
    done["evaluate: samples of checkpoints"] = evaluated["checkpoint_samples"]
    return done


def critical_path(records: Mapping[str, Mapping[str, Any]]) -> tuple[float, list[str]]:
    """The longest chain of stages that wait for each other, in wall seconds, and its stages."""
    made = {record["output"]: name for name, record in records.items()}
    longest: dict[str, tuple[float, list[str]]] = {}

    def length(name: str) -> tuple[float, list[str]]:
        if name not in longest:
            sources = {made[digest] for digest in records[name]["inputs"].values() if digest in made} - {name}
            before = max((length(source) for source in sources), default=(0.0, []))
            longest[name] = (before[0] + records[name]["cost"]["wall_s"], [*before[1], name])
        return longest[name]

    return max(map(length, records), default=(0.0, []))
