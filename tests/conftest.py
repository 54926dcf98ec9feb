"""What every test runs under: the project's environment, with stores of its own instead of the user's."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

from prm_core.platform import environment

# Before anything imports Prefect or MLflow.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PRM_PARENT_RUN_ID"):
    os.environ.pop(_name, None)
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prm-tests-prefect-")
environment.apply()
# Each of several workers has a core; two threads apiece would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Machines differ and CI is slow; a slow example is no failure.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
