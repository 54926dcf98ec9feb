"""MLflow runs of stages: one run per stage, the data it read, metrics written in batches, the code version it ran with.

Opening the store has it name this workspace's folders and closes the runs of processes that have ended.
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

from prm_core.platform import workspace as workspaces
from prm_core.platform.environment import is_main
from prm_core.platform.tracking import datasets, open_runs, reachable, relocation

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    from prm_core.config import Config
    from prm_core.platform.tracking.datasets import DataRef

log = logging.getLogger(__name__)

EXPERIMENT = "prm"
ARTIFACTS = "mlruns"
# Our own name, because MLFLOW_RUN_ID beats a parent run id in MLflow.
PARENT_RUN = "PRM_PARENT_RUN_ID"
# The tag that names an open run's lock (prm_core/platform/open_runs.py).
LOCK_TAG = "open_run"
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
    """Makes an MLflow database with experiment "prm" and artifacts beside it, whole or not at all.

    MLflow migrates a new file table by table and waits for the disk each time: seconds on a busy one, and a process
    killed in between leaves a file that MLflow refuses ever after. So it is built beside, without waiting, and linked
    into place, unless another process was faster.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def no_waiting(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        event.listen(Engine, "connect", no_waiting)
        try:
            artifacts = path.with_name(ARTIFACTS).as_uri()
            SqlAlchemyStore(f"sqlite:///{new}", artifacts).create_experiment(EXPERIMENT, artifacts)
        finally:
            event.remove(Engine, "connect", no_waiting)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)


def store_exists(workspace: Path) -> bool:
    """Whether a store is configured or this workspace's own is there already."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or _own_database(workspace).exists()


def answers(workspace: Path) -> bool:
    """Whether the tracking store is there, as things stand; asked anew each time."""
    try:
        reachable.check(tracking_uri(workspace), again=True)
    except reachable.Unreachable:
        return False
    return True


def settle(workspace: Path) -> str:
    """The store's URI, with a store of the workspace's own that is there already naming the folders it lies in now.

    Raises InputError where the store cannot be read, Unreachable where it does not answer.
    """
    uri, own = tracking_uri(workspace), _own_database(workspace)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        reachable.check(uri)
    elif own.exists():
        relocation.relocate(own, EXPERIMENT, own.with_name(ARTIFACTS))
    return uri


def _ready_store(workspace: Path) -> str:
    if not store_exists(workspace):
        _create_database(_own_database(workspace))
    return settle(workspace)


def connect(workspace: Path) -> MlflowClient:
    """A client of this workspace's tracking store and model registry; runs that were left open are closed first.

    The first call of a process costs about 2 s (imports), 1 s more where the database has yet to be created. Raises
    as `settle` does.
    """
    from mlflow.tracking import MlflowClient

    uri = _ready_store(workspace)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    _close_abandoned(client, workspace)
    return client


def close_abandoned(workspace: Path) -> None:
    """Closes, as killed, the runs whose process has ended without doing so. Costs nothing where there are none."""
    if open_runs.abandoned(workspace):
        connect(workspace)


def _close_abandoned(client: MlflowClient, workspace: Path) -> None:
    for name in open_runs.abandoned(workspace):
        for run in client.search_runs([experiment_id(client, workspace)], f"tags.{LOCK_TAG} = '{name}'"):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                log.info("MLflow run %s (%s) was left open by a process that has ended; it is closed as killed",
                         run.info.run_id, run.info.run_name)
        open_runs.release(workspace, name)


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
    """The id of experiment "prm", created if it is not there.

    Its artifacts lie in `<workspace>/mlruns`; where MLFLOW_TRACKING_URI names the store, that store decides.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        own_store = not os.environ.get("MLFLOW_TRACKING_URI")
        location = _own_database(workspace).with_name(ARTIFACTS).as_uri() if own_store else None
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
    root = Path(__file__).parents[3]
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
        self, metrics: Mapping[str, float], step: int | None = None, *, model_id: str | None = None,
        data: DataRef | None = None,
    ) -> None:
        """Buffers metrics; they are written BATCH at a time, at most FLUSH_SECONDS late while more come, and at the
        end of the run whether it succeeds or fails. They are tied to a logged model and to the data they were measured
        on as well, where these are given."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        on = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        self._buffer += [
            Metric(key, float(value), now, step or 0, model_id=model_id, **on) for key, value in metrics.items()
        ]
        if len(self._buffer) >= BATCH or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered now."""
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:BATCH])
            del self._buffer[:BATCH]
        self._flushed = time.monotonic()

    def note_output(self, path: Path) -> None:
        """Tags the run with the hash of a file or folder it wrote, as DVC records it, for `find_maker`."""
        self._client.set_tag(self.run_id, f"output.{path.name}", workspaces.data_hash(path))

    def tag(self, name: str, value: str) -> None:
        """Tags the run."""
        self._client.set_tag(self.run_id, name, value)

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
        self, metrics: Mapping[str, float], step: int | None = None, *, model_id: str | None = None,
        data: DataRef | None = None,
    ) -> None:
        pass

    def flush(self) -> None:
        pass

    def note_output(self, path: Path) -> None:
        pass

    def tag(self, name: str, value: str) -> None:
        pass

    def log_artifact(self, path: Path) -> None:
        pass


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    else:
        yield prefix, str(value)[:MAX_PARAM_LENGTH]


def find_maker(client: MlflowClient, workspace: Path, path: Path) -> str | None:
    """The id of the last finished run that wrote these very contents, None where this store knows none."""
    found = client.search_runs(
        [experiment_id(client, workspace)],
        f"tags.`output.{path.name}` = '{workspaces.data_hash(path)}' and attributes.status = 'FINISHED'",
        max_results=1, order_by=["attributes.end_time DESC"],
    )
    return found[0].info.run_id if found else None


# Runs that this process has open → the name of their lock.
_locks: dict[str, str] = {}


def start_run(workspace: Path, name: str, tags: Mapping[str, str]) -> str:
    """Opens a run in experiment "prm" and returns its id. `end_run` closes it; so does whoever opens the store next,
    should this process end before that."""
    client = connect(workspace)
    # Held before there is a run: at no moment is there one that nobody would close.
    lock = open_runs.hold(workspace)
    try:
        tags = {**tags, "mlflow.user": user(), LOCK_TAG: lock}
        run_id = client.create_run(experiment_id(client, workspace), tags=tags, run_name=name).info.run_id
    except BaseException:
        open_runs.release(workspace, lock)
        raise
    _locks[run_id] = lock
    return run_id


def end_run(workspace: Path, run_id: str, status: str) -> None:
    """Closes a run that this process opened: FINISHED, FAILED or KILLED."""
    client = connect(workspace)
    client.set_terminated(run_id, status)
    client.delete_tag(run_id, LOCK_TAG)
    open_runs.release(workspace, _locks.pop(run_id))


def _describe(client: MlflowClient, workspace: Path, run_id: str, stage: str, config: Config,
              inputs: Mapping[str, Path]) -> None:
    """Parameters of a run (the seed and the stage's own section of the config) and the data that it reads."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    values = dataclasses.asdict(config)
    params = {"seed": str(config.seed), **dict(_flat(stage, values.get(stage, {})))}
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
    client.log_inputs(run_id, [
        DatasetInput(Dataset(data.name, data.digest, "local", data.source, profile=data.profile),
                     [InputTag("mlflow.data.context", data.role)])
        for data in datasets.find_data(workspace, inputs)
    ])


@contextmanager
def stage_run(
    workspace: Path, stage: str, config: Config, inputs: Mapping[str, Path] | None = None
) -> Iterator[StageRun]:
    """An MLflow run around a stage's work.

    The run ends FINISHED, FAILED when the body raises (the error passes through), KILLED on Ctrl-C and, at the next
    start, where the process was killed; in each case with every metric logged so far. Raises Unreachable where the
    store's server does not answer, or goes. It is a child of the run that
    the environment variable PRM_PARENT_RUN_ID names. Of the processes of a distributed run only the first has one; the
    others get one that logs nothing.

    Args:
        inputs: what the stage reads, role → path; those that are data become the run's datasets.
    """
    if not is_main():
        yield _NoRun()
        return
    tags = {
        "stage": stage,
        "profile": config.profile,
        "git_commit": code_version(),
        "mlflow.source.name": f"prm stage {stage}",
    }
    if os.environ.get(PARENT_RUN):
        tags["mlflow.parentRunId"] = os.environ[PARENT_RUN]
    run_id = start_run(workspace, stage, tags)
    client = connect(workspace)
    run = StageRun(client, run_id)
    try:
        _describe(client, workspace, run_id, stage, config, inputs or {})
        yield run
        run.flush()
        end_run(workspace, run_id, "FINISHED")
    except BaseException as error:
        _check_answers(workspace, error)
        try:
            try:
                run.flush()
            finally:
                end_run(workspace, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except Exception:
            # The stage's own error is what the user must see.
            log.exception("MLflow run %s could not be closed", run_id)
        raise


def _check_answers(workspace: Path, error: BaseException) -> None:
    """Raises Unreachable where an error is MLflow's and its server has gone: it would be asked in vain for minutes.
    The run stays open, until the next start."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        reachable.check(tracking_uri(workspace), again=True)
