"""A copied and a moved workspace: each has its own models, and nobody else's."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.serving import model_registry
from tests import ROOT
from tests.builders.scorer import FakeScorer, fake_model_folder


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("prm_core.scoring.scorer.load_scorer", lambda folder, **_: FakeScorer())


def register(workspace: Path, text: str) -> str:
    """A version of model `prm`, champion, that is known by a file's text; returns its run."""
    folder = fake_model_folder(workspace / text)
    (folder / "model.safetensors").write_text(text)
    with tracking.stage_run(workspace, "register", configuration.load(ROOT)) as run:
        run.log_artifact(folder / "config.json")
        model_id = model_registry.log_reward_model(workspace, run.run_id, folder, configuration.load(ROOT).serve)
    version = model_registry.add_version(workspace, "prm", model_id, {})
    tracking.connect(workspace).set_registered_model_alias("prm", "champion", version.version)
    return run.run_id


def champion(workspace: Path) -> str:
    return (model_registry.reward_model_folder("models:/prm@champion", workspace) / "model.safetensors").read_text()


def places(workspace: Path) -> set[str]:
    """Every value of the database that has the word mlruns."""
    with sqlite3.connect(workspace / "mlflow.db") as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}")]
    return {value for row in rows for value in row if isinstance(value, str) and "/mlruns" in value}


def test_a_copy_and_the_original_keep_apart_and_a_moved_one_finds_its_models(tmp_path: Path) -> None:
    original, copy, moved = tmp_path / "a 100%", tmp_path / "a 100%-copy", tmp_path / "elsewhere" / "b"
    run = register(original, "first")
    shutil.copytree(original, copy)

    register(copy, "second")
    assert (champion(original), champion(copy)) == ("first", "second")
    assert len(list((original / "mlruns/models").iterdir())) == 1
    assert len(list((copy / "mlruns/models").iterdir())) == 2

    moved.parent.mkdir()
    original.rename(moved)
    assert champion(moved) == "first"
    assert [one.path for one in tracking.connect(moved).list_artifacts(run)] == ["config.json"]
    for workspace in (moved, copy):
        mine = places(workspace)
        assert mine
        assert all(place.startswith((f"{(workspace / 'mlruns').as_uri()}", str(workspace / "mlruns"))) for place in mine
                   if "/mlruns-" not in place)


def test_what_lies_elsewhere_stays(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "a", (tmp_path / "a/mlruns-of-mine").as_uri()
    client = tracking.connect(there)
    tracking.experiment_id(client, there)
    client.create_experiment("own", artifact_location=elsewhere)
    client.create_experiment("bucket", artifact_location="s3://bucket/a/mlruns")
    there.rename(tmp_path / "b")
    client = tracking.connect(tmp_path / "b")
    found = {one.name: one.artifact_location for one in client.search_experiments()}
    assert found.items() >= {"prm": (tmp_path / "b/mlruns").as_uri(), "own": elsewhere,
                             "bucket": "s3://bucket/a/mlruns"}.items()


def test_one_folder_under_two_names_has_not_moved(tmp_path: Path) -> None:
    there = tmp_path / "a"
    tracking.experiment_id(tracking.connect(there), there)
    (there / "mlruns").mkdir()
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "mlruns").symlink_to(there / "mlruns")
    shutil.copy(there / "mlflow.db", tmp_path / "mount" / "mlflow.db")
    experiment = tracking.connect(tmp_path / "mount").get_experiment_by_name("prm")
    assert experiment.artifact_location == (there / "mlruns").as_uri()


def test_a_store_on_a_server_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "a"
    tracking.experiment_id(tracking.connect(there), there)
    there.rename(tmp_path / "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/b/mlflow.db")
    experiment = tracking.connect(tmp_path / "c").get_experiment_by_name("prm")
    assert experiment.artifact_location == (there / "mlruns").as_uri()


def test_a_broken_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 8)
    with pytest.raises(InputError, match=r"mlflow\.db: MLflow's database cannot be read \(.*put it back"):
        tracking.connect(tmp_path)
