"""Judged traces of MLflow become samples, and what was noted of how they ended becomes outcomes."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import AssessmentSource

from benchmarks.judge import agent_run, place
from prm_core.adaptation.feedback import SUCCESS, collect
from prm_core.adaptation.traffic import to_served, window
from prm_core.adaptation.withdrawal import forget
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.serving import trace_judge
from prm_core.serving.drift.outcomes import read_outcomes
from prm_core.serving.drift.withdrawn import Withdrawn
from prm_core.serving.trace_judge import Judge
from prm_core.serving.trace_pass import Selection, judge_traces
from tests.builders.quality import make_config
from tests.builders.scorer import FakeScorer, fake_model_folder

CONFIG = make_config()


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three traces of an experiment: two are judged, one of those has ended well by a person's word, corrected."""
    client = tracking.connect(tmp_path)
    tracking.use_store(tmp_path)
    experiment = client.create_experiment("agents")
    fake_model_folder(tmp_path / "model")
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: FakeScorer())
    names = [place(client, experiment, number, agent_run([f"I look {number}.", "It is 7."], 1)) for number in (1, 2)]
    judge_traces(Judge(str(tmp_path / "model"), tmp_path), Selection(["agents"]), tmp_path)
    names.append(place(client, experiment, 3, agent_run(["I look again."], 0)))
    first = mlflow.log_feedback(trace_id=names[0], name=SUCCESS, value=False, source=AssessmentSource("HUMAN", "ann"))
    mlflow.override_feedback(trace_id=names[0], assessment_id=first.assessment_id, value=True,
                             source=AssessmentSource("HUMAN", "bob"))
    return names


def test_judged_traces_come_in_once_with_the_last_word_on_their_end(tmp_path: Path, traces: list[str]) -> None:
    found = collect(tmp_path, CONFIG, ["agents"], 0, 0.5)
    assert found == {"traces": 2, "outcomes": 1, "without all their scores": 1}
    assert collect(tmp_path, CONFIG, ["agents"], 0, 0.5)["traces"] == 0
    served = [to_served(one, "general") for one in window(tmp_path, CONFIG, 60.0)]
    assert sorted(one.trajectory.steps[0].text for one in served) == ["I look 1.", "I look 2."]
    assert {one.chance for one in served} == {0.5}
    (told,) = read_outcomes(tmp_path / "served")
    assert (told.success, told.reporter) == (True, "bob")
    assert told.trajectory in {one.trajectory.id for one in served}


def test_a_withdrawn_trajectorys_trace_goes_too_and_does_not_come_back(tmp_path: Path, traces: list[str]) -> None:
    collect(tmp_path, CONFIG, ["agents"], 0, 1.0)
    (told,) = read_outcomes(tmp_path / "served")
    done = forget(tmp_path, CONFIG, Withdrawn(frozenset([told.trajectory])))
    assert (done.removed["traces"], done.removed["trajectories"], done.removed["outcomes"]) == (1, 1, 1)
    client = tracking.connect(tmp_path)
    left = client.search_traces(locations=[client.get_experiment_by_name("agents").experiment_id])
    assert {one.info.trace_id for one in left} == set(traces[1:])
    assert collect(tmp_path, CONFIG, ["agents"], 0, 1.0)["traces"] == 0


def test_an_experiment_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such one"):
        collect(tmp_path, CONFIG, ["nobody"], 0, 1.0)
