"""What is logged to MLflow of a reward model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from prm_core.models.bases import Base
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.scorer import save_reward_model
from prm_core.serving import model_registry
from tests.builders.scorer import fake_model_folder
from tests.builders.training import files, make_encoder, make_reward_model, small_config


def test_a_model_saved_without_its_base_is_logged_with_it(tmp_path, monkeypatch) -> None:
    encoder = make_encoder()
    model = make_reward_model(tmp_path / "lm", encoder)
    model.base = Base.of(str(tmp_path / "lm"), "lm")
    save_reward_model(model, encoder, Calibrator("identity", 0), tmp_path / "prm")
    logged: list[tuple[str, list[str]]] = []

    def log(workspace: Path, run_id: str, folder: Path, *_) -> str:
        logged.append((folder.name, files(folder)))
        return "m-1"

    monkeypatch.setattr(model_registry, "_log", log)
    assert model_registry.log_reward_model(tmp_path, "run", tmp_path / "prm", small_config().serve) == "m-1"
    assert logged == [("prm", ["SHA256SUMS", "calibrator.json", "config.json", "model.safetensors",
                               "surprisal.safetensors", "tokenizer.json", "tokenizer_config.json"])]


@pytest.mark.parametrize(("where", "fetched"), [("s3://bucket/m", True), ("mlflow-artifacts:/1/m", True),
                                                ("file:///a/m", False), ("/a/m", False)])
def test_what_lies_elsewhere_is_fetched_to_where_it_can_be_removed(tmp_path, monkeypatch, where, fetched) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(uri: str, dst_path: str | None = None) -> str:
        asked.append((uri, dst_path))
        place = Path(dst_path or tmp_path / f"made{len(asked)}")
        fake_model_folder(place / "artifacts/prm")
        return str(place)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    monkeypatch.setattr("mlflow.tracking.MlflowClient.get_model_version_download_uri", lambda *_: where)
    monkeypatch.setattr(model_registry.tracking, "store_exists", lambda workspace: True)
    monkeypatch.setattr(model_registry.tracking, "use_store", lambda workspace: None)
    found = model_registry.reward_model_folder("models:/prm/3", tmp_path, tmp_path / "into")
    assert asked == [("models:/prm/3", str(tmp_path / "into") if fetched else None)]
    assert (found / "config.json").is_file()
    assert found.is_relative_to(tmp_path / ("into" if fetched else "made1"))
    model_registry.reward_model_folder("models:/prm@champion", tmp_path, tmp_path / "alias")
    assert asked[1] == ("models:/prm@champion", None)
