"""Review and runs in one workspace: a run may pause for review, and while one is at work human labels stay as they are.

DVC hashes what a stage read when the stage has ended. Labels that came in meanwhile would be recorded as read, and the
next run would leave them out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import store, workspace

_NOTE = ".work/review_pause.json"
RECORD = "`dvc add data` makes the answers part of the versioned data, then `prm run`"


@dataclass(frozen=True, slots=True)
class Pause:
    """A run that waits for review.

    Attributes:
        flow_run: its id with Prefect.
        api: address of the Prefect server it talks to.
        until: when it stops waiting, ISO 8601.
    """

    flow_run: str
    api: str
    until: str


def begin(folder: Path, pause: Pause) -> None:
    """Called by the run that holds the workspace, when it starts waiting."""
    store.write_json(folder / _NOTE, asdict(pause))


def end(folder: Path) -> None:
    """Called by that run when it goes on."""
    (folder / _NOTE).unlink(missing_ok=True)


def waiting(folder: Path) -> Pause | None:
    """The run that waits for review in a workspace, None where there is none (any more)."""
    path = folder / _NOTE
    # A run that was killed while it waited left its note behind, but holds the workspace no longer.
    if not path.exists() or not workspace.is_in_use(folder):
        return None
    return Pause(**store.read_json(path))


def check_writable(folder: Path) -> None:
    """Raises InputError while a run is at work in the workspace and does not wait for review."""
    if workspace.is_in_use(folder) and waiting(folder) is None:
        raise InputError(f"{folder}: a run is at work here, and labels that come in now would be taken for ones it has "
                         "read; wait until it ends, or have it pause for review (`prm run --review`)")


def next_step(folder: Path) -> str:
    """What to do when the answers are in, as one sentence with the commands."""
    at = "" if folder.resolve() == Path.cwd().resolve() else f" --workspace {folder}"
    if waiting(folder) is not None:
        return f"A run waits for these answers: `prm review finish{at}` has it record them and go on."
    return f"Next: {RECORD}."
