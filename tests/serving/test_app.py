"""What `prm serve` serves: a registered version or a folder, at the settings of the workspace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prm_core.errors import InputError
from prm_core.scoring.scorer import load_scorer
from prm_core.serving import app
from prm_core.serving.metrics import SHARED
from prm_core.types import Step
from tests.builders.edge import DEFAULTS, ask
from tests.builders.reward_models import tiny_reward_model
from tests.builders.versions import served as version
from tests.builders.versions import source


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


def test_processes_of_a_server_go_with_the_alias_and_one_that_starts_later_begins_where_they_are(
    tmp_path: Path, monkeypatch
) -> None:
    loaded: list[str] = []

    def load(uri: str, workspace: Path):
        loaded.append(uri)
        return version(int(uri[-1]))

    points_to = [2]
    monkeypatch.setattr(app, "load", load)
    monkeypatch.setattr(app, "configure", lambda texts: None)
    monkeypatch.setattr(app, "_find", lambda alias, workspace: source(points_to[0]))
    for name, value in ((app.MODEL, source(1)), (app.ALIAS, "models:/prm@champion"), (app.WORKSPACE, str(tmp_path)),
                        (SHARED, str(tmp_path))):
        monkeypatch.setenv(name, value)
    one, other = app.create_app(), app.create_app()
    with TestClient(one) as client, TestClient(other) as second:
        assert client.post("/reload").status_code == 202
        for served in (client, second):
            while served.get("/ready").json()["model"] != source(2):
                time.sleep(0.01)
        assert app.create_app().current.served.source == source(2)
        points_to[0] = 3
        # The other one hears of it too.
        second.post("/reload")
        while client.get("/ready").json()["model"] != source(3):
            time.sleep(0.01)
    assert sorted(loaded) == [source(1)] * 2 + [source(2)] * 3 + [source(3)] * 2


def test_a_small_model_computes_with_one_thread_unless_more_are_asked_for(tmp_path: Path) -> None:
    scorer = load_scorer(tiny_reward_model(tmp_path / "prm"))
    assert [app.threads_of(scorer, asked) for asked in (0, 2)] == [1, 2]
    scorer.model.backbone.num_parameters = lambda: app.FEW_PARAMETERS
    assert app.threads_of(scorer, 0) == 0
