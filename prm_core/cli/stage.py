"""`prm stage`: one stage of the chain, the command dvc.yaml names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stage(
    name: Annotated[str, typer.Argument(help="warmup, generate, label, validate, … (the stages of dvc.yaml).")],
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml, data/ and artifacts/.")] = Path("."),
) -> None:
    """Run one stage now, whether or not it is up to date.

    This is what `dvc repro` and `prm run` call; they decide what needs running and record what it gave, so use
    `dvc repro --single-item NAME` unless you want the stage run without being recorded.
    """
    from prm_core.stages.base import execute

    execute(name, workspace)
