"""The model that `prm serve` serves, and the application of a process that serves it (`http/edge.py`).

Scoring is in `service.py`, starting it in `prm_core/cli/scoring/serve.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prm_core import config as configuration
from prm_core.config import Config, ServeConfig
from prm_core.platform.environment import project_root
from prm_core.scoring.conformal import Promises
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.scorer import CALIBRATOR_FILE
from prm_core.serving import model_registry
from prm_core.serving.cache import ScoreCache
from prm_core.serving.drift.watch import Watch
from prm_core.serving.http.asked import Served
from prm_core.serving.http.edge import Edge
from prm_core.serving.http.keys import ApiKeys
from prm_core.serving.http.logs import configure
from prm_core.serving.metrics import Metrics
from prm_core.serving.service import ScoringService

# Where a worker process, which imports this module anew, finds what it serves.
MODEL, WORKSPACE = "PRM_SERVED_MODEL", "PRM_SERVED_WORKSPACE"


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
    folder = model_registry.reward_model_folder(uri, workspace)
    registered = uri.startswith(model_registry.SCHEMES)
    here = settings_of(workspace)
    settings = model_registry.logged_settings(folder) if registered else here.serve
    scorer = load_any_scorer(folder, batch_size=settings.batch_size)
    service = ScoringService(scorer, ScoreCache(settings.cache_size, settings.cache_ttl), Promises.load(folder),
                             here.engine)
    calibrator = folder / CALIBRATOR_FILE
    made = model_registry.logged_at(folder) if registered else (
        calibrator.stat().st_mtime if calibrator.is_file() else None)
    name = uri.split(":/", 1)[1].split("/")[0].split("@")[0] if registered else folder.resolve().name
    return Served(service, defaults_of(settings), name, uri if registered else name, made)


def defaults_of(settings: ServeConfig) -> dict[str, Any]:
    """The parameters of a request that names none."""
    return {"threshold": settings.threshold, "aggregate": settings.aggregate}


def build(served: Served, workspace: Path) -> Edge:
    """The application, at the limits and with the API keys that the workspace's `http` section names.

    Raises InputError where the file of keys is none.
    """
    settings = settings_of(workspace)
    keys = ApiKeys(workspace / settings.http.keys) if settings.http.keys else None
    metrics = Metrics(served.name, served.calibrated)
    return Edge(served, settings.http, keys, metrics, Watch(workspace, settings.drift, metrics))


def create_app() -> Edge:
    """The application of one of several worker processes."""
    workspace = Path(os.environ[WORKSPACE])
    configure(settings_of(workspace).http.log_texts)
    return build(load(os.environ[MODEL], workspace), workspace)
