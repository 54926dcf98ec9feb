"""Stage register: the trained PRM as a new version in MLflow's registry, tagged with what it is made of, alias
`challenger`. Making it the champion is promotion's (prm_core/serving/promotion.py)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core import config as configuration
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO
from prm_core.types import Problem

if TYPE_CHECKING:
    from prm_core.serving.drift.reference import Reference

log = logging.getLogger(__name__)

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
    """Tags of a model version: data hash, git commit, profile, and what the gate compares, or why that is missing.

    So few that the reason of a promotion, which comes to them, is seen; the other figures are the model's metrics.
    """
    from prm_core.evaluation.probe.bounds import OUTCOME_FALL, SUFFIX_PASSES
    from prm_core.platform.tracking import code_version
    from prm_core.serving.model_registry import ECE, F1, LEFT_OUT, OUTCOME_AUROC, VIOLATIONS

    by_outcomes = (OUTCOME_AUROC, f"{OUTCOME_AUROC}_low", f"{OUTCOME_AUROC}{LEFT_OUT}")
    wanted = (F1, f"{F1}_low", f"{F1}_spread", f"{F1}{LEFT_OUT}", ECE, f"{ECE}{LEFT_OUT}",
              *(by_outcomes if config.promote.by == "outcomes" else ()),
              SUFFIX_PASSES, f"{SUFFIX_PASSES}{LEFT_OUT}", OUTCOME_FALL, VIOLATIONS)
    gate = {key: str(metrics[key]) for key in wanted if key in metrics}
    return {"data_hash": data_hash(workspace), "git_commit": code_version(), "profile": config.profile, **gate}


def _calibrated_on(config: Config, inputs: Mapping[str, Path], renderer: int) -> Reference:
    from prm_core.serving.drift.reference import of_evaluation

    problems = {split: store.read_jsonl(Problem, inputs[split]) for split in ("dev", "test")}
    return of_evaluation(inputs["trajectories"], inputs["scores"], problems, threshold=config.serve.threshold,
                         renderer=renderer)


def run(config: Config, io: StageIO) -> None:
    """Logs the model, tries it, registers it, moves the challenger alias and writes `model_version.json`."""
    from prm_core.platform.tracking import connect, datasets, stage_run
    from prm_core.scoring.conformal import Promises
    from prm_core.scoring.settings import reward_settings
    from prm_core.serving import model_registry
    from prm_core.serving.model_card import ModelCard

    metrics = store.read_json(io.inputs["metrics"])
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    name = config.register.model_name
    settings = reward_settings(str(io.inputs["prm"]))
    encoder: Mapping[str, Any] = settings.get("encoder", {})
    tags = {**version_tags(metrics, config, io.workspace), "precision": str(settings.get("precision", "unknown"))}
    with stage_run(io.workspace, "register", config, io.inputs) as tracked:
        client = connect(io.workspace)
        promises = Promises.read(io.inputs["promises"])
        model_id = model_registry.log_reward_model(
            io.workspace, tracked.run_id, io.inputs["prm"], config.serve,
            [_calibrated_on(config, io.inputs, encoder.get("renderer", 1)), *([promises] if promises.any else [])])
        data = datasets.find_data(io.workspace, {role: io.inputs[role] for role in ("training_set", "test")})
        measured_on = next(one for one in data if one.role == "test")
        tracked.log_metrics(numbers, model_id=model_id, data=measured_on)
        runs = model_registry.link_runs(io.workspace, model_id, trained=io.inputs["prm"], measured=io.inputs["metrics"])
        version = model_registry.add_version(io.workspace, name, model_id, tags)
        card = ModelCard(name, str(version.version), metrics, data, tags, config.models.reward_backbone, runs,
                         promises)
        model_registry.describe(client, version, card)
        client.set_registered_model_alias(name, config.promote.challenger_alias, version.version)
        log.info("registered %s version %s as %s", name, version.version, config.promote.challenger_alias)
        store.write_json(io.outputs["model_version"], {
            "name": name,
            "version": str(version.version),
            "run_id": tracked.run_id,
            "uri": f"models:/{name}/{version.version}",
            "tags": tags,
        })


STAGE = Stage(
    inputs={
        "metrics": "artifacts/evaluate/metrics.json",
        "promises": "artifacts/evaluate/promises.json",
        # Which served traffic is compared with.
        "trajectories": "artifacts/evaluate/trajectories",
        "scores": "artifacts/evaluate/scores.jsonl",
        "dev": "data/dev.jsonl",
        "prm": "artifacts/train_prm/prm",
        # What it was trained and tested on, for the record.
        "training_set": "artifacts/calibrate/training_set",
        "test": "data/test.jsonl",
    },
    outputs={"model_version": "artifacts/register/model_version.json"},
    params=("profile", "models", "register", "serve", "promote"),
    run=run,
)
