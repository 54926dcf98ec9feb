"""`prm review export|import`: the steps most worth a human's look, out as a file and back as human labels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Have people judge the steps the automatic labels are least sure of.", no_args_is_help=True)

QUEUE = "artifacts/calibrate/review_queue.jsonl"
Workspace = Annotated[Path, typer.Option(help="Folder with params.yaml, data/ and artifacts/.")]


class Format(StrEnum):
    """File formats of the queue."""

    jsonl = "jsonl"
    csv = "csv"


@app.command("export")
def export_queue(
    out: Annotated[Path | None, typer.Option(help="File to write; review.jsonl or review.csv if left out.")] = None,
    format: Annotated[Format | None, typer.Option(help="From the name of --out if left out, else jsonl.")] = None,
    workspace: Workspace = Path("."),
) -> None:
    """Write the review queue to a file, one step per row with the question and the steps before it.

    Fill in `is_correct` with true or false (leave empty what you cannot tell), add a note if you like, and hand the
    file to `prm review import`. Judge the step alone: is it right, given the question and the steps before it?
    """
    from prm_core import store
    from prm_core.labeling.review import queue_as_csv, read_queue

    chosen = format or (Format.csv if out is not None and out.suffix == ".csv" else Format.jsonl)
    target = out or Path(f"review.{chosen}")
    queue = read_queue(workspace / QUEUE)
    if chosen is Format.csv:
        store.write_text(target, queue_as_csv(queue))
    else:
        store.write_jsonl(target, queue)
    typer.echo(f"{len(queue)} steps in {target}. Fill in is_correct, then: prm review import {target} --reviewer NAME")


@app.command("import")
def import_answers(
    file: Annotated[Path, typer.Argument(help="The exported file with is_correct filled in (.jsonl or .csv).")],
    reviewer: Annotated[str, typer.Option(help="Who answered; a second reviewer may answer the same steps.")],
    workspace: Workspace = Path("."),
) -> None:
    """Add a reviewer's answers to data/human, with the chains they are about.

    The calibrator is fitted on them at the next run; chains with human labels are never trained on. Importing a file
    twice changes nothing; a changed answer replaces the old one.
    """
    from prm_core.labeling.review import import_reviews

    report = import_reviews(
        file, reviewer, human=workspace / "data/human",
        trajectories=workspace / "artifacts/generate/trajectories", problems=workspace / "data/train.jsonl",
    )
    typer.echo(f"{report.added} answers added, {report.replaced} replaced, {report.unchanged} already there, "
               f"{report.unanswered} left empty; {report.new_chains} chains new to data/human.")
    if report.added or report.replaced:
        typer.echo("Run `dvc add data` to make them part of the versioned data, then `prm run`.")
