"""Stages on a real Ray cluster, two workers: the artifacts of an undisturbed run here, also after a killed worker; a
cluster with other code; one without room. `make test-ray` installs Ray for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from prm_core import config as configuration
from prm_core.stages.base import execute
from tests import ROOT
from tests.builders import tracking_store
from tests.builders.training import files, make_workspace, small_values

pytest.importorskip("ray", reason="Ray is not installed (make test-ray)")
from deploy import ray_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
SHARDS = 8
SIZES = {
    "data": {"train": SHARDS},
    "generate": {"problems": SHARDS, "samples": 2, "max_new_tokens": 60, "shard_size": 1},
    "label": {"strategies": ["rollout", "mc_dropout", "mcts", "verifier"], "shard_size": 4},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A workspace in which generate and label have run here."""
    folder = tmp_path_factory.mktemp("ray") / "here"
    make_workspace(folder, small_values(**SIZES))
    tracking_store.place(folder / "mlflow.db")
    shutil.copytree(folder, folder.parent / "untouched")
    for stage in ("generate", "label"):
        execute(stage, folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_cluster.RayCluster]:
    with ray_cluster.started(2) as found:
        yield found


def stage(name: str, folder: Path, cluster: ray_cluster.RayCluster, **workers) -> subprocess.Popen[str]:
    """`prm stage` in a workspace whose shards are worked on there."""
    raw = configuration.read_yaml(folder / "params.yaml")
    raw["workers"] = {"runner": "ray", "address": cluster.address, "count": 2, **workers}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    own = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
    # Not in the checkout: Ray has workers of the same machine look in the folder of who asks first.
    command = [sys.executable, "-m", "prm_core.cli", "stage", name, "--workspace", str(folder)]
    return subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workspace(undisturbed: Path, folder: Path) -> Path:
    shutil.copytree(undisturbed.parent / "untouched", folder)
    return folder


def assert_same(one: Path, other: Path, stage: str) -> None:
    found, expected = one / "artifacts" / stage, other / "artifacts" / stage
    assert files(found) == files(expected)
    assert [name for name in files(expected) if (found / name).read_bytes() != (expected / name).read_bytes()] == []


def test_stages_on_a_cluster_write_what_they_write_here_also_when_a_worker_is_killed(
    undisturbed, cluster, tmp_path
) -> None:
    there = workspace(undisturbed, tmp_path / "there")
    process = stage("generate", there, cluster)
    end = time.monotonic() + 600
    while not any(there.glob(".work/generate/*/part-*.parquet")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    victims = cluster.workers()
    if process.poll() is None and victims:
        victims[0].kill()
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "a Ray worker was lost on shard" in said, "it was through before one could be killed"
    assert_same(there, undisturbed, "generate")

    process = stage("label", there, cluster)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same(there, undisturbed, "label")


def test_a_cluster_with_other_code_is_an_error_unless_ours_is_sent(undisturbed, tmp_path) -> None:
    shutil.copytree(Path(configuration.__file__).parents[1], tmp_path / "code/prm_core",
                    ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "code/prm_core/errors.py").open("a") as module:
        module.write("# another version\n")
    there = workspace(undisturbed, tmp_path / "there")
    with ray_cluster.started(2, PYTHONPATH=str(tmp_path / "code")) as other:
        said, _ = (process := stage("generate", there, other, send_code=False)).communicate(timeout=600)
        assert process.returncode == 2, said
        assert "has another version of the code" in said
        assert "workers.send_code to true" in said
        assert files(there / "artifacts") == files(undisturbed.parent / "untouched/artifacts"), "half-written"
        said, _ = (process := stage("generate", there, other, send_code=True)).communicate(timeout=600)
        assert process.returncode == 0, said
    assert_same(there, undisturbed, "generate")


def test_a_cluster_that_is_not_there_or_has_no_room_is_an_error(undisturbed, cluster, tmp_path) -> None:
    there = workspace(undisturbed, tmp_path / "there")
    said, _ = (process := stage("generate", there, cluster, gpus=1, start_seconds=5)).communicate(timeout=600)
    assert process.returncode == 2, said
    assert "no worker started at the Ray cluster" in said
    assert "0 of 0 GPUs free" in said
    said, _ = (process := stage("generate", there, cluster, address="127.0.0.1:1")).communicate(timeout=600)
    assert process.returncode == 2, said
    assert "workers.address 127.0.0.1:1: nothing answers there" in said
