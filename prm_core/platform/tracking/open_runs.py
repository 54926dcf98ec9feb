"""Which MLflow runs of a workspace are being worked on: a lock file each, held by the process that opened the run.

A process that is killed closes nothing, but its lock goes with it; the next one to look finds the file unlocked.
Nothing here knows MLflow.
"""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from typing import IO

FOLDER = ".work/open_runs"

# Locks of this process by name. POSIX locks are a process's own: its children do not inherit them, so that none keeps
# one after it; and opening such a file once more and closing it would give the lock up.
_held: dict[str, IO[str]] = {}


def hold(workspace: Path) -> str:
    """Takes a new lock; returns its name."""
    folder = workspace / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    # Under another name until it is locked: an unlocked file is one whose process has ended.
    hidden = folder / f".{name}"
    file = hidden.open("w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    _held[name] = file
    hidden.rename(folder / name)
    return name


def release(workspace: Path, name: str) -> None:
    """Gives a lock up, or removes one that nobody holds any more."""
    (workspace / FOLDER / name).unlink(missing_ok=True)
    file = _held.pop(name, None)
    if file is not None:
        file.close()


def abandoned(workspace: Path) -> list[str]:
    """Names of the locks whose process has ended without giving them up."""
    folder = workspace / FOLDER
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file.name for file in files if not file.name.startswith(".") and file.name not in _held and _is_free(file)]


def _is_free(path: Path) -> bool:
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Held, or gone meanwhile.
        return False
    return True
