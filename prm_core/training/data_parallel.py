"""Work that is shared out among processes: gradients of a batch by parts, and items to be mapped.

On a CPU the processes are forked here and see the weights in shared memory; where several were launched, these share
the work out among themselves, and each ends up with all of its results.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from prm_core.platform import processes, workers
from prm_core.platform.progress import track

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

Part = TypeVar("Part")
Item = TypeVar("Item")
Result = TypeVar("Result")
# Losses of the passes over a part, and figures; both add up over the parts to those of the batch.
Passes = Callable[[Part], Iterable[tuple["Tensor", dict[str, float]]]]


class Mapping(Protocol[Item, Result]):
    """What `shared_out` gives."""

    def map(self, items: Sequence[Item], label: str = "", unit: str = "it") -> Iterable[Result]:
        """Results in the order of the items.

        Args:
            label: of a progress bar; empty for none.
            unit: what the bar counts.
        """
        ...


class _Launched(Generic[Item, Result]):
    """Processes that were launched, each of which takes its share of the items and receives the results of all."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def map(self, items: Sequence[Item], label: str = "", unit: str = "it") -> list[Result]:
        from accelerate.utils import gather_object

        mine: Iterable[int] = range(int(os.environ["RANK"]), len(items), processes.count())
        if label:
            mine = track(mine, f"{label}, share of {processes.count()}", unit=unit)
        own = [(number, self._function(items[number])) for number in mine]
        return [result for _, result in sorted(gather_object(own), key=lambda found: found[0])]


@contextmanager
def shared_out(function: Callable[[Item], Result], parts: int) -> Iterator[Mapping[Item, Result]]:
    """Processes that do `function` with items: those that were launched, else forked ones; see `workers.forked`.

    Args:
        function: its results can be pickled.
    """
    if processes.count() > 1:
        yield _Launched(function)
    else:
        with workers.forked(function, parts) as pool:
            yield pool


class Gradients(Generic[Part]):
    """What `gradients` gives.

    Args:
        parts: as many as a batch is to be cut into.
        accelerator: of the processes.
        shares: take (number, part) and return figures.
        buffers: gradients of each parameter by part, or where a process of a launcher adds up its own (1, …).
    """

    def __init__(
        self, parts: int, accelerator: Accelerator, shares: Mapping[tuple[int, Part], dict[str, float]],
        buffers: Sequence[tuple[nn.Parameter, Tensor]],
    ) -> None:
        self.parts = parts
        self._accelerator = accelerator
        self._shares = shares
        self._buffers = buffers

    def of(self, batch: Sequence[Part]) -> dict[str, float]:
        """Sets the parameters' gradients to those of the batch's parts, added up in their order; returns the figures,
        added up likewise."""
        for _, buffer in self._buffers:
            buffer.zero_()
        found = list(self._shares.map(list(enumerate(batch))))
        for parameter, buffer in self._buffers:
            for part in buffer[1:]:
                buffer[0] += part
            parameter.grad = self._accelerator.reduce(buffer[0], "sum")
        return {name: sum(one[name] for one in found) for name in found[0]}


@contextmanager
def gradients(accelerator: Accelerator, model: nn.Module, passes: Passes[Part]) -> Iterator[Gradients[Part]]:
    """Processes that add up a model's gradients. Where they are forked, its weights move to shared memory, where
    optimizers go on changing them.

    There are as many parts as processes of a launcher, on a CPU at least as many as forked workers; on one GPU one.

    Args:
        accelerator: does the backward passes.
        model: prepared by it in evaluation mode: gradients are added up here, and by no wrapper.
        passes: losses and figures of a part; sees the weights as they are.
    """
    on_cpu, launched = accelerator.device.type == "cpu", accelerator.num_processes > 1
    parts = max(accelerator.num_processes, workers.PARTS if on_cpu else 1)
    buffers = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if launched or not on_cpu:
                buffer = parameter.new_zeros(1, *parameter.shape)
            else:
                parameter.data = workers.shared(parameter.shape, parameter.dtype).copy_(parameter.data)
                buffer = workers.shared((parts, *parameter.shape), parameter.dtype)
            buffers.append((parameter, buffer))

    def work(item: tuple[int, Part]) -> dict[str, float]:
        number, part = item
        # A backward pass adds to gradients that are there, in place.
        for parameter, buffer in buffers:
            parameter.grad = buffer[number % len(buffer)]
        figures: dict[str, float] = {}
        for loss, found in passes(part):
            accelerator.backward(loss)
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value
        return figures

    with shared_out(work, parts) as shares:
        yield Gradients(parts, accelerator, shares, buffers)


def cut(count: int, parts: int) -> list[slice]:
    """Places 0 to `count` in `parts` slices of about equal size, fewer where there are fewer places."""
    parts = min(parts, count)
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Numbers of the items in `parts` parts of about equal total size, in order; fewer where there are fewer items.

    The largest item first, each to the part that is smallest so far.
    """
    heap = [(0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        total, part = heapq.heappop(heap)
        found[part].append(item)
        heapq.heappush(heap, (total + sizes[item], part))
    return [sorted(part) for part in found if part]
