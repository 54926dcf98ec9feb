"""Gradients of a batch whose parts are worked on in processes of their own, over weights in shared memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from prm_core.platform import workers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

Part = TypeVar("Part")
# Losses of the passes over a part, and figures; both add up over the parts to those of the batch.
Passes = Callable[[Part], Iterable[tuple["Tensor", dict[str, float]]]]


class Gradients(Generic[Part]):
    """What `gradients` gives.

    Args:
        parts: as many as a batch is to be cut into.
        pool: takes (number, part) and returns figures.
        buffers: gradients of each parameter by part (parts, …).
    """

    def __init__(
        self, parts: int, pool: workers.Pool[tuple[int, Part], dict[str, float]],
        buffers: Sequence[tuple[nn.Parameter, Tensor]],
    ) -> None:
        self.parts = parts
        self._pool = pool
        self._buffers = buffers

    def of(self, batch: Sequence[Part]) -> dict[str, float]:
        """Sets the parameters' gradients to those of the batch's parts, added up in their order; returns the figures,
        added up likewise."""
        found = list(self._pool.map(list(enumerate(batch))))
        for parameter, buffer in self._buffers:
            for part in buffer[1 : len(batch)]:
                buffer[0] += part
            parameter.grad = buffer[0]
        return {name: sum(one[name] for one in found) for name in found[0]}


@contextmanager
def gradients(accelerator: Accelerator, model: nn.Module, passes: Passes[Part]) -> Iterator[Gradients[Part]]:
    """Workers that add up a model's gradients; its weights move to shared memory, where optimizers go on changing them.

    On a GPU, and where a launcher started several processes, there is one part, and no worker.

    Args:
        accelerator: does the backward passes.
        model: prepared by it.
        passes: losses and figures of a part; runs in a worker, which sees the weights as they are.
    """
    alone = accelerator.device.type != "cpu" or accelerator.num_processes > 1
    parts = 1 if alone else workers.PARTS
    buffers = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if alone:
                buffer = parameter.new_zeros(1, *parameter.shape)
            else:
                parameter.data = workers.shared(parameter.shape, parameter.dtype).copy_(parameter.data)
                buffer = workers.shared((parts, *parameter.shape), parameter.dtype)
            buffers.append((parameter, buffer))

    def work(item: tuple[int, Part]) -> dict[str, float]:
        number, part = item
        # A backward pass adds to gradients that are there, in place.
        for parameter, buffer in buffers:
            parameter.grad = buffer[number].zero_()
        figures: dict[str, float] = {}
        for loss, found in passes(part):
            accelerator.backward(loss)
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value
        return figures

    with workers.forked(work, parts) as pool:
        yield Gradients(parts, pool, buffers)


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
