"""Outcomes told over HTTP: noted by the id that samples have, whatever way the trajectory is named; withdrawn data."""

from __future__ import annotations

import hashlib

import pytest
from starlette.testclient import TestClient

from prm_core.config import DriftConfig
from prm_core.serving.drift.outcomes import PREFIX, Outcome, parse_outcome, read_outcomes, tell, trajectory_id
from prm_core.serving.drift.samples import read
from prm_core.serving.drift.withdrawn import Withdrawn, withdraw
from prm_core.types import Step
from tests.builders.edge import ask, edge, refused

ALL = DriftConfig(sample=1.0, texts=True)
STEPS = ["ok", "wrong"]


@pytest.fixture
def client(tmp_path) -> TestClient:
    return TestClient(edge(workspace=tmp_path, drift=ALL))


def samples(folder):
    return [one for path in sorted(folder.glob("served/samples/*.parquet")) for one in read(path)[0]]


def test_an_outcome_finds_its_sample_by_texts_or_id(tmp_path) -> None:
    with TestClient(edge(workspace=tmp_path, drift=ALL)) as client:
        ask(client, "/invocations", {"inputs": [{"prompt": "q", "steps": STEPS}]})
        by_text = ask(client, "/outcome", {"outcomes": [{"prompt": "q", "steps": STEPS, "success": False,
                                                         "reporter": "agent", "chance": 0.5}]})
        (name,) = by_text["trajectory_ids"]
        assert ask(client, "/outcome", {"outcomes": [{"trajectory_id": name, "success": True}]}) == by_text
    (kept,) = samples(tmp_path)
    assert name == PREFIX + kept.prefixes[-1] == trajectory_id("q", [Step(text) for text in STEPS])
    assert [(one.trajectory, one.success, one.reporter, one.chance) for one in read_outcomes(tmp_path / "served")] == [
        (name, True, "", 1.0), (name, False, "agent", 0.5)]


@pytest.mark.parametrize(("record", "reason"), [
    ({"success": True}, "expected an object with `prompt` and `steps`"),
    ({"trajectory_id": "t", "success": True}, "must be an id"),
    ({"trajectory_id": "served-1"}, "success"),
    ({"trajectory_id": "served-1", "success": 1.5}, "success"),
    ({"trajectory_id": "served-1", "success": True, "chance": 0}, "chance"),
])
def test_bad_ones_are_refused_and_nothing_is_noted(client, tmp_path, record, reason) -> None:
    good = {"trajectory_id": "served-0", "success": True}
    assert reason in refused(client, "/outcome", {"outcomes": [good, record]})
    assert read_outcomes(tmp_path / "served") == []


def test_of_a_reporter_the_last_word_counts_and_half_a_line_does_no_harm(tmp_path) -> None:
    tell(tmp_path, [Outcome("served-a", True, "x"), Outcome("served-a", True, "y")])
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('{"trajectory": "ser')
    tell(tmp_path, [Outcome("served-a", False, "x")])
    assert read_outcomes(tmp_path) == [Outcome("served-a", False, "x"), Outcome("served-a", True, "y")]


def test_json_values_are_checked() -> None:
    assert parse_outcome({"trajectory_id": "served-a", "success": False, "chance": 1}, "here", 3.0) == Outcome(
        "served-a", False, "", 1.0, 3.0)


def test_what_was_withdrawn_is_not_kept_and_leaves_the_servers_memory(tmp_path) -> None:
    key = tmp_path / "keys"
    key.write_text(f"ann {hashlib.sha256(b'k').hexdigest()}\nbob {hashlib.sha256(b'l').hexdigest()}\n")
    app = edge(workspace=tmp_path, drift=ALL, keys=key, kept=10)
    with TestClient(app) as client:
        for word in "kl":
            client.post("/invocations", json={"inputs": [{"prompt": f"q{word}", "steps": ["ok"]}]},
                        headers={"authorization": f"Bearer {word}"})
        cache = app.current.served.service._cache
        assert len(cache) == 2
        withdraw(tmp_path / "served", Withdrawn(tenants=frozenset(["ann"])))
        client.post("/invocations", json={"inputs": [{"prompt": "r", "steps": ["ok"]}]},
                    headers={"authorization": "Bearer l"})
        assert len(cache) == 1
    assert sorted((one.tenant, one.prompt == samples(tmp_path)[0].prompt) for one in samples(tmp_path)) == [
        ("bob", False), ("bob", True)]
