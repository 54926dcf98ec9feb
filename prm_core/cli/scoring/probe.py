"""`prm probe`: any process reward model, tried as the stage `probe` tries that of the chain."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from prm_core.errors import InputError


def probe(
    model: Annotated[str, typer.Argument(help="models:/prm@champion, runs:/ID/reward_model, a folder, or another "
                                         "project's model.")],
    policy: Annotated[str | None, typer.Option(help="Folder or hub id of the policy; default: the workspace's base "
                                               "policy.")] = None,
    updates: Annotated[int | None, typer.Option(min=0, help="Of a policy that the scores alone pay; default: "
                                                "probe.updates.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures and the suffixes.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml, data/ and the model store.")] = Path("."),
) -> None:
    """Try a reward model before it rewards a policy: edits, suffixes, and a policy paid by it alone.

    Settings are those of the section `probe` in params.yaml, whether it is enabled or not; docs/policies.md has what
    the figures mean. The policy on disk stays as it is.

    Example:  prm probe artifacts/train_prm/prm --updates 8
    """
    import dataclasses

    from prm_core import config as configuration
    from prm_core.evaluation.probe.run import probe_model
    from prm_core.platform import store
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import without_long
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.serving.model_registry import reward_model_folder
    from prm_core.stages.base import model_path
    from prm_core.types import Problem

    config = configuration.load(workspace)
    if updates is not None:
        config = dataclasses.replace(config, probe=dataclasses.replace(config.probe, updates=updates))
    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: that is a folder; name a file")
    writer = load_policy(policy or model_path(workspace, config.models.policy), config)
    train, dev = (without_long(store.read_jsonl(Problem, workspace / f"data/{split}.jsonl"), writer.encoder)
                  for split in ("train", "dev"))
    scorer = load_any_scorer(reward_model_folder(model, workspace), device=config.models.device,
                             batch_size=config.serve.batch_size)
    with tempfile.TemporaryDirectory() as work:
        figures, suffixes = probe_model(writer, scorer, train, dev, config, work=Path(work),
                                        report=lambda figures, update: None)
    for name, value in figures.items():
        typer.echo(f"{name}  {value:.4g}" if not isinstance(value, str) else f"{name}  {value}")
    if out is not None:
        store.write_json(out, {"model": model, "figures": figures, "suffixes": [one.to_dict() for one in suffixes]})
