"""`prm serve`: the scoring server, started as `mlflow models serve` with this workspace's store."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from prm_core.cli.failures import check_port
from prm_core.errors import InputError


def server_command(uri: str, host: str, port: int, workers: int) -> list[str]:
    """The `mlflow models serve` command line, run by this interpreter."""
    return [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local",
            "--host", host, "--port", str(port), "--workers", str(workers)]


def server_environment(store: str) -> dict[str, str]:
    """This process's environment, pointed at a tracking store, with this interpreter's programs first on the PATH.

    MLflow starts `uvicorn` by name, which without an activated environment is not found, or is another one.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store, "PATH": path}


def serve(
    model: Annotated[str | None, typer.Option(help="MLflow model URI; default: the model at --alias.")] = None,
    alias: Annotated[str | None, typer.Option(help="Registry alias to serve; default: champion.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5001,
    workers: Annotated[int, typer.Option(min=1, help="Server processes, each with its own copy of the model.")] = 1,
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml, whose model store is used.")] = Path("."),
) -> None:
    """Serve step scores over HTTP: POST /invocations.

    The alias is resolved when the server starts; after a promotion, start it again.
    """
    from prm_core import config as configuration
    from prm_core.platform import tracking
    from prm_core.serving import model_registry

    if model and alias:
        raise InputError("--model and --alias both name a model; give one of them")
    check_port(host, port)
    if model is None:
        config = configuration.load(workspace)
        name, alias = config.register.model_name, alias or config.promote.alias
        version = model_registry.version_by_alias(tracking.connect(workspace), name, alias)
        if version is None:
            raise InputError(f"model {name!r} has no {alias} in {tracking.tracking_uri(workspace)}; "
                             "`prm run` registers a version and `prm promote` makes it the champion")
        model = f"models:/{name}@{alias}"
        typer.echo(f"serving {model} (version {version.version}) on http://{host}:{port}/invocations", err=True)
    sys.stderr.flush()
    # Replaces this process, so that stopping it stops the server.
    environment = server_environment(tracking.settle(workspace))
    os.execve(sys.executable, server_command(model, host, port, workers), environment)
