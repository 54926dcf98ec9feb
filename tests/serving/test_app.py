"""What `prm serve` answers: bad requests get a 4xx of one line, never a 500 and never a guess."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prm_core.errors import InputError
from prm_core.scoring.scorer import load_scorer
from prm_core.serving import app
from prm_core.serving.cache import ScoreCache
from prm_core.serving.service import ScoringService
from prm_core.types import Step
from tests.builders.reward_models import tiny_reward_model
from tests.builders.scorer import FakeScorer

JSON = "application/json"
DEFAULTS = {"threshold": 0.5, "aggregate": "min"}
ROW = {"prompt": "p", "steps": ["ok", "wrong"]}


@pytest.fixture
def client() -> TestClient:
    served = app.Served(ScoringService(FakeScorer(), ScoreCache(0, 1.0)), DEFAULTS)
    return TestClient(app.build(served))


def ask(client: TestClient, body: str | bytes, content_type: str | None = JSON) -> tuple[int, dict]:
    response = client.post("/invocations", content=body, headers={"content-type": content_type} if content_type else {})
    assert response.headers["content-type"] == JSON
    return response.status_code, response.json()


def with_params(params: object) -> str:
    return json.dumps({"inputs": [ROW], "params": params})


@pytest.mark.parametrize(("params", "overall", "first_error"), [
    ({}, 0.1, 1), ({"threshold": 0}, 0.1, -1), ({"threshold": 1}, 0.1, 0), ({"threshold": 0.05}, 0.1, -1),
    ({"aggregate": "last"}, 0.1, 1), ({"aggregate": "mean", "threshold": 1.0}, 0.5, 0),
])
def test_parameters_say_how_a_chain_is_analysed(client, params, overall, first_error) -> None:
    status, content = ask(client, with_params(params))
    assert status == 200
    (prediction,) = content["predictions"]
    assert (prediction["overall_score"], prediction["first_error_step"]) == (pytest.approx(overall), first_error)
    assert prediction["step_scores"] == [0.9, 0.1]


def test_without_parameters_the_model_s_own_count(client) -> None:
    assert ask(client, json.dumps({"inputs": [ROW]})) == ask(client, with_params(DEFAULTS))
    assert ask(client, json.dumps({"inputs": [ROW]}), "application/json; charset=UTF-8")[0] == 200
    assert client.get("/ping").status_code == client.get("/health").status_code == 200


@pytest.mark.parametrize(("body", "reason"), [
    (with_params({"treshold": 0.9}), "unknown parameter 'treshold'; a request may set threshold and aggregate"),
    (with_params({"aggregateBy": "mean"}), "unknown parameter 'aggregateBy'"),
    (with_params({"threshold": None}), "threshold must be a number from 0 to 1"),
    (with_params({"threshold": "0.5"}), "threshold must be a number"),
    (with_params({"threshold": True}), "threshold must be a number"),
    (with_params({"threshold": [0.5]}), "threshold must be a number"),
    (with_params({"threshold": float("nan")}), "threshold is nan, not a probability"),
    (with_params({"threshold": float("inf")}), "threshold is inf, not a probability"),
    (with_params({"threshold": -0.1}), "threshold is -0.1, not a probability"),
    (with_params({"threshold": 5}), "threshold is 5, not a probability"),
    (with_params({"threshold": 10**400}), "threshold is 10000000000000000000, not a probability"),
    ('{"inputs": [], "params": {"threshold": %s}}' % ("1" * 5000), "a number of thousands of digits"),
    (with_params({"aggregate": None}), "aggregate must be a text, one of min, prod, mean, last"),
    (with_params({"aggregate": 3}), "aggregate must be a text"),
    (with_params({"aggregate": "median"}), "unknown aggregation 'median'"),
    (with_params({"aggregate": "a\nb"}), "unknown aggregation"),
    (with_params({"a\nb": 1}), "unknown parameter"),
    (with_params(None), "`params` must be an object of threshold and aggregate"),
    (with_params([]), "`params` must be an object"),
    (json.dumps({"inputs": [ROW], "threshold": 0.9}), "`threshold` is a parameter; put it into `params`"),
    (json.dumps({"inputs": [ROW], "parms": {}}), "unknown field 'parms'"),
    (json.dumps({"instances": [ROW]}), "unknown field 'instances'"),
    (json.dumps({"dataframe_split": {}}), "unknown field 'dataframe_split'"),
    ('{"inputs": [{"prompt": "p", "prompt": "q", "steps": ["a"]}]}', "names 'prompt' twice"),
    ('{"inputs": [], "inputs": []}', "names 'inputs' twice"),
    (json.dumps({"params": {}}), "`inputs` must be a list of at least one object"),
    (json.dumps({"inputs": []}), "`inputs` must be a list of at least one object"),
    (json.dumps({"inputs": ROW}), "`inputs` must be a list"),
    (json.dumps({"inputs": ["x"]}), r"inputs[0]: expected an object with `prompt` and `steps`"),
    (json.dumps({"inputs": [ROW, {"prompt": "p", "steps": None}]}), "inputs[1]: `steps` must be a non-empty list"),
    (json.dumps({"inputs": [{"prompt": "p", "steps": "a"}]}), "inputs[0]: `steps` must be a non-empty list"),
    (json.dumps({"inputs": [{"prompt": "p", "steps": [{"txt": "a"}]}]}), "inputs[0]: step 0 must be a text or"),
    (json.dumps({"inputs": [{"prompt": ["p"], "steps": ["a"]}]}), "inputs[0]: `prompt` is empty or no text"),
    (json.dumps({"inputs": [{**ROW, "id": 3}]}), "inputs[0]: unknown field 'id'"),
    (json.dumps({"inputs": [{"prompt": "p\ud800", "steps": ["a"]}]}), "no valid Unicode"),
    ('{"inputs": [}', "not valid JSON"),
    ("", "not valid JSON"),
    ("[" * 200_000, "nested too deep"),
    ('{"inputs": ' * 100_000, "nested too deep"),
    (json.dumps([ROW]), "must be an object with `inputs`"),
    ("7", "must be an object with `inputs`"),
    (b'{"inputs": "\xff"}', "not UTF-8"),
])
def test_bad_requests_are_400_in_one_line(client, body, reason: str) -> None:
    status, content = ask(client, body)
    assert (status, content["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert reason in content["message"]
    assert "\n" not in content["message"]
    assert len(content["message"]) <= app.LONGEST_MESSAGE


@pytest.mark.parametrize("content_type", [
    None, "", "text/csv", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "nonsense"])
def test_a_body_that_is_not_sent_as_json_is_415(client, content_type) -> None:
    status, content = ask(client, json.dumps({"inputs": [ROW]}), content_type)
    assert status == 415
    assert "Content-Type: application/json" in content["message"]


def test_a_fault_of_ours_is_a_500_that_says_where_to_look(client, caplog) -> None:
    with caplog.at_level(logging.CRITICAL):
        status, content = ask(client, json.dumps({"inputs": [{"prompt": "p", "steps": ["crash"]}]}))
    assert (status, content["error_code"]) == (500, "INTERNAL_ERROR")
    assert content["message"] == "scoring failed (RuntimeError); the server's log has the traceback"


def test_a_model_folder_is_served_as_it_is_with_the_default_profile_s_settings(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "prm")
    served = app.load(str(folder), tmp_path)
    assert served.defaults == DEFAULTS
    row = {"prompt": "Ann has 3 apples .", "steps": ["3 + 4 = 7 ."]}
    status, content = app.answer(served, JSON, json.dumps({"inputs": [row]}).encode())
    (expected,) = load_scorer(folder).score([(row["prompt"], [Step(text) for text in row["steps"]])])
    assert (status, content["predictions"][0]["step_scores"]) == (200, list(expected.step_scores))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        app.load(str(folder), tmp_path)
