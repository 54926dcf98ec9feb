"""The tools of the shop: what they are called, what they take, and how a call is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prm_core.domains.errands.tasks import CONSENT, FACTS, UNITS
from prm_core.types import Call

# Beyond it a number is refused.
LARGEST = 9999
_NUMBER = {"type": "integer", "minimum": 1, "maximum": LARGEST}
Tools = Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]]
# Name → what it does, and what it takes. The names and errors are short: a small policy reads unknown words as bytes.
TOOLS: Tools = {
    "ask": ("Ask the user about something the errand leaves open.", {"about": {"type": "string", "enum": list(FACTS)}}),
    "search": ("An item of the shop that has to do with some words; it need not be what was meant.",
               {"words": {"type": "string"}}),
    "look": ("Price of a box of an item, and how many pieces are in it.", {"item": {"type": "string"}}),
    "convert": ("Pieces of an amount in another unit.",
                {"amount": _NUMBER, "unit": {"type": "string", "enum": list(UNITS)}}),
    "pack": ("Boxes that so many pieces need, the last one perhaps not full.", {"pieces": _NUMBER, "box": _NUMBER}),
    "multiply": ("The product of two numbers.", {"a": _NUMBER, "b": _NUMBER}),
    "order": ("Order boxes of an item. It cannot be taken back, and is refused where fewer are left.",
              {"item": {"type": "string"}, "boxes": _NUMBER}),
}
# Under rules.
RULED_TOOLS: Tools = {
    **TOOLS,
    "ask": ("Ask the user about something the errand leaves open, or for consent to an order.",
            {"about": {"type": "string", "enum": [*FACTS, CONSENT]}}),
    "send": ("Send some words to the shop.", {"words": {"type": "string"}}),
}
NO_TOOL, BAD_ARGUMENTS = "no such tool", "bad arguments"


def definitions(tools: Tools = TOOLS) -> str:
    """The tools as JSON of a list of function definitions, as chat APIs take them."""
    return json.dumps([{"type": "function", "function": {
        "name": name, "description": text,
        "parameters": {"type": "object", "properties": properties, "required": list(properties),
                       "additionalProperties": False},
    }} for name, (text, properties) in tools.items()])


def make_call(name: str, **arguments: Any) -> Call:
    """A call as a policy writes it."""
    return Call(name, json.dumps(arguments))


def read_call(call: Call, tools: Tools = TOOLS) -> dict[str, Any] | str:
    """The arguments of a call, in the order of their definition, or what is wrong with it."""
    if call.name not in tools:
        return NO_TOOL
    try:
        arguments = json.loads(call.arguments, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return BAD_ARGUMENTS
    properties = tools[call.name][1]
    if not isinstance(arguments, dict) or set(arguments) != set(properties):
        return BAD_ARGUMENTS
    fits = all(_fits(arguments[name], kind) for name, kind in properties.items())
    return {name: arguments[name] for name in properties} if fits else BAD_ARGUMENTS


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("an argument is given twice")
    return found


def _fits(value: Any, kind: Mapping[str, Any]) -> bool:
    if kind["type"] == "integer":
        # True is an int to Python.
        return type(value) is int and kind["minimum"] <= value <= kind["maximum"]
    return isinstance(value, str) and value in kind.get("enum", (value,))
