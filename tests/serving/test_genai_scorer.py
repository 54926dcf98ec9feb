"""The scorer for `mlflow.genai.evaluate`: the trace's score on its root, those of the steps on their spans."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from benchmarks.judge import agent_run, place, span
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.serving import trace_judge
from prm_core.serving.genai_scorer import ProcessScorer
from tests.builders.scorer import FakeScorer, fake_model_folder

HEX = [f"{number:016x}" for number in range(1, 7)]


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessScorer:
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: FakeScorer())
    return ProcessScorer(model=str(fake_model_folder(tmp_path / "model")), workspace=tmp_path, aggregate="mean")


def test_evaluate_gets_the_trace_s_score_and_the_spans_their_own(
    scorer: ProcessScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(tmp_path))
    client = tracking.connect(tmp_path)
    tracking.use_store(tmp_path)
    experiment = client.create_experiment("agents")
    mlflow.set_experiment(experiment_id=experiment)
    good = place(client, experiment, 1, agent_run(["I look.", "It is wrong."], 1))
    bad = place(client, experiment, 2, [span(1, "CHAIN", "hi", "there")])
    before = client.search_traces(locations=[experiment], order_by=["timestamp_ms ASC"])
    result = mlflow.genai.evaluate(data=list(before), scorers=[scorer])
    scorer(trace=before[0])
    assert result.metrics["prm/mean"] == 0.5
    (error,) = client.get_trace(bad, display=False).info.assessments[-1:]
    assert (error.name, error.value) == ("prm", None)
    assert "no step to score: traces without a model's answer left out" in error.error.error_message
    found = client.get_trace(good, display=False).info.assessments
    # Once however often it is scored; the root's, MLflow writes.
    assert sorted((one.span_id, one.value) for one in found if one.name == "prm_step") == [(HEX[1], 0.9), (HEX[3], 0.1)]
    roots = [one for one in found if one.name == "prm"]
    assert [(one.span_id, one.value, one.metadata["first_error_step"]) for one in roots] == [(HEX[0], 0.5, "1")]


def test_what_cannot_be_scored_is_said(scorer: ProcessScorer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no trace"):
        scorer()
    with pytest.raises(InputError, match="no reward model there"):
        ProcessScorer(model=str(tmp_path / "none"))
    with pytest.raises(InputError, match="unknown aggregation"):
        ProcessScorer(model=scorer.model, aggregate="best")
