"""Reward models in MLflow's registry: logged with their code, found again by alias, version or run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prm_core.config import ServeConfig
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.serving.model_card import MODEL, ModelCard

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PACKAGE = Path(__file__).parent.parent
# What the logged code imports when it serves; versions are those it was logged with.
SERVING_REQUIREMENTS = (
    "mlflow", "fastapi", "uvicorn", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "pyyaml",
    "pyarrow", "cachetools",
)
EXAMPLE = {"prompt": "Ann has 3 apples and buys 4 more. How many apples does she have?",
           "steps": ["Ann has 3 + 4 = 7 apples.", "The answer is 7."]}
# Tags of a version that promotion goes by, and what stands after a figure's name where there is only a reason why not.
F1 = "test/prm/first_error_f1"
ECE = "test/prm/ece"
OUTCOME_AUROC = "test/prm/outcome_auroc"
LEFT_OUT = "_left_out"
VIOLATIONS = "test/policy_trained/violations"
# A promotion takes a second or two: one that holds the lock for so long was killed on another machine.
ABANDONED_SECONDS = 60.0
POLL_SECONDS = 0.1
SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/", "s3://", "gs://", "file:/")


class Savable(Protocol):
    """What lies in a model's folder beside the model."""

    def save(self, folder: Path) -> None:
        """Writes it there, and the folder's digests again."""
        ...


def pinned_requirements() -> list[str]:
    """`name==version` of what serving needs, read from what is installed (inferring them took MLflow 25 s)."""
    # A local label such as 2.13.0+cpu names a build, which an index does not have.
    return [f"{name}=={version(name).split('+')[0]}" for name in SERVING_REQUIREMENTS]


def log_reward_model(
    workspace: Path, run_id: str, folder: Path, serve: ServeConfig, beside: Sequence[Savable] = (), *,
    example: Mapping[str, Any] = EXAMPLE,
) -> str:
    """Logs a reward-model folder as a servable MLflow model, and asks what was logged to score the example.

    Args:
        workspace: whose tracking store holds the run.
        run_id: an open run.
        folder: a reward-model folder; its files are copied as they are, safetensors and JSON. What is served must not
            depend on another folder: a model saved without its base is logged with it.
        serve: request defaults, cache and batch sizes the server will have.
        beside: what goes into its folder with it: promises of runs that it scores, the trajectories it was calibrated
            on.
        example: a request that MLflow validates the model with and shows to users.

    Returns:
        The logged model's id, `m-…`.

    Raises:
        InputError: the folder holds pickled weights or no safetensors.
    """
    from prm_core.scoring.scorer import whole

    pickled = sorted(p.name for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle"})
    if pickled or not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: {'pickled file ' + pickled[0] if pickled else 'no safetensors'}; "
                         "a served model is a folder of safetensors and JSON")
    with whole(folder) as complete, _with(complete, beside) as served:
        return _log(workspace, run_id, served, serve, example)


@contextmanager
def _with(folder: Path, beside: Sequence[Savable]) -> Iterator[Path]:
    """A copy of a model's folder with what goes beside it, gone after the block; the folder itself where that is
    nothing."""
    if not beside:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / folder.name))
        for one in beside:
            one.save(copy)
        yield copy


def _log(workspace: Path, run_id: str, folder: Path, serve: ServeConfig, example: Mapping[str, Any]) -> str:
    import mlflow
    from mlflow.models import Model

    from prm_core.serving import pyfunc_model

    params = {"threshold": float(serve.threshold), "aggregate": serve.aggregate}
    client = tracking.connect(workspace)
    tracking.use_store(workspace)
    made = client.create_logged_model(
        tracking.experiment_id(client, workspace), name="reward_model", source_run_id=run_id,
        params=client.get_run(run_id).data.params, tags={"mlflow.user": tracking.user()},
    )
    # What mlflow.pyfunc.log_model calls, for a run and a model that are named: it takes the active run, and making ours
    # that one would have it finished at the end, whatever comes after.
    logged = Model.log(
        artifact_path=None,
        name="reward_model",
        run_id=run_id,
        model_id=made.model_id,
        flavor=mlflow.pyfunc,
        flavor_name="pyfunc",
        python_model=pyfunc_model.__file__,
        artifacts={"reward_model": str(folder)},
        code_paths=[str(PACKAGE)],
        pip_requirements=pinned_requirements(),
        # The pair, or MLflow leaves the params out of the signature and ignores them when serving.
        input_example=([dict(example)], params),
        model_config={"cache_size": serve.cache_size, "cache_ttl": serve.cache_ttl, "batch_size": serve.batch_size},
    )
    # MLflow only warns when the logged model cannot answer its own example.
    mlflow.pyfunc.load_model(logged.model_uri).predict([dict(example)], params=params)
    return logged.model_id


def logged_settings(folder: Path) -> ServeConfig:
    """What `log_reward_model` was given as `serve`.

    Args:
        folder: the reward model among the artifacts of the logged model, as `reward_model_folder` gives it.
    """
    from mlflow.models import Model

    logged = Model.load(str(folder.parents[1]))
    config = logged.flavors["python_function"]["config"]
    defaults = {param.name: param.default for param in logged.get_params_schema().params}
    return ServeConfig(**defaults, **config)


def logged_at(folder: Path) -> float:
    """When a model was logged, in seconds since 1970.

    Args:
        folder: as of `logged_settings`.
    """
    from mlflow.models import Model

    made = Model.load(str(folder.parents[1])).utc_time_created
    return datetime.fromisoformat(made).replace(tzinfo=UTC).timestamp()


def logged_example(folder: Path) -> dict[str, Any] | None:
    """The request that a model was logged with, as its server would be sent it; None where there is none.

    Args:
        folder: as of `logged_settings`.
    """
    from mlflow.models import Model

    root = folder.parents[1]
    sent = Model.load(str(root)).get_serving_input(str(root))
    return None if sent is None else json.loads(sent)


def add_version(workspace: Path, name: str, model_id: str, tags: Mapping[str, str]) -> ModelVersion:
    """Registers a logged model as the next version of `name`, with its tags."""
    import mlflow

    tracking.use_store(workspace)
    return mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags))


def describe(client: MlflowClient, version: ModelVersion, card: ModelCard) -> None:
    """Gives a version its card, and the registered model a description where nobody has written one."""
    client.update_model_version(version.name, version.version, description=card.render())
    if not client.get_registered_model(version.name).description:
        client.update_registered_model(version.name, description=MODEL)


def link_runs(workspace: Path, model_id: str, *, trained: Path, measured: Path) -> dict[str, tuple[str, str]]:
    """Ties a logged model to the runs that trained and measured it.

    MLflow then shows it as the one's output and the other's input, on the pages of all three.

    Args:
        trained: the folder that a run of train_prm wrote.
        measured: the figures that a run of evaluate wrote.

    Returns:
        stage → (experiment id, run id), without those this store does not know, such as runs of another machine.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace)
    runs = {}
    if run_id := tracking.find_maker(client, workspace, trained):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        runs["train_prm"] = (experiment, run_id)
    if run_id := tracking.find_maker(client, workspace, measured):
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        runs["evaluate"] = (experiment, run_id)
    return runs


def version_by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, None where there is no such alias or no such model."""
    # MLflow answers an unknown model with RESOURCE_DOES_NOT_EXIST and an unknown alias with INVALID_PARAMETER.
    with _tolerating("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return client.get_model_version_by_alias(name, alias)
    return None


def pinned(uri: str, workspace: Path) -> str:
    """`models:/NAME/VERSION` for an alias, which may move meanwhile; any other URI or folder as it is.

    Raises InputError where there is no store or no such alias, or for a name of no one version, such as `latest`.
    """
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/]+)|/(.+))", uri)
    if not named or (named[3] or "").isdecimal():
        return uri
    name, alias, stage = named.groups()
    if stage:
        raise InputError(f"--model {uri}: {stage!r} is no version; name models:/{name}/NUMBER or models:/{name}@ALIAS")
    known = version_by_alias(tracking.connect(workspace), name, alias) if tracking.store_exists(workspace) else None
    if known is None:
        raise InputError(f"--model {uri}: {tracking.tracking_uri(workspace)} has no such model; `prm run` registers "
                         "one and `prm promote` makes it the champion")
    return f"models:/{name}/{known.version}"


def known_version(client: MlflowClient, name: str, version: str) -> ModelVersion | None:
    """A registered version, None where this store has no such model or version."""
    with _tolerating("RESOURCE_DOES_NOT_EXIST"):
        return client.get_model_version(name, version)
    return None


@contextmanager
def promotion_lock(client: MlflowClient, name: str) -> Iterator[Callable[[], bool]]:
    """Lets one promotion at a time compare versions of a model and move its alias, whatever machine it runs on.

    MLflow has no transactions and no compare-and-set. But a registry, be it a file, a database or a server's, takes a
    registered model's name once: the lock is a model `<name>-promotion`, there as long as the lock is held. One whose
    process is gone from this machine is taken over at once, any other after ABANDONED_SECONDS.

    Yields:
        A function that says whether the lock is still held, to be asked right before the alias moves.
    """
    lock, token = f"{name}-promotion", uuid.uuid4().hex
    mine = json.dumps({"token": token, "host": socket.gethostname(), "pid": os.getpid()})
    removed: list[str] = []

    def holder() -> str | None:
        with _tolerating("RESOURCE_DOES_NOT_EXIST"):
            return client.get_registered_model(lock).description or ""
        return None

    def take_away(abandoned: str) -> None:
        # Renamed, not deleted, and to a name made of what was there: only one of several that find it succeeds, and
        # none of them can remove the lock of the one that comes next.
        name = f"{lock}-{hashlib.sha256(abandoned.encode()).hexdigest()[:16]}"
        # BAD_REQUEST: renamed by another one between MLflow's look at it and its update.
        with _tolerating("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"):
            client.rename_registered_model(lock, name)
            removed.append(name)

    seen, since = "", time.monotonic()
    while True:
        # Not there any more: it was, when MLflow looked for what stood in the way.
        with _tolerating("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            client.create_registered_model(lock, description=mine)
            break
        other = holder()
        if other is not None and other != seen:
            seen, since = other, time.monotonic()
        if other is not None and (_is_gone(other) or time.monotonic() - since > ABANDONED_SECONDS):
            take_away(other)
        time.sleep(POLL_SECONDS)
    try:
        yield lambda: holder() == mine
    finally:
        for name in [lock] * (holder() == mine) + removed:
            with _tolerating("RESOURCE_DOES_NOT_EXIST"):
                client.delete_registered_model(name)


@contextmanager
def _tolerating(*codes: str) -> Iterator[None]:
    """Goes on behind the block when MLflow answers with one of these error codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def _is_gone(description: str) -> bool:
    """Whether a lock's holder ran on this machine and does no longer."""
    try:
        noted = json.loads(description)
        host, pid = noted["host"], int(noted["pid"])
    except (ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def reward_model_folder(uri: str, workspace: Path, into: Path | None = None) -> Path:
    """The local reward-model folder a URI names.

    Args:
        uri: a folder, or an MLflow model (`models:/prm@champion`, `models:/prm/3`, `runs:/<id>/reward_model`).
        workspace: whose tracking store knows the model.
        into: where a registered version is put whose artifacts lie elsewhere than on this disk; MLflow otherwise makes
            a folder that nobody removes.

    Raises:
        InputError: no such folder, no such model, or a model that is no reward model of ours.
    """
    if not uri.startswith(SCHEMES):
        folder = Path(uri)
        if not (folder / "config.json").is_file():
            raise InputError(f"--model {uri}: no reward model there (no config.json); name a folder, "
                             "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/PATH")
        return folder
    import mlflow
    from mlflow.exceptions import MlflowException

    if not tracking.store_exists(workspace):
        raise InputError(f"--model {uri}: there is no {tracking.tracking_uri(workspace)} to look it up in; run in the "
                         "workspace that registered it, or set MLFLOW_TRACKING_URI")
    tracking.use_store(workspace)
    try:
        elsewhere = into if into is not None and _lies_elsewhere(uri) else None
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=elsewhere and str(elsewhere)))
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--model {uri}: {tracking.tracking_uri(workspace)} has no such model ({reason}); "
                         "`prm run` registers one and `prm promote` makes it the champion") from error
    # MLflow keeps an artifact folder under the name it had, whatever that was.
    found = [path.parent for path in (local / "artifacts").glob("*/config.json")]
    if len(found) != 1:
        raise InputError(f"--model {uri}: not a reward model logged by the register stage")
    return found[0]


def _lies_elsewhere(uri: str) -> bool:
    """Whether a registered version's artifacts are to be fetched; they are copied where MLflow is told a place."""
    from mlflow.tracking import MlflowClient

    named = re.fullmatch(r"models:/([^/@]+)/(\d+)", uri)
    return bool(named) and not MlflowClient().get_model_version_download_uri(*named.groups()).startswith(("/", "file:"))
