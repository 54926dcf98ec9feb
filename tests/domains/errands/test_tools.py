"""How calls are read: arguments of the right names and types, or one failed result."""

from __future__ import annotations

import json

import pytest

from prm_core.domains.errands.tools import BAD_ARGUMENTS, NO_TOOL, TOOLS, definitions, make_call, read_call
from prm_core.types import Call


def test_arguments_are_read_in_the_order_of_their_definition():
    assert list(read_call(Call("order", '{"boxes": 4, "item": "x"}')).items()) == [("item", "x"), ("boxes", 4)]
    assert read_call(make_call("search", words="")) == {"words": ""}


@pytest.mark.parametrize(("name", "arguments", "fault"), [
    ("buy", "{}", NO_TOOL), ("", "{}", NO_TOOL), ("Order", '{"item": "pens red 31", "boxes": 4}', NO_TOOL),
    ("look", "", BAD_ARGUMENTS), ("look", "item 31", BAD_ARGUMENTS), ("look", "[31]", BAD_ARGUMENTS),
    ("pack", "null", BAD_ARGUMENTS), ("look", "{}", BAD_ARGUMENTS), ("look", '{"item": 31}', BAD_ARGUMENTS),
    ("pack", '{"pieces": 31.0, "box": 6}', BAD_ARGUMENTS), ("pack", '{"pieces": true, "box": 6}', BAD_ARGUMENTS),
    ("pack", '{"pieces": NaN, "box": 6}', BAD_ARGUMENTS), ("pack", '{"pieces": 0, "box": 6}', BAD_ARGUMENTS),
    ("pack", '{"pieces": -31, "box": 6}', BAD_ARGUMENTS), ("pack", '{"pieces": 10000, "box": 6}', BAD_ARGUMENTS),
    ("pack", '{"box": 6, "pieces": ' + "9" * 5000 + "}", BAD_ARGUMENTS), ("look", "[" * 100_000, BAD_ARGUMENTS),
    ("look", '{"item": "pens red 31", "boxes": 4}', BAD_ARGUMENTS), ("search", '{"words": 31}', BAD_ARGUMENTS),
    ("search", '{"words": null}', BAD_ARGUMENTS), ("ask", '{"about": "size"}', BAD_ARGUMENTS),
    ("convert", '{"amount": 2, "unit": "boxes"}', BAD_ARGUMENTS), ("multiply", '{"a": 4}', BAD_ARGUMENTS),
    ("multiply", '{"a": 4, "b": 2, "b": 2}', BAD_ARGUMENTS),
])
def test_what_is_no_call(name, arguments, fault):
    assert read_call(Call(name, arguments)) == fault


def test_tools_are_defined_as_chat_apis_take_them():
    tools = json.loads(definitions())

    assert [tool["function"]["name"] for tool in tools] == list(TOOLS)
    assert tools[-1]["function"]["parameters"]["required"] == ["item", "boxes"]
    for tool in tools:
        assert tool["type"] == "function"
        assert set(tool["function"]["parameters"]["properties"]) == set(tool["function"]["parameters"]["required"])
