"""The thread that owns a model: it takes what waits, makes passes of it by tokens, and wakes who asked.

A pass holds the next tokens of many chains, of each request in turn. A chain that would take a pass too long is read in
pieces, with the short ones between. How many tokens a pass may have follows from how long passes take.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prm_core.config import EngineConfig
from prm_core.errors import InputError, OverloadError
from prm_core.models.batching import free_memory, is_out_of_memory
from prm_core.scoring.scorer import LoadedScorer
from prm_core.serving.engine.observer import Observer
from prm_core.serving.engine.requests import Chain, RefusedChain, Request, Scored, Task, in_turn
from prm_core.serving.engine.waiting import in_thread

if TYPE_CHECKING:
    from prm_core.scoring.incremental.reader import IncrementalReader
    from prm_core.scoring.scorer import RewardScorer

log = logging.getLogger(__name__)

# Tokens of a pass, and seconds that one should take: shorter ones compute no more a second, longer ones let who comes
# meanwhile wait.
FEWEST, MOST, SECONDS = 16, 4096, 0.1
# Seconds that a thread may compute while others wait, of all threads of the process: Python's 5 ms are as long as a
# small model's pass, which has hundreds of operations.
SWITCH = 2e-4
# Chains that a model that reads them whole gets at a time.
WHOLE = 64


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine does, for monitoring.

    Attributes:
        waiting: requests without an answer.
        passes: of the model.
        asked: tokens of all chains that were asked about.
        computed: tokens that the model computed of them; the others were known.
        memory: bytes that are kept.
        limit: bytes that may be kept; 0 of a model that reads every chain whole.
        refused: requests that were not taken in.
        late: requests whose deadline passed.
    """

    waiting: int
    passes: int
    asked: int
    computed: int
    memory: int
    limit: int
    refused: int
    late: int


class Pace:
    """How many tokens a pass gets, so that it takes about as long as it should.

    Attributes:
        tokens: of the next pass.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._most = MOST

    def took(self, tokens: int, seconds: float, target: float) -> None:
        """Learns from a pass."""
        if seconds > target:
            # As many as there was memory for, however long that takes.
            self.tokens = min(max(min(self.tokens, tokens) // 2, FEWEST), self._most)
        elif tokens >= self.tokens // 2 and seconds < target / 2:
            self.tokens = min(self.tokens * 2, self._most)

    def halve(self) -> bool:
        """After a pass that ran out of memory: never as many again. Whether fewer are possible."""
        self.tokens = self._most = self.tokens // 2
        return self.tokens > 0


class Engine:
    """Scores of chains for many threads at once.

    Args:
        scorer: a reward model. Where its scores can go on from those of a chain's beginnings they do.
        config: what it may take.

    Attributes:
        incremental: whether they can.
        has_room: whether a request is taken in: no from one that was not until half the room is free again.
        observer: is told what it does.
    """

    def __init__(self, scorer: LoadedScorer, config: EngineConfig) -> None:
        from prm_core.scoring.incremental.reader import IncrementalReader, reads_on

        self._scorer = scorer
        self._config = config
        self._reader: IncrementalReader | None = None
        if reads_on(scorer):
            self._reader = IncrementalReader(cast("RewardScorer", scorer), int(config.memory * 2**30))
        self.incremental = self._reader is not None
        self.observer = Observer()
        self._wake = threading.Condition()
        self._arrived: list[Request] = []
        self._running: list[Request] = []
        self._size = 0
        self.has_room = True
        self._thread: threading.Thread | None = None
        self._closed = False
        self._batch, self._piece = Pace(1024), Pace(256)
        # Seconds that a pass of short chains takes; characters a second, and seconds that the model worked since it was
        # last measured.
        self._short, self._speed, self._busy = 0.005, 1e5, 0.0
        self._passes = self._asked = self._computed = self._refused = self._late = 0

    def score(self, chains: Sequence[Chain], timeout: float | None = None) -> list[Scored]:
        """What `scored` returns and raises; this thread waits for it."""
        return in_thread(self.scored(chains, timeout))

    async def scored(self, chains: Sequence[Chain], timeout: float | None = None) -> list[Scored]:
        """Scores of (prompt, steps) pairs, in order; it waits for nothing but the engine (waiting.py).

        Args:
            timeout: seconds to wait, by default the config's.

        Raises:
            RefusedChain: the model refuses one of them.
            OverloadError: too much waits already, or there was no answer in time.
        """
        if not chains:
            return []
        timeout = self._config.deadline if timeout is None else timeout
        request = Request(chains, time.monotonic() + timeout, lambda: OverloadError(
            f"no answer within {timeout:g} seconds", self._delay(), "deadline"))
        self._submit(request)
        return await request

    def figures(self) -> EngineFigures:
        """What it did so far, and what waits."""
        tree = self._reader.pool.tree if self._reader else None
        return EngineFigures(len(self._arrived) + len(self._running), self._passes, self._asked, self._computed,
                             tree.size if tree else 0, tree.limit if tree else 0, self._refused, self._late)

    def close(self) -> None:
        """Takes nothing more in; returns when all that was taken in has its answer."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _submit(self, request: Request) -> None:
        with self._wake:
            if self._closed:
                raise OverloadError("the server is stopping", cause="draining")
            # A request of any size is taken in where nothing waits.
            if self._size and self._size + request.size > self._config.waiting:
                self._refused += 1
                self.has_room = False
                waiting = len(self._arrived) + len(self._running)
                raise OverloadError(f"{waiting} requests wait, and there is no room for more", self._delay())
            self._size += request.size
            self._arrived.append(request)
            self._tell()
            if self._thread is None:
                # The model gives Python's lock up at every operation, and waits this long for it where others compute.
                sys.setswitchinterval(SWITCH)
                self._thread = threading.Thread(target=self._work, name="prm-engine", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _delay(self) -> float:
        """Seconds that what waits will take."""
        return max(self._size / self._speed, 1.0)

    def _tell(self) -> None:
        running = self._running
        begun = sum(request.begun for request in running)
        self.observer.queued(begun, len(self._arrived) + len(running) - begun)

    def _begin(self, request: Request) -> None:
        if not request.begun:
            request.begun = True
            self.observer.begun(time.monotonic() - request.arrived)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._arrived or self._running or self._closed):
                    self._wake.wait()
                if self._closed and not (self._arrived or self._running):
                    return
                self._running += self._arrived
                self._arrived = []
            now = time.monotonic()
            for request in self._running:
                if now > request.deadline:
                    request.expire()
            self._pass()
            self._busy += time.monotonic() - now
            self._release()

    def _release(self) -> None:
        """Forgets requests that are done."""
        done = [request for request in self._running if request.done.is_set()]
        if not done:
            return
        with self._wake:
            self._running = [request for request in self._running if not request.done.is_set()]
            size = sum(request.size for request in done)
            self._size -= size
            self.has_room = self.has_room or self._size <= self._config.waiting // 2
            self._tell()
        self._speed += 0.1 * (size / max(self._busy, 1e-6) - self._speed)
        self._busy = 0.0
        for request in done:
            self._late += isinstance(request.error, OverloadError)
            for task in request.open.values():
                self._leave(task)

    def _leave(self, task: Task) -> None:
        if task.job is not None and self._reader is not None:
            self._reader.leave(task.job)
            task.job = None

    def _pass(self) -> None:
        if self._reader is None:
            self._read_whole(self._some())
            return
        short, long = self._look(self._reader)
        self._tell()
        start = time.monotonic()
        if short:
            tokens = self._advance(self._reader, short, self._batch)
            seconds = time.monotonic() - start
            self._batch.took(tokens, seconds, SECONDS)
            self._short += 0.1 * (seconds - self._short)
        if long:
            # As long as a pass of short ones: who comes meanwhile waits little longer than it would without.
            start = time.monotonic()
            tokens = self._advance(self._reader, long[:1], self._piece)
            self._piece.took(tokens, time.monotonic() - start, self._short if self._short < SECONDS else SECONDS)

    def _look(self, reader: IncrementalReader) -> tuple[list[Task], list[Task]]:
        """Tasks of the next pass that fit one, and those that need several; what was never looked at is looked up."""
        short, long = [], []
        room = self._batch.tokens
        for task in in_turn(self._running):
            if task.job is None:
                self._begin(task.request)
                try:
                    task.job = reader.start(*task.chain)
                except InputError as error:
                    task.request.fail(RefusedChain(task.index, str(error)))
                    continue
                self._asked += task.job.length
            if task.job.left > max(self._piece.tokens, self._batch.tokens // 2):
                long.append(task)
            else:
                short.append(task)
                room -= max(task.job.left, 1)
            if room <= 0 or len(long) > 1:
                break
        return short, long

    def _advance(self, reader: IncrementalReader, tasks: Sequence[Task], pace: Pace) -> int:
        """One pass; what it was about fails alone where it fails. Returns the tokens that were computed."""
        jobs = [task.job for task in tasks if task.job is not None]
        computed, again, start = 0, False, time.monotonic()
        try:
            computed = reader.advance(jobs, pace.tokens)
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error) and pace.halve():
                again = True
            elif len(tasks) == 1:
                # Whoever asked says so in its log.
                tasks[0].request.fail(error)
            else:
                log.warning("a pass of %d chains failed (%s); reading each alone", len(tasks), type(error).__name__)
                return sum(self._advance(reader, [task], pace) for task in tasks)
        if again:
            # Not while the error is at hand: its traceback holds what the pass had allocated.
            log.warning("out of memory; going on with %d tokens a pass", pace.tokens)
            free_memory()
            return 0
        self._passes += 1
        self._computed += computed
        if computed:
            tree = reader.pool.tree
            self.observer.passed(computed, time.monotonic() - start, tree.size / tree.limit if tree.limit else 0.0)
        for task in tasks:
            if task.job is not None and task.job.score is not None:
                known = task.job.length - task.job.computed
                self.observer.scored(task.job.length, known)
                task.request.finish(task, Scored(task.job.score, known))
                self._leave(task)
        return computed

    def _some(self) -> list[Task]:
        """Tasks for a model that reads chains whole."""
        tasks = [task for _, task in zip(range(WHOLE), in_turn(self._running), strict=False)]
        for task in tasks:
            self._begin(task.request)
        self._tell()
        return tasks

    def _read_whole(self, tasks: Sequence[Task]) -> None:
        """Scores chains; of those that fail together the ones that fail alone are found by halves."""
        if not tasks:
            return
        failed, start = None, time.monotonic()
        try:
            scores = self._scorer.score([task.chain for task in tasks])
            seconds = time.monotonic() - start
            # Of the steps that it had room for: others are an error to the encoder where they are all.
            lengths = [len(self._scorer.encoder.encode(task.chain[0], task.chain[1][: len(score.step_scores)]).ids)
                       for task, score in zip(tasks, scores, strict=True)]
            self._passes += 1
            self._asked += sum(lengths)
            self._computed += sum(lengths)
            self.observer.passed(sum(lengths), seconds, 0.0)
            for task, score, length in zip(tasks, scores, lengths, strict=True):
                self.observer.scored(length, 0)
                task.request.finish(task, Scored(score, 0))
        except Exception as error:
            failed = error
            if len(tasks) == 1:
                tasks[0].request.fail(
                    RefusedChain(tasks[0].index, str(error)) if isinstance(error, InputError) else error)
        if failed is not None and len(tasks) > 1:
            out_of_memory = isinstance(failed, RuntimeError) and is_out_of_memory(failed)
            failed = None
            if out_of_memory:
                free_memory()
            for half in (tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]):
                self._read_whole(half)
