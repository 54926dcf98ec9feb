"""`prm serve`: the scoring server (prm_core/serving/app.py, prm_core/serving/http/), on a model of this workspace's
store or a folder."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from prm_core.cli.failures import check_port
from prm_core.errors import InputError


def serve(
    model: Annotated[str | None, typer.Option(
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/reward_model or a model folder; default: the model at "
             "--alias.")] = None,
    alias: Annotated[str | None, typer.Option(help="Registry alias to serve; default: champion.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5001,
    workers: Annotated[int, typer.Option(min=1, help="Server processes, each with its own copy of the model.")] = 1,
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml, whose model store is used.")] = Path("."),
) -> None:
    """Serve step scores over HTTP: POST /invocations and what else /openapi.json lists.

    Limits, API keys and logs are the section `http` of params.yaml. A server of an alias goes with it: when it moves,
    the new version is tried beside the old and takes over, as the section `swap` says.
    """
    import uvicorn

    from prm_core import config as configuration
    from prm_core.platform import tracking
    from prm_core.platform.guard import is_loopback
    from prm_core.serving import app, model_registry
    from prm_core.serving.http import logs
    from prm_core.serving.metrics import SHARED

    if model and alias:
        raise InputError("--model and --alias both name a model; give one of them")
    check_port(host, port)
    followed = model if model and model.startswith("models:/") and "@" in model else None
    if followed:
        model = model_registry.pinned(followed, workspace)
    if model is None:
        config = configuration.load(workspace)
        name, alias = config.register.model_name, alias or config.promote.alias
        version = model_registry.version_by_alias(tracking.connect(workspace), name, alias)
        if version is None:
            raise InputError(f"model {name!r} has no {alias} in {tracking.tracking_uri(workspace)}; "
                             "`prm run` registers a version and `prm promote` makes it the champion")
        model, followed = f"models:/{name}/{version.version}", f"models:/{name}@{alias}"
        typer.echo(f"serving {model} ({alias}) on http://{host}:{port}/invocations", err=True)
    # Here, so that a model that does not load is one line, whatever the number of processes.
    whole = app.settings_of(workspace)
    settings = whole.http
    edge = app.build(app.load(model, workspace), workspace, followed)
    how = {"host": host, "port": port, "log_config": None, "access_log": False,
           "timeout_graceful_shutdown": settings.drain_timeout}
    if not settings.keys and not is_loopback(host):
        typer.echo(f"whoever reaches {host}:{port} may ask; http.keys names a file of API keys", err=True)
    logs.configure(settings.log_texts)
    if workers == 1:
        uvicorn.run(edge, **how)
        return
    del edge
    with tempfile.TemporaryDirectory() as shared:
        os.environ |= {app.MODEL: model, app.WORKSPACE: str(workspace.resolve()), SHARED: shared,
                       **({app.ALIAS: followed} if followed else {})}
        # A process that loads a model, the first or another one, does not answer its supervisor meanwhile, which by
        # default kills it after five seconds with all that was asked of it.
        uvicorn.run("prm_core.serving.app:create_app", factory=True, workers=workers,
                    timeout_worker_healthcheck=math.ceil(whole.engine.deadline), **how)
