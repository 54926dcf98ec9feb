"""A flow's pause for human review, and the command that ends it (`prm review finish`).

The run keeps its workspace while it waits, so nothing else can start there; reviewers' answers may come in meanwhile
(prm_core/review/pause.py).
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect import get_run_logger, pause_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run
from rich.console import Console

from flows import dvc
from prm_core.platform import workspace
from prm_core.review import pause
from prm_core.review.session import Board

# How often the waiting run asks its server whether it may go on.
POLL_SECONDS = 5


class NobodyCame(Exception):
    """The pause ran out."""


def wait(folder: Path, hours: float) -> None:
    """Pauses the flow run until someone resumes it. Does nothing where no step waits for an answer.

    Raises NobodyCame when nobody has within `hours`.
    """
    log = get_run_logger()
    board = Board(folder)
    left = board.unanswered()
    if not left:
        log.info("nothing waits for review")
        return
    at = f" --workspace {folder}"
    run = str(flow_run.get_id())
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    until = datetime.now(UTC) + timedelta(hours=hours)
    log.warning("%d steps wait for review, until %s. Answer them:  prm review%s", left, f"{until:%F %T %Z}", at)
    log.warning("Then let this run go on:  prm review finish%s   (or Resume in Prefect's UI)", at)
    pause.begin(folder, pause.Pause(run, api, until.isoformat(timespec="seconds")))
    try:
        pause_flow_run(timeout=max(1, round(hours * 3600)), poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        board.refresh()
        left = board.unanswered()
        raise NobodyCame(f"nobody had the run go on within {hours:.3g} hours; {left} steps still wait for review, "
                         f"answers given are kept: {pause.RECORD}") from None
    finally:
        pause.end(folder)


def record(workplace: dvc.Workplace) -> bool:
    """`dvc add data`, if data/ has changed; returns whether it had. Raises CommandFailed when that fails."""
    data = workplace.folder / "data"
    if workspace.data_hash(data) == workspace.tracked_hash(data):
        return False
    log = get_run_logger()
    code, lines = dvc.run([sys.executable, "-m", "dvc", "add", "data", "--quiet"], workplace, log.info)
    if code:
        raise dvc.CommandFailed(code, lines[-1] if lines else "dvc add data failed")
    log.info("data.dvc names data/ with the new human labels")
    return True


def resume(run: str) -> str | None:
    """Has a paused flow run go on; returns why it cannot, if it cannot."""
    try:
        resume_flow_run(UUID(run))
    except (NotPausedError, ObjectNotFound, FlowPauseTimeout) as error:
        return f"{error} It may have gone on by itself, or be about to pause: look at its log, or try again"
    return None


def main() -> None:
    """Resumes the flow run named on the command line, with the server PREFECT_API_URL names."""
    refusal = resume(sys.argv[1])
    if refusal is not None:
        Console(stderr=True, soft_wrap=True).print(f"error: flow run {sys.argv[1]}: {refusal}", markup=False)
        sys.exit(1)
    Console(soft_wrap=True).print(f"The run goes on within {POLL_SECONDS} seconds.", markup=False)


if __name__ == "__main__":
    main()
