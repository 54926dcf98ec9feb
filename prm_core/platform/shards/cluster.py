"""The runner `ray`: shards on workers of a Ray cluster. Code and models travel there, rows come back as bytes.

A worker is an actor of one core. It gets the work once, through Ray's object store, and then numbers of shards; it
stays for the next work of this process. One that is lost (its process or its machine) is replaced, and its shard given
to another. Ray is imported when it is used: requirements-ray.txt.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import prm_core
from prm_core.config import WorkersConfig
from prm_core.errors import InputError
from prm_core.platform import workers
from prm_core.platform.environment import DEFAULTS
from prm_core.platform.shards.mapping import RUNNERS
from prm_core.platform.shards.packing import environment, packed

log = logging.getLogger(__name__)
# Seconds between two looks at whether any worker has started.
LOOK = 5.0
SECONDS_TO_ANSWER = 10.0


@RUNNERS.register("ray")
def on_ray(work: Callable[[int], Any], todo: Sequence[int], config: WorkersConfig) -> Iterator[tuple[int, Any]]:
    """Shards on `config.count` workers of the cluster at `config.address`.

    Raises InputError where Ray is not installed, the cluster does not answer or starts no worker, and where a worker
    has other code or libraries than this process; WorkerDied when a shard has lost `config.retries` workers and one
    more.
    """
    cluster = connected(config.address, config.send_code, config.gpus)
    yield from _Run(cluster, packed(work, cluster.ray.cloudpickle), todo, config).results()


@dataclass(slots=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        ray: the library.
        worker: the actor's class.
        idle: workers that have been looked at and do nothing.
    """

    ray: Any
    worker: Any
    idle: list[Any] = field(default_factory=list)


@cache
def connected(address: str, send_code: bool, gpus: float) -> Cluster:
    """The cluster, joined for as long as this process lives. Raises InputError as `on_ray` does."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"workers.runner ray: Ray cannot be imported here ({error}); "
                         "pip install -r requirements-ray.txt, or set workers.runner to local") from error
    if address not in ("auto", "local"):
        _check_reachable(address)
    kept = {name: os.environ[name] for name in DEFAULTS if name in os.environ}
    code = {"py_modules": [str(Path(prm_core.__file__).parent)]} if send_code else {}
    here = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, runtime_env={"env_vars": kept, **code}, ignore_reinit_error=True,
                 logging_level=logging.WARNING, **here)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # The first cause says why, for instance that the cluster asks for a token.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        causes = dict.fromkeys(" ".join(str(one).split())[:600] for one in (error, first))
        raise InputError(f"workers.address {address}: this process cannot join a Ray cluster there "
                         f"({'; '.join(causes)}). `ray status` on this machine says what there is, `ray start` joins "
                         "or starts one") from error
    # Ray's threads hold locks that a fork would leave closed.
    workers.fork_no_more()
    return Cluster(ray, ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_worker_class()))


def _check_reachable(address: str) -> None:
    """Raises InputError where nothing answers, which Ray itself would try for minutes to find out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"workers.address {address}: nothing answers there ({error}); give HOST:PORT of a Ray "
                         "cluster's head, or `auto` on a machine that is in one") from error


class _Run:
    """One map: which shards wait, and what each call of a worker is for; None is its start."""

    def __init__(self, cluster: Cluster, work: bytes, todo: Sequence[int], config: WorkersConfig) -> None:
        self.cluster, self.ray, self.config = cluster, cluster.ray, config
        self.work = self.ray.put(work)
        self.waiting, self.left = deque(todo), len(todo)
        self.calls: dict[Any, tuple[Any, int | None]] = {}
        self.losses = Counter[int | None]()

    def results(self) -> Iterator[tuple[int, Any]]:
        patience = time.monotonic() + self.config.start_seconds
        wanted = min(self.config.count, self.left)
        kept = [self.cluster.idle.pop() for _ in range(min(wanted, len(self.cluster.idle)))]
        try:
            for worker in kept:
                self._give(worker)
            for _ in range(wanted - len(kept)):
                self._start()
            while self.left:
                ready, _ = self.ray.wait(list(self.calls), timeout=LOOK)
                if ready:
                    patience = float("inf")
                elif time.monotonic() > patience:
                    raise InputError(self._nobody())
                for call in ready:
                    yield from self._ended(call)
        finally:
            # What they still do nobody waits for.
            for worker, _ in self.calls.values():
                self.ray.kill(worker)

    def _ended(self, call: Any) -> Iterator[tuple[int, Any]]:
        """Of a call that is through: its shard with the result, if it was for one."""
        worker, shard = self.calls.pop(call)
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self._lost(shard, error)
            return
        if shard is None:
            self._compare(answer)
        self._give(worker)
        if shard is not None:
            right, value = pickle.loads(answer)
            if not right:
                raise value
            self.left -= 1
            yield shard, value

    def _start(self) -> None:
        worker = self.cluster.worker.remote()
        self.calls[worker.environment.remote()] = worker, None

    def _give(self, worker: Any) -> None:
        if not self.waiting:
            self.cluster.idle.append(worker)
            return
        shard = self.waiting.popleft()
        # In a list, for Ray would send what a bare reference refers to with every call.
        call = worker.do.remote([self.work], "cuda" if self.config.gpus else "cpu", shard)
        self.calls[call] = worker, shard

    def _lost(self, shard: int | None, error: Exception) -> None:
        self.losses[shard] += 1
        what = "as they started" if shard is None else f"on shard {shard}"
        reason = " ".join(str(error).split())
        if self.losses[shard] > self.config.retries:
            raise workers.WorkerDied(
                f"Ray workers were lost {what}, more than workers.retries {self.config.retries}; the last one because: "
                f"{reason} Run the same command again once the cause is gone (too little memory for the models?): what "
                "is finished is kept") from error
        log.warning("a Ray worker was lost %s; another one takes over: %s", what, reason)
        if shard is not None:
            self.waiting.appendleft(shard)
        self._start()

    def _compare(self, theirs: dict[str, str]) -> None:
        ours = environment()
        if theirs != ours:
            differs = ", ".join(f"{name} {theirs.get(name, 'unknown')} instead of {version}"
                                for name, version in ours.items() if theirs.get(name) != version)
            way = ("install requirements.lock on the cluster" if self.config.send_code else
                   "install this checkout there, or set workers.send_code to true")
            raise InputError(f"a Ray worker at {self.config.address} has another version of the code, or of what that "
                             f"runs on, so that its rows might differ: {differs}; {way}")

    def _nobody(self) -> str:
        asked = f"one CPU and {self.config.gpus:g} GPUs" if self.config.gpus else "one CPU"
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        said = ", ".join(f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}s free" for name in ("CPU", "GPU"))
        return (f"no worker started at the Ray cluster {self.config.address} within workers.start_seconds "
                f"{self.config.start_seconds:g}; each takes {asked}, and the cluster has {said}: wait for its other "
                "work to end, or give it more")


@cache
def _worker_class() -> type:
    """The actor's class, which travels by value: a worker without our code has to be able to say so."""

    class Worker:
        def environment(self) -> dict[str, str]:
            """What is there, before any work is unpacked, which other code might misread."""
            try:
                from prm_core.platform.shards.packing import environment
            except ImportError as error:
                return {"prm_core": f"none that knows Ray ({error})"}
            return environment()

        def do(self, reference: list[Any], device: str, shard: int) -> bytes:
            """What the work gives for a shard, or the error it raised, pickled."""
            import ray

            from prm_core.platform import workers
            from prm_core.platform.shards.packing import unpacked

            def work(shard: int) -> Any:
                if getattr(self, "reference", None) != reference:
                    workers.become()
                    # The last one's models make room for the next one's.
                    self.reference, self.work = None, None
                    self.work = unpacked(ray.get(reference[0]), device)
                    self.reference = reference
                return self.work(shard)

            return workers.answered(work, shard)

    return Worker
