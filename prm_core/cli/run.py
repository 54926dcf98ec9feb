"""`prm run`: the whole chain as a Prefect flow, in a process of its own (nothing below flows/ imports Prefect)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def run(
    profile: Annotated[
        str, typer.Option(help="Name of a profile (default, smoke, …; prm_core/profiles/) or path of a YAML file, "
                          "which may build on another one (extends: smoke).")
    ] = "default",
    problems: Annotated[
        Path | None, typer.Option(help="Your own problems: JSON lines, a JSON array, CSV, Parquet, … with prompt, "
                                  "answer and perhaps solution (docs/own-data.md).")
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Wait for people (`prm review`) once the steps to judge are chosen, then "
                           "go on with their answers (`prm review finish`).")
    ] = False,
    review_hours: Annotated[float, typer.Option(min=0.0003, help="How long to wait for them.")] = 24,
) -> None:
    """Run every stage that is not up to date, then promote the new reward model if it passes the gate.

    The default profile works in the checkout itself, every other one in runs/<profile>, a problem file in
    runs/<profile>-<file>. Run it again after a crash: finished work is kept. `dvc repro` in that folder does the same
    without Prefect.

    Examples:  prm run   ·   prm run --profile smoke   ·   prm run --problems my_problems.jsonl
    ·   prm run --review
    """
    from prm_core.platform import environment
    from prm_core.problems import prepare
    from prm_core.stages import base

    # In a second, instead of after Prefect's start.
    base.check(prepare.check(environment.project_root(), profile, problems))
    command = [sys.executable, "-m", "flows.run", "--profile", profile]
    if problems is not None:
        command += ["--problems", str(problems)]
    if review:
        command += ["--review", "--review-hours", str(review_hours)]
    sys.stdout.flush()
    sys.stderr.flush()
    # Replaces this process: signals and the exit code are the flow's.
    os.execv(sys.executable, command)
