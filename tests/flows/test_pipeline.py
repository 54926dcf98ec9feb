"""The flow on a graph of trivial stages: order, what is up to date, failures, retries, and DVC agreeing with it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Crashed, Running, State

from flows import deploy, dvc, leftovers, limits, pipeline, review, server
from prm_core.labeling.human.labels import read_human
from prm_core.platform import command_server, store, tracking, workspace
from prm_core.problems import prepare
from prm_core.review import pause
from prm_core.review.session import QUEUE, Session
from prm_core.review.session import Board as ReviewBoard
from prm_core.types import Trajectory
from tests import ROOT
from tests.builders import tracking_store, warm_dvc
from tests.builders.checkout import copy_stage, make_checkout, write_graph
from tests.builders.checkout import dvc as run_dvc
from tests.builders.quality import problem, trajectory
from tests.builders.review import queue_of

pytestmark = pytest.mark.usefixtures("quick_dvc")

CHAIN = ("first", "second", "third")


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    # Here: no other file's tests need it, and with it comes the whole server.
    from prefect.testing import utilities

    folder = tempfile.mkdtemp(prefix="prm-tests-prefect-")
    if server._template().is_file():
        # As a user's server begins: an empty database would be migrated first.
        shutil.copy(server._template(), Path(folder, "prefect-test.db"))
    # Every run would wait for its heartbeat at its end, up to a second.
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        # The harness removes it when this process ends.
        patch.setattr(utilities, "mkdtemp", lambda: folder)
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_checkout(tmp_path_factory.mktemp("made") / "root")
    prepare.prepare(root, "default")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with three stages, in the flow's hands; promotion is left out."""
    folder = Path(shutil.copytree(made, tmp_path / "root"))
    use(folder)
    monkeypatch.setattr(pipeline.environment, "project_root", lambda: folder)
    monkeypatch.setattr(pipeline, "CHAIN", CHAIN)
    done = pipeline.Completed(name="Done", message="-")
    monkeypatch.setattr(pipeline, "promote", lambda workplace, return_state: done)
    monkeypatch.setattr(pipeline, "open_parent_run", lambda folder: "")
    # No stage here is a `prm` command; each run would have a server import torch and MLflow for nothing.
    monkeypatch.setattr(pipeline.command_server, "started", nullcontext)
    return folder


def use(folder: Path, second: str | None = None) -> None:
    """Writes the graph, `second` with another command if given."""
    sources = ("data/train.jsonl", "artifacts/first/out.txt", "artifacts/second/out.txt")
    graph = {name: copy_stage(source, f"artifacts/{name}/out.txt") for name, source in zip(CHAIN, sources, strict=True)}
    if second is not None:
        graph["second"]["cmd"] = f"{second} && {graph['second']['cmd']}"
    write_graph(folder, graph)


def run(profile: str = "default") -> State:
    return pipeline.pipeline(profile, return_state=True)


def results(shown: str) -> dict[str, str]:
    """Stage → result, from the table on the terminal."""
    rows = (line.strip("│ ").split("│") for line in shown.splitlines() if line.startswith("│"))
    return {cells[0].strip(): cells[1].strip() for cells in rows}


def by_hand(root: Path, *arguments: str) -> str:
    """DVC as users have it, to the last detail of its start; a flow's own commands are forks for them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(warm_dvc.SOCKET)
        return run_dvc(root, *arguments)


def test_a_run_and_dvc_repro_are_interchangeable(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run().is_completed()
    assert results(capfd.readouterr().out) == dict.fromkeys(CHAIN, "ran") | {"promote": "done"}
    assert "up to date" in by_hand(root, "status")
    said = by_hand(root, "repro")
    assert "Running stage" not in said
    # Something changes, and DVC brings all up to date: then the flow has nothing to do.
    (root / "prm_core" / "code.py").write_text("VERSION = 2\n")
    assert by_hand(root, "repro").count("Running stage") == 3
    assert run().is_completed()
    assert results(capfd.readouterr().out) == dict.fromkeys(CHAIN, "up to date") | {"promote": "done"}


def test_with_nothing_changed_dvc_is_asked_once_and_what_a_killed_run_left_open_is_closed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    left = tracking_store.abandon(root, "left")
    asked = []
    real = dvc.changed
    monkeypatch.setattr(dvc, "changed", lambda folder: asked.append(folder) or real(folder))
    monkeypatch.setattr(dvc, "reproduce", lambda *_: pytest.fail("a stage was run"))
    assert run().is_completed()
    assert asked == [root]
    assert tracking.connect(root).get_run(left).info.status == "KILLED"


def test_lost_outputs_come_back_and_stages_behind_them_do_not_run(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run()
    capfd.readouterr()
    shutil.rmtree(root / "artifacts" / "second")
    assert run().is_completed()
    expected = {"first": "up to date", "second": "restored", "third": "up to date", "promote": "done"}
    assert results(capfd.readouterr().out) == expected


def test_damage_that_leaves_size_and_time_as_they_were_is_mended(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run()
    path = root / "artifacts/second/out.txt"
    sound, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    # The trivial stages keep no sums.
    found = [("second", path, "its bytes are not those that were written")]
    monkeypatch.setattr(pipeline.base, "damaged", lambda folder: found)
    capfd.readouterr()
    assert run().is_completed()
    expected = {"first": "up to date", "second": "restored", "third": "up to date", "promote": "done"}
    assert results(capfd.readouterr().out) == expected
    assert path.read_bytes() == sound


def test_a_failing_stage_ends_the_run_with_its_reason(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = "ran"
    for command, name, reason in (
        ("(echo 'error: line 7 is bad' >&2; exit 2)", "Bad input", "stage second: line 7 is bad"),
        ("(echo 'stopped: coverage 0.1' >&2; exit 1)", "Stopped", "stage second: coverage 0.1"),
        ("(echo 'KeyError: 3' >&2; exit 1)", "Failed", "stage second: KeyError: 3"),
    ):
        use(root, command)
        state = run()
        assert (state.is_failed(), state.name, state.message) == (True, name, reason)
        assert results(capfd.readouterr().out) == {"first": before, "second": name.lower()}
        assert not (root / "artifacts" / "third").exists()
        # What came before is recorded, and the next run goes on from there.
        before = "up to date"
    use(root)
    assert run().is_completed()
    expected = {"first": "up to date", "second": "ran", "third": "ran", "promote": "done"}
    assert results(capfd.readouterr().out) == expected


def test_a_killed_stage_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "run_stage", pipeline.run_stage.with_options(retry_delay_seconds=0))
    use(root, "(test -e killed || (touch killed; kill -9 $$))")
    assert run().is_completed()
    assert results(capfd.readouterr().out)["second"] == "ran"


def test_a_stage_whose_tracking_server_is_away_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = iter((False, True))
    monkeypatch.setattr(pipeline.tracking, "answers", lambda folder: next(answers))
    monkeypatch.setattr(pipeline, "run_stage", pipeline.run_stage.with_options(retry_delay_seconds=0))
    use(root, "(test -e tried || (touch tried; exit 2)) && (test -e again || (touch again; exit 2))")
    # The first time it is away; the second time it is there, and so the stage's own word counts.
    state = run()
    assert (state.name, results(capfd.readouterr().out)["second"]) == (pipeline.BAD_INPUT, "bad input")
    assert next(answers, None) is None


def test_waits_between_tries_grow_and_differ() -> None:
    for step in (pipeline.run_stage, pipeline.promote):
        assert step.retry_delay_seconds == sorted(set(step.retry_delay_seconds))
        assert (step.retries, step.retry_jitter_factor > 0) == (len(step.retry_delay_seconds), True)


def test_stages_find_the_server_of_commands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def started() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(command_server.SOCKET, "here")
            yield

    monkeypatch.setattr(pipeline.command_server, "started", started)
    monkeypatch.setattr(pipeline, "CHAIN", ("second",))
    graph = copy_stage("data/train.jsonl", "artifacts/second/out.txt")
    write_graph(root, {"second": {**graph, "cmd": f'test "${command_server.SOCKET}" = here && {graph["cmd"]}'}})
    assert run().is_completed()


def test_a_workspace_in_use_is_refused(root: Path) -> None:
    with workspace.exclusive(root):
        state = run()
    assert state.name == pipeline.BAD_INPUT
    assert f"process {os.getpid()}" in state.message


def test_a_run_waits_for_another_one_and_a_third_is_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "POLL_SECONDS", 0.05)
    states: list[State] = []
    waiting = threading.Thread(target=lambda: states.append(
        pipeline.pipeline("default", wait_hours=1, return_state=True)))
    with workspace.exclusive(root):
        waiting.start()
        deadline = time.monotonic() + 60
        while not is_locked(root / workspace.QUEUE_LOCK) and time.monotonic() < deadline:
            time.sleep(0.05)
        third = pipeline.pipeline("default", wait_hours=1, return_state=True)
        assert (third.is_completed(), third.name) == (True, pipeline.SKIPPED)
        assert f"process {os.getpid()}" in third.message
        assert "one waits for it already" in third.message
        assert not states
    waiting.join(60)
    assert [state.name for state in states] == ["Completed"]
    assert not is_locked(root / workspace.QUEUE_LOCK)


def test_a_run_that_has_waited_long_enough_is_skipped(root: Path) -> None:
    with workspace.exclusive(root):
        state = pipeline.pipeline("default", wait_hours=0.0001, return_state=True)
    assert (state.is_completed(), state.name) == (True, pipeline.SKIPPED)
    assert "and was still after 0.0001 hours" in state.message


def test_one_run_at_a_time_registers_a_model_of_a_name_in_a_shared_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FREE_SECONDS", 2.0)
    with limits.registering(root, 0), limits.registering(root, 0):
        # A store of its own is nobody else's.
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///shared.db")
    with limits.registering(root, 0):
        with pytest.raises(workspace.InUse, match="another run registers model 'prm' at sqlite"):
            limits.registering(root, 0.1).__enter__()
        state = pipeline.pipeline("default", wait_hours=0.0001, return_state=True)
        assert (state.is_completed(), state.name) == (True, pipeline.SKIPPED)
        other = yaml.safe_load((root / "params.yaml").read_text())
        other["register"]["model_name"] = "other"
        (root / "params.yaml").write_text(yaml.safe_dump(other))
        with limits.registering(root, 0):
            pass
    with limits.registering(root, 0):
        pass


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_what_a_killed_run_left_open_is_marked_at_the_next_start(root: Path) -> None:
    """A flow run and a task run that are RUNNING, as a process that was killed leaves them; others stay as they are."""
    dead, alive = "process-dead", "process-alive"
    with get_client(sync_client=True) as client:
        runs = {tag: client.create_flow_run(pipeline.pipeline, tags=[tag], state=Running()) for tag in (dead, alive)}
        task = client.create_task_run(pipeline.run_stage, runs[dead].id, dynamic_key="0", state=Running())
        leftovers._note(root, {"tag": dead})
        # The process's end gives the lock back.
        leftovers._held.pop().close()
        leftovers._note(root, {"tag": alive})
        assert run().is_completed()
        assert client.read_flow_run(runs[dead].id).state.type.value == "CRASHED"
        assert "killed" in client.read_flow_run(runs[dead].id).state.message
        assert client.read_task_run(task.id).state.type.value == "CRASHED"
        assert client.read_flow_run(runs[alive].id).state.type.value == "RUNNING"
    assert leftovers.finish(root) == []


def test_tasks_of_a_tagged_run_have_no_tag(root: Path) -> None:
    """Each would ask for a place under a limit of that name, which costs seconds where the server is busy."""
    with get_client(sync_client=True) as client, tags("process-tagged"):
        assert run().is_completed()
        marked = FlowRunFilter(tags=FlowRunFilterTags(all_=["process-tagged"]))
        assert len(client.read_flow_runs(flow_run_filter=marked)) == 1
        tasks = client.read_task_runs(flow_run_filter=marked)
    assert [task.tags for task in tasks] == [[]] * len(CHAIN)


def test_the_summary_and_the_state_say_that_the_champion_stayed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = pipeline.Completed(name=pipeline.CHAMPION_STAYS, message="the champion stays: its ECE is above the limit")
    monkeypatch.setattr(pipeline, "promote", lambda workplace, return_state: stays)
    store.write_json(root / "artifacts/evaluate/metrics.json", {
        "test/prm/first_error_f1_left_out": "undefined", "test/prm/ece": 0.57144, "test/prm/ece_low": 0.49,
        "test/prm/ece_high": 0.66})
    state = run()
    assert (state.is_completed(), state.name, state.message) == (True, pipeline.CHAMPION_STAYED, stays.message)
    with get_client(sync_client=True) as client:
        page = client.request("GET", "/artifacts/{key}/latest", path_params={"key": "default-summary"}).json()["data"]
    assert "default: champion stays" in page
    assert stays.message in page
    assert "| expected calibration error of single steps | **0.5714** | 0.4900 to 0.6600 |" in page
    assert "| F1 of finding the first wrong step | not measured: undefined |  |" in page
    assert (root / "artifacts/evaluate/report.html").as_uri() in page
    assert "| third | ran | " in page


def test_bad_input_to_the_flow(root: Path) -> None:
    state = run("nope")
    assert state.name == pipeline.BAD_INPUT
    assert state.message.startswith("unknown profile 'nope'")


@pytest.mark.parametrize(
    ("code", "said", "name"),
    [
        (0, "prm version 2 is now champion", "Done"),
        (1, "stopped: its ECE is above the limit", "Champion stays"),
        (1, "KeyError: 'x'", "Failed"),
        (2, "error: no such file", "Bad input"),
    ],
)
def test_promotion(code: int, said: str, name: str, tmp_path: Path) -> None:
    workplace = dvc.Workplace(tmp_path, 0, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dvc, "run", lambda *_: (code, ["more", said]))
        patch.setattr(pipeline, "get_run_logger", logging.getLogger)
        state = pipeline.promote.fn(workplace)
    assert state.name == name
    assert state.is_completed() is (name in ("Done", "Champion stays"))
    assert state.message.endswith(said.partition(": ")[2] or said)


# --- alerts -----------------------------------------------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_automations_are_replaced_and_go_when_nobody_is_to_be_told() -> None:
    names = lambda: sorted(one.name for one in client.read_automations())  # noqa: E731
    with get_client(sync_client=True) as client:
        for _ in range(2):
            deploy.automate(client, "http://127.0.0.1:9/hook", 180)
            assert names() == [deploy.ALERT, deploy.GONE]
        deploy.automate(client, None, None)
        assert names() == []


@pytest.mark.service
def test_a_run_that_failed_is_told_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server that `make ui` runs, through its guard, to a receiver in this process."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        receiver.got = []
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        port = free_port()
        served = subprocess.Popen([sys.executable, "-m", "flows.server", "--port", str(port)], cwd=ROOT)
        try:
            monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
            with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
                wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/health"))
                with get_client(sync_client=True) as client:
                    deploy.automate(client, f"http://127.0.0.1:{receiver.server_port}/hook", None)
                    # The server looks for automations as they are told of, a moment later.
                    time.sleep(2)
                    made = client.create_flow_run(pipeline.pipeline, name="broken", state=Running())
                    client.set_flow_run_state(made.id, Completed(), force=True)
                    made = client.create_flow_run(pipeline.pipeline, name="killed", state=Running())
                    client.set_flow_run_state(made.id, Crashed(message="its process was killed"), force=True)
                    wait_for(lambda: receiver.got)
        finally:
            served.terminate()
            served.wait()
            receiver.shutdown()
    assert [(one["flow"], one["run"], one["type"]) for one in receiver.got] == [("pipeline", "killed", "CRASHED")]
    assert receiver.got[0]["text"] == "pipeline killed: Crashed"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_the_run_of_a_flow_says_what_became_of_it_and_holds_the_headline_figures(tmp_path: Path) -> None:
    client = tracking.connect(tmp_path)
    figures = {"test/prm/ece": 0.02, "test/prm/brier": 0.01, "test/policy_base/pass_at_1": 0.5}
    store.write_json(tmp_path / "artifacts/evaluate/metrics.json", figures)
    rows = [pipeline.Row("label", "ran", 2.4), pipeline.Row("evaluate", "restored", 1)]
    good = pipeline.Completed(message="the champion stays: its F1 is below")
    broken = pipeline.Failed(name="Bad input", message="stage label: no file")
    # Figures of an earlier evaluation are none of a run that did not get there.
    for rows_so_far, state, status, expected in (
        (rows, good, "FINISHED", {key: figures[key] for key in figures if "brier" not in key}),
        (rows[:1], broken, "FAILED", {}),
    ):
        parent = pipeline.open_parent_run(tmp_path)
        workplace = dvc.Workplace(tmp_path, 0, {tracking.PARENT_RUN: parent})
        pipeline.close_parent_run(pipeline.Run(workplace, list(rows_so_far)), state)
        run = client.get_run(parent)
        assert (run.info.status, run.data.metrics) == (status, expected)
        said = run.data.tags["mlflow.note.content"].splitlines()
        assert said[0] == state.message
        assert "| label | ran | 2.4 |" in said
        assert ("| right answers, one chain of the base policy | **0.5000** |  |" in said) is bool(expected)


# --- a pause for review -----------------------------------------------------------------------------------------------


@pytest.fixture
def reviewed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout with a review queue of four steps; the second stage reads the human labels."""
    store.write_jsonl(root / QUEUE, queue_of(budget=4))
    store.write_shard(root / "artifacts/generate/trajectories", 0, Trajectory, [trajectory(n) for n in range(6)])
    store.write_jsonl(root / "data/train.jsonl", [problem(n) for n in range(6)])
    run_dvc(root, "add", "data", "--quiet")
    sources = ("data/train.jsonl", "data/human/labels.jsonl", "artifacts/second/out.txt")
    write_graph(root, {name: copy_stage(source, f"artifacts/{name}/out.txt")
                       for name, source in zip(CHAIN, sources, strict=True)})
    monkeypatch.setattr(pipeline, "REVIEWED", "second")
    monkeypatch.setattr(review, "POLL_SECONDS", 0.2)
    return root


class Reviewer(threading.Thread):
    """Waits for the pause, answers, and has the run go on with `prm review finish` in another process."""

    def __init__(self, root: Path, verdicts: tuple[bool, ...]) -> None:
        super().__init__()
        self.root, self.verdicts = root, verdicts
        self.done: subprocess.CompletedProcess[str] | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while pause.waiting(self.root) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        bob = Session(ReviewBoard(self.root), "bob")
        for verdict in self.verdicts:
            bob.answer(bob.current.key, verdict)
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        command = [sys.executable, "-m", "prm_core.cli", "review", "finish", "--workspace", str(self.root)]
        # The note is written before Prefect knows of the pause.
        while (self.done is None or self.done.returncode == 1) and time.monotonic() < deadline:
            self.done = subprocess.run(command, env=environment, capture_output=True, text=True)


def run_with_review(root: Path, *verdicts: bool) -> tuple[State, Reviewer]:
    reviewer = Reviewer(root, verdicts)
    reviewer.start()
    state = pipeline.pipeline("default", None, True, return_state=True)
    reviewer.join()
    return state, reviewer


def lines_shown(shown: str) -> list[tuple[str, str]]:
    """The table on the terminal, in order."""
    rows = (line.strip("│ ").split("│") for line in shown.splitlines() if line.startswith("│"))
    return [(cells[0].strip(), cells[1].strip()) for cells in rows]


def test_a_run_waits_for_review_records_it_and_runs_again_what_it_changes(
    reviewed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, reviewer = run_with_review(reviewed, True, False)
    assert (reviewer.done.returncode, reviewer.done.stderr) == (0, "")
    assert state.is_completed()
    assert lines_shown(capfd.readouterr().out) == [
        ("first", "ran"), ("second", "ran"), ("review", "recorded"), ("second", "ran"), ("third", "ran"),
        ("promote", "done")]
    given = [r.is_correct for r in read_human(reviewed / "data/human").labels if r.strategy == "human:bob"]
    assert given == [True, False]
    # The answers went through the stages, DVC knows all of it, and the next run has nothing to do.
    assert (reviewed / "artifacts/third/out.txt").read_text() == (reviewed / "data/human/labels.jsonl").read_text()
    assert "up to date" in run_dvc(reviewed, "status")
    assert pause.waiting(reviewed) is None


def test_a_review_without_answers_runs_nothing_again(reviewed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state, _ = run_with_review(reviewed)
    assert state.is_completed()
    assert lines_shown(capfd.readouterr().out) == [
        ("first", "ran"), ("second", "ran"), ("review", "nothing new"), ("third", "ran"), ("promote", "done")]


def test_nobody_comes(reviewed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = pipeline.pipeline("default", None, True, 1 / 3600, return_state=True)
    assert state.is_failed()
    shown = capfd.readouterr().out
    assert lines_shown(shown)[-1] == ("review", "waiting for review")
    assert "nobody had the run go on within 0.000278 hours; 4 steps still wait for review" in shown
    assert pause.waiting(reviewed) is None
    assert not (reviewed / "artifacts/third").exists()


def test_nothing_to_review_is_no_reason_to_wait(reviewed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (reviewed / QUEUE).write_text("")
    assert pipeline.pipeline("default", None, True, return_state=True).is_completed()
    assert ("review", "nothing new") in lines_shown(capfd.readouterr().out)


# --- subprocesses -----------------------------------------------------------------------------------------------------


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    script = (
        "import os, sys\nw = lambda text: os.write(1, text)\n"
        "w(b'one\\ntwo'); w(b' more\\n\\n'); w(b'\\r 10%'); w(b'\\r 20%\\n'); w('ü'.encode()); sys.exit(3)"
    )
    lines: list[str] = []
    with (tmp_path / "lock").open("w") as lock:
        workplace = dvc.Workplace(tmp_path, lock.fileno(), {})
        code, last = dvc.run([sys.executable, "-c", script], workplace, lines.append)
    assert code == 3
    assert lines == last == ["one", "two more", " 10%", " 20%", "ü"]


def test_nothing_a_command_starts_outlives_it(tmp_path: Path) -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    with (tmp_path / "lock").open("w") as lock:
        workplace = dvc.Workplace(tmp_path, lock.fileno(), {})
        code, (pid,) = dvc.run([sys.executable, "-c", script], workplace, lambda _: None)
    assert code == 0
    deadline = time.monotonic() + 10
    while (alive := running(int(pid))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def running(pid: int) -> bool:
    """Whether a process still runs; one that ended and waits to be collected does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"
