"""What is old: by age and number, a flow's run with its stages'; what a version needs and what people judged stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow.entities import AssessmentSource, Feedback, LoggedModelInput, LoggedModelOutput, Run
from mlflow.tracking import MlflowClient

from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.platform.tracking import retention
from prm_core.platform.tracking.retention import DAY_MS, Limits

# Day 0 of the runs below; `NOW` is day 100.
START = 1_700_000_000_000
NOW = START / 1000 + 100 * 86_400


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tracking.connect(tmp_path)


def run(client: MlflowClient, where: Path, day: int, parent: str | None = None, *, ended: bool = True) -> str:
    """A run that began and ended on a day."""
    tags = {retention.PARENT: parent} if parent else {}
    made: Run = client.create_run(tracking.experiment_id(client, where), START + day * DAY_MS, tags)
    if ended:
        client.set_terminated(made.info.run_id, "FINISHED", START + day * DAY_MS)
    return made.info.run_id


def test_runs_go_by_age_and_number_a_flow_with_its_stages(client: MlflowClient, tmp_path: Path) -> None:
    old = run(client, tmp_path, 1)
    stages = [run(client, tmp_path, day, old) for day in (1, 2)]
    # A run whose last stage is young, one that is at work, and the newest of all.
    kept = [run(client, tmp_path, 5), run(client, tmp_path, 6, ended=False), run(client, tmp_path, 99)]
    young = run(client, tmp_path, 80, kept[0])
    alone = run(client, tmp_path, 7)
    find = lambda **limits: retention.find(tmp_path, Limits(**limits), now=NOW)  # noqa: E731
    assert set(find(days=30, newest=0).runs) == {old, *stages, alone}
    # Of five families the newest three are the one at work, that of day 99 and that of day 80.
    assert set(find(days=30, newest=4).runs) == {old, *stages}
    assert find(days=30, newest=5).runs == []
    assert find(days=99, newest=0).runs == []
    outdated = find(days=30, newest=4)
    assert str(outdated).startswith("3 runs, 0 traces, 0 files of traffic; 0 old runs")
    retention.delete(tmp_path, outdated)
    left = client.search_runs([tracking.experiment_id(client, tmp_path)])
    assert {one.info.run_id for one in left} == {*kept, young, alone}
    assert find(days=30, newest=4).runs == []


def test_what_a_registered_version_needs_stays(client: MlflowClient, tmp_path: Path) -> None:
    experiment = tracking.experiment_id(client, tmp_path)
    flows = {name: run(client, tmp_path, day) for day, name in enumerate(("registers", "trains", "measures", "none"))}
    stages = {name: run(client, tmp_path, day, flows[name]) for day, name in enumerate(flows)}
    tracking.use_store(tmp_path)
    model = client.create_logged_model(experiment, name="m", source_run_id=stages["registers"])
    client.log_outputs(stages["trains"], [LoggedModelOutput(model.model_id, step=0)])
    client.log_inputs(stages["measures"], models=[LoggedModelInput(model.model_id)])
    client.create_registered_model("prm")
    client.create_model_version("prm", f"models:/{model.model_id}", stages["registers"], model_id=model.model_id)
    outdated = retention.find(tmp_path, Limits(days=1, newest=0), now=NOW)
    assert (set(outdated.runs), outdated.needed) == ({flows["none"], stages["none"]}, 6)


def trace(client: MlflowClient, experiment: str, day: int) -> str:
    span = client.start_trace(f"day {day}", experiment_id=experiment, start_time_ns=(START + day * DAY_MS) * 10**6)
    client.end_trace(span.trace_id, end_time_ns=(START + day * DAY_MS + 1) * 10**6)
    return span.trace_id


def test_traces_go_by_age_and_number_and_what_people_judged_stays(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    tracking.use_store(tmp_path)
    experiment = client.create_experiment("agents")
    monkeypatch.setattr(retention, "PAGE", 2)
    ids = [trace(client, experiment, day) for day in (1, 2, 3, 4, 95)]
    for name, trace_id, source in (("a", ids[1], "HUMAN"), ("b", ids[2], "LLM_JUDGE")):
        mlflow.log_assessment(trace_id, Feedback(name=name, value=True, source=AssessmentSource(source, "x")))
    find = lambda **limits: retention.find(tmp_path, Limits(**limits), ["agents"], now=NOW)  # noqa: E731
    outdated = find(trace_days=30, newest_traces=0)
    assert (set(outdated.traces[experiment]), outdated.judged) == ({ids[0], ids[2], ids[3]}, 1)
    # The newest two are of days 95 and 4.
    outdated = find(trace_days=30, newest_traces=2)
    assert set(outdated.traces[experiment]) == {ids[0], ids[2]}
    assert find(trace_days=30, newest_traces=5).traces == {}
    # Nobody has named the experiment.
    assert retention.find(tmp_path, Limits(trace_days=0, newest_traces=0), now=NOW).traces == {}
    retention.delete(tmp_path, outdated)
    left = client.search_traces(locations=[experiment], include_spans=False)
    assert {one.info.trace_id for one in left} == {ids[1], ids[3], ids[4]}


def test_traffic_goes_by_age(client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    (folder / "deep").mkdir(parents=True)
    for name, day in (("deep/old.parquet", 1), ("young.parquet", 80), ("old.json", 1)):
        (folder / name).touch()
        os.utime(folder / name, ((START + day * DAY_MS) / 1000,) * 2)
    outdated = retention.find(tmp_path, Limits(traffic_days=30), traffic=folder, now=NOW)
    assert outdated.files == [folder / "deep/old.parquet"]
    retention.delete(tmp_path, outdated)
    assert sorted(path.name for path in folder.rglob("*.*")) == ["old.json", "young.parquet"]


def test_faults_are_named(client: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no experiment 'nobody' in sqlite"):
        retention.find(tmp_path, Limits(), ["nobody"])
    with pytest.raises(InputError, match="newest-traces: -1 is negative"):
        Limits(newest_traces=-1)
