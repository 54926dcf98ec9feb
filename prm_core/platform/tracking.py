"""MLflow runs of stages: one run per stage, metrics written in batches, the code version it ran with.

No model registry here (prm_core/serving/model_registry.py) and nothing that decides what is logged.
"""

from __future__ import annotations

import dataclasses
import getpass
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.platform.ranks import is_main

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    from prm_core.config import Config

log = logging.getLogger(__name__)

EXPERIMENT = "prm"
# Our own name, because MLFLOW_RUN_ID beats a parent run id in MLflow.
PARENT_RUN = "PRM_PARENT_RUN_ID"
CODE_PATHS = ("prm_core", "flows", "pyproject.toml")
# One write to SQLite costs about 23 ms whatever its size; MLflow takes at most 1,000 metrics in one.
BATCH = 500
FLUSH_SECONDS = 10.0
MAX_PARAM_LENGTH = 6000

# Ten lines of migrations when a database is made; MLflow sets up its logging when it is imported, so a level set here
# stands.
for _noisy in ("mlflow.store.db.utils", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)


def tracking_uri(workspace: Path) -> str:
    """Where runs of this workspace are recorded: MLFLOW_TRACKING_URI, or the workspace's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_own_database(workspace)}"


def _own_database(workspace: Path) -> Path:
    return workspace.resolve() / "mlflow.db"


def _create_database(path: Path) -> None:
    """Makes an empty MLflow database, whole or not at all.

    MLflow migrates a new file table by table and waits for the disk each time: seconds on a busy one, and a process
    killed in between leaves a file that MLflow refuses ever after. So it is built beside, without waiting, and linked
    into place, unless another process was faster.
    """
    from mlflow.tracking import MlflowClient
    from sqlalchemy import Engine, event

    def no_waiting(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        event.listen(Engine, "connect", no_waiting)
        try:
            MlflowClient(f"sqlite:///{new}").get_experiment_by_name(EXPERIMENT)
        finally:
            event.remove(Engine, "connect", no_waiting)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)


def store_exists(workspace: Path) -> bool:
    """Whether a store is configured or this workspace's own is there already."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or _own_database(workspace).exists()


def _ready_store(workspace: Path) -> str:
    if not store_exists(workspace):
        _create_database(_own_database(workspace))
    return tracking_uri(workspace)


def connect(workspace: Path) -> MlflowClient:
    """A client of this workspace's tracking store and model registry.

    The first call of a process costs about 2 s (imports), 1 s more where the database has yet to be created.
    """
    from mlflow.tracking import MlflowClient

    uri = _ready_store(workspace)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def use_store(workspace: Path) -> None:
    """Points MLflow's module-level functions (`mlflow.pyfunc`, `mlflow.artifacts`) at this workspace's store."""
    import mlflow

    uri = _ready_store(workspace)
    # MLflow exports the URI as well; left there, it would stand for the user's own choice in every later call.
    chosen = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    for name, value in chosen.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def experiment_id(client: MlflowClient, workspace: Path) -> str:
    """The id of experiment "prm", created with its artifacts under `<workspace>/mlruns` if it is not there.

    Where MLFLOW_TRACKING_URI names the store, that store decides where artifacts lie.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        own_store = not os.environ.get("MLFLOW_TRACKING_URI")
        location = (workspace.resolve() / "mlruns").as_uri() if own_store else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException as error:
            # Another process may have created it since we looked.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(EXPERIMENT)
    return found.experiment_id


def code_version() -> str:
    """The git commit of the repository that holds this code, "-dirty" appended where the code differs from it.

    Only the code counts (CODE_PATHS): a run rewrites dvc.lock, and that must not make its own version look dirty.
    "unknown" without git or outside a repository that tracks this code.
    """
    try:
        _git("ls-files", "--error-unmatch", "prm_core/__init__.py")
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--", *CODE_PATHS)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if dirty else commit


def code_date() -> str:
    """When the commit of `code_version` was made, ISO 8601; "unknown" where that is."""
    try:
        _git("ls-files", "--error-unmatch", "prm_core/__init__.py")
        return _git("log", "-1", "--format=%cI")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def user() -> str:
    """Who runs this process, "unknown" where the system has no name for them (as in some containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class StageRun:
    """An open MLflow run of one stage. Made by `stage_run`.

    Attributes:
        run_id: MLflow's id of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None, *, model_id: str | None = None
    ) -> None:
        """Buffers metrics; they are written BATCH at a time, at most FLUSH_SECONDS late while more come, and at the
        end of the run whether it succeeds or fails. `model_id` ties them to a logged model as well."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [
            Metric(key, float(value), now, step or 0, model_id=model_id) for key, value in metrics.items()
        ]
        if len(self._buffer) >= BATCH or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered now."""
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:BATCH])
            del self._buffer[:BATCH]
        self._flushed = time.monotonic()

    def log_artifact(self, path: Path) -> None:
        """Copies a file, or a folder under its own name, to the run's artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))


class _NoRun(StageRun):
    """Logs nothing."""

    def __init__(self) -> None:
        self.run_id = ""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None, *, model_id: str | None = None
    ) -> None:
        pass

    def flush(self) -> None:
        pass

    def log_artifact(self, path: Path) -> None:
        pass


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    else:
        yield prefix, str(value)[:MAX_PARAM_LENGTH]


def _open_run(client: MlflowClient, workspace: Path, stage: str, config: Config) -> str:
    """Creates the run with its tags, and as parameters the seed and the stage's own section of the config."""
    from mlflow.entities import Param

    tags = {
        "stage": stage,
        "profile": config.profile,
        "git_commit": code_version(),
        "mlflow.user": user(),
        "mlflow.source.name": f"prm stage {stage}",
    }
    if os.environ.get(PARENT_RUN):
        tags["mlflow.parentRunId"] = os.environ[PARENT_RUN]
    run_id = client.create_run(experiment_id(client, workspace), tags=tags, run_name=stage).info.run_id
    values = dataclasses.asdict(config)
    params = {"seed": str(config.seed), **dict(_flat(stage, values.get(stage, {})))}
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
    return run_id


@contextmanager
def stage_run(workspace: Path, stage: str, config: Config) -> Iterator[StageRun]:
    """An MLflow run around a stage's work.

    The run ends FINISHED, FAILED when the body raises (the error passes through), KILLED on Ctrl-C; in each case with
    every metric logged so far. It is a child of the run that the environment variable PRM_PARENT_RUN_ID names. Of the
    processes of a distributed run only the first has one; the others get one that logs nothing.
    """
    if not is_main():
        yield _NoRun()
        return
    client = connect(workspace)
    run = StageRun(client, _open_run(client, workspace, stage, config))
    try:
        yield run
        run.flush()
    except BaseException as error:
        try:
            run.flush()
            client.set_terminated(run.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except Exception:
            # The stage's own error is what the user must see.
            log.exception("MLflow run %s could not be closed", run.run_id)
        raise
    client.set_terminated(run.run_id, "FINISHED")
