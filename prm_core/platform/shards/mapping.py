"""Work on the shards that are missing, kept one by one as they are done; the runner of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prm_core.config import WorkersConfig
from prm_core.platform import workers
from prm_core.platform.progress import track
from prm_core.registry import Registry

Item = TypeVar("Item")
Result = TypeVar("Result")
# What has no config of its own works on this machine.
HERE = WorkersConfig()


class Runner(Protocol):
    """Who works on shards."""

    def __call__(
        self, work: Callable[[int], Any], todo: Sequence[int], config: WorkersConfig
    ) -> Iterator[tuple[int, Any]]:
        """(shard, what `work` gives for it) for each shard to do, once, in whatever order they are done.

        Raises what `work` raises; no shard is begun afterwards, nor when the iterator is closed.
        """
        ...


RUNNERS: Registry[Runner] = Registry("runner of shards")


@RUNNERS.register("local")
def local(work: Callable[[int], Any], todo: Sequence[int], config: WorkersConfig) -> Iterator[tuple[int, Any]]:
    """Processes forked from this one, as many as there are cores; they hold what it holds."""
    return _forked(work, todo, len(todo))


def _forked(work: Callable[[int], Any], todo: Sequence[int], parts: int) -> Iterator[tuple[int, Any]]:
    with workers.forked(work, parts) as pool:
        yield from zip(todo, pool.map(todo), strict=True)


def run(
    work: Callable[[int], Result], count: int, config: WorkersConfig, label: str, *,
    todo: Sequence[int] | None = None, alone: bool = False,
) -> Iterator[tuple[int, Result]]:
    """(shard, result) as shards are done, the progress shown.

    Args:
        work: with the number of a shard. It may run in another process, on another machine: what it changes here is
            not seen, what it reads must have come with it (models do), and its result travels back.
        count: of all shards.
        config: who works.
        label: of the progress bar.
        todo: the shards to do, all by default.
        alone: one after the other in this process, for work that waits for somebody else's.

    Raises what `work` raises, and WorkerDied.
    """
    todo = range(count) if todo is None else todo
    if not todo:
        return iter(())
    found = _forked(work, todo, 1) if alone else RUNNERS[config.runner](work, todo, config)
    return track(found, label, total=count, done=count - len(todo), unit="shard")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], config: WorkersConfig, label: str
) -> Iterator[tuple[Item, Result]]:
    """(item, result) for work of which nothing is kept on disk, in order; arguments and errors as for `run`.

    On this machine items are taken one by one, in this process with all its threads, which suits a model that goes on
    from what it has read. Elsewhere each is a shard, and all are taken before the first is sent.
    """
    if config.runner == "local":
        yield from ((item, work(item)) for item in items)
        return
    given, found, turn = list(items), {}, 0
    for shard, result in run(lambda shard: work(given[shard]), len(given), config, label):
        found[shard] = result
        while turn in found:
            yield given[turn], found.pop(turn)
            turn += 1


def fill(
    paths: Sequence[Path], work: Callable[[int], Result], keep: Callable[[int, Result], object],
    config: WorkersConfig, label: str, *, alone: bool = False,
) -> None:
    """Works on the shards whose files are missing, keeping each as soon as it is done; other arguments as for `run`.

    Args:
        paths: the file of each shard.
        keep: writes a shard's file, atomically; called here, whoever worked.
    """
    todo = [shard for shard, path in enumerate(paths) if not path.exists()]
    for shard, result in run(work, len(paths), config, label, todo=todo, alone=alone):
        keep(shard, result)
