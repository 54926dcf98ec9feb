"""What `prm serve` serves: a registered version or a folder, at the settings of the workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prm_core.errors import InputError
from prm_core.scoring.scorer import load_scorer
from prm_core.serving import app
from prm_core.types import Step
from tests.builders.edge import DEFAULTS, ask
from tests.builders.reward_models import tiny_reward_model


def test_a_model_folder_is_served_as_it_is_with_the_default_profile_s_settings(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "prm")
    served = app.load(str(folder), tmp_path)
    assert served.defaults == DEFAULTS
    row = {"prompt": "Ann has 3 apples .", "steps": ["3 + 4 = 7 ."]}
    assert (served.name, served.source) == ("prm", "prm")
    assert served.calibrated == (folder / "calibrator.json").stat().st_mtime
    content = ask(TestClient(app.build(served, tmp_path)), "/invocations", {"inputs": [row]})
    (expected,) = load_scorer(folder).score([(row["prompt"], [Step(text) for text in row["steps"]])])
    assert content["predictions"][0]["step_scores"] == list(expected.step_scores)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        app.load(str(folder), tmp_path)
