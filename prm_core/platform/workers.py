"""Forked worker processes that share out work of one thread each.

On models of the size that a CPU trains, two threads of one process wait for each other more than they gain; two
processes do nearly twice the work. Work is cut the same way however many workers there are, and each computes with one
thread, so results do not depend on the number of cores.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import mmap
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prm_core.platform.progress import track

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
# As many parts as small work is cut into, whatever the number of cores.
PARTS = 2
_PR_SET_PDEATHSIG = 1
# False in a worker, whose work is not shared out again, and in a process with threads that a fork would cut off.
_may_fork = True


class WorkerDied(RuntimeError):
    """A worker ended before its work was done."""


def cores() -> int:
    """Processor cores this process may use; `OMP_NUM_THREADS` bounds it, as it bounds threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(allowed, int(asked)) if asked.isdigit() and int(asked) > 0 else allowed


def shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that this process and workers forked later share.

    Not of /dev/shm, which containers keep small. Begins at a page, so that sums do not depend on where it lies.
    """
    import torch

    count = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, max(count, 1) * dtype.itemsize), dtype=dtype, count=count).view(*shape)


def shards(count: int, size: int) -> list[slice]:
    """Cuts `count` items into parts of about equal size, at most `size`; an even number of parts where there are two
    items, so that none of two workers waits for a last one."""
    parts = min(-(-count // size), count)
    parts = min(parts + parts % PARTS, count)
    bounds = [count * part // parts for part in range(parts)] + [count] if parts else [0]
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]


@dataclass(slots=True)
class _Worker:
    process: int
    pipe: Connection
    at_work_on: int | None = None


class Pool(Generic[Item, Result]):
    """What `forked` gives.

    Args:
        function: what is done with an item.
        workers: forked processes; without any, work is done in this process.
    """

    def __init__(self, function: Callable[[Item], Result], workers: list[_Worker]) -> None:
        self._function = function
        self._workers = workers
        self._closed = False

    def map(self, items: Sequence[Item], label: str = "", unit: str = "it", done: int = 0) -> Iterator[Result]:
        """Results in the order of the items. An item goes to the first worker that is free.

        Args:
            items: pickled on their way to a worker, as results are on their way back.
            label: of a progress bar; empty for none.
            unit: what the bar counts.
            done: how many had been finished before.

        Raises what the function raises on an item, when its turn comes, and WorkerDied; no work is taken afterwards.
        """
        if self._closed:
            raise ValueError("the workers have ended")
        results = self._forked(items) if self._workers else map(self._function, items)
        total = len(items) + done
        return track(results, label, total=total, done=done, unit=unit) if label else iter(results)

    def _forked(self, items: Sequence[Item]) -> Iterator[Result]:
        waiting, found, failed = iter(range(len(items))), {}, False
        try:
            for number in range(len(items)):
                while number not in found:
                    for worker in self._workers:
                        if worker.at_work_on is None and not failed and (chosen := next(waiting, None)) is not None:
                            worker.at_work_on = chosen
                            _send(worker, pickle.dumps(items[chosen], pickle.HIGHEST_PROTOCOL))
                    busy = {worker.pipe: worker for worker in self._workers if worker.at_work_on is not None}
                    for pipe in wait(list(busy)):
                        right, value = _receive(busy[pipe])
                        found[busy[pipe].at_work_on] = right, value
                        busy[pipe].at_work_on = None
                        failed = failed or not right
                right, value = found.pop(number)
                if not right:
                    raise value
                yield value
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers, whatever they do."""
        self._closed = True
        for worker in self._workers:
            worker.pipe.close()
            with suppress(ProcessLookupError):
                os.kill(worker.process, signal.SIGKILL)
        for worker in self._workers:
            with suppress(ChildProcessError):
                os.waitpid(worker.process, 0)
        self._workers = []


def _send(worker: _Worker, message: bytes) -> None:
    try:
        worker.pipe.send_bytes(message)
    except OSError as error:
        raise _died(worker) from error


def _receive(worker: _Worker) -> tuple[bool, Any]:
    try:
        return pickle.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError) as error:
        raise _died(worker) from error


def _died(worker: _Worker) -> WorkerDied:
    return WorkerDied(f"worker process {worker.process} was killed (out of memory?); run the same command again: what "
                      "is finished is kept. OMP_NUM_THREADS=1 works in one process, which takes half the memory")


@contextmanager
def forked(function: Callable[[Item], Result], parts: int) -> Iterator[Pool[Item, Result]]:
    """Workers that do `function` with items, each with one thread; they end with the block, and with this process.

    They hold what this process held when the block began, without copying it; of what they change later only shared
    memory is seen here. In this process, torch has one thread as long as the block lasts.

    Args:
        function: need not be picklable.
        parts: of the work that can be done at once. There are as many workers, at most one a core; with one, inside a
            worker, after `fork_no_more`, and where a GPU is at work (which a fork would lose), work is done in this
            process.
    """
    import torch

    threads = torch.get_num_threads()
    # A worker's first parallel region would wait for threads that a fork does not copy.
    torch.set_num_threads(1)
    lost = torch.cuda.is_initialized() or torch.xpu.is_initialized() or torch.backends.mps.is_available()
    processes = 1 if not _may_fork or lost or not hasattr(os, "fork") else min(cores(), parts)
    pool: Pool[Item, Result] = Pool(function, [])
    try:
        for _ in range(processes if processes > 1 else 0):
            pool._workers.append(_fork(function, pool._workers))
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(threads)


def _fork(function: Callable[[Any], Any], older: Sequence[_Worker]) -> _Worker:
    ours, theirs = Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    process = os.fork()
    if process:
        theirs.close()
        return _Worker(process, ours)
    try:
        # The collector need not go through, and so copy, what the parent holds.
        gc.freeze()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for worker in older:
            worker.pipe.close()
        ours.close()
        if os.getppid() == parent:
            _work(function, theirs)
    finally:
        # Nothing of what this process was to do at its end: that is its parent's.
        os._exit(0)


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    """In a worker: does what comes until the pipe ends."""
    become()
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            pipe.send_bytes(answered(lambda message: function(pickle.loads(message)), message))


def become() -> None:
    """Makes this process a worker: what it runs shares nothing out again, and has one thread."""
    import torch

    fork_no_more()
    torch.set_num_threads(1)


def fork_no_more() -> None:
    """From now on what this process shares out it does itself."""
    global _may_fork
    _may_fork = False


def answered(function: Callable[[Item], Any], item: Item) -> bytes:
    """Pickled for the process that asked: (True, what the function gives), or (False, the error it raised)."""
    try:
        return pickle.dumps((True, function(item)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        return failure(error)


def failure(error: BaseException) -> bytes:
    """False and the error as itself, with where it was raised, pickled; in words where it cannot be."""
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in a worker process:\n{where}")
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
    except Exception:
        answer = pickle.dumps((False, RuntimeError(where)))
    return answer
