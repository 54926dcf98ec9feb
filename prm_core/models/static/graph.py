"""Fewer kernels, and kernels that start without the processor's taking part: functions compiled, and as one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Calls before the capture, in which kernels are compiled and libraries take their workspaces.
WARM_UP = 2


class Graphed:
    """A function that always does the same to tensors of the same shapes. On a GPU its result is overwritten by the
    next call; elsewhere the function is called as it is.

    Args:
        function: of tensors; returns a tensor or a tuple of them. It may change tensors in place, and is called
            `WARM_UP` times for nothing.
        inputs: examples, whose shapes are those of all calls.
    """

    def __init__(self, function: Callable[..., Any], *inputs: Tensor) -> None:
        self._function = function
        self._graph = None
        if not inputs[0].is_cuda:
            return
        self._inputs = [one.clone() for one in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function gives."""
        if self._graph is None:
            return self._function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given)
        self._graph.replay()
        return self._outputs


@cache
def fused(function: Any) -> Any:
    """The function compiled, where there is a GPU; as it is elsewhere."""
    return torch.compile(function) if torch.cuda.is_available() else function
