"""Stages, their keys, and the one place that decides hit or miss and says why."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import fsio, keys
from workbench.errors import ConfigError, WorkbenchError
from workbench.manifest import Artifact
from workbench.store import CorruptArtifactError, Store
from workbench.store_index import History


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage may use. From the config, never from what happens to run beside it.

    Args:
        threads: Compute threads of each process; in the key, because one and two threads give different last bits.
        processes: Processes that share the stage's work (`workbench.ranks`); in the key where there are several, for
            the same reason.
        gpus: Accelerators, one for each process; stages that use one run one at a time.
        memory_bytes: Expected peak; stages run side by side while the sum fits. 0: unknown.
        disk_bytes: Expected output and checkpoints, asked for before the stage starts. 0: a floor of 200 MB.
        device: Device kind, "cpu" or "cuda"; in the key.
        dtype: Computation dtype; in the key.
    """

    threads: int = 1
    processes: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class External:
    """A file or model folder that came from outside; `digest` is `Store.hash_path` of it."""

    path: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the graph: a function of its config, its inputs' contents and a seed.

    Args:
        name: What it does ("ppo"); in the key.
        instance: Unique in a graph ("ppo[ppo,seed=0]").
        function: "module:function", called as `fn(config, inputs, out, log)`.
        config: JSON; semantic fields only. This is what the key hashes.
        inputs: role -> instance that makes it, or an External.
        seed: Already derived for this stage.
        version: Raised by hand when results change in a way that nothing else in the key shows.
        packages: Distributions whose versions enter the key.
        cosmetic: Passed to the function beside `config`, not in the key (log cadence, ...).
        inline: Light and torch-free: runs in the driver's process.
    """

    name: str
    instance: str
    function: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str | External]
    seed: int
    version: int = 1
    packages: tuple[str, ...] = ()
    resources: Resources = Resources()
    cosmetic: Mapping[str, Any] = field(default_factory=dict)
    inline: bool = False


class StageFailedError(WorkbenchError):
    """A stage raised something that is no WorkbenchError. `remote_traceback` is the text of its traceback."""

    exit_code = 1
    code = "stage_failed"
    remote_traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will happen to one stage. `key` is None while an input's content is unknown ("waits for sft")."""

    instance: str
    name: str
    key: str | None
    cached: bool
    why: str
    artifact: Artifact | None = field(default=None, repr=False, compare=False)
    material: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # what the key hashes


def check_graph(stages: Sequence[Stage]) -> list[Stage]:
    """The stages in dependency order, otherwise in the order given.

    Raises:
        ConfigError: Two stages share an instance, an input does not exist, or the graph has a cycle.
    """
    by_instance: dict[str, Stage] = {}
    for stage in stages:
        if stage.instance in by_instance:
            raise ConfigError(f"two stages are called {stage.instance!r}; an instance must be unique in a graph.")
        by_instance[stage.instance] = stage
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for stage in stages:
        for role, source in stage.inputs.items():
            if isinstance(source, str) and source not in by_instance:
                raise ConfigError(f"input {role!r} of {stage.instance} is {source!r}, which no stage makes.")
        sorter.add(stage.instance, *dependencies(stage))
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise ConfigError(f"the stages wait for each other in a circle: {' -> '.join(error.args[1])}.") from error
    position = {stage.instance: n for n, stage in enumerate(stages)}
    ordered: list[Stage] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        ordered += [by_instance[instance] for instance in ready]
        sorter.done(*ready)
    return ordered


def dependencies(stage: Stage) -> list[str]:
    """Instances that a stage reads from, without repeats."""
    return list(dict.fromkeys(source for source in stage.inputs.values() if isinstance(source, str)))


def input_digests(stage: Stage, contents: Mapping[str, str]) -> dict[str, str]:
    """role -> content digest. `contents`: instance -> content digest of its artifact."""
    return {
        role: source.digest if isinstance(source, External) else contents[source]
        for role, source in sorted(stage.inputs.items())
    }


def input_paths(stage: Stage, artifacts: Mapping[str, Artifact]) -> dict[str, Path]:
    """role -> folder of the artifact's files, or the External's path."""
    return {
        role: Path(source.path).absolute() if isinstance(source, External) else artifacts[source].path
        for role, source in stage.inputs.items()
    }


def key_material(stage: Stage, inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that the key hashes, under the names that StageRecord gives them.

    Args:
        inputs: role -> content digest.

    Raises:
        ConfigError: The stage function's module is missing or broken.
    """
    material = {
        "name": stage.name,
        "version": stage.version,
        "config": dict(stage.config),
        "seed": stage.seed,
        "inputs": dict(inputs),
        "device": stage.resources.device,
        "dtype": stage.resources.dtype,
        "threads": stage.resources.threads,
        "packages": keys.package_versions(stage.packages),
        "modules": keys.module_hashes(stage.function),
    }
    if stage.resources.processes > 1:  # absent otherwise, as in keys from before there were several
        material["processes"] = stage.resources.processes
    plain: dict[str, Any] = json.loads(fsio.canonical_json(material))
    return plain


def decide(stage: Stage, inputs: Mapping[str, str], store: Store, history: History) -> Planned:
    """Hit or miss of one stage whose inputs are known, and why.

    A damaged artifact is moved to the quarantine here, so it is a miss.
    """
    material = key_material(stage, inputs)
    key = keys.digest(material)
    try:
        artifact = store.find(key)
        why = "cached" if artifact is not None else _why_missing(stage, key, material, history)
    except CorruptArtifactError as error:
        artifact = None
        why = f"artifact was corrupt and quarantined: {error.message}"
    if artifact is None and (store.work(key) / "metrics.jsonl").exists():
        why += "; goes on from an unfinished attempt"
    return Planned(
        instance=stage.instance,
        name=stage.name,
        key=key,
        cached=artifact is not None,
        why=why,
        artifact=artifact,
        material=material,
    )


def _why_missing(stage: Stage, key: str, material: Mapping[str, Any], history: History) -> str:
    if key in history.quarantined:
        return f"artifact was corrupt and quarantined: {history.quarantined[key]}"
    if any(record.key == key for record in history.records):
        return "artifact was removed from the store"
    same_instance = [record for record in history.records if record.instance == stage.instance]
    same_name = [record for record in history.records if record.name == stage.name]
    if same_instance:
        return keys.differences(material, same_instance[-1])
    if same_name:
        return f"never built; against {same_name[-1].instance}: {keys.differences(material, same_name[-1])}"
    return "never built"


def plan(stages: Sequence[Stage], store: Store) -> list[Planned]:
    """Hit or miss of every stage, and why, in dependency order. Imports no stage and no torch.

    Raises:
        ConfigError: The graph is broken, or a stage function's module is missing.
    """
    history = store.history()
    planned: dict[str, Planned] = {}
    for stage in check_graph(stages):
        missing = [instance for instance in dependencies(stage) if not planned[instance].cached]
        if missing:
            planned[stage.instance] = Planned(
                instance=stage.instance, name=stage.name, key=None, cached=False, why=f"waits for {', '.join(missing)}"
            )
            continue
        contents = {i: artifact.content for i, p in planned.items() if (artifact := p.artifact) is not None}
        planned[stage.instance] = decide(stage, input_digests(stage, contents), store, history)
    return list(planned.values())
