"""`prm judge`: step scores on MLflow's traces, as feedback on the very spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.serving.trace_pass import Selection

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_since(text: str, now: datetime) -> int:
    """Unix time in ms of `90m`, `24h`, `7d` before `now`, or of an ISO 8601 date or time, which is UTC where it does
    not say. Raises InputError for anything else."""
    ago = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if ago:
        return round((now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp() * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--since {text}: expected 90m, 24h, 7d, or a date or time such as 2026-11-27T08:00") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def select(experiments: Sequence[str], filter: str, since: str | None, limit: int | None, settle: int) -> Selection:
    """The traces that the options choose now. Raises InputError for a `since` that is no time."""
    from prm_core.serving.trace_pass import Selection

    now = datetime.now(UTC)
    ended = round((now - timedelta(minutes=settle)).timestamp() * 1000) if settle else None
    return Selection(experiments, filter, parse_since(since, now) if since else None, limit, ended)


def judge(
    experiment: Annotated[list[str], typer.Option(help="MLflow experiment whose traces are judged; may be repeated.")],
    model: Annotated[str, typer.Option(
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/reward_model or a folder.")] = "models:/prm@champion",
    filter: Annotated[str, typer.Option(help="Which of its traces, as mlflow.search_traces takes it.")] = "",
    since: Annotated[str | None, typer.Option(help="Those that began since: 90m, 24h, 7d, or a date.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge at most so many, the newest first.")] = None,
    settle: Annotated[int, typer.Option(min=0, max=100_000, help=
        "Minutes since a trace's end before it is judged: of spans from several processes some are late.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the feedback; another one keeps two models side by side.")
                    ] = "prm_step",
    workspace: Annotated[Path, typer.Option(help="Folder whose MLflow store has model and traces.")] = Path("."),
) -> None:
    """Score every step of an agent's MLflow traces, and log each score as feedback on the very span.

    A trace that has its scores from this version of the model is left as it is, so that a second pass writes nothing;
    scores of another version are replaced, those of others and of people never. A stopped pass goes on where it was.
    Traces that are still running are left for a later one. Where params.yaml names rules (section rules), each span
    that breaks one gets feedback `rule/ID` with the reason. MLFLOW_TRACKING_URI names another store than the folder's.
    """
    from prm_core.serving.trace_judge import Judge
    from prm_core.serving.trace_pass import judge_traces

    chosen = select(experiment, filter, since, limit, settle)
    typer.echo(str(judge_traces(Judge(model, workspace, name), chosen, workspace)))
