"""One run at a time that registers a model of a name, over all workspaces and machines of one Prefect server.

A workspace's own lock (prm_core/platform/workspace.py) keeps a second run out of it. This is for several of them, on
several machines, that share a model registry; without a shared one it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from prm_core import config as configuration
from prm_core.platform import workspace

# The shortest that Prefect takes. After a kill the place is free when that has run out and the server has looked.
LEASE_SECONDS = 60
FREE_SECONDS = LEASE_SECONDS + 30


@contextmanager
def registering(folder: Path, patience: float) -> Iterator[None]:
    """Holds the name that a workspace registers its model under; another run's lease is waited for.

    Args:
        patience: seconds; as long as a killed run's lease may last is waited in any case.

    Raises InUse when another run still has it.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    model = configuration.load(folder).register.model_name
    name = f"registry-{model}"
    with get_client(sync_client=True) as client:
        # By itself Prefect lets everybody pass where there is no limit of that name.
        client.upsert_global_concurrency_limit_by_name(name, 1)
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(
                name, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False,
                timeout_seconds=max(patience, FREE_SECONDS),
            ))
        except TimeoutError:
            raise workspace.InUse(f"another run registers model {model!r} at {os.environ['MLFLOW_TRACKING_URI']}; "
                                  "wait until it ends, or stop it") from None
        yield
