"""What the end-to-end tests share: the command as a user starts it, homes, a small model folder, small files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
UNTRACKED = ("--set", "tracking.enabled=false")


def gone(pid: int) -> bool:
    """The process has ended, though nobody may have reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A folder that the first pytest worker to need it builds, and the others wait for."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(folder)
            done.touch()
    return folder


def environment(**more: str) -> dict[str, str]:
    """This process's, with the checkout first on the path and one compute thread."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def command(*words: str | Path) -> list[str]:
    return [PYTHON, "-m", "workbench.cli", *map(str, words)]


def workbench(*words: str | Path, cwd: Path | None = None, timeout_s: float = 300.0) -> Ran:
    """Runs the command in a process of its own, as a user does."""
    done = subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return Ran(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def compare(
    config: str | Path, home: Path, *words: str | Path, code: int = 0, cwd: Path | None = None, timeout_s: float = 300.0
) -> Any:
    """results.json of `workbench compare`, which must end with `code`."""
    done = workbench("compare", config, "--home", home, "--json", *words, cwd=cwd, timeout_s=timeout_s)
    assert done.code == code, done.stderr
    return done.json


def copy_home(source: Path, target: Path) -> Path:
    """A home with the artifacts of another one: a test may change it."""
    shutil.copytree(source / "store", target / "store")
    if (source / "results").exists():
        shutil.copytree(source / "results", target / "results")
    return target


def forget(home: Path, keys: Iterable[str]) -> None:
    """Removes artifacts, as gc does, so that the next run has to build them anew."""
    for key in keys:
        shutil.rmtree(home / "store" / key)


def rows(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """instance -> its row of results.json or of a plan."""
    return {row["instance"]: row for row in results["stages"]}


def contents(results: Mapping[str, Any], home: Path) -> dict[str, str]:
    """instance -> content digest of its artifact."""
    found = {}
    for instance, row in rows(results).items():
        manifest = json.loads((home / "store" / row["key"] / "manifest.json").read_text())
        found[instance] = manifest["content"]
    return found


def timeless(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json without what differs between two equal runs: times, costs, ids, places, hit or miss."""
    plain: dict[str, Any] = json.loads(json.dumps(results))
    del plain["mlflow"], plain["report"]
    for arm in plain["arms"].values():
        del arm["cost"]
    for row in plain["stages"]:
        del row["cached"], row["why"], row["wall_s"]
    return plain


def metric_rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of a metrics.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["values"]) for line in lines]


def small_model(folder: Path, *, context: int = 96) -> Path:
    """An untrained Llama of a few thousand parameters that reads the helpdesk's words."""
    from workbench.models import new_small_llama, save_model
    from workbench.tokens import load_tokenizer
    from workbench.worlds.helpdesk import build_tokenizer

    folder.mkdir(parents=True)
    build_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    special = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "initializer_range": 0.08}
    model = new_small_llama(size, vocab_size=len(tokenizer), special=special, context=context, seed=0)
    save_model(model, tokenizer, folder)
    return folder


def pair_rows(count: int = 60) -> list[dict[str, Any]]:
    """Preference pairs on as many helpdesk prompts: the response with the higher gold reward is chosen."""
    from workbench.worlds.helpdesk import parse_prompt, sample_prompts, sample_response
    from workbench.worlds.helpdesk_gold import gold

    rng = np.random.default_rng(0)
    found = []
    for prompt in sample_prompts(rng, {"train": count}):
        request = parse_prompt(prompt.prompt)
        first = second = sample_response(request, rng)
        while second == first:
            second = sample_response(request, rng)
        better, worse = sorted((first, second), key=lambda text: gold(prompt.prompt, text), reverse=True)
        found.append({"prompt": prompt.prompt, "chosen": better, "rejected": worse})
    return found


def write_rows(path: Path, items: Iterable[Any]) -> Path:
    path.write_text("".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in items))
    return path


FILE_CONFIG = """
name: files
model: {policy: MODEL}
data: {preferences: DATA, splits: {validation: 0.2, test: 0.2}}
sft: SFT
reward_models: {main: {epochs: 1, batch_size: 16, center_samples: 8}}
arms:
  ppo: {updates: 2, batch_size: 8, critic_warmup_updates: 1, checkpoint_every_updates: 1}
  dpo: {epochs: 1, batch_size: 16}
  best_of_n: {n: 2, pool: 8}
evaluation: {prompts: 8, samples_per_prompt: 2, max_response_tokens: 16, judges: [proxy], trajectory_prompts: 4,
             batch_size: 16}
tracking: {enabled: false}
"""


def file_config(folder: Path, model: Path, data: Path, sft: str = "none", more: str = "") -> Path:
    """A config on files: a model folder and preferences; `more` is YAML to add."""
    path = folder / "files.yaml"
    text = FILE_CONFIG.replace("MODEL", json.dumps(str(model))).replace("DATA", json.dumps(str(data)))
    path.write_text(text.replace("SFT", sft) + more)
    return path
