"""Steps as rules see them: each call with its arguments as values, and what was called before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.types import Call, Step


def read_call(call: Call) -> dict[str, Any]:
    """Name and arguments of a call: `args` is null, and `readable` false, where they are no JSON object, or one in
    which a name is twice, of which different tools take different ones."""
    try:
        arguments = json.loads(call.arguments, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        arguments = None
    readable = isinstance(arguments, Mapping)
    return {"name": call.name, "args": arguments if readable else None, "readable": readable}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def calls_of(step: Step) -> list[dict[str, Any]]:
    """The calls of a step, as `read_call` reads them: what came back is not known when they are judged."""
    return [read_call(call) for call in step.calls]


def earlier_calls(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The calls of earlier steps, each as `answered`."""
    return [one for step in steps for one in answered(step, calls_of(step))]


def answered(step: Step, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a step as later ones see them, with `result`, `failed` and `agent`. Those of one step are made
    before any of them has answered, and are not earlier than each other.

    Args:
        calls: of the step, by `calls_of`.
    """
    return [{**read, "result": call.result, "failed": call.failed, "agent": step.agent}
            for read, call in zip(calls, step.calls, strict=True)]
