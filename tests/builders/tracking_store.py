"""MLflow databases by the copy: making one takes a second of migrations, and all new ones are alike."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from prm_core.platform import tracking
from prm_core.platform.tracking import open_runs

create = tracking._create_database


@cache
def _template() -> Path:
    """One for all workers of a run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    folder = Path(tempfile.gettempdir(), f"prm-tests-mlflow-{run}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "mlflow.db").exists():
            create(folder / "mlflow.db")
    return folder / "mlflow.db"


def place(path: Path) -> None:
    """Puts a new database there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), path)


@contextmanager
def copied() -> Iterator[None]:
    """Workspaces of this process get a copy where they would make a database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_create_database", place)
        yield


def abandon(workspace: Path, name: str) -> str:
    """An open run as a killed process leaves it: there, and its lock gone. Returns its id."""
    run_id = tracking.start_run(workspace, name, {})
    open_runs._held.pop(tracking._locks.pop(run_id)).close()
    return run_id
