"""Outcomes told over HTTP: noted by the id that samples have, whatever way the trajectory is named; withdrawn data."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import threading
import time

import pytest
from starlette.testclient import TestClient

from prm_core.config import DriftConfig
from prm_core.serving.drift.outcomes import Outcome, keep_only, parse_outcome, read_outcomes, tell, trajectory_id
from prm_core.serving.drift.samples import PREFIX, read
from prm_core.serving.drift.withdrawn import Withdrawn, withdraw
from prm_core.types import Step
from tests import ROOT
from tests.builders.edge import ask, edge, refused

ID = PREFIX + "0" * 16
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
    ({"trajectory_id": PREFIX + "a" * 17, "success": True}, "must be an id"),
    ({"trajectory_id": PREFIX + "A" * 16, "success": True}, "must be an id"),
    ({"trajectory_id": ID}, "success"),
    ({"trajectory_id": ID, "success": 1}, "success"),
    ({"trajectory_id": ID, "success": "no"}, "success"),
    ({"trajectory_id": ID, "success": True, "chance": 0}, "chance"),
    ({"trajectory_id": ID, "success": True, "chance": 1e-320}, "chance"),
    ({"trajectory_id": ID, "success": True, "chance": True}, "chance"),
    ({"trajectory_id": ID, "success": True, "reporter": "a" * 201}, "reporter"),
])
def test_bad_ones_are_refused_and_nothing_is_noted(client, tmp_path, record, reason) -> None:
    good = {"trajectory_id": ID, "success": True, "chance": 1, "reporter": "a" * 200}
    assert reason in refused(client, "/outcome", {"outcomes": [good, record]})
    assert read_outcomes(tmp_path / "served") == []
    ask(client, "/outcome", {"outcomes": [good]})
    assert [one.trajectory for one in read_outcomes(tmp_path / "served")] == [ID]


def test_too_many_at_once_are_refused_before_they_are_looked_at(tmp_path) -> None:
    client = TestClient(edge(workspace=tmp_path, drift=ALL, max_trajectories=2))
    assert "`outcomes` holds 3 trajectories; a request may have 2" in refused(
        client, "/outcome", {"outcomes": [{}, {}, {}]}, 413)
    # Of many that are wrong the first is named.
    assert "outcomes[0].success" in refused(client, "/outcome", {"outcomes": [{}, {"success": 7}]})


def test_of_a_reporter_the_last_word_counts_and_half_a_line_does_no_harm(tmp_path) -> None:
    tell(tmp_path, [Outcome("served-a", True, "x"), Outcome("served-a", True, "y")])
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('{"trajectory": "ser')
    tell(tmp_path, [Outcome("served-a", False, "x")])
    assert read_outcomes(tmp_path) == [Outcome("served-a", False, "x"), Outcome("served-a", True, "y")]


def test_json_values_are_checked() -> None:
    assert parse_outcome({"trajectory_id": ID, "success": False, "chance": 1}, "here", 3.0) == Outcome(
        ID, False, "", 1.0, 3.0)


def test_who_tells_while_the_file_is_written_anew_loses_nothing(tmp_path) -> None:
    tell(tmp_path, [Outcome("served-a", True), Outcome("served-b", True)])
    begun, told = threading.Event(), threading.Thread(target=lambda: tell(tmp_path, [Outcome("served-c", True)]))

    def keep(one: Outcome) -> bool:
        if not begun.is_set():
            told.start()
            begun.set()
            # It has the old file open by then, and waits for it.
            time.sleep(0.1)
        return one.trajectory != "served-a"

    assert keep_only(tmp_path, keep) == 1
    told.join()
    assert [one.trajectory for one in read_outcomes(tmp_path)] == ["served-b", "served-c"]


def test_where_there_is_no_room_none_of_them_are_noted(tmp_path) -> None:
    tell(tmp_path, [Outcome("served-a", True)])
    before = (tmp_path / "outcomes.jsonl").read_bytes()
    # In a process of its own, which may write no file beyond so many bytes: the second line is cut.
    script = f"""
import resource
from pathlib import Path
from prm_core.serving.drift.outcomes import Outcome, tell
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 150}, resource.RLIM_INFINITY))
try:
    tell(Path({str(tmp_path)!r}), [Outcome("served-b", True), Outcome("served-c", True)])
except OSError:
    print("no room")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "no room\n"
    assert (tmp_path / "outcomes.jsonl").read_bytes() == before


def test_an_outcome_of_what_was_withdrawn_does_not_come_back(tmp_path) -> None:
    client = TestClient(edge(workspace=tmp_path, drift=ALL))
    other = PREFIX + "1" * 16
    withdraw(tmp_path / "served", Withdrawn(trajectories=frozenset([ID])))
    ask(client, "/outcome", {"outcomes": [{"trajectory_id": one, "success": True} for one in (ID, other)]})
    assert [one.trajectory for one in read_outcomes(tmp_path / "served")] == [other]


def test_a_broken_file_of_ours_is_no_fault_of_who_tells(tmp_path) -> None:
    client = TestClient(edge(workspace=tmp_path, drift=ALL))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/withdrawn.json").write_text("[")
    said = refused(client, "/outcome", {"outcomes": [{"trajectory_id": ID, "success": True}]}, 500)
    assert str(tmp_path) not in said
    assert read_outcomes(tmp_path / "served") == []


def test_who_waits_for_the_file_holds_up_nobody_else(tmp_path) -> None:
    tell(tmp_path / "served", [Outcome("served-a", True)])
    with TestClient(edge(workspace=tmp_path, drift=ALL)) as client, (
            tmp_path / "served/outcomes.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        telling, asking = (threading.Thread(target=ask, args=(client, path, values)) for path, values in (
            ("/outcome", {"outcomes": [{"trajectory_id": ID, "success": True}]}),
            ("/invocations", {"inputs": [{"prompt": "q", "steps": STEPS}]})))
        telling.start()
        time.sleep(0.1)
        asking.start()
        asking.join(10)
        answered, waits = not asking.is_alive(), telling.is_alive()
        fcntl.flock(held, fcntl.LOCK_UN)
        telling.join()
        assert (answered, waits) == (True, True)
    assert {one.trajectory for one in read_outcomes(tmp_path / "served")} == {"served-a", ID}


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


def test_nobody_speaks_with_the_trust_of_another_key(tmp_path) -> None:
    key = tmp_path / "keys"
    key.write_text(f"ann {hashlib.sha256(b'k').hexdigest()}\nbob {hashlib.sha256(b'l').hexdigest()}\n")
    with TestClient(edge(workspace=tmp_path, drift=ALL, keys=key)) as client:
        for word, reporter in (("k", "agent"), ("l", "agent"), ("l", "")):
            told = {"trajectory_id": ID, "success": word == "k", "reporter": reporter}
            assert client.post("/outcome", json={"outcomes": [told]},
                               headers={"authorization": f"Bearer {word}"}).status_code == 200
    assert [(one.reporter, one.success) for one in read_outcomes(tmp_path / "served")] == [
        ("ann/agent", True), ("bob/", False), ("bob/agent", False)]
