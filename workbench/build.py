"""One stage that is being built: what it is run with, and what becomes of its output. The driver's side."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from workbench import fsio, keys, worker
from workbench.errors import DataError
from workbench.locks import FileLock
from workbench.manifest import Artifact
from workbench.stage_log import METRICS_FILE, total_cost
from workbench.stages import External, Planned, Stage, input_paths
from workbench.store import Store
from workbench.worker import Job
from workbench.worker_pool import Worker


@dataclass(kw_only=True)
class Build:
    """A stage with its key's lock held. The scratch folder outlives it unless its output is committed."""

    stage: Stage
    planned: Planned
    store: Store
    lock: FileLock
    worker: Worker | None = None

    @property
    def key(self) -> str:
        """The artifact's key."""
        assert self.planned.key is not None
        return self.planned.key

    @property
    def work(self) -> Path:
        """The scratch folder."""
        return self.store.work(self.key)

    @property
    def metrics(self) -> Path:
        """Where its metrics grow."""
        return self.work / METRICS_FILE

    def job(self, artifacts: Mapping[str, Artifact]) -> Job:
        """What a worker needs. Makes the scratch folder.

        Raises:
            DataError: An input from outside is not what was planned with.
            ResourceError: The disk has no room.
        """
        self.check_externals("before")
        self.store.require_space(self.stage.resources.disk_bytes, self.stage.instance)
        with fsio.disk_errors(f"Starting {self.stage.instance}", self.store.home):
            self.work.mkdir(parents=True, exist_ok=True)
        return Job(
            instance=self.stage.instance,
            function=self.stage.function,
            config={**self.planned.material["config"], **self.stage.cosmetic},
            inputs=input_paths(self.stage, artifacts),
            work=self.work,
            seed=self.stage.seed,
            resources=self.stage.resources,
            packages=self.stage.packages,
            modules=self.planned.material["modules"],
            parsed=keys.parsed_sources(),
        )

    def commit(self, record_fields: Mapping[str, Any]) -> Artifact:
        """Puts the output into the store, with metrics and provenance, and removes the scratch folder.

        Raises:
            DataError: An input from outside changed while the stage ran.
            ResourceError: The disk is full.
        """
        self.check_externals("while")
        commit, dirty = checkout_state()
        fields: dict[str, Any] = {
            **self.planned.material,
            "instance": self.stage.instance,
            "commit": commit,
            "dirty": dirty,
            "cost": total_cost(self.work),
            **record_fields,
        }
        artifact = self.store.commit(self.key, self.work / "out", fields, self.metrics)
        fsio.remove_tree(self.work)
        return artifact

    def check_externals(self, when: Literal["before", "while"]) -> None:
        """Refuses inputs from outside whose content is no longer what the key was made of."""
        for role, source in self.stage.inputs.items():
            if isinstance(source, External) and self.store.hash_path(source.path) != source.digest:
                during = "while it ran; its output was not kept" if when == "while" else "since the run was planned"
                raise DataError(
                    f"input {role!r} of {self.stage.instance} changed {during}. Run the command again with the file "
                    "as it is now.",
                    where=source.path,
                )

    def died(self, code: int | None) -> tuple[Any, ...]:
        """The last message of a worker that ended without one, from its exit code."""
        instance = self.stage.instance
        if code == -signal.SIGKILL:
            text = worker.out_of_memory_advice(
                f"{instance}'s process was killed (SIGKILL), most likely by the system because memory ran out"
            )
            return ("error", "ResourceError", text, None, "")
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        log = self.work / "log.txt"
        tail = ""
        with suppress(OSError):
            tail = log.read_text(errors="replace")[-4000:]
        return ("error", "ResourceError", f"{instance}'s process ended with {how}; its output is in {log}.", None, tail)


@lru_cache(maxsize=1)
def checkout_state() -> tuple[str | None, bool | None]:
    """Commit of the project's checkout and whether it has changes; (None, None) outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
