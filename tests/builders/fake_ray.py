"""Ray as far as the runner `ray` uses it, in this process: what is sent is pickled, calls end in an order that a seed
decides, and workers die when told to."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle

from prm_core.platform import workers
from prm_core.platform.shards import cluster


class RayError(Exception):
    """Base of what Ray raises."""


class ActorDied(RayError):
    """A worker is gone."""


class _Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Call(_Reference):
    """A call of a worker: done when it is waited for."""

    def __init__(self, worker: Worker, method: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(None)
        self.worker, self.method, self.arguments = worker, method, arguments


class Worker:
    """A worker's handle."""

    def __init__(self, ray: FakeRay, kind: bytes) -> None:
        self._ray, self._number, self._dead = ray, len(ray.workers), False
        self._self = pickle.loads(kind)()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: _Call(self, method, arguments))


class FakeRay(ModuleType):
    """The module.

    Args:
        dies: whether the worker of this number dies when it is called so, with these arguments.
        starts: False where no worker ever starts.
        environment: what workers say of theirs, where it is not this process's.

    Attributes:
        joined: arguments of `init`.
        workers: started so far.
        killed: numbers of those that were killed.
        done: (worker, shard), in the order of their ends.
    """

    def __init__(
        self, dies: Callable[[int, str, tuple[Any, ...]], bool] = lambda *_: False, *, starts: bool = True,
        environment: dict[str, str] | None = None, seed: int = 0,
    ) -> None:
        super().__init__("ray")
        self.cloudpickle = cloudpickle
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.joined: list[dict[str, Any]] = []
        self.workers: list[Worker] = []
        self.killed: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.options: dict[str, Any] = {}
        self._dies, self._starts, self._environment, self._random = dies, starts, environment, random.Random(seed)

    def init(self, **arguments: Any) -> None:
        self.joined.append(arguments)

    def put(self, value: Any) -> _Reference:
        return _Reference(value)

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.options = options

        def started(kind: type) -> Any:
            # As Ray does it: no class of a module of ours, which the other side might not have.
            content = cloudpickle.dumps(kind)
            return SimpleNamespace(remote=lambda: self._started(content))

        return started

    def _started(self, content: bytes) -> Worker:
        self.workers.append(Worker(self, content))
        return self.workers[-1]

    def wait(self, calls: list[_Call], timeout: float) -> tuple[list[_Call], list[_Call]]:
        ready = [self._random.choice(calls)] if self._starts else []
        return ready, [call for call in calls if call not in ready]

    def get(self, found: _Reference) -> Any:
        if not isinstance(found, _Call):
            return found.value
        worker = found.worker
        if worker._dead or self._dies(worker._number, found.method, found.arguments):
            worker._dead = True
            raise ActorDied("The actor died:\n  out of memory.")
        if found.method == "environment" and self._environment is not None:
            return self._environment
        if found.method == "do":
            self.done.append((worker._number, found.arguments[-1]))
        return getattr(worker._self, found.method)(*found.arguments)

    def kill(self, worker: Worker) -> None:
        worker._dead = True
        self.killed.append(worker._number)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def available_resources(self) -> dict[str, float]:
        return {}


@contextmanager
def installed(ray: ModuleType | None) -> Iterator[None]:
    """`import ray` gives this one; None: fails. What workers make of their process stays undone in this one."""
    before, become, may_fork = sys.modules.get("ray"), workers.become, workers._may_fork
    sys.modules["ray"] = ray  # type: ignore[assignment]
    workers.become = lambda: None
    cluster.connected.cache_clear()
    try:
        yield
    finally:
        workers.become, workers._may_fork = become, may_fork
        cluster.connected.cache_clear()
        if before is None:
            del sys.modules["ray"]
        else:
            sys.modules["ray"] = before
