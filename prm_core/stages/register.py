"""Stage register: the trained PRM as a new version in MLflow's registry, tagged with what it is made of, alias
`challenger`. Making it the champion is promotion's (prm_core/serving/promotion.py)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from prm_core import config as configuration
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO

log = logging.getLogger(__name__)

# Metrics a version carries as tags, where they were measured: the gate's, and what a reader compares versions by.
TAGGED_PREFIXES = ("test/prm/", "test/prm_best_of_n/", "test/policy_trained/pass_at_1")


def data_hash(workspace: Path) -> str:
    """DVC's hash of data/, from data.dvc; without one (a workspace of its own), a SHA-256 of the folder's contents."""
    pointer = workspace / "data.dvc"
    if not pointer.is_file():
        return f"sha256:{store.digest(workspace / 'data')}"
    try:
        return f"md5:{configuration.read_yaml(pointer)['outs'][0]['md5']}"
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{pointer}: names no md5 under outs; write it again with `dvc add data`") from None


def version_tags(metrics: Mapping[str, float | str], config: Config, workspace: Path) -> dict[str, str]:
    """Tags of a model version: data hash, git commit, profile, the main metrics, why one of the gate's is missing."""
    from prm_core.platform.tracking import code_version
    from prm_core.serving.model_registry import ECE, F1, LEFT_OUT

    missing = {f"{key}{LEFT_OUT}" for key in (F1, ECE)}
    tagged = {key: str(value) for key, value in metrics.items()
              if key in missing or (key.startswith(TAGGED_PREFIXES) and not isinstance(value, str))}
    return {"data_hash": data_hash(workspace), "git_commit": code_version(), "profile": config.profile, **tagged}


def run(config: Config, io: StageIO) -> None:
    """Logs the model, tries it, registers it, moves the challenger alias and writes `model_version.json`."""
    from prm_core.platform.tracking import connect, stage_run
    from prm_core.serving import model_registry

    metrics = store.read_json(io.inputs["metrics"])
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    name = config.register.model_name
    tags = version_tags(metrics, config, io.workspace)
    with stage_run(io.workspace, "register", config) as tracked:
        model_id = model_registry.log_reward_model(io.workspace, tracked.run_id, io.inputs["prm"], config.serve)
        tracked.log_metrics(numbers, model_id=model_id)
        version = model_registry.add_version(io.workspace, name, model_id, tags)
        connect(io.workspace).set_registered_model_alias(name, config.promote.challenger_alias, version.version)
        log.info("registered %s version %s as %s", name, version.version, config.promote.challenger_alias)
        store.write_json(io.outputs["model_version"], {
            "name": name,
            "version": str(version.version),
            "run_id": tracked.run_id,
            "uri": f"models:/{name}/{version.version}",
            "tags": tags,
        })


STAGE = Stage(
    inputs={"metrics": "artifacts/evaluate/metrics.json", "prm": "artifacts/train_prm/prm"},
    outputs={"model_version": "artifacts/register/model_version.json"},
    params=("profile", "register", "serve", "promote"),
    run=run,
)
