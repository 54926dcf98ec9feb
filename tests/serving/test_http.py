"""A real reward model from the register stage to answers over HTTP: registered, promoted, served, asked, stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from prm_core import config as configuration
from prm_core.errors import OverloadError
from prm_core.platform import store, tracking
from prm_core.scoring.conformal import NO_PROMISES
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.model_registry import add_version, log_reward_model
from prm_core.serving.promotion import promote
from prm_core.serving.service import ScoringService
from prm_core.stages.base import execute
from prm_core.types import Step, StepLabel
from tests import ROOT
from tests.builders import warm_python
from tests.builders.drift import evaluated
from tests.builders.reward_models import MAX_LENGTH, tiny_reward_model

START_SECONDS = 120
PROMPT = "Ann has 3 apples and buys 4 more ."
STEPS = ["3 + 4 = 7 .", "The answer is 7 ."]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose champion is a tiny model with random weights."""
    root = tmp_path_factory.mktemp("served")
    shutil.copy(ROOT / configuration.PARAMS_FILE, root)
    store.write_json(root / "artifacts/evaluate/metrics.json", {"test/prm/first_error_f1": 90.0, "test/prm/ece": 0.01})
    evaluated(root, questions=1)
    NO_PROMISES.write(root / "artifacts/evaluate/promises.json")
    store.write_shard(root / "artifacts/calibrate/training_set", 0, StepLabel, [])
    tiny_reward_model(root / "artifacts/train_prm/prm")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        execute("register", root)
        promote(root, configuration.load(root).promote)
    # Random weights say anything of what was asked of late.
    with (root / configuration.PARAMS_FILE).open("a") as params:
        params.write("swap:\n  max_difference: 1.0\n")
    return root


@pytest.fixture(scope="module")
def server(workspace: Path, quick_prm: None) -> Iterator[str]:
    """`prm serve` in that workspace; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    environment["PYTHONPATH"] = str(ROOT)
    log = workspace / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prm_core.cli", "serve", "--port", str(port)],
            cwd=workspace, env=environment, stdout=output, stderr=output,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_SECONDS * 5):
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{address}/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail(f"no answer in {START_SECONDS} s: {log.read_text()}")
        yield address
    finally:
        warm_python.signal_listener(port, signal.SIGTERM)
        process.wait(30)
    # Stopping the command stops the server.
    for _ in range(100):
        try:
            httpx.get(f"{address}/ping")
            time.sleep(0.1)
        except httpx.TransportError:
            return
    pytest.fail("the server outlives `prm serve`")


@pytest.fixture(scope="module")
def logged(workspace: Path):
    """The champion as `mlflow models serve` loads it."""
    import mlflow

    from prm_core.platform import tracking

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.use_store(workspace)
        return mlflow.pyfunc.load_model("models:/prm@champion")


def ask(server: str, *rows: dict, **params) -> httpx.Response:
    body = {"inputs": list(rows), **({"params": params} if params else {})}
    return httpx.post(f"{server}/invocations", json=body, timeout=60)


def test_answer_holds_the_calibrated_scores_of_the_saved_model(server, workspace):
    expected = load_scorer(workspace / "artifacts/train_prm/prm").score([(PROMPT, [Step(text) for text in STEPS])])[0]
    response = ask(server, {"prompt": PROMPT, "steps": STEPS}, threshold=0.5, aggregate="min")
    assert response.status_code == 200
    (prediction,) = response.json()["predictions"]
    assert set(prediction) == {
        "step_scores", "step_confidences", "overall_score", "first_error_step", "error_steps", "improvements"
    }
    assert prediction["step_scores"] == pytest.approx(expected.step_scores, abs=1e-6)
    assert prediction["overall_score"] == min(prediction["step_scores"])


def test_parameters_reach_the_model(server):
    row = {"prompt": PROMPT, "steps": STEPS}
    (strict,) = ask(server, row, threshold=1.0, aggregate="mean").json()["predictions"]
    (lenient,) = ask(server, row, threshold=0.0).json()["predictions"]
    assert (strict["first_error_step"], lenient["first_error_step"]) == (0, -1)
    assert strict["overall_score"] == pytest.approx(sum(strict["step_scores"]) / 2)


@pytest.mark.parametrize(
    ("row", "params", "reason"),
    [
        ({"prompt": PROMPT, "steps": ["7 .", "7 " * MAX_LENGTH]}, {}, "the chain is longer than the model's context"),
        ({"prompt": PROMPT, "steps": STEPS}, {"treshold": 0.9}, "unknown parameter 'treshold'"),
    ],
)
def test_bad_request_is_400_with_one_line(server, row, params, reason):
    response = ask(server, row, **params)
    assert response.status_code == 400
    message = response.json()["message"]
    assert reason in message
    assert "\n" not in message


def test_a_line_break_inside_a_step_is_read_as_one(server):
    answers = [ask(server, {"prompt": PROMPT, "steps": [text, STEPS[-1]]}) for text in (
        "3 + 4\n= 7 .", "3 + 4 = 7 .", {"text": "3 + 4 = 7 .", "ref": "a"})]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    broken, plain, object_ = (answer.json()["predictions"][0]["step_scores"] for answer in answers)
    assert broken != plain == object_
    assert answers[2].json()["predictions"][0]["step_refs"] == ["a", ""]


@pytest.mark.parametrize(
    ("row", "params", "reason"),
    [
        ({"prompt": PROMPT, "steps": ["3 + 4 = 7 .", ""]}, {}, "step 1 is empty"),
        ({"prompt": PROMPT, "steps": []}, {}, "`steps` must be a non-empty list of texts"),
        ({"prompt": PROMPT, "steps": STEPS}, {"threshold": -1.0}, "threshold is -1.0"),
        ({"prompt": PROMPT, "steps": STEPS}, {"threshold": None}, "threshold must be a number"),
        ({"prompt": PROMPT, "steps": STEPS}, {"aggregate": "sum"}, "unknown aggregation 'sum'"),
    ],
)
def test_mlflow_s_own_server_gets_one_line_too(logged, row, params, reason):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=reason) as refused:
        logged.predict([row], params=params)
    assert (refused.value.error_code, refused.value.message.count("\n")) == ("INVALID_PARAMETER_VALUE", 0)


def test_mlflow_s_own_server_says_when_there_is_too_much(logged, monkeypatch):
    from mlflow.exceptions import MlflowException

    def full(*_, **__):
        raise OverloadError("3 requests wait")

    monkeypatch.setattr(ScoringService, "answer", full)
    with pytest.raises(MlflowException, match="3 requests wait") as refused:
        logged.predict([{"prompt": PROMPT, "steps": STEPS}])
    assert (refused.value.get_http_status_code(), refused.value.message) == (503, "3 requests wait")


def test_concurrent_requests_get_their_own_scores(server, workspace):
    scorer = load_scorer(workspace / "artifacts/train_prm/prm")
    chains = [(PROMPT, [Step(f"{i} + {j} = {i + j} .") for j in range(1 + i % 4)]) for i in range(12)]
    expected = [score.step_scores for score in scorer.score(chains)]

    def scores(index: int) -> list[float]:
        prompt, steps = chains[index % len(chains)]
        response = ask(server, {"prompt": prompt, "steps": [step.text for step in steps]})
        return response.json()["predictions"][0]["step_scores"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(scores, range(48)))
    for index, answer in enumerate(answers):
        assert answer == pytest.approx(expected[index % len(chains)], abs=1e-6)


def test_scores_of_a_file_are_those_over_http(server, workspace, tmp_path, monkeypatch):
    from prm_core.cli.scoring.score import score

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.write_jsonl(tmp_path / "in.jsonl", [{"prompt": PROMPT, "steps": STEPS}])
    score(tmp_path / "in.jsonl", "models:/prm@champion", tmp_path / "out.jsonl", workspace=workspace)
    ((_, row),) = store.read_json_lines(tmp_path / "out.jsonl")
    (prediction,) = ask(server, {"prompt": PROMPT, "steps": STEPS}).json()["predictions"]
    assert row["step_scores"] == pytest.approx(prediction["step_scores"], abs=1e-6)
    assert row["error_steps"] == prediction["error_steps"]


def test_the_server_goes_with_the_alias(server, workspace, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    other = tiny_reward_model(tmp_path / "prm", seed=1)
    run = tracking.start_run(workspace, "by hand", {})
    logged = log_reward_model(workspace, run, other, configuration.load(workspace).serve)
    made = add_version(workspace, "prm", logged, {})
    tracking.end_run(workspace, run, "FINISHED")
    client = tracking.connect(workspace)
    for version, folder in ((made.version, other), (1, workspace / "artifacts/train_prm/prm")):
        client.set_registered_model_alias("prm", "champion", str(version))
        assert httpx.post(f"{server}/reload").status_code == 202
        for _ in range(START_SECONDS * 10):
            response = ask(server, {"prompt": PROMPT, "steps": STEPS})
            if response.headers["x-model"] == f"models:/prm/{version}":
                break
            time.sleep(0.1)
        [expected] = load_scorer(folder).score([(PROMPT, [Step(text) for text in STEPS])])
        assert response.json()["predictions"][0]["step_scores"] == pytest.approx(expected.step_scores, abs=1e-6)
        assert httpx.get(f"{server}/ready").json() == {
            "ready": True, "draining": False, "model": f"models:/prm/{version}", "alert": None}
