"""What of a workspace is old: MLflow's runs and traces and kept traffic, by age and number.

Nothing that a registered version needs is old, nor what a person has judged; nothing here decides when.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.platform import tracking

if TYPE_CHECKING:
    from mlflow.entities import Run, Trace
    from mlflow.tracking import MlflowClient

DAY_MS = 86_400_000
PARENT = "mlflow.parentRunId"
MODEL = "models:/"
# As many as MLflow takes in one request.
PAGE = 100


# With slots the defaults could not be read off the class, as the command line and the flow do.
@dataclass(frozen=True)
class Limits:
    """What stays: the newest of each kind, however old, and all that is younger.

    Attributes:
        days, newest: of runs; a run of the flow counts with its stages' as one.
        trace_days, newest_traces: of traces, in each experiment.
        traffic_days: of files of served traffic.
    """

    days: float = 90
    newest: int = 20
    trace_days: float = 90
    newest_traces: int = 10_000
    traffic_days: float = 30

    def __post_init__(self) -> None:
        for name in ("days", "newest", "trace_days", "newest_traces", "traffic_days"):
            if getattr(self, name) < 0:
                raise InputError(f"{name.replace('_', '-')}: {getattr(self, name)} is negative; expected 0 or more")


@dataclass(slots=True)
class Outdated:
    """What goes.

    Attributes:
        runs: ids of runs.
        traces: experiment id → ids of traces.
        files: of traffic.
        needed: how many runs stay only because a registered version needs them.
        judged: how many traces stay only because a person has said something about them.
    """

    runs: list[str] = field(default_factory=list)
    traces: dict[str, list[str]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    needed: int = 0
    judged: int = 0

    def __str__(self) -> str:
        kept = f"{self.needed} old runs stay that a registered version needs, {self.judged} old traces people judged"
        return (f"{len(self.runs)} runs, {sum(map(len, self.traces.values()))} traces, {len(self.files)} files of "
                f"traffic; {kept}")


def find(workspace: Path, limits: Limits, experiments: Sequence[str] = (), traffic: Path | None = None, *,
         now: float | None = None) -> Outdated:
    """What is old; nothing is changed.

    Args:
        experiments: names of those whose traces are looked through.
        traffic: folder whose Parquet files are.
        now: seconds since 1970; by default, the clock's.

    Raises InputError for an experiment that is not there.
    """
    now_ms = int((time.time() if now is None else now) * 1000)
    client = tracking.connect(workspace)
    found = Outdated()
    _find_runs(client, workspace, limits, now_ms, found)
    for name in experiments:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise InputError(f"no experiment {name!r} in {tracking.tracking_uri(workspace)}")
        _find_traces(client, experiment.experiment_id, limits, now_ms, found)
    if traffic is not None and traffic.is_dir():
        oldest = now_ms - limits.traffic_days * DAY_MS
        found.files = sorted(path for path in traffic.rglob("*.parquet") if path.stat().st_mtime * 1000 < oldest)
    return found


def delete(workspace: Path, outdated: Outdated) -> None:
    """Deletes it. A run is marked as deleted, as in MLflow's page; `mlflow gc` frees what it holds."""
    client = tracking.connect(workspace)
    for run_id in outdated.runs:
        client.delete_run(run_id)
    for experiment, ids in outdated.traces.items():
        for start in range(0, len(ids), PAGE):
            client.delete_traces(experiment, trace_ids=ids[start : start + PAGE])
    for path in outdated.files:
        path.unlink(missing_ok=True)


def _find_runs(client: MlflowClient, workspace: Path, limits: Limits, now_ms: int, found: Outdated) -> None:
    families: dict[str, list[Run]] = {}
    for run in _runs(client, tracking.experiment_id(client, workspace)):
        families.setdefault(run.data.tags.get(PARENT, run.info.run_id), []).append(run)
    runs, models = _needed(client)
    by_age = sorted(families.values(), key=_ended, reverse=True)
    for family in by_age[limits.newest :]:
        if _ended(family) >= now_ms - limits.days * DAY_MS:
            continue
        if any(run.info.run_id in runs or _touches(client, run.info.run_id, models) for run in family):
            found.needed += len(family)
        else:
            found.runs += [run.info.run_id for run in family]


def _ended(family: Iterable[Run]) -> float:
    """When the last of them ended, in ms; one that has not, never does."""
    return max(float("inf") if run.info.status == "RUNNING" else run.info.end_time or run.info.start_time
               for run in family)


def _runs(client: MlflowClient, experiment: str) -> Iterable[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _needed(client: MlflowClient) -> tuple[set[str], set[str]]:
    """Ids of the runs that registered versions come from, and of their logged models."""
    runs, models, token = set(), set(), None
    while True:
        page = client.search_model_versions(max_results=1000, page_token=token)
        runs |= {version.run_id for version in page if version.run_id}
        # A version's own field for it is empty.
        models |= {version.source.removeprefix(MODEL) for version in page if version.source.startswith(MODEL)}
        token = page.token
        if not token:
            return runs, models


def _touches(client: MlflowClient, run_id: str, models: set[str]) -> bool:
    """Whether a run made or measured one of these models."""
    # A search leaves out what a run has measured.
    run = client.get_run(run_id)
    inputs = run.inputs.model_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    return any(one.model_id in models for one in (*inputs, *outputs))


def _find_traces(client: MlflowClient, experiment: str, limits: Limits, now_ms: int, found: Outdated) -> None:
    seen, token, old = 0, None, []
    oldest = now_ms - limits.trace_days * DAY_MS
    while True:
        page = client.search_traces(locations=[experiment], max_results=PAGE, page_token=token, include_spans=False,
                                    order_by=["timestamp_ms DESC"])
        for trace in page:
            seen += 1
            if seen <= limits.newest_traces or trace.info.request_time >= oldest:
                continue
            if _is_judged(trace):
                found.judged += 1
            else:
                old.append(trace.info.trace_id)
        token = page.token
        if not token:
            break
    if old:
        found.traces[experiment] = old


def _is_judged(trace: Trace) -> bool:
    """Whether a person has said something about it."""
    return any(one.source.source_type == "HUMAN" for one in trace.info.assessments)
