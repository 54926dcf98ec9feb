"""What waits for a model: requests of one or more chains, and what came of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prm_core.errors import InputError
from prm_core.platform.steps import texts
from prm_core.scoring.scorer import ChainScore
from prm_core.turns import is_plain
from prm_core.types import Step

if TYPE_CHECKING:
    from prm_core.scoring.incremental.reader import Job

Chain = tuple[str, Sequence[Step]]


class RefusedChain(InputError):
    """A chain of a request that the model refuses.

    Attributes:
        index: which one.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a chain.

    Attributes:
        score: of it.
        known: tokens that were not computed for it.
    """

    score: ChainScore
    known: int


class Task:
    """A chain of a request.

    Attributes:
        request: it belongs to.
        index: in the request.
        job: its state in the reader, None before it was looked at, and of models that read chains whole.
    """

    __slots__ = ("index", "job", "request")

    def __init__(self, request: Request, index: int) -> None:
        self.request = request
        self.index = index
        self.job: Job | None = None

    @property
    def chain(self) -> Chain:
        """Prompt and steps."""
        return self.request.chains[self.index]


class Request:
    """Chains that one client waits for.

    Args:
        chains: prompt and steps of each.
        deadline: on the clock of `time.monotonic`, after which nobody waits any more.
        expired: what is raised then.

    Awaited it is its scores, or raises its error (waiting.py).

    Attributes:
        size: characters.
        arrived: when it was made, on the same clock.
        begun: whether any of it was looked at.
        open: its tasks that are not done, in order.
        done: set once all scores are there, or an error.
        error: what went wrong.
    """

    def __init__(
        self, chains: Sequence[Chain], deadline: float, expired: Callable[[], Exception] = TimeoutError
    ) -> None:
        self.chains = chains
        self.deadline = deadline
        self._expired = expired
        self._then: Callable[[], None] = nothing
        self.size = sum(len(prompt) + sum(map(characters, steps)) for prompt, steps in chains)
        self.arrived = time.monotonic()
        self.begun = False
        self.open = {index: Task(self, index) for index in range(len(chains))}
        self.scores: list[Scored | None] = [None] * len(chains)
        self.done = threading.Event()
        self.error: Exception | None = None

    def finish(self, task: Task, scored: Scored) -> None:
        """Takes what came of a task."""
        self.scores[task.index] = scored
        self.open.pop(task.index, None)
        if not self.open:
            self._end()

    def fail(self, error: Exception) -> None:
        """Ends the request with an error; the first one counts."""
        self.error = self.error or error
        self._end()

    def expire(self) -> None:
        """Ends the request where it waited too long."""
        if not self.done.is_set():
            self.fail(self._expired())

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(self.deadline - time.monotonic(), 0.0)

    def then(self, call: Callable[[], None]) -> None:
        """Calls this once or twice when the request has ended, from whichever thread ends it, or now if it has."""
        self._then = call
        if self.done.is_set():
            call()

    def __await__(self) -> Generator[Request, None, list[Scored]]:
        if not self.done.is_set():
            yield self
        if self.error is not None:
            raise self.error
        return cast("list[Scored]", self.scores)

    def _end(self) -> None:
        self.done.set()
        self._then()


def nothing() -> None:
    """What follows of a request that a thread waits for."""


def characters(step: Step) -> int:
    """Characters that a model reads of a step."""
    return len(step.text) if is_plain(step) else sum(map(len, texts(step)))


def in_turn(requests: Sequence[Request]) -> Iterator[Task]:
    """The first open task of each request, then the second of each, …: a request of thousands holds up no other."""
    left = [iter(list(request.open.values())) for request in requests if not request.done.is_set()]
    while left:
        still = []
        for tasks in left:
            task = next(tasks, None)
            if task is not None:
                yield task
                still.append(tasks)
        left = still
