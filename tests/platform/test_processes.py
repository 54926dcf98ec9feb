"""One command in several processes: what they are told, how they end, and what is said when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prm_core.errors import InputError
from prm_core.platform import processes, workers
from tests import ROOT
from tests.builders import warm_python

MEMBER = "tests.builders.member"


@pytest.fixture(autouse=True)
def _found(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # Some of them would wait for ten minutes.
    monkeypatch.setattr(processes, "_END_SECONDS", 1.0)


def launch(mode: str, folder: Path, number: int = 2) -> bool:
    return processes.launch(number, [sys.executable, str(warm_python.CLIENT), "-m", MEMBER, mode, str(folder)])


def ended(folder: Path) -> bool:
    """Whether the processes that left a note are gone."""
    noted = [int(path.read_text().split()[-1]) for path in folder.glob("rank-*")]
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(process) for process in noted) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(noted) and not any(psutil.pid_exists(process) for process in noted)


def test_each_has_its_rank_and_its_share_of_the_cores(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 6)
    assert launch("work", tmp_path, 3)
    notes = [(tmp_path / f"rank-{rank}").read_text() for rank in range(3)]
    assert [note.rpartition(", ")[0] for note in notes] == [f"{rank} of 3, 2 threads" for rank in range(3)]
    assert capfd.readouterr().out == "said by 0\n", "one process speaks for all"


def test_one_process_and_one_of_several_launch_nothing(tmp_path, monkeypatch) -> None:
    assert not launch("work", tmp_path, 1)
    monkeypatch.setenv("RANK", "1")
    assert not launch("work", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_one_refuses_all_refuse(tmp_path, capfd) -> None:
    with pytest.raises(InputError, match=r"^no such thing; name another"):
        launch("refuse", tmp_path)
    assert ended(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_one_that_said_why_and_was_aborted_at_its_end_is_believed(tmp_path) -> None:
    """As torch's threads do now and then, when the interpreter goes before them."""
    processes._report(tmp_path, 0).write_bytes(workers.failure(InputError("no such thing; name another")))
    assert isinstance(processes._cause(tmp_path, [-signal.SIGABRT, 1]), InputError)
    # The other one's word is for want of one that was killed without any.
    killed = processes._cause(tmp_path, [1, -signal.SIGKILL])
    assert "process 1 of 2 was ended by signal 9" in str(killed)


def test_a_fault_comes_with_where_it_was(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError, match="by nothing") as raised:
        launch("fault", tmp_path)
    assert "in main" in raised.value.__notes__[0]
    assert ended(tmp_path)


@pytest.mark.parametrize("mode", ["killed", "bereaved"])
def test_one_that_is_killed_is_named_whatever_the_others_say(tmp_path, mode: str) -> None:
    with pytest.raises(workers.WorkerDied, match=r"process 1 of 2 was ended by signal 9 \(out of memory\?\)"):
        launch(mode, tmp_path)
    assert ended(tmp_path)


def test_one_that_ends_without_a_word_is_quoted(tmp_path) -> None:
    with pytest.raises(workers.WorkerDied, match=r"process 1 of 2 ended with exit code 3\nsaid by 1"):
        launch("crash", tmp_path)


def test_those_that_agree_go_on(tmp_path, capfd) -> None:
    for rank in (0, 1):
        (tmp_path / f"data-{rank}").write_text("the same")
    assert launch("meet", tmp_path)
    assert capfd.readouterr().out == "said by 0\n"


def test_those_that_read_other_data_do_not_begin(tmp_path) -> None:
    for rank in (0, 1):
        (tmp_path / f"data-{rank}").write_text(f"of {rank}")
    with pytest.raises(InputError, match=r"process 1 of 2 works with other contents than process 0: data/in.txt; give"):
        launch("meet", tmp_path)
    assert ended(tmp_path)


def test_none_outlives_the_one_that_launched_it(tmp_path) -> None:
    program = ("import sys; from prm_core.platform import processes; "
               f"processes.launch(2, [sys.executable, {str(warm_python.CLIENT)!r}, '-m', {MEMBER!r}, 'wait', "
               f"{str(tmp_path)!r}])")
    launcher = subprocess.Popen([sys.executable, "-c", program], env=os.environ)
    try:
        while len(list(tmp_path.glob("rank-*"))) < 2:
            assert launcher.poll() is None
            time.sleep(0.02)
        os.kill(launcher.pid, signal.SIGKILL)
        assert ended(tmp_path)
    finally:
        launcher.kill()
        launcher.wait()
