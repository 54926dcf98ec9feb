"""The chain on real stores: a deployment of a Prefect server on PostgreSQL, MLflow on it and S3, DVC's remote on
the latter. One run of the smoke profile, in a scratch clone of HEAD; `make test-services`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from deploy import services
from prm_core import config as configuration
from prm_core.platform import store
from tests import ROOT
from tests.run_docs import OURS

pytestmark = [pytest.mark.service, pytest.mark.timeout(1500)]

CHAIN_OF = {"prompt": "What is 3 + 4?", "steps": ["3 + 4 = 7."]}
NAME = "prm-of-services"


@dataclass(frozen=True, slots=True)
class Site:
    """A checkout that works with the servers.

    Attributes:
        servers: PostgreSQL, S3, MLflow and Prefect.
        folder: the checkout, at the smoke profile's sizes.
        environment: of what runs there.
    """

    servers: services.Services
    folder: Path
    environment: dict[str, str]

    def start(self, *command: str, folder: Path | None = None) -> subprocess.Popen[str]:
        """A module of this Python in the checkout, or in another folder."""
        where = folder or self.folder
        return subprocess.Popen([sys.executable, "-m", *command], cwd=where, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env={**self.environment, "PYTHONPATH": str(where)})

    def run(self, *command: str, folder: Path | None = None) -> str:
        """The same to its end; returns what it said."""
        process = self.start(*command, folder=folder)
        said, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, f"{command}:\n{said[-6000:]}"
        return said


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The servers, and a checkout in which the deployment has run once."""
    if reason := services.missing():
        pytest.skip(f"not installed: {reason}")
    # PostgreSQL runs as a user of its own, for whom pytest's folders are closed.
    with tempfile.TemporaryDirectory(prefix="prm-services-") as folder:
        yield from run_once(Path(folder))


def run_once(scratch: Path) -> Iterator[Site]:
    scratch.chmod(0o711)
    git(scratch, "clone", "--quiet", str(ROOT), "checkout")
    folder = scratch / "checkout"
    params = configuration.resolve(folder / configuration.PARAMS_FILE, "smoke")
    params["register"]["model_name"] = NAME
    # A gate that lets nothing pass which it cannot measure needs chains with and without an error.
    params["warmup"] |= {"max_updates": 600, "eval_every": 600}
    params["data"]["test"] = 60
    (folder / configuration.PARAMS_FILE).write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink()
    with services.Services(scratch / "servers") as servers:
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        site = Site(servers, folder, {**clean, **servers.environment})
        site.run("prefect", "work-pool", "create", "local", "--type", "process")
        site.run("prefect", "--no-prompt", "deploy", "--all")
        worker = site.start("prefect", "worker", "start", "--pool", "local")
        try:
            site.run("prefect", "deployment", "run", "pipeline/on-demand", "--watch")
        finally:
            worker.terminate()
            said, _ = worker.communicate(timeout=60)
        assert f"{NAME} version 1 is now champion" in said, said[-6000:]
        yield site


def test_the_deployment_ran_and_its_version_is_champion_of_the_server(site: Site) -> None:
    from mlflow.tracking import MlflowClient

    uri = site.servers.environment["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert champion.version == "1"
    run = client.get_run(champion.run_id)
    assert (run.info.status, run.info.artifact_uri.split(":")[0]) == ("FINISHED", "mlflow-artifacts")
    assert not (site.folder / "mlflow.db").exists()
    assert not (site.folder / ".prefect/prefect.db").exists()


def test_databases_and_bucket_hold_it(site: Site) -> None:
    import boto3
    import psycopg

    given = site.servers.environment
    s3 = boto3.client("s3", endpoint_url=given["AWS_ENDPOINT_URL"], region_name=given["AWS_DEFAULT_REGION"],
                      aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
                      aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"])
    keys = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
            for one in page["Contents"]]
    assert any(key.endswith(".safetensors") for key in keys)
    for database, query, expected in (
        ("mlflow", "select count(*) from model_versions", 1),
        ("prefect", "select count(*) from flow_run where state_type = 'COMPLETED'", 1),
        ("prefect", "select count(*) from flow_run where state_type <> 'COMPLETED' and start_time is not null", 0),
    ):
        with psycopg.connect(site.servers.database_url(database)) as connection:
            assert connection.execute(query).fetchone()[0] == expected


def test_the_server_loads_the_champion_back_and_scores_as_the_model_on_disk(site: Site, tmp_path: Path) -> None:
    (port,) = services.free_ports(1)
    command = [sys.executable, "-m", "prm_core.cli", "serve", "--port", str(port), "--workspace", str(site.folder)]
    served = services.Service("prm serve", command, tmp_path / "serve.log",
                              lambda: services.answers(f"http://127.0.0.1:{port}/ready"),
                              environment=site.environment | {"PYTHONPATH": str(site.folder)})
    served.start()
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", method="POST", headers={
            "Content-Type": "application/json"}, data=json.dumps({"inputs": [CHAIN_OF]}).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            scores = json.load(answer)["predictions"][0]["step_scores"]
    finally:
        served.stop()
    store.write_jsonl(tmp_path / "chains.jsonl", [CHAIN_OF])
    site.run("prm_core.cli", "score", str(tmp_path / "chains.jsonl"), "--model", "artifacts/train_prm/prm",
             "--out", str(tmp_path / "scored.jsonl"))
    on_disk = json.loads((tmp_path / "scored.jsonl").read_text())["step_scores"]
    assert scores == pytest.approx(on_disk, abs=1e-4)


def test_dvc_pushes_to_s3_and_a_fresh_clone_pulls(site: Site, tmp_path: Path) -> None:
    site.run("dvc", "remote", "add", "--default", "s3", "s3://dvc/prm")
    git(site.folder, "add", "--all")
    git(site.folder, "commit", "--quiet", "--message", "a run")
    site.run("dvc", "push")
    git(tmp_path, "clone", "--quiet", str(site.folder), "clone")
    clone = tmp_path / "clone"
    site.run("dvc", "pull", folder=clone)
    assert "up to date" in site.run("dvc", "status", folder=clone)
    for name in ("artifacts/evaluate/metrics.json", "artifacts/train_prm/prm/trained.safetensors"):
        assert (clone / name).read_bytes() == (site.folder / name).read_bytes()
