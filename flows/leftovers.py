"""Flow runs whose process was killed: with Prefect they would be RUNNING for ever.

Each run keeps a note in its workspace, locked as long as its process lives, whatever ends it. The next run there looks
for notes that nobody holds and has Prefect mark their flow run, and the tasks in it, CRASHED.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import IO

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Crashed

from prm_core.platform import store

NOTES = ".work/flows"
# A note's lock goes with the process, hence the file stays open.
_held: list[IO[str]] = []


def note_before(folder: Path) -> str:
    """Notes a run that is about to start in a workspace; returns the tag it must carry.

    From the moment that Prefect knows of the run, a killed process can then be told from one that is at work.
    """
    tag = f"process-{uuid.uuid4().hex}"
    _note(folder, {"tag": tag})
    return tag


def untagged() -> TagsContext:
    """A block whose tasks do not take over the flow run's tag.

    Each task with a tag asks the server for a place under a limit of that name, which nobody set; and the server, whose
    database is busy with the task before, has it ask again two seconds later.
    """
    return TagsContext(current_tags=set())


def note_this(folder: Path) -> None:
    """Notes the flow run that this is called in: a deployment's, which Prefect knew before its process started."""
    run = flow_run.get_id()
    if run is not None:
        _note(folder, {"flow_run": str(run)})


def _note(folder: Path, content: dict[str, str]) -> None:
    path = folder / NOTES / f"{uuid.uuid4().hex}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    store.write_json(new, {**content, "server": os.environ.get("PREFECT_API_URL", "")})
    file = new.open("r")
    fcntl.flock(file, fcntl.LOCK_EX)
    # In place once it is locked: one that is there and is not, is a dead process's.
    new.rename(path)
    _held.append(file)


def finish(folder: Path) -> list[str]:
    """Has Prefect mark what killed processes left open in a workspace; returns the names of those flow runs.

    A note about a run that the present server does not know is kept where it was made with another one.
    """
    marked = []
    with get_client(sync_client=True) as client:
        for path in sorted((folder / NOTES).glob("*.json")):
            with path.open("r") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                note = store.read_json(path)
                known, names = _mark(client, note)
                marked += names
                if known or note["server"] == os.environ.get("PREFECT_API_URL", ""):
                    path.unlink(missing_ok=True)
    return marked


def _mark(client: SyncPrefectClient, note: dict[str, str]) -> tuple[bool, list[str]]:
    """Whether the server knows the run of a note, and the names of the flow runs that had to be marked."""
    which = (FlowRunFilter(id=FlowRunFilterId(any_=[uuid.UUID(note["flow_run"])])) if "flow_run" in note
             else FlowRunFilter(tags=FlowRunFilterTags(all_=[note["tag"]])))
    runs = client.read_flow_runs(flow_run_filter=which)
    crashed = Crashed(message="its process was killed; found at the next start in this workspace")
    names = []
    for run in runs:
        same = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for task in client.read_task_runs(flow_run_filter=same):
            if task.state is not None and not task.state.is_final():
                client.set_task_run_state(task.id, crashed, force=True)
        if run.state is not None and not run.state.is_final():
            client.set_flow_run_state(run.id, crashed, force=True)
            names.append(run.name)
    return bool(runs), names
