"""The served model adapted to its traffic on a schedule, as a Prefect flow: what `prm adapt` does, in the workspace of
a profile."""

from __future__ import annotations

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.limits import registering
from flows.pipeline import BAD_INPUT, SKIPPED
from prm_core.adaptation.loop import PROMOTED, REFUSED
from prm_core.cli.adapt import one_round
from prm_core.errors import InputError
from prm_core.platform import environment, workspace

WAITS = "Waits"


@flow(name="adapt", flow_run_name="{profile}", log_prints=False)
def adapt(go: bool = False, profile: str = "default") -> State:
    """Does what can be done of a round now; what it waits for, or what became of its challenger, is the run's message.

    Args:
        go: as the option of `prm adapt`.
        profile: in whose workspace the server was started.
    """
    where = workspace.locate(environment.project_root(), profile)
    try:
        with registering(where, 0):
            done = one_round(where, go, False)
    except workspace.InUse as error:
        return Completed(name=SKIPPED, message=str(error))
    except InputError as error:
        return Failed(name=BAD_INPUT, message=str(error))
    name = {PROMOTED: "Promoted", REFUSED: "Refused"}.get(done.state, WAITS)
    return Completed(name=name, message=str(done))
