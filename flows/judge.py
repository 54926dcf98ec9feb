"""Agents' traces judged on a schedule, as a Prefect flow: what `prm judge` does, in the workspace of a profile."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State

from flows.pipeline import BAD_INPUT, SKIPPED
from prm_core.cli.scoring.judge import select
from prm_core.errors import InputError
from prm_core.platform import environment, workspace
from prm_core.serving.trace_judge import CHAMPION, Judge
from prm_core.serving.trace_pass import judge_traces


@flow(name="judge", flow_run_name="{experiment}", log_prints=False)
def judge(
    experiment: str, model: str = CHAMPION, filter: str = "", since: str | None = "2d", limit: int | None = None,
    settle: int = 5, profile: str = "default",
) -> State:
    """Scores the steps of an experiment's traces that lack their scores.

    Args:
        experiment, model, filter, since, limit, settle: as the options of `prm judge`.
        profile: in whose workspace the model is, and the traces, unless MLFLOW_TRACKING_URI names another store.
    """
    log = get_run_logger()
    where = workspace.locate(environment.project_root(), profile)
    try:
        outcome = judge_traces(Judge(model, where), select([experiment], filter, since, limit, settle), where)
    except workspace.InUse as error:
        return Completed(name=SKIPPED, message=str(error))
    except InputError as error:
        return Failed(name=BAD_INPUT, message=str(error))
    for line in outcome.failed:
        log.warning("%s", line)
    return Completed(message=str(outcome))
