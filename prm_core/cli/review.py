"""`prm review`: people judge the steps the automatic labels are least sure of, on a local page or in a file, and what
they say becomes human labels.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prm_core.errors import InputError

app = typer.Typer(invoke_without_command=True)

Workspace = Annotated[Path, typer.Option(help="Folder with params.yaml, data/ and artifacts/.")]
HERE = Path(".")


class Format(StrEnum):
    """File formats of the queue."""

    jsonl = "jsonl"
    csv = "csv"
    label_studio = "label-studio"


_SUFFIXES = {Format.jsonl: ".jsonl", Format.csv: ".csv", Format.label_studio: ".json"}


@app.callback()
def review(
    context: typer.Context,
    reviewer: Annotated[str | None, typer.Option(help="Your name; the page asks for it if left out.")] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps that every reviewer is asked, which is what their "
                            "agreement is measured on; the other steps are asked once.")
    ] = 0.2,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8500,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    workspace: Workspace = HERE,
) -> None:
    """Judge steps on a local page: the question, the steps so far, and keys for right, wrong, skip and undo.

    Every answer is saved in data/human at once; stop with Ctrl-C and go on any time. What the strategies say is hidden
    until you ask for it (v), because a reviewer who has read it tends to agree with it. A second reviewer opens the
    same page under another name, or starts another one.

    Without a page: `prm review export`, answer in the file (or in Label Studio), `prm review import`.
    """
    if context.invoked_subcommand is not None:
        # By name: typer carries a click of its own.
        given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
        if given:
            raise InputError(f"options of `prm review {context.invoked_subcommand}` go after its name (--{given[0]} "
                             "came before)")
        return
    from prm_core.cli.failures import check_port
    from prm_core.review.session import Board

    check_port("127.0.0.1", port)
    board = Board(workspace, overlap)
    typer.echo(f"{board.unanswered()} steps wait for an answer: http://127.0.0.1:{port}   (Ctrl-C ends)")
    sys.stdout.flush()
    from prm_core.review import page

    page.serve(board, reviewer=reviewer, port=port, show=browser)


@app.command("agreement")
def show_agreement(workspace: Workspace = HERE) -> None:
    """How far reviewers agree: Cohen's kappa of each pair, and the steps they judged differently."""
    from prm_core.labeling.human.agreement import agreement, describe
    from prm_core.labeling.human.labels import HUMAN_PREFIX, read_human
    from prm_core.review.session import HUMAN

    data = read_human(workspace / HUMAN)
    pairs = agreement(data.labels)
    if not pairs:
        names = sorted({label.strategy.removeprefix(HUMAN_PREFIX) for label in data.labels})
        typer.echo(f"Agreement takes two reviewers; {workspace / HUMAN} has labels by {names[0] if names else 'nobody'}"
                   ". A second one answers with `prm review --reviewer NAME`.")
        return
    chains = {t.id: t for t in data.trajectories}
    prompts = {p.id: p.prompt for p in data.problems}
    for pair in pairs:
        typer.echo(describe(pair))
        for (trajectory_id, index), by_first in pair.disagreed:
            chain = chains[trajectory_id]
            right, wrong = (pair.first, pair.second) if by_first else (pair.second, pair.first)
            typer.echo(f"  {trajectory_id} step {index + 1}: right says {right}, wrong says {wrong}")
            typer.echo(f"    {prompts.get(chain.problem_id, '')}\n    → {chain.steps[index].text}")
    if not any(pair.steps for pair in pairs):
        typer.echo("No two reviewers have judged the same step: `prm review --overlap 1` asks everyone every step.")


@app.command("finish")
def finish(workspace: Workspace = HERE) -> None:
    """Let the run that waits for review (`prm run --review`) record the answers and go on."""
    from prm_core.platform import workspace as workspaces
    from prm_core.review import pause

    waiting = pause.waiting(workspace)
    if waiting is None:
        at_work = "a run is at work, but it does not wait" if workspaces.is_in_use(workspace) else "no run waits here"
        raise InputError(f"{workspace.resolve()}: {at_work} for review; {pause.RECORD}")
    sys.stdout.flush()
    # Nothing below flows/ imports Prefect. The address is that of the server the paused run talks to, which may be one
    # it started for itself.
    command = [sys.executable, "-m", "flows.review", waiting.flow_run]
    os.execve(sys.executable, command, {**os.environ, "PREFECT_API_URL": waiting.api})


@app.command("export")
def export_queue(
    out: Annotated[
        Path | None, typer.Option(help="File to write; review.jsonl, review.csv or review.json if left out.")
    ] = None,
    format: Annotated[Format | None, typer.Option(help="From the name of --out if left out, else jsonl.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that holds answers, or something else.")
                     ] = False,
    workspace: Workspace = HERE,
) -> None:
    """Write the review queue to a file, one step per row with the question and the steps before it.

    Fill in `is_correct` with true or false (leave empty what you cannot tell), add a note if you like, and hand the
    file to `prm review import`. Judge the step alone: is it right, given the question and the steps before it?

    For Label Studio, the labelling interface is written beside the tasks, with the ending .xml.
    """
    from prm_core.platform import store
    from prm_core.review import label_studio
    from prm_core.review.files import holds_work, queue_as_csv, read_queue
    from prm_core.review.session import QUEUE

    named = {suffix: kind for kind, suffix in _SUFFIXES.items()}.get(out.suffix if out else "")
    chosen = format or named or Format.jsonl
    target = out or Path(f"review{_SUFFIXES[chosen]}")
    queue = read_queue(workspace / QUEUE)
    if not force and holds_work(target):
        raise InputError(f"{target}: holds answers, or is no file of this command; name another with --out, or "
                         "overwrite it with --force")
    if chosen is Format.label_studio:
        interface = target.with_suffix(".xml")
        store.write_json(target, label_studio.tasks(queue))
        store.write_text(interface, label_studio.LABELING_CONFIG)
        typer.echo(f"{len(queue)} steps in {target}, the labelling interface in {interface}. In Label Studio: paste "
                   f"{interface.name} under Settings, Labeling Interface, Code; Import {target.name}. When answered: "
                   "Export, JSON, then: prm review import FILE")
        return
    if chosen is Format.csv:
        store.write_text(target, queue_as_csv(queue))
    else:
        store.write_jsonl(target, queue)
    typer.echo(f"{len(queue)} steps in {target}. Fill in is_correct, then: prm review import {target} --reviewer NAME")


@app.command("import")
def import_file(
    file: Annotated[
        Path, typer.Argument(help="The exported file with is_correct filled in (.jsonl, .csv, as spreadsheets and "
                             "pandas save them too), or Label Studio's JSON export (.json).")
    ],
    reviewer: Annotated[
        list[str] | None, typer.Option(help="Who answered. For Label Studio it may be left out, or given once per "
                                       "annotator as ID=NAME or EMAIL=NAME.")
    ] = None,
    workspace: Workspace = HERE,
) -> None:
    """Add answers to data/human, with the chains they are about.

    The calibrator is fitted on them at the next run; chains with human labels are never trained on. Importing a file
    twice changes nothing; a changed answer replaces the old one, and of two in a file the later counts; a second
    reviewer may answer the same steps.
    """
    from prm_core.review import pause
    from prm_core.review.importing import import_answers
    from prm_core.review.session import HUMAN, generated

    pause.check_writable(workspace)
    report = import_answers(_answers(file, reviewer or []), workspace / HUMAN, generated(workspace))
    typer.echo(f"{report.added} answers added, {report.replaced} replaced, {report.unchanged} already there, "
               f"{report.unanswered} left empty; {report.new_chains} chains new to data/human.")
    if report.superseded:
        typer.echo(f"{report.superseded} answers were given anew further on; the later ones count.")
    if report.added or report.replaced:
        typer.echo(pause.next_step(workspace))


def _answers(file: Path, reviewers: list[str]):
    """The answers of a file, by its ending. Raises InputError where it is not clear whose they are."""
    from prm_core.review.files import read_answers, reviewer_name
    from prm_core.review.label_studio import is_export, read_export

    pairs = dict(given.split("=", 1) for given in reviewers if "=" in given)
    plain = [given for given in reviewers if "=" not in given]
    if file.suffix == ".json" and is_export(file):
        if len(plain) > 1 or (plain and pairs):
            raise InputError("--reviewer: give one name for a file with one annotator, or ID=NAME for each of them")
        return read_export(file, pairs, plain[0] if plain else None)
    if pairs or len(plain) != 1:
        raise InputError(f"{file}: whose answers are these? Give one --reviewer NAME")
    return read_answers(file, reviewer_name(plain[0]))
