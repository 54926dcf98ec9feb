"""What is logged to MLflow of a reward model's folder."""

from __future__ import annotations

from pathlib import Path

from prm_core.models.bases import Base
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.scorer import save_reward_model
from prm_core.serving import model_registry
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
