"""A home with MLflow's database, made once: its tables take seconds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from workbench.tracking import Tracker


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database exists already: MLflow takes seconds to make one."""
    home = tmp_path_factory.mktemp("mlflow")
    Tracker.open(None, home, "first", {}).finish(None, status="FAILED")
    return home


@pytest.fixture
def home(mlflow_template: Path, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    with sqlite3.connect(mlflow_template / "mlflow.db") as source, sqlite3.connect(home / "mlflow.db") as target:
        source.backup(target)
    return home
