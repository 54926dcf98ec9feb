"""How many requests are taken in at once, and when none are any more. They wait for the model in its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from prm_core.errors import OverloadError
from prm_core.serving.engine.waiting import Answering, in_loop, in_thread

T = TypeVar("T")


class Admission:
    """Lets so many requests be inside at a time; the others are refused at once. Of one event loop.

    Args:
        most: requests inside.

    Attributes:
        draining: whether the server is about to end; it still answers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._threads: anyio.CapacityLimiter | None = None
        self.draining = False

    @property
    def has_room(self) -> bool:
        """Whether a request would be taken in."""
        return self._inside < self._most

    async def run(self, work: Answering[T], *, aside: bool) -> T:
        """What `work` returns, which waits for nothing but the engine.

        Args:
            aside: whether it is run by a thread of its own, since it computes long.

        Raises OverloadError where as many requests are inside as may be.
        """
        if not self.has_room:
            work.close()
            raise OverloadError(f"{self._inside} requests are inside, and no more may be (http.max_running); ask again")
        if self._threads is None:
            # Belongs to the loop that it is made in.
            self._threads = anyio.CapacityLimiter(self._most)
        self._inside += 1
        try:
            if aside:
                return await anyio.to_thread.run_sync(in_thread, work, limiter=self._threads)
            return await in_loop(work)
        finally:
            self._inside -= 1

    def drain(self, then: Callable[[], None], delay: float) -> None:
        """Has /ready say no from now on, and calls `then` after so many seconds, or at once when asked again."""
        if self.draining:
            delay = 0
        self.draining = True
        asyncio.get_running_loop().call_later(delay, then)
