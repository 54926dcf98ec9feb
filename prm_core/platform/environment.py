"""The environment every process of the project runs in: no telemetry, no surprise downloads, the project's own tools.

`apply` is called by the command line, by the flows and, through a .pth file that `make setup` writes, by every Python
of the virtual environment, so that `dvc`, `mlflow` and `prefect` typed by hand are covered too. Only the standard
library is imported here: this runs at every start of Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# Each can be overridden by exporting it, for instance HF_HUB_OFFLINE=0 to let a profile download its models.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A tracking server that has gone is asked for half a minute instead of several; one that restarts is back by then.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    # Loading and saving small models shows a bar each; our own progress goes through prm_core.platform.progress.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server starting on a loaded machine took 39 s; Prefect gives it 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Stages fork workers after tokenizing, about which tokenizers warns at length.
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMP's threads spin while they wait for each other. Beside another busy process that takes the core the other
    # one needs: an update of the warm-up took 0.39 s with this count and 2.3 s with a hundred times as much; on an idle
    # machine 0.222 s instead of 0.217 s.
    "GOMP_SPINCOUNT": "1000",
    # Blocks that are freed stay at hand, up to 256 MiB. Given back to the system and asked for again with every tensor,
    # as glibc has it, they cost a sixth of the policy training's time in page faults.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}


def project_root() -> Path:
    """The checkout this package lies in, or the current folder where the package is installed without one."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "params.yaml").is_file() else Path.cwd()


def apply(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fills in what the user has not set, and puts this interpreter's folder on PATH (`prm`, `dvc`, `mlflow`).

    PREFECT_HOME is one per checkout, because Prefect's database is bound to a Prefect version; PRM_HOME tells a
    Prefect worker where the checkout is.
    """
    root = project_root()
    values = {**DEFAULTS, "PREFECT_HOME": str(root / ".prefect"), "PRM_HOME": str(root)}
    for name, value in values.items():
        environment.setdefault(name, value)
    # Not resolved: in a virtual environment python is a link out of it.
    programs = str(Path(sys.executable).parent)
    folders = environment.get("PATH", os.defpath).split(os.pathsep)
    if programs not in folders:
        environment["PATH"] = os.pathsep.join([programs, *folders])


def is_main() -> bool:
    """Whether this process writes what the run gives: the only one, or the first of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Which of this machine's processes of a distributed run it is, as the launcher says."""
    return int(os.environ.get("LOCAL_RANK", "0"))
