"""`prm export`: a policy's folder as a server that answers in text needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    policy: Annotated[str | None, typer.Option(help="Folder of the policy; default: the workspace's base policy.")
                      ] = None,
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml.")] = Path("."),
) -> None:
    """Copy a policy for a server that leaves special tokens out of its texts (transformers serve).

    In the copy the boundary between steps is shown as text. Servers that give token ids (vLLM, SGLang) need no copy.

    Example:  prm export served && transformers serve served
    """
    from prm_core import config as configuration
    from prm_core.models.saving import save_showing_marks
    from prm_core.stages.base import model_path

    config = configuration.load(workspace)
    save_showing_marks(policy or model_path(workspace, config.models.policy), config.encoder.separator, out)
    typer.echo(f"wrote {out}")
