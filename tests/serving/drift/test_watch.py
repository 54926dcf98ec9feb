"""prm_core/serving/drift/watch.py, through the server: what is kept of its answers, and what it says of its trust."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from prm_core.config import DriftConfig
from prm_core.serving.drift.samples import read
from prm_core.serving.drift.trust import note_alarm
from tests.builders.edge import SOURCE, ask, edge

ALL = DriftConfig(sample=1.0)
ROWS = {"inputs": [{"prompt": "q", "steps": ["ok", "wrong"]}, {"prompt": "p", "steps": ["ok"]}]}


def kept(folder):
    return [one for path in sorted(folder.glob("served/samples/*.parquet")) for one in read(path)[0]]


def figure(client: TestClient, name: str, **labels: str) -> float:
    return next(sample.value for family in text_string_to_metric_families(client.get("/metrics").text)
                for sample in family.samples if sample.name == name and labels.items() <= sample.labels.items())


def test_answers_are_kept_when_the_server_ends(tmp_path) -> None:
    with TestClient(edge(workspace=tmp_path, drift=ALL)) as client:
        ask(client, "/invocations", ROWS)
        ask(client, "/score_step", {"prompt": "q", "steps": ["ok", "wrong"], "step": "ok", "threshold": 0.0})
        assert figure(client, "prm:drift_samples_total", outcome="kept") == 3
    found = kept(tmp_path)
    # The second request goes on with the first trajectory.
    assert [(one.scores, one.first_error) for one in found] == [([0.9], -1), ([0.9, 0.1, 0.9], 1)]
    assert {(one.source, one.version, one.chance, one.renderer, one.text) for one in found} == {
        (SOURCE, "v1", 1.0, 2, None)}
    assert found[1].raw == [0.9, 0.1, 0.9]


def test_texts_are_kept_where_they_are_asked_for(tmp_path) -> None:
    with TestClient(edge(workspace=tmp_path, drift=DriftConfig(sample=1.0, texts=True))) as client:
        ask(client, "/invocations", ROWS)
    assert [one.text is None for one in kept(tmp_path)] == [False, False]


def test_a_share_of_nothing_keeps_nothing(tmp_path) -> None:
    with TestClient(edge(workspace=tmp_path)) as client:
        ask(client, "/invocations", ROWS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails_no_request(tmp_path) -> None:
    (tmp_path / "served").write_text("in the way")
    with TestClient(edge(workspace=tmp_path, drift=DriftConfig(sample=1.0, rows=1))) as client:
        for _ in range(3):
            ask(client, "/invocations", ROWS)


def test_a_stale_calibration_is_told_in_answers_headers_and_figures(tmp_path) -> None:
    client = TestClient(edge(workspace=tmp_path, calibrated=0.0))
    reason = "calibrated on 1970-01-01, more than 90 days ago (drift.max_age_days)"
    assert [one["calibration_stale"] for one in ask(client, "/invocations", ROWS)["predictions"]] == [reason] * 2
    assert ask(client, "/score_step", {"prompt": "q", "step": "ok"})["calibration_stale"] == reason
    assert ask(client, "/analyze_trajectory", {"prompt": "q", "steps": ["ok"]})["calibration_stale"] == reason
    assert client.get("/ready").headers["x-calibration-stale"] == "age"
    assert figure(client, "prm:calibration_stale") == 1


def test_a_drift_alarm_is_told_and_no_other_model_s(tmp_path) -> None:
    note_alarm(tmp_path / "served", "v1", "tools", 0.0)
    client = TestClient(edge(workspace=tmp_path))
    (first, _) = ask(client, "/invocations", ROWS)["predictions"]
    assert first["calibration_stale"] == "traffic has drifted since 1970-01-01T00:00:00+00:00: tools"
    assert client.get("/ping").headers["x-calibration-stale"] == "drift"
    other = tmp_path / "other"
    note_alarm(other / "served", "v2", "tools", 0.0)
    client = TestClient(edge(workspace=other))
    (first, _) = ask(client, "/invocations", ROWS)["predictions"]
    assert "calibration_stale" not in first
    assert "x-calibration-stale" not in client.get("/ping").headers
    assert figure(client, "prm:calibration_stale") == 0
