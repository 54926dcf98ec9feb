"""`prm report`: the page of a finished evaluation again, from what it saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from prm_core.errors import InputError

log = logging.getLogger(__name__)


def report(
    out: Annotated[Path, typer.Option(help="Where to write the page.")],
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml, data/ and artifacts/.")] = Path("."),
) -> None:
    """Draw the report of the last evaluation again, from its saved chains, scores and figures.

    No model is loaded. For a changed template (prm_core/evaluation/report/), or another promote.max_ece in params.yaml;
    artifacts/evaluate/report.html itself belongs to the stage evaluate and stays.
    """
    from prm_core import config
    from prm_core.platform import store
    from prm_core.stages.evaluate import STAGE, render_again

    if out.is_dir():
        raise InputError(f"--out {out}: that is a folder; name a file")
    if out.resolve() == (workspace / STAGE.outputs["report"]).resolve():
        raise InputError(f"--out {out}: that file is what the stage evaluate wrote, and DVC knows it by its contents; "
                         "name another")
    store.write_text(out, render_again(config.load(workspace), workspace))
    log.info("wrote %s", out)
