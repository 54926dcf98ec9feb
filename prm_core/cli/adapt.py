"""`prm adapt`: the served reward model learns from what it serves; `prm outcome`: how trajectories ended; `prm forget`:
data withdrawn. What they do is in prm_core/adaptation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prm_core.errors import GateError, InputError

if TYPE_CHECKING:
    from prm_core.adaptation.loop import Done

app = typer.Typer(invoke_without_command=True, help="Adapt the served model to its traffic, round by round.")
Workspace = Annotated[Path, typer.Option(help="Folder that the server was started in.")]
HERE = Path(".")


def one_round(workspace: Path, go: bool, retrain: bool) -> Done:
    """Does what can be done of a round now. Raises as `loop.adapt` does, and InUse while another is at work."""
    from prm_core import config as configuration
    from prm_core.adaptation.loop import adapt as work
    from prm_core.platform.workspace import ADAPT_LOCK, exclusive

    with exclusive(workspace, lock=ADAPT_LOCK):
        return work(workspace, configuration.load(workspace), time.time(), go=go, retrain=retrain)


@app.callback()
def adapt(
    context: typer.Context,
    go: Annotated[bool, typer.Option("--go", help="Train with the answers there are.")] = False,
    workspace: Workspace = HERE,
) -> None:
    """Take served trajectories, ask people about the most telling steps, train a challenger, promote or refuse it.

    Each call does what can be done and says what it waits for: more traffic (drift.texts and drift.sample say what is
    kept of it), or people's answers. A call that was killed is gone on with by the next. The section adapt of
    params.yaml says how much of everything. A challenger that is refused is told with the reason and exit code 1.
    """
    if context.invoked_subcommand is None:
        _tell(one_round(workspace, go, False))


@app.command("retrain")
def retrain(
    go: Annotated[bool, typer.Option("--go", help="Train with the answers there are.")] = True,
    workspace: Workspace = HERE,
) -> None:
    """Train anew without what was withdrawn, from the last version that nothing of it went into.

    The new version takes over where it is not worse than the champion.
    """
    _tell(one_round(workspace, go, True))


def _tell(done: Done) -> None:
    from prm_core.adaptation.loop import REFUSED

    if done.state == REFUSED:
        raise GateError(str(done))
    typer.echo(str(done))


@app.command("collect")
def collect_traces(
    experiment: Annotated[list[str], typer.Option(help="Of MLflow, whose judged traces are taken; repeat for more.")],
    since: Annotated[str, typer.Option(help="Traces that began 90m, 24h, 7d ago or later, or at a date.")] = "7d",
    chance: Annotated[float, typer.Option(min=0.000001, max=1, help="That a run was traced at all.")] = 1.0,
    workspace: Workspace = HERE,
) -> None:
    """Take in traces that `prm judge` has scored, and how they ended: their feedback `task_success`, true or false.

    Example:  prm adapt collect --experiment agents
    """
    from datetime import UTC, datetime

    from prm_core import config as configuration
    from prm_core.adaptation.feedback import collect
    from prm_core.cli.scoring.judge import parse_since
    from prm_core.platform.workspace import ADAPT_LOCK, exclusive

    begins = parse_since(since, datetime.now(UTC))
    with exclusive(workspace, lock=ADAPT_LOCK):
        found = collect(workspace, configuration.load(workspace), experiment, begins, chance)
    typer.echo("; ".join(f"{what}: {count}" for what, count in found.items()) or "no trace was found")


@app.command("undo")
def undo(
    because: Annotated[str, typer.Option(help="Why; it is kept with the version.")] = "",
    workspace: Workspace = HERE,
) -> None:
    """Make the version that was champion before the champion again.

    What the undone version was trained on is left out of later rounds, and the version is not promoted again.
    """
    from prm_core import config as configuration
    from prm_core.adaptation import lineage
    from prm_core.platform.workspace import ADAPT_LOCK, exclusive

    with exclusive(workspace, lock=ADAPT_LOCK):
        before, now = lineage.undo(workspace, configuration.load(workspace), because)
    typer.echo(f"{now} is the champion again, {before} is undone; its trajectories are left out from now on")


@app.command("lineage")
def show_lineage(workspace: Workspace = HERE) -> None:
    """What each version was made of: its parent, trajectories, labels and people."""
    from prm_core import config as configuration
    from prm_core.adaptation import lineage

    known = lineage.versions(workspace, configuration.load(workspace))
    for uri, (one, made) in known.items():
        typer.echo(f"{uri}: round {one.number}, from {made.parent}; {len(made.trajectories)} trajectories, "
                   f"{len(made.held_out)} held out; {len(made.labels)} verdicts of "
                   f"{', '.join(made.people) or 'nobody'}")
    if not known:
        typer.echo("no round has registered a version yet")


def outcome(
    file: Annotated[Path, typer.Argument(help="JSONL: `trajectory_id`, or `prompt` and `steps`, or `messages`; "
                                              "`success`; `reporter` and `chance` where they are known.")],
    workspace: Workspace = HERE,
) -> None:
    """Tell how served trajectories have ended, as POST /outcome does.

    Example:  prm outcome ended.jsonl
    """
    from prm_core import config as configuration
    from prm_core.platform import store
    from prm_core.serving.drift.outcomes import parse_outcome, tell, trajectory_id
    from prm_core.serving.service import parse_request

    found = []
    for where, record in store.read_json_lines(file):
        request = parse_request(record, where) if record.get("trajectory_id") is None else None
        name = trajectory_id(request.prompt, request.steps) if request else None
        found.append(parse_outcome(record, where, time.time(), name))
    noted = tell(workspace / configuration.load(workspace).drift.folder, found)
    gone = f"; {len(found) - noted} of trajectories that were withdrawn are left out" if noted < len(found) else ""
    typer.echo(f"{noted} outcomes noted{gone}")


def forget(
    trajectory: Annotated[list[str] | None, typer.Option(help="Id of a trajectory; repeat it for more.")] = None,
    person: Annotated[list[str] | None, typer.Option(help="A reviewer, whose labels go; repeat it for more.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(
        help="Name of an API key, all whose trajectories go; repeat it for more.")] = None,
    workspace: Workspace = HERE,
) -> None:
    """Take data out of everything that is kept and of all future training; say which versions it went into.

    Next: `prm adapt retrain` trains a version without it.
    """
    from prm_core import config as configuration
    from prm_core.adaptation import withdrawal
    from prm_core.platform.workspace import ADAPT_LOCK, exclusive
    from prm_core.serving.drift.withdrawn import Withdrawn

    what = Withdrawn(frozenset(trajectory or ()), frozenset(person or ()), frozenset(tenant or ()))
    if what == Withdrawn():
        raise InputError("nothing is named; give --trajectory ID, --person NAME or --tenant NAME")
    with exclusive(workspace, lock=ADAPT_LOCK):
        done = withdrawal.forget(workspace, configuration.load(workspace), what)
    typer.echo(str(done))
