"""How an answer waits for the engine: a coroutine that waits for nothing else is run by a thread of its own or, with
others, by an event loop, which goes on with all that a pass of the model answered and wakes no thread for each."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from prm_core.serving.engine.requests import Request, nothing

T = TypeVar("T")
Answering = Coroutine[Any, Any, T]


def in_thread(work: Answering[T]) -> T:
    """What a coroutine that waits for requests alone returns; this thread waits. Raises what it raises."""
    try:
        while True:
            request: Request = work.send(None)
            if not request.done.wait(request.left()):
                request.expire()
    except StopIteration as ended:
        return ended.value


async def in_loop(work: Answering[T]) -> T:
    """The same; the running event loop goes on meanwhile."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            request: Request = work.send(None)
            late = loop.call_later(request.left(), request.expire)
            answered = loop.create_future()
            request.then(lambda answered=answered: loop.call_soon_threadsafe(_wake, answered))
            try:
                await answered
            finally:
                late.cancel()
                # Who is waited for no more may end after the loop.
                request.then(nothing)
    except StopIteration as ended:
        return ended.value
    finally:
        work.close()


def _wake(answered: asyncio.Future[None]) -> None:
    if not answered.done():
        answered.set_result(None)
