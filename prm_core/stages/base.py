"""What a stage is, where its files lie, and how one is run. No stage's own work lives here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prm_core import config as configuration
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import processes, store, sums
from prm_core.platform.environment import is_main

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
    "probe",
    "train_policy",
    "evaluate",
    "register",
)
WORK = ".work"
ARTIFACTS = "artifacts"


@dataclass(frozen=True, slots=True)
class StageIO:
    """The files of one run of a stage.

    Attributes:
        inputs: name → path, all existing.
        outputs: name → path, to be written; their parents exist, they do not. When the stage is through, they are
            moved to where the stage declares them: what messages and records should name is that place.
        work: a folder that survives a crash, keyed by the stage's config, input contents and code: finished shards
            and checkpoints go there, and a later run of the same stage on the same inputs finds them.
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
        check: raises InputError for a config the stage would refuse; called before a chain starts.
        shared: its work can be shared out among the processes that `launch.processes` asks for.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: tuple[str, ...]
    run: Callable[[Config, StageIO], None]
    check: Callable[[Config], None] | None = None
    shared: bool = False


def load_stage(name: str) -> Stage:
    """The stage of that name. Raises InputError naming the known ones."""
    if name not in CHAIN:
        raise InputError(f"unknown stage {name!r}; known: {', '.join(CHAIN)}")
    return importlib.import_module(f"prm_core.stages.{name}").STAGE


def check(config: Config) -> None:
    """Raises InputError for what any stage would refuse of a config, before the work of the stages ahead of it."""
    for name in CHAIN:
        stage = load_stage(name)
        if stage.check is not None:
            stage.check(config)


def sums_path(name: str) -> str:
    """Where a stage records the digests of its outputs, relative to the workspace."""
    return f"{ARTIFACTS}/{name}/{sums.FILE}"


def check_recorded(workspace: Path, path: str) -> None:
    """Compares a file or folder that a stage wrote with what the stage recorded; others pass.

    Raises InputError naming the first file that differs.
    """
    parts = Path(path).parts
    if parts[0] == ARTIFACTS:
        sums.check_sums(
            workspace / ARTIFACTS / parts[1],
            f"remove it and have `dvc checkout` bring it back, or run stage {parts[1]} again "
            f"(`dvc repro --force --single-item {parts[1]}`)", "/".join(parts[2:]),
        )


def damaged(workspace: Path) -> Iterator[tuple[str, Path, str]]:
    """Each file that is no longer what a stage wrote: the stage, the file, and what is wrong with it."""
    for name in CHAIN:
        for path in load_stage(name).outputs.values():
            below = Path(path).relative_to(f"{ARTIFACTS}/{name}").as_posix()
            yield from ((name, *found) for found in sums.differences(workspace / ARTIFACTS / name, below))


def model_path(workspace: Path, name: str) -> str:
    """A model of the config as a path or hub id: relative names that exist in the workspace become paths."""
    local = workspace / name
    return str(local) if local.exists() else name


def _work_facts(stage: Stage, config: Config, inputs: Mapping[str, Path]) -> dict[str, str]:
    """What half-done work belongs to, and what processes that do it together must agree about: shards made by other
    code must not be mixed with new ones, as little as shards of other inputs."""
    values = dataclasses.asdict(config)
    params = json.dumps({key: values[key] for key in stage.params}, sort_keys=True)
    contents = {stage.inputs[name]: store.digest(path) for name, path in sorted(inputs.items())}
    return {"params.yaml": hashlib.sha256(params.encode()).hexdigest(), **contents, "the code": store.code_digest()}


def execute(name: str, workspace: Path) -> None:
    """Runs one stage in a workspace, in several processes where it can be shared out and `launch.processes` says so.

    Raises InputError when an input is missing; whatever the stage raises passes through, leaving its work folder for
    the next try and no output at all. A killed stage leaves the same: outputs appear when all are written.
    """
    stage = load_stage(name)
    config = configuration.load(workspace)
    if stage.check is not None:
        stage.check(config)
    command = [sys.executable, "-m", "prm_core.cli", "stage", name, "--workspace", str(workspace)]
    if not processes.launch(config.launch.processes if stage.shared else 1, command):
        with processes.member():
            _execute(name, stage, config, workspace)


def _execute(name: str, stage: Stage, config: Config, workspace: Path) -> None:
    inputs = {key: workspace / path for key, path in stage.inputs.items()}
    for path in inputs.values():
        if not path.exists():
            raise InputError(f"stage {name} needs {path.relative_to(workspace)}, which is not there; run the stage "
                             "that writes it (`prm run` runs them all) or `prm data make` for data/")
    for path in stage.inputs.values():
        check_recorded(workspace, path)
    facts = _work_facts(stage, config, inputs)
    if processes.count() > 1:
        from prm_core.models.loading import model_version, pick_device

        # On several machines, models too are folders of each.
        models = {f"models.{name}": model_version(model_path(workspace, getattr(config.models, name)))
                  for name in ("policy", "reward_backbone")}
        processes.meet({**facts, **models, "launch.sharding": config.launch.sharding},
                       on_cpu=pick_device(config.models.device).type == "cpu")
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    own = workspace / WORK / name
    work, staging = own / key, own / "outputs"
    if not is_main():
        # What the first of several processes writes counts; the others' lies where it is in nobody's way.
        staging = Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    # Before the stage starts, so that nothing reads what an earlier run wrote for the result of one that failed.
    for path in (*stage.outputs.values(), sums_path(name)) if is_main() else ():
        _remove(workspace / path)
    outputs = {key: staging / path for key, path in stage.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    log.info("stage %s starts", name)
    stage.run(config, StageIO(inputs, outputs, work, workspace))
    # Nothing is published, and nothing that another one still reads is removed, before all are through.
    processes.wait_for_all()
    if not is_main():
        shutil.rmtree(staging)
        return
    missing = [stage.outputs[key] for key, path in outputs.items() if not path.exists()]
    if missing:
        raise RuntimeError(f"stage {name} did not write {', '.join(missing)}")
    sums.write_sums((staging / sums_path(name)).parent)
    for path in (*stage.outputs.values(), sums_path(name)):
        target = workspace / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # A rename, or a copy where artifacts/ is a link to another disk.
        shutil.move(staging / path, target)
    # Older keys are of other configs, inputs or code; this one's work is done.
    shutil.rmtree(own)
    log.info("stage %s done", name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
