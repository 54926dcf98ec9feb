"""prm_core/serving/drift/recorder.py: nothing waits, nothing fails, and files are whole or not there."""

from __future__ import annotations

import os
import threading
import time
from functools import partial

import pytest

from prm_core.config import DriftConfig
from prm_core.serving.drift import recorder as module
from prm_core.serving.drift.recorder import Recorder
from prm_core.serving.drift.samples import read, write
from tests.builders.drift import served

NOW = 1_767_225_600.0


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def offer(recorder: Recorder, *questions: str) -> bool:
    return recorder.offer([partial(served, question, [0.9], time=NOW) for question in questions])


def test_what_is_offered_is_in_files_of_so_many_when_it_closes(tmp_path) -> None:
    recorder = Recorder(tmp_path, DriftConfig(rows=2), lambda: NOW)
    assert all(offer(recorder, f"a{number}", f"b{number}") for number in range(2))
    assert offer(recorder, "last")
    recorder.close()
    found = names(tmp_path)
    assert found == [f"20260101T000000-{os.getpid()}-{number}.parquet" for number in range(3)]
    assert [len(read(tmp_path / name)[0]) for name in found] == [2, 2, 1]
    assert recorder.dropped == 0


def test_of_an_agent_that_asks_after_each_step_the_last_is_kept(tmp_path) -> None:
    recorder = Recorder(tmp_path, DriftConfig(), lambda: NOW)
    for steps in (1, 2, 3):
        recorder.offer([partial(served, "q", [0.9] * steps, time=NOW), partial(served, "p", [0.9], time=NOW)])
    recorder.offer([partial(served, "q", [0.9], time=NOW, version="other")])
    recorder.close()
    (path,) = tmp_path.iterdir()
    # What came up three times is there three times.
    assert sorted((one.version, len(one.scores)) for one in read(path)[0]) == [("", 1)] * 3 + [("", 3), ("other", 1)]


def test_a_file_is_written_after_so_many_seconds_without_more(tmp_path) -> None:
    recorder = Recorder(tmp_path, DriftConfig(seconds=0.05), lambda: NOW)
    offer(recorder, "a")
    until = time.monotonic() + 20
    while not names(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(names(tmp_path)) == 1
    recorder.close()
    assert len(names(tmp_path)) == 1


def test_a_full_queue_drops_and_counts_and_does_not_wait(tmp_path) -> None:
    recorder, gate = Recorder(tmp_path, DriftConfig(queue=1), lambda: NOW), threading.Event()

    def slow():
        gate.wait(20)
        return served("slow", [0.9], time=NOW)

    recorder.offer([slow])
    until = time.monotonic() + 20
    # The thread takes the first from the queue; then there is room for one more.
    while not offer(recorder, "second") and time.monotonic() < until:
        recorder.dropped = 0
    began = time.monotonic()
    assert not offer(recorder, "third", "fourth")
    assert time.monotonic() - began < 1
    assert recorder.dropped == 2
    gate.set()
    recorder.close()
    assert sum(len(read(path)[0]) for path in tmp_path.iterdir()) == 2


def test_what_cannot_be_sampled_or_written_is_lost_and_the_next_is_kept(tmp_path, monkeypatch, caplog) -> None:
    recorder = Recorder(tmp_path, DriftConfig(rows=1), lambda: NOW)
    recorder.offer([lambda: 1 / 0])
    wrote = threading.Event()

    def full(path, samples):
        wrote.set()
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write", full)
        offer(recorder, "lost")
        assert wrote.wait(20)
        until = time.monotonic() + 20
        while recorder.dropped < 2 and time.monotonic() < until:
            time.sleep(0.01)
    offer(recorder, "kept")
    recorder.close()
    assert recorder.dropped == 2
    assert [len(read(path)[0]) for path in tmp_path.iterdir()] == [1]
    assert "No space left" in caplog.text


def test_old_files_and_half_written_ones_go(tmp_path) -> None:
    write(tmp_path / "20251201T000000-1-0.parquet", [served("old", [0.9])])
    write(tmp_path / "20251231T000000-1-0.parquet", [served("new", [0.9])])
    for name, age in ((".a.parquet.tmp", 2 * 86400), (".b.parquet.tmp", 60)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (NOW - age, NOW - age))
    (tmp_path / "notes.txt").write_text("mine")
    recorder = Recorder(tmp_path, DriftConfig(keep_days=10.0), clock=lambda: NOW)
    offer(recorder, "a")
    recorder.close()
    assert names(tmp_path) == [".b.parquet.tmp", "20251231T000000-1-0.parquet",
                               f"20260101T000000-{os.getpid()}-0.parquet", "notes.txt"]


@pytest.mark.parametrize("times", [1, 2])
def test_closing_what_was_never_used_is_nothing(tmp_path, times) -> None:
    recorder = Recorder(tmp_path / "none", DriftConfig())
    for _ in range(times):
        recorder.close()
    assert not (tmp_path / "none").exists()
