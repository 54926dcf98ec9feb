"""`prm promote`: make the version this workspace registered the champion, if the gate in params.yaml holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def promote(
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml and artifacts/.")] = Path("."),
    model: Annotated[str | None, typer.Option(
        help="models:/NAME/VERSION to promote, such as one that `prm drift` recalibrated; default: the version that "
             "the stage register registered last.")] = None,
) -> None:
    """Make the newly registered reward model the champion, if it passes the gate.

    The gate (promote: in params.yaml) compares its metrics with the champion's. When it refuses, the champion stays,
    the reason is shown and the exit code is 1; a calibration that is stale (`prm drift`) is refused with 2. A server
    picks the new champion up when it starts next.
    """
    from prm_core import config as configuration
    from prm_core.serving.promotion import promote as move

    settings = configuration.load(workspace)
    config = settings.promote
    done = move(workspace, config, settings.drift, model)
    if done.moved:
        before = f" (was version {done.previous})" if done.previous else ""
        typer.echo(f"{done.name} version {done.version} is now {config.alias}{before}: {done.reason}")
    else:
        typer.echo(f"{done.name} version {done.version}: {done.reason}")
