"""What a stage is, where its files lie, and how one is run. No stage's own work lives here."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prm_core import config as configuration
from prm_core import store
from prm_core.config import Config
from prm_core.errors import InputError

log = logging.getLogger(__name__)

# In the order the flow runs them; a topological order of dvc.yaml.
CHAIN = (
    "warmup",
    "generate",
    "label",
    "validate",
    "validate_gate",
    "calibrate",
    "train_prm",
    "train_policy",
    "evaluate",
    "register",
)
WORK = ".work"


@dataclass(frozen=True, slots=True)
class StageIO:
    """The files of one run of a stage.

    Attributes:
        inputs: name → path, all existing.
        outputs: name → path, to be written; their parents exist.
        work: a folder that survives a crash, keyed by the stage's config and input contents: finished shards and
            checkpoints go there, and a later run of the same stage on the same inputs finds them.
        workspace: the workspace's root, for what belongs to no stage (MLflow's store, git).
    """

    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    work: Path
    workspace: Path


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as declared next to its `run`.

    Attributes:
        inputs: name → path relative to the workspace, file or folder.
        outputs: name → path relative to the workspace.
        params: the config keys the result depends on, as in dvc.yaml.
        run: does the work, writing every output.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: tuple[str, ...]
    run: Callable[[Config, StageIO], None]


def load_stage(name: str) -> Stage:
    """The stage of that name. Raises InputError naming the known ones."""
    if name not in CHAIN:
        raise InputError(f"unknown stage {name!r}; known: {', '.join(CHAIN)}")
    return importlib.import_module(f"prm_core.stages.{name}").STAGE


def model_path(workspace: Path, name: str) -> str:
    """A model of the config as a path or hub id: relative names that exist in the workspace become paths."""
    local = workspace / name
    return str(local) if local.exists() else name


def _work_key(stage: Stage, config: Config, inputs: Mapping[str, Path]) -> str:
    values = config.model_dump(by_alias=True, mode="json")
    params = {key: values[key] for key in stage.params}
    contents = {name: store.digest(path) for name, path in sorted(inputs.items())}
    return hashlib.sha256(json.dumps([params, contents], sort_keys=True).encode()).hexdigest()[:16]


def execute(name: str, workspace: Path) -> None:
    """Runs one stage in a workspace.

    Raises InputError when an input is missing; whatever the stage raises passes through, leaving its work folder for
    the next try and no half-written output.
    """
    stage = load_stage(name)
    config = configuration.load(workspace)
    inputs = {key: workspace / path for key, path in stage.inputs.items()}
    for path in inputs.values():
        if not path.exists():
            raise InputError(f"stage {name} needs {path.relative_to(workspace)}, which is not there; run the stage "
                             "that writes it (`prm run` runs them all) or `prm data make` for data/")
    work = workspace / WORK / name / _work_key(stage, config, inputs)
    work.mkdir(parents=True, exist_ok=True)
    outputs = {key: workspace / path for key, path in stage.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
    log.info("stage %s starts", name)
    stage.run(config, StageIO(inputs, outputs, work, workspace))
    missing = [str(path.relative_to(workspace)) for path in outputs.values() if not path.exists()]
    if missing:
        raise RuntimeError(f"stage {name} did not write {', '.join(missing)}")
    # Older keys are of other configs or inputs; this one's work is done.
    shutil.rmtree(workspace / WORK / name)
    log.info("stage %s done", name)
