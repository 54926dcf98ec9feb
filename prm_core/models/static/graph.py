"""Fewer kernels, and kernels that start without the processor's taking part: functions compiled, and as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

# Calls before the capture, in which kernels are compiled and libraries take their workspaces.
WARM_UP = 2
# Devices for which functions are compiled.
COMPILED = ("cuda",)


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


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes a tensor first, compiled for devices that gain by it."""
    compiled = cache(lambda: torch.compile(function))

    @wraps(function)
    def call(first: Tensor, *others: Any) -> Any:
        return (compiled() if first.device.type in COMPILED else function)(first, *others)

    return call


class CompiledLayers:
    """A model's layers compiled one by one, which share what was compiled; on a GPU only.

    Args:
        backbone: a model without its head.
    """

    def __init__(self, backbone: nn.Module) -> None:
        compiles = next(backbone.parameters()).device.type in COMPILED
        layers = getattr(backbone, "layers", ()) if compiles else ()
        self._compiled = [(layer, torch.compile(layer._call_impl)) for layer in layers]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block the model computes with them: for passes without a cache, as training makes."""
        for layer, compiled in self._compiled:
            layer._compiled_call_impl = compiled
        try:
            yield
        finally:
            for layer, _ in self._compiled:
                layer._compiled_call_impl = None
