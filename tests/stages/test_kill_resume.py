"""`kill -9` of a real stage: the next call goes on from the last whole shard and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prm_core.platform import store, tracking
from prm_core.stages.base import execute
from prm_core.types import Trajectory
from tests import ROOT
from tests.builders import tracking_store
from tests.builders.training import files, make_workspace, small_values

SHARDS = 12
# Chains of a random policy hardly ever end by themselves: a shard takes a tenth of a second and all of them seconds, so
# that a kill at the sight of the first shard finds most of the work undone on any machine.
SIZES = {
    "data": {"train": SHARDS},
    "generate": {"problems": SHARDS, "samples": 2, "max_new_tokens": 60, "shard_size": 1},
}
COMMAND = (sys.executable, "-m", "prm_core.cli", "stage", "generate", "--workspace")


def shards(folder: Path) -> dict[str, int]:
    """Name of each whole shard and the time it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def kill_after_first_shard(workspace: Path) -> dict[str, int]:
    """Runs the stage until a shard is there and kills it; returns the shards it left."""
    process = subprocess.Popen([*COMMAND, str(workspace)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    try:
        while not any(workspace.glob(".work/generate/*/part-00000.parquet")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        # To the end of the stage's own process, which holds the pipe.
        process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was through before it could be killed"
    (work,) = (path for path in (workspace / ".work/generate").iterdir() if path.name != "outputs")
    return shards(work)


@pytest.mark.usefixtures("quick_prm")
def test_a_killed_stage_goes_on_from_its_last_whole_shard(tmp_path) -> None:
    make_workspace(tmp_path / "killed", small_values(**SIZES))
    tracking_store.place(tmp_path / "killed/mlflow.db")
    shutil.copytree(tmp_path / "killed", tmp_path / "undisturbed")
    killed = tmp_path / "killed"

    left = kill_after_first_shard(killed)
    assert 1 <= len(left) < SHARDS
    assert files(killed / "artifacts/generate") == [], "nothing half-written"
    # What a crash in the middle of writing a shard leaves: it must neither be read nor be in the way.
    (work,) = (path for path in (killed / ".work/generate").iterdir() if path.name != "outputs")
    (work / f".part-{len(left):05d}.parquet.tmp").write_bytes(b"PAR1 half a shard")

    for workspace in (killed, tmp_path / "undisturbed"):
        execute("generate", workspace)

    found, expected = (folder / "artifacts/generate" for folder in (killed, tmp_path / "undisturbed"))
    assert files(found) == files(expected)
    for name in files(expected):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert len(store.read_shards(Trajectory, found / "trajectories")) == store.read_json(
        found / "metrics.json")["train/trajectories"] > SHARDS
    again = shards(found / "trajectories")
    assert {name: again[name] for name in left} == left, "shards that were whole were made again"
    assert len(again) == SHARDS
    assert files(killed / ".work") == []

    # The killed run is not left open, and each run says what it read.
    client = tracking.connect(killed)
    runs = client.search_runs([tracking.experiment_id(client, killed)], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    figures = store.read_json(found / "metrics.json")
    assert [run.data.metrics for run in runs] == [{}, figures]
    for run in runs:
        (data,) = (entry.dataset for entry in run.inputs.dataset_inputs)
        assert (data.name, json.loads(data.profile)) == ("data/train.jsonl", {"rows": SHARDS})
