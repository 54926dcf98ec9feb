"""Served traffic checked on a schedule, as a Prefect flow: what `prm drift` does, in the workspace of a profile."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State

from flows.pipeline import BAD_INPUT, SKIPPED
from prm_core.cli.scoring.drift import CHAMPION, check_window, review_folder
from prm_core.errors import InputError
from prm_core.platform import environment, workspace

DRIFTED = "Drifted"


@flow(name="drift", flow_run_name="{model}", log_prints=False)
def drift(model: str = CHAMPION, since: str | None = None, profile: str = "default") -> State:
    """Compares a window of what was served with what the model was calibrated on; an alarm is a failed run.

    Args:
        model, since: as the options of `prm drift`.
        profile: in whose workspace the server was started.
    """
    log = get_run_logger()
    where = workspace.locate(environment.project_root(), profile)
    try:
        found, steps = check_window(where, model, since)
    except workspace.InUse as error:
        return Completed(name=SKIPPED, message=str(error))
    except InputError as error:
        return Failed(name=BAD_INPUT, message=str(error))
    if steps:
        log.info("%d steps wait for review: prm review --workspace %s", steps, review_folder(where))
    return Failed(name=DRIFTED, message=str(found)) if found.alarm else Completed(message=str(found))
