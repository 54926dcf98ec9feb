"""Each rule by hand, on what breaks it and on what only looks like it."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.evaluation.judges.rules import RULES, RulesJudge, numbers
from prm_core.types import Call, Message, Step
from tests.builders import errands
from tests.builders.judges import case, look
from tests.builders.turns import turns

SAID = Step("They cost 4 coins.")


def broken(steps, **more):
    """Of each step what the rules say, up to the colon."""
    said = RulesJudge("", None).judge(case(steps, **more), 0)
    assert said.verdicts == tuple(not reason for reason in said.reasons)
    assert said.scores == tuple(map(float, said.verdicts))
    return [reason.partition(":")[0] for reason in said.reasons]


@pytest.mark.parametrize(("steps", "found"), [
    pytest.param([look(), SAID], ["", ""], id="sound"),
    pytest.param([look("busy", failed=True), look(), SAID], ["failed_call", "", ""], id="a retry is no repetition"),
    pytest.param([look(), look(), SAID], ["", "repeated_call", ""], id="repeated"),
    pytest.param([look(item="pens", boxes=2), look(boxes=2, item="pens")], ["", "repeated_call"], id="other order"),
    pytest.param([look(), look(item="cups"), SAID], ["", "", ""], id="other arguments"),
    pytest.param([Step("", calls=(look().calls * 2)), SAID], ["repeated_call", ""], id="twice in a turn"),
    pytest.param([Step("", calls=(Call("look", '{"item": ', "4"),)), SAID], ["bad_arguments", ""], id="no JSON"),
    pytest.param([Step("", calls=(Call("look", '["pens"]', "4"),)), SAID], ["bad_arguments", ""], id="no object"),
    pytest.param([look(boxes=2), SAID], ["bad_arguments", ""], id="required one missing"),
    pytest.param([look(item=3), SAID], ["bad_arguments", ""], id="wrong type"),
    pytest.param([look(item="a", colour="b"), SAID], ["bad_arguments", ""], id="one too many"),
    pytest.param([Step("", calls=(Call("buy", "{}", "4"),)), SAID], ["unknown_tool", ""], id="not offered"),
    pytest.param([look(), Step("They cost 5 coins.")], ["", "unheard_number"], id="unheard"),
    pytest.param([look("1,200.50 coins"), Step("1200.5 coins for 3.")], ["", ""], id="the same number"),
    pytest.param([look("12004 coins"), Step("1,200 coins")], ["", "unheard_number"], id="part of a number"),
    pytest.param([look("opened 2024-05-01, model A7"), Step("In 2024, the 7.")], ["", ""], id="parts of a date"),
    pytest.param([look(), Step("1. It is 4.\n2) So: 4 coins.")], ["", ""], id="numbers of a list"),
    pytest.param([look(), Step("It is 5."), look(item="cups")], ["", "", ""], id="not the last turn"),
    pytest.param([Step("It is 5.")], [""], id="nothing was heard"),
    pytest.param([Step("  "), SAID], ["empty_turn", ""], id="empty"),
])
def test_rules(steps, found) -> None:
    assert broken(steps) == found


def test_without_definitions_no_tool_is_unknown_and_any_object_fits() -> None:
    steps = [Step("", calls=(Call("buy", '{"a": 1}', "4"),)), SAID]
    assert broken(steps, tools="") == ["", ""]
    bare = json.dumps([{"name": "look", "input_schema": {"required": ["item"]}}])
    assert broken([look(boxes=2), SAID], tools=bare) == ["bad_arguments", ""]
    assert broken(steps, tools='[{"function": "buy"}, {"name": ["buy"]}]') == ["", ""]


def test_what_others_say_is_heard() -> None:
    asked = Step("How many?", context=(Message("user", "Take 17."),))
    assert broken([asked, Step("17 then.")]) == ["", ""]


@pytest.mark.parametrize("schema", [
    {"type": 5}, {"$ref": "http://127.0.0.1:9/x.json"}, {"$ref": "#/nowhere"}, "text", {"pattern": "("}, True])
def test_a_schema_that_cannot_be_read_refuses_nothing_and_fetches_nothing(schema, monkeypatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("nothing is fetched"))
    tools = json.dumps([{"type": "function", "function": {"name": "look", "parameters": schema}}])
    assert broken([look(), SAID], tools=tools) == ["", ""]


def test_reason_names_the_rule_and_says_why() -> None:
    said = RulesJudge("failed_call,bad_arguments", None).judge(case([look("busy", failed=True), look(item=3)]), 0)
    assert said.reasons == ("failed_call: look failed: busy",
                            "bad_arguments: the arguments of look do not fit its definition: 3 is not of type 'string'")
    with pytest.raises(InputError, match="unknown rule 'spelling'; known: bad_arguments, "):
        RulesJudge("failed_call,spelling", None)


def test_worked_errands_break_no_rule() -> None:
    of = errands.problem()
    from prm_core.domains.errands.tools import definitions

    assert broken(errands.run(of, errands.WORKED), tools=definitions(), prompt=of.prompt) == [""] * len(errands.WORKED)


@given(st.lists(turns(), min_size=1, max_size=4))
def test_any_turns_are_judged(steps) -> None:
    said = broken(steps)
    assert len(said) == len(steps)
    assert {one for one in said if one} <= set(RULES)


def test_numbers() -> None:
    assert [*numbers("1,200 and 3.50, -7; v1.2.3 2024-05-01 x9 10% (12) 0.0 5.")] == [
        "1200", "3.5", "7", "10", "12", "0", "5"]
    # Longer than Python reads as an int.
    assert [*numbers("0" + "7" * 5000)] == ["7" * 5000]
