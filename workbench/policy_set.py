"""What a training stage outputs: checkpoints with an index, so that what follows can map over them.

    index.json = {"checkpoints": [{"name", "path", "step", "tensors"}], "last", "diverged", "facts"}

`path` is relative to the artifact. `facts` are what the stage found out about what it loaded and consumed; the match
certificate compares them between arms.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import IntegrityError
from workbench.models import Placement, load_policy, save_model, trunk_digest


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One policy of a set. `tensors` digests the trunk as saved."""

    name: str
    path: str
    step: int
    tensors: str


@dataclass(frozen=True, kw_only=True)
class PolicySet:
    """The index of a training stage's output."""

    root: Path
    checkpoints: tuple[Checkpoint, ...]
    last: str
    diverged: Mapping[str, Any] | None
    facts: Mapping[str, Any]

    def folder(self, name: str | None = None) -> Path:
        """Folder of the named checkpoint, by default the last good one."""
        return self.root / self.checkpoint(name).path

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """The named checkpoint.

        Raises:
            IntegrityError: There is none of that name.
        """
        wanted = name or self.last
        for one in self.checkpoints:
            if one.name == wanted:
                return one
        raise IntegrityError(
            f"no checkpoint {wanted!r}; there are {[one.name for one in self.checkpoints]}", where=str(self.root)
        )


def read_policy_set(root: Path) -> PolicySet:
    """Reads the index of a policy set."""
    index = json.loads((root / "index.json").read_text())
    return PolicySet(
        root=root,
        checkpoints=tuple(Checkpoint(**one) for one in index["checkpoints"]),
        last=index["last"],
        diverged=index["diverged"],
        facts=index["facts"],
    )


def write_policy_set(
    out: Path,
    checkpoints: Iterable[Checkpoint],
    *,
    facts: Mapping[str, Any],
    diverged: Mapping[str, Any] | None = None,
) -> None:
    """Writes the index; the checkpoint folders must be in place."""
    listed = [asdict(one) for one in checkpoints]
    index = {"checkpoints": listed, "last": listed[-1]["name"], "diverged": diverged, "facts": dict(facts)}
    (out / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True))


def keep_checkpoint(kept: Path, step: int, write: Callable[[Path], None]) -> None:
    """Writes the policy of `step` below `kept` under a temporary name and renames it.

    An existing one stays: a resumed run repeats its steps exactly, so it is the same.
    """
    folder = kept / f"step-{step:06d}"
    if folder.exists():
        return
    partial = kept / f".step-{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(folder)


def forget_checkpoint(kept: Path, step: int) -> None:
    """Removes the policy of `step`, if it was kept: it has turned out to be no good one."""
    shutil.rmtree(kept / f"step-{step:06d}", ignore_errors=True)


def kept_checkpoints(kept: Path) -> list[tuple[int, Path]]:
    """(step, folder) of what `keep_checkpoint` wrote, by step."""
    return [(int(folder.name.removeprefix("step-")), folder) for folder in sorted(kept.glob("step-*"))]


def keep_start(kept: Path, sft: Path, tokenizer: Any, placement: Placement, trust_remote_code: bool) -> None:
    """Keeps the SFT as step 0 if nothing was kept: the last good policy of a run that diverged at once."""
    if not kept_checkpoints(kept):
        policy = load_policy(sft, placement, trust_remote_code=trust_remote_code)
        keep_checkpoint(kept, 0, lambda folder: save_model(policy, tokenizer, folder))


def publish_checkpoints(kept: Path, out: Path, placement: Placement, trust_remote_code: bool) -> list[Checkpoint]:
    """Copies what `keep_checkpoint` wrote into the output, each with the digest of its trunk as it reads back."""
    listed = []
    for step, folder in kept_checkpoints(kept):
        path = f"checkpoints/{folder.name}"
        shutil.copytree(folder, out / path)
        digest = trunk_digest(load_policy(folder, placement, trust_remote_code=trust_remote_code))
        listed.append(Checkpoint(name=folder.name, path=path, step=step, tensors=digest))
    return listed


def read_selected(root: Path) -> str:
    """Name of the checkpoint that the `select` stage chose."""
    name: str = json.loads((root / "selected.json").read_text())["checkpoint"]
    return name
