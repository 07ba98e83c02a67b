"""What is built once for a whole test run, also when several pytest workers share it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import bench

os.environ.pop("MLFLOW_TRACKING_URI", None)  # tests log to homes of their own, never to a developer's server


@pytest.fixture(scope="session")
def smoke_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of one finished `workbench compare smoke`. Only to be read: copy it to change it (`bench.copy_home`).

    Beside the home's own files: stdout.json (what --json printed) and stderr.txt.
    """

    def build(home: Path) -> None:
        done = bench.workbench("compare", "smoke", "--home", home, "--json")
        assert done.code == 0, done.stderr
        (home / "stdout.json").write_text(done.stdout)
        (home / "stderr.txt").write_text(done.stderr)

    return bench.once(tmp_path_factory, "smoke-home", build)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder (safetensors, tokenizer). Only to be read."""
    return bench.once(tmp_path_factory, "small-model", bench.small_model)
