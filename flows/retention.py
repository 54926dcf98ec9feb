"""Old runs, traces and traffic deleted, as a Prefect flow: what `prm retention` does, in the workspace of a profile."""

from __future__ import annotations

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.pipeline import BAD_INPUT
from prm_core.errors import InputError
from prm_core.platform import environment, workspace
from prm_core.platform.tracking import retention as old
from prm_core.platform.tracking.retention import Limits


@flow(name="retention", flow_run_name="{profile}", log_prints=False)
def retention(
    days: float = Limits.days, newest: int = Limits.newest, trace_days: float = Limits.trace_days,
    newest_traces: int = Limits.newest_traces, traffic_days: float = Limits.traffic_days,
    experiments: list[str] | None = None, traffic: str = "served", dry_run: bool = False, profile: str = "default",
) -> State:
    """Deletes what is older than so many days and not among the newest so many.

    Args:
        as the options of `prm retention`.
        profile: in whose workspace.
    """
    where = workspace.locate(environment.project_root(), profile)
    try:
        outdated = old.find(where, Limits(days, newest, trace_days, newest_traces, traffic_days), experiments or (),
                            where / traffic)
        if not dry_run:
            old.delete(where, outdated)
    except InputError as error:
        return Failed(name=BAD_INPUT, message=str(error))
    return Completed(message=f"{'would go' if dry_run else 'deleted'}: {outdated}")
