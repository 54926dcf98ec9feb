"""The state of the review page: order, progress, undo, resuming, several reviewers, and runs in the workspace."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from prm_core.cli.review import app
from prm_core.errors import InputError
from prm_core.labeling.human.labels import read_human
from prm_core.platform import store, workspace
from prm_core.review import pause
from prm_core.review.session import HUMAN, QUEUE, Board, Session, shared_steps
from tests.builders.quality import read_lines
from tests.builders.review import bring_in, queue_of, write_queue

SIZE = 8


@pytest.fixture
def root(tmp_path):
    return write_queue(tmp_path, SIZE)


def session(root, reviewer="bob", overlap=0.0):
    return Session(Board(root, overlap), reviewer)


def give(session, *verdicts):
    """Answers the next steps; returns their keys. None skips."""
    keys = []
    for verdict in verdicts:
        key = session.current.key
        keys.append(key)
        if verdict is None:
            session.skip(key)
        else:
            session.answer(key, verdict)
    return keys


def contents(root):
    return {path.name: path.read_bytes() for path in (root / HUMAN).iterdir()}


def labels_by(root, reviewer):
    return [(r.trajectory_id, r.step_index, r.is_correct) for r in read_human(root / HUMAN).labels
            if r.strategy == f"human:{reviewer}"]


def test_steps_come_in_the_order_of_the_queue_and_answers_go_to_the_labels(root):
    queue = read_lines(root / QUEUE)
    bob = session(root)
    keys = give(bob, True, False, True)
    assert keys == [(f"{row['trajectory_id']}@{row['chain']}", row["step_index"]) for row in queue[:3]]
    assert labels_by(root, "bob") == [(*key, ok) for key, ok in zip(keys, (True, False, True), strict=True)]
    assert bob.current.row == queue[3]


def test_the_page_and_an_import_write_the_same(root, tmp_path_factory):
    other = write_queue(tmp_path_factory.mktemp("other"), SIZE)
    bob = session(root)
    bob.answer(bob.current.key, True, " looked twice ")
    # Half a character, as a browser may send it.
    bob.answer(bob.current.key, False, "hm \ud83d")
    rows = read_lines(other / QUEUE)
    given = [{**rows[0], "is_correct": True, "note": "looked twice"}, {**rows[1], "is_correct": False, "note": "hm ?"}]
    store.write_jsonl(other / "answers.jsonl", given)
    bring_in(other, other / "answers.jsonl", "bob")
    assert contents(root) == contents(other)


def test_progress(root):
    bob = session(root)
    start = bob.progress()
    assert (start.mine, start.asked, start.now, start.covered, start.queue, start.by_reviewer) == (0, 8, 0, 0, 8, {})
    give(bob, True, None, False)
    now = bob.progress()
    assert (now.mine, now.asked, now.now, now.skipped, now.covered) == (2, 8, 2, 1, 2)
    assert now.by_reviewer == {"bob": 2}


def test_undo_goes_back_over_several_answers_and_skips(root):
    before = contents(root)
    bob = session(root)
    keys = give(bob, True, None, False)
    for back in (keys[2], keys[1], keys[0]):
        assert bob.undo()
        assert bob.current.key == back
    assert not bob.undo()
    # Chains and problems that came with the answers went with them.
    assert contents(root) == before
    assert bob.progress().now == 0


def test_an_undone_answer_is_remembered_until_the_step_is_answered_anew(root):
    bob = session(root)
    bob.answer(bob.current.key, True, "hm")
    bob.undo()
    assert (bob.before.is_correct, bob.before.reasoning) == (True, "hm")
    bob.answer(bob.current.key, False)
    assert (bob.before, bob.last.is_correct) == (None, False)
    assert [ok for *_, ok in labels_by(root, "bob")] == [False]


def test_undo_leaves_the_chain_while_another_label_needs_it(root):
    ann, bob = session(root, "ann", 1.0), session(root, "bob", 1.0)
    give(ann, True)
    after_ann = contents(root)
    give(bob, False)
    bob.undo()
    assert contents(root) == after_ann


def test_a_session_resumes_where_it_stopped_and_can_undo_further_back(root):
    keys = give(session(root), True, False)
    again = session(root)
    assert again.current.key == session(root).current.key not in keys
    assert again.progress().mine == 2
    again.undo()
    again.undo()
    assert again.current.key == keys[0]
    assert labels_by(root, "bob") == []


def test_skipped_steps_come_back_at_the_end(root):
    bob = session(root)
    keys = give(bob, None, *[True] * (SIZE - 1))
    assert bob.current is None
    assert bob.progress().skipped == 1
    bob.revisit()
    assert bob.current.key == keys[0]
    give(bob, True)
    assert (bob.current, bob.progress().mine, bob.progress().skipped) == (None, SIZE, 0)


def test_an_answer_to_a_step_that_is_not_shown_any_more_is_refused(root):
    bob = session(root)
    [key] = give(bob, True)
    for act in (lambda: bob.answer(key, False), lambda: bob.skip(key)):
        with pytest.raises(InputError, match="not the current one any more; nothing was recorded"):
            act()
    assert [ok for *_, ok in labels_by(root, "bob")] == [True]


# --- several reviewers ------------------------------------------------------------------------------------------------


def test_the_overlap_is_a_share_of_the_queue_that_does_not_depend_on_the_order():
    keys = [(f"t{n}", n % 3) for n in range(50)]
    shared = shared_steps(keys, 0.2)
    assert len(shared) == 10
    assert shared == shared_steps(keys[::-1], 0.2)
    assert shared_steps(keys, 0) == set()
    assert shared_steps(keys, 1) == set(keys)


def test_two_reviewers_share_the_overlap_and_divide_the_rest(root):
    board = Board(root, 0.25)
    shared = {key for key, item in board.items.items() if item.shared}
    people = [Session(board, "bob"), Session(board, "cem")]
    while any(person.current for person in people):
        for person in people:
            if person.current:
                give(person, True)
    given = [{(t, i) for t, i, _ in labels_by(root, name)} for name in ("bob", "cem")]
    # The very last step may be before both.
    assert given[0] & given[1] >= shared
    assert len(given[0] & given[1] - shared) <= 1
    assert given[0] | given[1] == set(board.items)
    assert len(shared) == 2
    assert abs(len(given[0]) - len(given[1])) <= 1


def test_a_step_before_another_reviewers_eyes_comes_last(root):
    board = Board(root, 0.0)
    ann, bob = Session(board, "ann"), Session(board, "bob")
    assert ann.current.key != bob.current.key
    give(bob, *[True] * (SIZE - 1))
    # Only what ann has before her is left; she may never come back to it.
    assert bob.current.key == ann.current.key


def test_answers_through_another_server_are_seen(root):
    here, there = session(root, "ann"), session(root, "bob")
    [key] = give(there, True)
    here.refresh()
    # What is being read does not change; it does not come again.
    assert here.current.key == key
    assert here.progress().by_reviewer == {"bob": 1}
    assert give(here, False) == [key]
    assert here.progress().covered == 1


def test_files_are_not_read_while_another_server_is_between_two_of_them(root, monkeypatch):
    board = Board(root)
    other = write_queue(root / "other", SIZE)
    give(session(other), True)
    asked, lock = threading.Event(), fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *args: (asked.set(), lock(*args)))
    with ThreadPoolExecutor() as pool:
        folder = os.open(root / HUMAN, os.O_RDONLY)
        lock(folder, fcntl.LOCK_EX)
        try:
            shutil.copy(other / HUMAN / "labels.jsonl", root / HUMAN)
            refreshed = pool.submit(board.refresh)
            assert asked.wait(60)
            for name in ("problems.jsonl", "trajectories.jsonl"):
                shutil.copy(other / HUMAN / name, root / HUMAN)
        finally:
            os.close(folder)
        refreshed.result()
    assert board.tally() == {"bob": 1}


def _answer_all(root, name):
    person = session(root, name, 1.0)
    while person.current:
        give(person, True)


def test_reviewers_in_two_processes_lose_nothing(root):
    seed = labels_by(root, "ann")
    context = multiprocessing.get_context("spawn")
    people = [context.Process(target=_answer_all, args=(root, name)) for name in ("bob", "cem")]
    for process in people:
        process.start()
    for process in people:
        process.join()
        assert process.exitcode == 0
    assert [len(labels_by(root, name)) for name in ("bob", "cem")] == [SIZE, SIZE]
    assert labels_by(root, "ann") == seed


@pytest.mark.parametrize("name", ["", " ", "a:b"])
def test_a_reviewer_has_a_plain_name(root, name):
    with pytest.raises(InputError, match="without a colon"):
        session(root, name)


# --- runs in the same workspace ---------------------------------------------------------------------------------------


def test_a_new_queue_is_taken_up(root):
    bob = session(root)
    keys = give(bob, True)
    store.write_jsonl(root / QUEUE, queue_of(budget=100)[10:13])
    bob.refresh()
    assert bob.progress().queue == 3
    assert bob.current.key in bob.board.items
    # Undo passes over what belongs to the old queue.
    assert keys[0] not in bob.board.items
    assert not bob.undo()
    assert len(labels_by(root, "bob")) == 1


def test_answers_wait_while_a_run_is_at_work_unless_it_waits_for_them(root):
    bob, before = session(root), contents(root)
    with workspace.exclusive(root):
        with pytest.raises(InputError, match="a run is at work here"):
            give(bob, True)
        rows = [{**row, "is_correct": True} for row in read_lines(root / QUEUE)]
        store.write_jsonl(root / "answers.jsonl", rows)
        arguments = ["import", str(root / "answers.jsonl"), "--reviewer", "bob", "--workspace", str(root)]
        assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
        assert contents(root) == before
        pause.begin(root, pause.Pause("id", "http://127.0.0.1:1/api", "2030-01-01T00:00:00+00:00"))
        [key] = give(bob, True)
        assert pause.waiting(root).flow_run == "id"
        assert "prm review finish" in pause.next_step(root)
        pause.end(root)
        with pytest.raises(InputError, match="a run is at work here"):
            bob.undo()
    assert labels_by(root, "bob") == [(*key, True)]
    assert bob.undo()


def test_a_run_that_died_waiting_waits_no_more(root):
    with workspace.exclusive(root):
        pause.begin(root, pause.Pause("id", "http://127.0.0.1:1/api", "2030-01-01T00:00:00+00:00"))
    assert pause.waiting(root) is None
    assert "dvc add data" in pause.next_step(root)
    result = CliRunner().invoke(app, ["finish", "--workspace", str(root)])
    assert "no run waits here for review" in str(result.exception)


def test_options_before_a_subcommand_are_refused(root):
    result = CliRunner().invoke(app, ["--workspace", str(root), "agreement"])
    assert isinstance(result.exception, InputError)
    assert "go after its name" in str(result.exception)


def test_no_queue_no_page(tmp_path):
    result = CliRunner().invoke(app, ["--workspace", str(tmp_path), "--no-browser", "--port", "8700"])
    assert "no review queue there; run the chain" in str(result.exception)
