"""Controls of whole comparisons: shuffled labels, planted leaks, twins, and permutations that must change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.honesty_base import Finding, Runs, chance_band
from pipelines import compare
from pipelines.graph import Graph, build_graph
from tests import bench
from workbench.config import Comparison, load_config

Plant = Callable[[Graph], None]


def smoke_config(*overrides: str) -> Comparison:
    """The shipped smoke config without MLflow."""
    return load_config(Path("smoke"), ["tracking.enabled=false", *overrides])


# --------------------------------------------------------------------------------- shuffled labels


def accuracies(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Accuracy of the reward model and of DPO's implicit reward on held-out pairs, as results.json has them."""
    return {
        "reward model": results["reward_models"]["main"]["accuracy"],
        "DPO, implicit reward": results["agreement"]["heldout"]["implicit_accuracy"],
    }


def at_chance(results: Mapping[str, Any], case: str) -> list[Finding]:
    """Labels that say nothing: no reward can be better, or worse, than a coin on 1,000 held-out pairs."""
    low, high = (count / 1000 for count in chance_band(1000, 0.5))
    return [
        Finding(
            case=f"{case}: {who}",
            expected=f"accuracy {low:.1%} to {high:.1%} on at least 1,000 prompts",
            found={name: accuracy[name] for name in ("value", "low", "high")},
            n=accuracy["n"],
            ok=low <= accuracy["value"] <= high and accuracy["n"] >= 1000,
        )
        for who, accuracy in accuracies(results).items()
    ]


def shuffled_labels(runs: Runs) -> list[Finding]:
    """A coin flip for every label, in training and held-out pairs; and the same run with labels that mean something."""
    found = at_chance(runs.coin, "coin-flip labels")
    high = chance_band(1000, 0.5)[1] / 1000
    for who, accuracy in accuracies(runs.world).items():
        found.append(
            Finding(
                case=f"labels that mean something: {who}",
                expected=f"interval above {high:.1%}",
                found={name: accuracy[name] for name in ("value", "low", "high")},
                n=accuracy["n"],
                ok=accuracy["low"] > high,
            )
        )
    moved = runs.coin["arms"]["dpo"]["seq_kl"]
    found.append(
        Finding(
            case="coin-flip labels: DPO was trained on them all the same",
            expected="KL to the SFT above 0.1 nats",
            found={name: moved[name] for name in ("value", "low", "high")},
            n=moved["n"],
            ok=moved["low"] > 0.1,
        )
    )
    return found


# --------------------------------------------------------------------------------- planted leaks


def plant_pairs_for_all(graph: Graph) -> None:
    """Two test pairs count as training pairs, for every arm."""
    stand_in(graph, "packed_pairs", "benchmarks.honesty_leaks:pack_pairs")


def plant_pairs_for_dpo(graph: Graph) -> None:
    """DPO alone trains on two test pairs."""
    own = leaky(graph, "packed_pairs", "benchmarks.honesty_leaks:pack_pairs")
    redirect(graph, "dpo[dpo,seed=0]", pairs=own)


def plant_prompts_for_ppo(graph: Graph) -> None:
    """PPO rolls out on two test prompts."""
    own = leaky(graph, "packed_prompts", "benchmarks.honesty_leaks:pack_prompts")
    redirect(graph, "ppo[ppo,seed=0]", prompts=own)


def fewer_prompts_for_dpo(graph: Graph) -> None:
    """DPO is evaluated on two prompts fewer than the others."""
    instance = "generations[dpo,test,seed=0]"
    stage = graph.stages[instance]
    fewer = {"prompts": stage.config["prompts"] - 2}
    graph.stages[instance] = replace(stage, config=dict(stage.config) | fewer)


def plant_nothing(graph: Graph) -> None:
    """The control of the control: a comparison without a leak passes."""


def stand_in(graph: Graph, instance: str, function: str) -> None:
    graph.stages[instance] = replace(graph.stages[instance], function=function)


def leaky(graph: Graph, instance: str, function: str) -> str:
    """A second stage beside the real one, for one reader alone; it stands right before who reads it."""
    name = f"{instance}[leaky]"
    stages = dict(graph.stages)
    graph.stages.clear()
    for key, stage in stages.items():
        graph.stages[key] = stage
        if key == instance:
            graph.stages[name] = replace(stage, instance=name, function=function)
    return name


def redirect(graph: Graph, instance: str, **inputs: str) -> None:
    stage = graph.stages[instance]
    graph.stages[instance] = replace(stage, inputs=dict(stage.inputs) | inputs)


LEAKS: dict[Plant, set[str]] = {
    plant_nothing: set(),
    plant_pairs_for_all: {"disjoint_splits"},
    plant_pairs_for_dpo: {"same_pairs", "same_labels"},
    plant_prompts_for_ppo: {"disjoint_splits"},
    fewer_prompts_for_dpo: {"same_eval_prompts"},
}


def with_graph(comparison: Comparison, home: Path, change: Plant) -> compare.Finished:
    """Runs a comparison whose graph was changed before anything started."""

    def changed(*args: Any) -> Graph:
        graph = build_graph(*args)
        change(graph)
        return graph

    with mock.patch.object(compare, "build_graph", changed):
        return compare.run_comparison(comparison, home=home, warn=lambda line: None)


def planted_leak(home: Path, plant: Plant) -> Finding:
    """One leak in a whole comparison: the certificate must fail at the right place and the command exit with 4.

    Args:
        home: With the smoke run's artifacts; what the leak does not touch is reused.
        plant: The leak, a key of `LEAKS`.
    """
    done = with_graph(smoke_config(), home, plant)
    failed = {check.name for check in done.results.match.checks if check.ok is False}
    code = 4 if LEAKS[plant] else 0
    what = (plant.__doc__ or "").strip().rstrip(".")
    return Finding(
        case=what,
        expected=f"exit code {code}; failed checks: {', '.join(sorted(LEAKS[plant])) or 'none'}",
        found={"exit_code": done.exit_code, "failed": sorted(failed)},
        n=1,
        ok=done.exit_code == code and failed == LEAKS[plant],
    )


def leak_in_the_file(folder: Path, *, planted: bool = True) -> Finding:
    """A preferences file whose test split holds a training prompt in other case and spacing: refused before anything.

    Args:
        folder: Scratch.
        planted: Whether the leak is there at all.
    """
    rows = [
        row | {"split": ("train", "validation", "test")[number % 3]} for number, row in enumerate(bench.pair_rows(30))
    ]
    if planted:
        rows[2] |= {"prompt": rows[0]["prompt"].upper().replace(" ", "  ")}
    data = bench.write_rows(folder / "leaky.jsonl", rows)
    done = bench.workbench("data", "check", data, "--json")
    run = bench.workbench(
        "compare", bench.file_config(folder, bench.small_model(folder / "model"), data), "--home", folder / "home"
    )
    named = "stand in more than one split" in run.stderr
    return Finding(
        case="A training prompt in the file's test split, other case and spacing",
        expected="compare exits with 2 before anything runs and names the prompt",
        found={"exit_code": run.code, "named": named, "data_check": done.code},
        n=1,
        ok=run.code == 2 and named,
    )


def planted_leaks(runs: Runs) -> list[Finding]:
    """Every way in which a test prompt or a test pair can reach training."""
    results, home = runs.smoke, runs.folder / "leaks"
    assert results["match"]["ok"]
    if not home.exists():
        bench.copy_home(runs.folder / "smoke", home)
    scratch = runs.folder / "leak-file"
    scratch.mkdir(exist_ok=True)
    return [*(planted_leak(home, plant) for plant in LEAKS), leak_in_the_file(scratch)]
