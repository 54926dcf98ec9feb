"""Two promotions at once, many times over: is the champion afterwards the version that the gate would have left?

    python -m benchmarks.promotion_races [--races 50] --out benchmarks/results/promotion_races.json

In each race a model has a champion and two challengers, each registered by a workspace of its own in one store. Both
would pass against that champion, but the weaker one not against the stronger: whichever comes first, the stronger one
must be the champion in the end. Two processes run `promote` at the same moment, or up to a twentieth of a second apart.
Even races talk to the store's database, odd ones to an MLflow server in front of it; every third finds the lock of a
promotion that was killed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Bar, parsed, write
from prm_core.config import PromoteConfig
from prm_core.errors import GateError
from prm_core.platform import store, tracking
from prm_core.serving import model_registry
from prm_core.serving.promotion import ECE, F1, promote

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# (first-error F1, low end of its interval) of the champion before, the stronger and the weaker challenger.
FIGURES = {"before": (0.90, 0.88), "stronger": (0.97, 0.95), "weaker": (0.91, 0.89)}
# Of the first-error F1 between the committee members of each.
COMMITTEE_SPREAD = 0.01
SPREAD_SECONDS = 0.05
# What every process needs, imported once.
MODULES = ("mlflow", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store",
           "mlflow.store.model_registry.sqlalchemy_store")
CONFIG = PromoteConfig(max_ece=0.1)


def register(workspace: Path, name: str, which: str) -> str:
    """A version with a challenger's figures, as the register stage leaves it; returns its number."""
    client = tracking.connect(workspace)
    run = client.create_run(tracking.experiment_id(client, workspace))
    logged = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
    f1, low = FIGURES[which]
    tags = {F1: str(f1), f"{F1}_low": str(low), f"{F1}_spread": str(COMMITTEE_SPREAD), ECE: "0.05", "data_hash": "-"}
    version = model_registry.add_version(workspace, name, logged.model_id, tags)
    store.write_json(workspace / "artifacts/register/model_version.json",
                     {"name": name, "version": str(version.version), "run_id": run.info.run_id})
    return str(version.version)


def prepare(folder: Path, name: str, abandoned: bool) -> dict[str, str]:
    """A model with its champion and the challengers; returns the challengers' version numbers."""
    register(folder, name, "before")
    promote(folder, CONFIG)
    if abandoned:
        leave_a_lock(tracking.connect(folder), name)
    return {which: register(folder / which, name, which) for which in ("stronger", "weaker")}


def compete(workspace: Path, start: float) -> str:
    """One of the two promotions, at `start`; returns what came of it."""
    time.sleep(max(0.0, start - time.time()))
    try:
        promote(workspace, CONFIG)
    except GateError as refused:
        return str(refused)
    except Exception as error:
        return f"error: {error!r}"
    return "promoted"


def champion(folder: Path, name: str) -> str:
    """The version that is champion now."""
    return str(model_registry.version_by_alias(tracking.connect(folder), name, CONFIG.alias).version)


def leave_a_lock(client: MlflowClient, name: str) -> None:
    """What a promotion that was killed leaves behind."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    client.create_registered_model(f"{name}-promotion", description=json.dumps(
        {"token": "killed", "host": socket.gethostname(), "pid": gone.pid}))


def race(folder: Path, number: int, server: str, choose: random.Random) -> dict[str, object]:
    """One race, its parts in processes of their own; returns what happened."""
    name = f"prm-{number}"
    os.environ["MLFLOW_TRACKING_URI"] = server if number % 2 else f"sqlite:///{folder / 'mlflow.db'}"
    # Forked from this process, which has imported MLflow and holds no connection.
    with multiprocessing.get_context("fork").Pool(4, maxtasksperchild=1) as processes:
        versions = processes.apply(prepare, (folder, name, number % 3 == 0))
        begin = time.time() + 0.1
        late = {which: choose.choice((0.0, choose.uniform(0, SPREAD_SECONDS))) for which in versions}
        both = {which: processes.apply_async(compete, (folder / which, begin + late[which])) for which in versions}
        answers = {which: answer.get(timeout=120) for which, answer in both.items()}
        right = processes.apply(champion, (folder, name)) == versions["stronger"]
    return {"race": number, "store": "server" if number % 2 else "database", **answers, "right": right}


@contextmanager
def mlflow_server(database: Path) -> Iterator[str]:
    """MLflow's server in front of a database, until the block ends; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
               "--backend-store-uri", f"sqlite:///{database}"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Runs the races and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotion_races")
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    choose = random.Random(given.seed)
    for module in MODULES:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="prm-races-") as scratch:
        folder = Path(scratch)
        with mlflow_server(folder / "mlflow.db") as server:
            races = [race(folder, number, server, choose) for number in range(given.races)]
    wrong = sum(not one["right"] for one in races)
    errors = sum(one[which].startswith("error") for one in races for which in ("stronger", "weaker"))
    refused = sum("is not promoted" in one["weaker"] for one in races)
    bars = [Bar("wrong champions", wrong, None, None, "0", wrong == 0),
            Bar("promotions that ended in an error", errors, None, None, "0", errors == 0)]
    write(given, bars, refused=refused, races=races)


if __name__ == "__main__":
    main()
