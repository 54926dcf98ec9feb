"""How many requests are taken in at once, and when none are any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from prm_core.errors import OverloadError
from prm_core.serving.metrics import Metrics

T = TypeVar("T")


class Admission:
    """Lets so many requests be answered at a time and so many wait; the others are refused at once. Of one event loop.

    Args:
        running, waiting: most requests of either.
        metrics: where they are counted.

    Attributes:
        draining: whether the server is about to end; it still answers.
    """

    def __init__(self, running: int, waiting: int, metrics: Metrics) -> None:
        self._running, self._most = running, running + waiting
        self._inside = 0
        self._metrics = metrics
        self._threads: anyio.CapacityLimiter | None = None
        self.draining = False

    @property
    def has_room(self) -> bool:
        """Whether a request would be taken in."""
        return self._inside < self._most

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, called in a thread.

        Raises OverloadError where as many requests are inside as may be.
        """
        if not self.has_room:
            self._metrics.rejected("queue_full")
            raise OverloadError(f"{self._inside} requests are being answered or wait, and no more may; ask again")
        if self._threads is None:
            # Belongs to the loop that it is made in.
            self._threads = anyio.CapacityLimiter(self._running)
        self._inside += 1
        self._metrics.waiting.inc()
        began, started = time.perf_counter(), False

        def start() -> T:
            nonlocal started
            started = True
            self._metrics.waiting.dec()
            self._metrics.running.inc()
            self._metrics.queue_seconds.observe(time.perf_counter() - began)
            try:
                return work()
            finally:
                self._metrics.running.dec()

        try:
            return await anyio.to_thread.run_sync(start, limiter=self._threads)
        finally:
            if not started:
                self._metrics.waiting.dec()
            self._inside -= 1

    def drain(self, then: Callable[[], None], delay: float) -> None:
        """Has /ready say no from now on, and calls `then` after so many seconds, or at once when asked again."""
        if self.draining:
            delay = 0
        self.draining = True
        asyncio.get_running_loop().call_later(delay, then)
