"""The model that `prm serve` serves, and the application of a process that serves it (`http/edge.py`).

Scoring is in `service.py`, starting it in `prm_core/cli/scoring/serve.py`.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prm_core import config as configuration
from prm_core.config import Config, ServeConfig
from prm_core.labeling.rule_judge import overseer_of
from prm_core.platform import tracking
from prm_core.platform.environment import project_root
from prm_core.platform.tracking import reachable
from prm_core.scoring.conformal import Promises
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.scorer import CALIBRATOR_FILE, LoadedScorer, RewardScorer
from prm_core.serving import model_registry
from prm_core.serving.cache import ScoreCache
from prm_core.serving.drift.watch import Watch
from prm_core.serving.http.edge import Edge
from prm_core.serving.http.keys import ApiKeys
from prm_core.serving.http.logs import configure
from prm_core.serving.http.webhook import Webhook
from prm_core.serving.metrics import SHARED, Metrics
from prm_core.serving.rules import Guard
from prm_core.serving.service import ScoringService
from prm_core.serving.swap.bell import Bell
from prm_core.serving.swap.current import Current, Served
from prm_core.serving.swap.recent import Recent
from prm_core.serving.swap.watcher import Watcher

# Of a model whose passes one thread makes.
FEW_PARAMETERS = 20_000_000
# Where a worker process, which imports this module anew, finds what it serves.
MODEL, ALIAS, WORKSPACE = "PRM_SERVED_MODEL", "PRM_SERVED_ALIAS", "PRM_SERVED_WORKSPACE"
# In the folder that they share: what has the others look at the registry, and the version that took over last.
BELL_FILE, TAKEN_FILE = "reload", "model"


def settings_of(workspace: Path) -> Config:
    """The workspace's, or the default profile's where that is none."""
    own = (workspace / configuration.PARAMS_FILE).is_file()
    return configuration.load(workspace if own else project_root())


def load(uri: str, workspace: Path) -> Served:
    """The model that a URI or a folder names, ready to answer.

    A registered model brings the settings it was logged with; a folder gets those of `settings_of`. What the server may
    take of the machine is always said there.

    Raises InputError as `model_registry.reward_model_folder` and `load_any_scorer` do, and for a model without step
    scores.
    """
    # What was fetched is in memory then, and else would stay on the disk with every version.
    with tempfile.TemporaryDirectory() as fetched:
        return _load(uri, model_registry.reward_model_folder(uri, workspace, Path(fetched)), workspace)


def _load(uri: str, folder: Path, workspace: Path) -> Served:
    here = settings_of(workspace)
    registered = uri.startswith(model_registry.SCHEMES)
    settings = model_registry.logged_settings(folder) if registered else here.serve
    scorer = load_any_scorer(folder, batch_size=settings.batch_size)
    threads = threads_of(scorer, here.engine.threads)
    if threads:
        torch.set_num_threads(threads)
    overseer = overseer_of(here, workspace)
    service = ScoringService(scorer, ScoreCache(settings.cache_size, settings.cache_ttl), Promises.load(folder),
                             here.engine, overseer and Guard(overseer, here.rules.block))
    calibrator = folder / CALIBRATOR_FILE
    made = model_registry.logged_at(folder) if registered else (
        calibrator.stat().st_mtime if calibrator.is_file() else None)
    name = uri.split(":/", 1)[1].split("/")[0].split("@")[0] if registered else folder.resolve().name
    example = model_registry.logged_example(folder) if registered else None
    return Served(service, defaults_of(settings), name, uri if registered else name, made, example)


def threads_of(scorer: LoadedScorer, asked: int) -> int:
    """Threads of a pass of the model, 0 to leave that to PyTorch. A small model's operations are shorter than it takes
    to share them, and threads that wait for one another spin on cores that the server's own threads need."""
    small = isinstance(scorer, RewardScorer) and scorer.model.backbone.num_parameters() < FEW_PARAMETERS
    return asked or int(small)


def defaults_of(settings: ServeConfig) -> dict[str, Any]:
    """The parameters of a request that names none."""
    return {"threshold": settings.threshold, "aggregate": settings.aggregate}


def build(served: Served, workspace: Path, alias: str | None = None) -> Edge:
    """The application, at the limits and with the API keys that the workspace's `http` section names.

    Args:
        served: what answers first.
        alias: `models:/NAME@ALIAS` that it goes with, as the section `swap` says; None stays with the first.

    Raises InputError where the file of keys is none.
    """
    settings = settings_of(workspace)
    keys = ApiKeys(workspace / settings.http.keys) if settings.http.keys else None
    webhook = Webhook(workspace / settings.swap.webhook_secret) if settings.swap.webhook_secret else None
    metrics, current = Metrics(served.name, served.calibrated), Current(served)
    recent = Recent(settings.swap.shadow if alias else 0)
    watcher = None
    if alias:
        shared = _shared()
        watcher = Watcher(current, recent, partial(_find, alias, workspace), partial(load, workspace=workspace),
                          settings.swap, metrics, Bell(shared and shared / BELL_FILE), shared and shared / TAKEN_FILE)
    watch = Watch(workspace, settings.drift, metrics)
    return Edge(current, settings.http, keys, metrics, recent, watch, watcher, webhook)


def _find(alias: str, workspace: Path) -> str:
    # Asked each time: a registry that has gone would otherwise be asked in vain for minutes.
    reachable.check(tracking.tracking_uri(workspace), again=True)
    return model_registry.pinned(alias, workspace)


def create_app() -> Edge:
    """The application of one of several worker processes."""
    workspace = Path(os.environ[WORKSPACE])
    configure(settings_of(workspace).http.log_texts)
    shared = _shared()
    taken = shared and shared / TAKEN_FILE
    # One that takes the place of a process that has died goes on where that was.
    model = taken.read_text(encoding="utf-8") if taken and taken.exists() else os.environ[MODEL]
    return build(load(model, workspace), workspace, os.environ.get(ALIAS))


def _shared() -> Path | None:
    """The folder that several worker processes share; None of a server of one."""
    return Path(os.environ[SHARED]) if os.environ.get(SHARED) else None
