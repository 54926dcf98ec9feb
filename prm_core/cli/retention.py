"""`prm retention`: what is old in a workspace, deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prm_core.platform.tracking.retention import Limits


def retention(
    days: Annotated[float, typer.Option(min=0, help="Runs younger than this stay.")] = Limits.days,
    newest: Annotated[int, typer.Option(min=0, help="So many of the newest runs stay, however old.")] = Limits.newest,
    trace_days: Annotated[float, typer.Option(min=0, help="Traces younger than this stay.")] = Limits.trace_days,
    newest_traces: Annotated[
        int, typer.Option(min=0, help="So many of the newest traces of an experiment stay.")] = Limits.newest_traces,
    experiment: Annotated[
        list[str] | None, typer.Option(help="An experiment whose traces are looked through; repeat it for more.")
    ] = None,
    traffic_days: Annotated[
        float, typer.Option(min=0, help="Files of served traffic younger than this stay.")] = Limits.traffic_days,
    traffic: Annotated[str, typer.Option(help="Folder of served traffic, in the workspace.")] = "served",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder whose stores are looked through.")] = Path("."),
) -> None:
    """Delete old MLflow runs, traces and files of served traffic.

    What a registered version comes from, was trained by or measured by stays, and so does a trace that a person has
    judged. A run of the flow and those of its stages go together. Runs are marked as deleted; `mlflow gc` frees their
    files.

    Example:  prm retention --days 30 --newest 5 --dry-run
    """
    from prm_core.platform.tracking import retention as old

    limits = Limits(days, newest, trace_days, newest_traces, traffic_days)
    outdated = old.find(workspace, limits, experiment or (), workspace / traffic)
    if dry_run:
        for run_id in outdated.runs:
            typer.echo(f"run {run_id}")
        for ids in outdated.traces.values():
            for trace_id in ids:
                typer.echo(f"trace {trace_id}")
        for path in outdated.files:
            typer.echo(f"file {path}")
    else:
        old.delete(workspace, outdated)
    typer.echo(f"{'would go' if dry_run else 'deleted'}: {outdated}")
