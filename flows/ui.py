"""`make ui`: MLflow's and Prefect's servers over what a checkout has recorded, until Ctrl-C.

    python -m flows.ui [--workspace FOLDER] [--host HOST] [--mlflow-port PORT] [--prefect-port PORT]

Each answers requests only that name it, and no other site's pages. Where others than this machine can reach them, a key
is asked for: see `check_open_to` in flows/server.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flows import server
from prm_core.cli import failures
from prm_core.errors import InputError
from prm_core.platform import guard, tracking

MLFLOW_HOST = "127.0.0.1"


def mlflow_command(workspace: Path, port: int) -> list[str]:
    """The command line of MLflow's server: on this machine alone, which is what it can guard."""
    folder = workspace.resolve()
    names = guard.own_names(MLFLOW_HOST)
    return [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", MLFLOW_HOST, "--port", str(port),
            "--allowed-hosts", ",".join(f"{name}:{port}" for name in names),
            "--cors-allowed-origins", ",".join(f"http://{name}:{port}" for name in names),
            "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
            "--default-artifact-root", str(folder / "mlruns")]


def run(workspace: Path, host: str, mlflow_port: int, prefect_port: int) -> int:
    """Runs both until one ends or Ctrl-C; returns the exit code.

    Raises InputError for a port that is taken or none, a missing folder, or an address open to others without a key.
    """
    if not workspace.is_dir():
        raise InputError(f"{workspace}: no such folder; `prm run` makes a profile's")
    if mlflow_port == prefect_port:
        raise InputError(f"both ports are {prefect_port}; give MLFLOW_PORT and PREFECT_PORT different ones")
    server.check_open_to(host)
    failures.check_port(MLFLOW_HOST, mlflow_port)
    failures.check_port(host, prefect_port)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        # A server by itself would show the artifacts of a moved workspace where they were.
        tracking.connect(workspace)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    prefect = [sys.executable, "-m", "flows.server", "--host", host, "--port", str(prefect_port)]
    sys.stdout.write(f"MLflow   http://{MLFLOW_HOST}:{mlflow_port}   (runs, models and aliases of {workspace})\n"
                     f"Prefect  http://{host}:{prefect_port}   (flow runs and deployments)\n")
    sys.stdout.flush()
    processes = [subprocess.Popen(command, env=environment, start_new_session=True)
                 for command in (mlflow_command(workspace, mlflow_port), prefect)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        return next(process.returncode for process in processes if process.returncode is not None)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> None:
    """The command line; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m flows.ui")
    parser.add_argument("--workspace", type=Path, default=Path("."))
    parser.add_argument("--host", default="127.0.0.1", help="address of Prefect's server; MLflow's is on this machine")
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    given = parser.parse_args()
    with failures.told():
        sys.exit(run(given.workspace, given.host, given.mlflow_port, given.prefect_port))


if __name__ == "__main__":
    main()
