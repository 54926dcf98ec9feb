"""The HTTP edge over a scorer with a rule, asked in-process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from prm_core.config import DriftConfig, EngineConfig, HttpConfig
from prm_core.scoring.conformal import NO_PROMISES, Promises
from prm_core.scoring.scorer import ChainScorer
from prm_core.serving.cache import ScoreCache
from prm_core.serving.drift.watch import Watch
from prm_core.serving.http.edge import Edge
from prm_core.serving.http.keys import ApiKeys
from prm_core.serving.metrics import Metrics
from prm_core.serving.rules import Guard
from prm_core.serving.service import ENGINE, ScoringService
from prm_core.serving.swap.current import Current, Served
from prm_core.serving.swap.recent import Recent
from tests.builders.scorer import FakeScorer

JSON = "application/json"
DEFAULTS = {"threshold": 0.5, "aggregate": "min"}
SOURCE = "models:/prm/3"
NOT_SAMPLED = DriftConfig(sample=0.0)


def unsampled(metrics: Metrics) -> Watch:
    """Keeps nothing."""
    return Watch(Path("."), NOT_SAMPLED, metrics)


def edge(
    scorer: ChainScorer | None = None, *, promises: Promises = NO_PROMISES, keys: Path | None = None,
    calibrated: float | None = None, kept: int = 0, engine: EngineConfig = ENGINE, workspace: Path = Path("."),
    drift: DriftConfig = NOT_SAMPLED, guard: Guard | None = None, **limits: Any
) -> Edge:
    """The application, which keeps the scores of so many chains; `limits` are settings of `HttpConfig`."""
    service = ScoringService(scorer or FakeScorer(), ScoreCache(kept, 60.0), promises, engine, guard)
    served = Served(service, DEFAULTS, "prm", SOURCE, calibrated)
    metrics = Metrics("prm", calibrated)
    return Edge(Current(served), HttpConfig(**limits), ApiKeys(keys) if keys else None, metrics, Recent(0),
                Watch(workspace, drift, metrics))


def ask(client: TestClient, path: str, values: Any) -> Any:
    """The JSON of a 200."""
    response = client.post(path, content=json.dumps(values), headers={"content-type": JSON})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, path: str, values: Any, status: int = 400) -> str:
    """The line of a refusal."""
    response = client.post(path, content=json.dumps(values), headers={"content-type": JSON})
    assert response.status_code == status, response.text
    return response.json()["message"]


@contextmanager
def listening(app: Edge) -> Iterator[str]:
    """The application on a port of its own, for clients that want one; yields its address."""
    import threading
    import time

    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
