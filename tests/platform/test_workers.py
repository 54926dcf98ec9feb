"""Worker processes: results in order whatever their number, errors as themselves, a killed worker, no nesting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import workers
from tests import ROOT

cores = workers.cores


@pytest.fixture(autouse=True)
def _of_a_machine_of_three_cores(monkeypatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 3)


class Unpicklable(Exception):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self.number = number


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_whichever_is_ready_first(processes: int) -> None:
    def slow(item: int) -> tuple[int, bytes]:
        time.sleep(0.02 * (item == 0))
        return item * item, b"x" * 200_000 * item

    with workers.forked(slow, processes) as pool:
        for _ in range(2):
            assert list(pool.map(range(5))) == [(n * n, b"x" * 200_000 * n) for n in range(5)]
        assert list(pool.map([])) == []


def test_workers_are_processes_of_one_thread_and_end_with_the_block() -> None:
    before = torch.get_num_threads()
    with workers.forked(lambda _: (os.getpid(), torch.get_num_threads(), time.sleep(0.05)), 2) as pool:
        found = list(pool.map(range(2)))
        assert torch.get_num_threads() == 1
    assert len({process for process, *_ in found} - {os.getpid()}) == 2
    assert {threads for _, threads, _ in found} == {1}
    assert torch.get_num_threads() == before
    for process, *_ in found:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    with pytest.raises(ValueError, match="ended"):
        pool.map([1])


def test_shared_memory_is_seen_on_both_sides() -> None:
    shared = torch.zeros(2).share_memory_()

    def add(place: int) -> float:
        shared[place] += 1
        return shared.sum().item()

    with workers.forked(add, 2) as pool:
        shared += 10
        assert sum(pool.map([0, 1])) in (42.0, 43.0, 44.0)
    assert shared.tolist() == [11.0, 11.0]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("error", "kind"), [(InputError("no such file"), InputError), (KeyError("a"), KeyError)])
def test_an_error_comes_back_as_itself_in_its_turn(processes: int, error: Exception, kind: type) -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise error
        return item

    with workers.forked(fail, processes) as pool:
        results = pool.map(range(9))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(kind, match=str(error)):
            next(results)


def test_an_error_that_cannot_be_sent_comes_in_words() -> None:
    def fail(item: int) -> None:
        raise Unpicklable("odd", item)

    with workers.forked(fail, 2) as pool, pytest.raises(RuntimeError, match="Unpicklable: odd"):
        list(pool.map([1]))


def test_a_killed_worker_is_an_error() -> None:
    with workers.forked(lambda item: item and os.kill(os.getpid(), signal.SIGKILL), 2) as pool:
        with pytest.raises(workers.WorkerDied, match=r"was killed .*run the same command again"):
            list(pool.map([0, 1, 0]))
        with pytest.raises(ValueError, match="ended"):
            pool.map([0])


def test_a_worker_forks_none() -> None:
    def inner(_: int) -> list[int]:
        with workers.forked(lambda _: os.getpid(), 2) as pool:
            return [*pool.map(range(2)), os.getpid()]

    with workers.forked(inner, 2) as pool:
        (found,) = pool.map([0])
    assert len(set(found)) == 1
    assert found[0] != os.getpid()


def test_beside_a_gpu_none_is_forked(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with workers.forked(lambda _: os.getpid(), 2) as pool:
        assert list(pool.map(range(2))) == [os.getpid()] * 2


def test_workers_end_with_a_process_that_is_killed() -> None:
    script = ("import os, time; from prm_core.platform import workers; workers.cores = lambda: 2\n"
              "def work(seconds):\n"
              "    os.write(1, b'%d\\n' % os.getpid())\n"
              "    time.sleep(seconds)\n"
              "with workers.forked(work, 2) as pool:\n"
              "    list(pool.map([60, 60]))")
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        found = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        # The pipe ends when the last process that holds it is gone.
        assert process.stdout.read() == ""
    assert process.pid not in found


@given(st.integers(0, 400), st.integers(1, 120))
def test_shards_are_even_in_number_and_size(count: int, size: int) -> None:
    found = workers.shards(count, size)
    sizes = [part.stop - part.start for part in found]
    assert [number for part in found for number in range(count)[part]] == list(range(count))
    assert all(0 < one <= size for one in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert len(found) % 2 == 0 or len(found) == count


@pytest.mark.parametrize(("said", "most"), [("1", 1), ("2,1", 2), ("", None), ("many", None), ("0", None)])
def test_omp_num_threads_bounds_the_cores(monkeypatch, said: str, most: int | None) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cores() == (most or 8)
