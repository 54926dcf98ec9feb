"""`prm probe`: any model folder, tried with the workspace's settings."""

from __future__ import annotations

from typer.testing import CliRunner

from prm_core.cli.app import app
from prm_core.platform import store
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.scorer import save_reward_model
from tests.builders.training import make_encoder, make_reward_model, make_workspace, small_values


def test_a_model_s_folder_is_probed(tmp_path) -> None:
    root, encoder = tmp_path / "w", make_encoder()
    make_workspace(root, small_values(serve={"threshold": 1.0}, probe={
        "enabled": False, "problems": 2, "suffix_chains": 1, "suffix_tokens": 2, "suffix_rounds": 1,
        "suffix_tries": 2}))
    save_reward_model(make_reward_model(tmp_path / "lm", encoder), encoder, Calibrator("identity", 0), tmp_path / "prm")
    result = CliRunner().invoke(app, ["probe", str(tmp_path / "prm"), "--updates", "1", "--out",
                                      str(tmp_path / "out.json"), "--workspace", str(root)])
    assert result.exit_code == 0, result.output
    found = store.read_json(tmp_path / "out.json")
    assert found["figures"]["probe/policy/updates"] == 1
    assert len(found["suffixes"]) == found["figures"]["probe/suffix/n_chains"] == 1
    assert "probe/policy/updates  1\n" in result.output
