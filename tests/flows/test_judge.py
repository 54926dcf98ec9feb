"""The flow that judges traces on a schedule, and its deployment."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from prefect.states import State

from benchmarks.judge import agent_run, place
from flows import judge as flow
from prm_core.config import read_yaml
from prm_core.platform import tracking, workspace
from prm_core.serving import trace_judge
from tests import ROOT
from tests.builders.scorer import FakeScorer, fake_model_folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: FakeScorer())
    monkeypatch.setattr(flow.environment, "project_root", lambda: tmp_path)
    return tmp_path


def run(experiment: str, model: Path, **given: object) -> State:
    with disable_run_logger():
        return flow.judge.fn(experiment, str(model), **given)


def test_a_run_says_what_it_did(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = workspace.locate(root, "smoke")
    client = tracking.connect(folder)
    experiment = client.create_experiment("agents")
    place(client, experiment, 1, agent_run(["a", "wrong"], 1))
    place(client, experiment, 2, agent_run(["refuse"], 0))
    model = fake_model_folder(root / "model")
    with caplog.at_level(logging.WARNING):
        state = run("agents", model, profile="smoke", since=None)
    assert (state.name, state.message) == ("Completed", "2 traces match, 0 had their scores, 1 were judged, 2 steps "
                                           "scored; traces that could not be judged: 1")
    assert "step 0 is refused" in caplog.text
    assert run("agents", model, profile="smoke").message == "no trace matches"
    state = run("nobody", model, profile="smoke")
    assert (state.type.value, state.name) == ("FAILED", "Bad input")
    with workspace.exclusive(folder, lock=workspace.JUDGE_LOCK):
        state = run("agents", model, profile="smoke")
    assert (state.type.value, state.name) == ("COMPLETED", "Skipped")
    # A run of the chain is no obstacle.
    with workspace.exclusive(folder):
        assert run("agents", model, profile="smoke").name == "Completed"


def test_the_deployment_gives_parameters_that_there_are_and_is_off() -> None:
    (found,) = [one for one in read_yaml(ROOT / "prefect.yaml")["deployments"] if one["name"] == "judge"]
    assert set(found["parameters"]) <= set(inspect.signature(flow.judge.fn).parameters)
    assert [one["active"] for one in found["schedules"]] == [False]
