"""A workspace's own MLflow store, wherever the workspace lies now.

MLflow records absolute places of artifacts. A copied workspace would write its models into the original's folder, a
moved one would look for them where it was. So whoever opens the store first has it name the folder beside it. Nothing
here imports MLflow, and stores that MLFLOW_TRACKING_URI names are not touched.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prm_core.errors import InputError

log = logging.getLogger(__name__)

# Where MLflow keeps places of artifacts.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
WAIT_SECONDS = 60


def relocate(database: Path, experiment: str, artifacts: Path) -> None:
    """Has every record below the folder that held the experiment's artifacts point below `artifacts`.

    Several processes may call it at once: the change is one transaction. An experiment whose artifacts lie elsewhere
    than on this disk stays as it is, and so does what lies outside its folder.

    Args:
        database: MLflow's SQLite file.
        experiment: name of the experiment whose place tells where the store was.
        artifacts: an absolute folder.

    Raises:
        InputError: the file is no database, or broken.
    """
    try:
        with closing(sqlite3.connect(database, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
            if not _moved_from(connection, experiment, artifacts):
                return
            connection.execute("BEGIN IMMEDIATE")
            # Again, now that no other process can change it.
            old = _moved_from(connection, experiment, artifacts)
            if old:
                _rewrite(connection, old, artifacts.as_uri())
                # The experiment that MLflow makes by itself has a path instead of a URI.
                _rewrite(connection, _path(old), str(artifacts))
                log.info("%s: its artifacts were in %s, and are looked for in %s now", database, _path(old), artifacts)
            connection.execute("COMMIT")
    except sqlite3.OperationalError:
        # Full, locked, not ours to write: no fault of the file.
        raise
    except sqlite3.DatabaseError as error:
        raise InputError(f"{database}: MLflow's database cannot be read ({error}); put it back from a copy, or move it "
                         "away and run the register stage again (`dvc repro --force --single-item register`)") from None


def _moved_from(connection: sqlite3.Connection, experiment: str, artifacts: Path) -> str | None:
    """The URI of the folder the store was in, None where it is there still, or not on this disk."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return None
    row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
    if row is None or row[0] == artifacts.as_uri() or urlsplit(row[0]).scheme != "file":
        return None
    old = Path(_path(row[0]))
    # One folder under two names, such as a mount, has not moved.
    if old.exists() and artifacts.exists() and old.samefile(artifacts):
        return None
    return row[0]


def _path(uri: str) -> str:
    return unquote(urlsplit(uri).path)


def _rewrite(connection: sqlite3.Connection, old: str, new: str) -> None:
    known = {(table, column[1]) for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
             for column in connection.execute(f"PRAGMA table_info({table})")}
    for table, column in COLUMNS:
        if (table, column) in known:
            below = f"{column} = ? OR substr({column}, 1, ?) = ?"
            connection.execute(f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {below}",
                               (new, len(old) + 1, old, len(old) + 1, f"{old}/"))
