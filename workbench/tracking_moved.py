"""A home that was moved or copied: MLflow's database names the folder of every artifact by its absolute path.

Paths relative to the home would need MLflow's server in between; `mlflow.db` shall also open by itself. So the paths
are written anew where the home's own place has changed. No mlflow here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def adopt_home(home: Path) -> int:
    """Lets the database of a moved or copied home name the artifacts where they lie now.

    What lies outside the home's own `artifacts/` and `store/` keeps its address. A database that another program made,
    without the experiment by which the home's former place is known, is left alone.

    Args:
        home: Folder with mlflow.db and artifacts/; the caller holds the home's MLflow lock.

    Returns:
        Number of addresses written anew; 0 where the home has not moved.

    Raises:
        sqlite3.Error: The database cannot be read, or not be written.
    """
    database = home.resolve() / "mlflow.db"
    if not database.is_file():
        return 0
    here = (home.resolve() / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=30.0)) as connection, connection:
        there = _former_place(connection)
        if there is None or there == here:
            return 0
        known = {
            table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for table in {table for table, _ in PLACES}
        }
        moves = [(table, column, there, here) for table, column in PLACES]
        # The registered models' weights lie in the home's store, beside its artifacts.
        old_store, new_store = (f"{one.removesuffix('/artifacts')}/store" for one in (there, here))
        moves.append(("model_versions", "source", old_store, new_store))
        return sum(
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            ).rowcount
            for table, column, old, new in moves
            if column in known[table]
        )


def _former_place(connection: sqlite3.Connection) -> str | None:
    """The artifacts folder when the database was last adopted; its default experiment lies in it."""
    with contextlib.suppress(sqlite3.OperationalError):  # no such table: not MLflow's, or not finished
        row = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        if row is not None and row[0] and row[0].startswith("file:///") and row[0].endswith("/artifacts/0"):
            return str(row[0].removesuffix("/0"))
    return None
