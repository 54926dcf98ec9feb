"""How turns read: parts and back, as text, as JSON, and what identifies them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prm_core import turns
from prm_core.errors import InputError
from prm_core.types import Call, Message, Step

FULL = Step("I look.", "It rains.", "ann", "Hm.",
            (Call("look", '{"q": 1}', "no", True, "c1"), Call("buy", "{}", "yes")), (Message("user", "Well?"),
            Message("agent", "Wait.", "bob")), "s1")


def test_parts_and_back() -> None:
    found = list(turns.parts(FULL))
    assert [(part.mark, part.text) for part in found] == [
        ("<|agent|>", "ann"), ("<|reasoning|>", "Hm."), ("<|text|>", "I look."), ("<|call|>", "look"),
        ("<|arguments|>", '{"q": 1}'), ("<|call|>", "buy"), ("<|arguments|>", "{}"), ("<|wait|>", ""),
        ("<|error|>", "no"), ("<|result|>", "yes"), ("<|observation|>", "It rains."), ("<|user|>", "Well?"),
        ("<|other|>", "bob"), ("<|text|>", "Wait.")]
    back = turns.from_parts((part.mark, part.text) for part in found)
    assert back == replace(FULL, ref="", calls=(replace(FULL.calls[0], id=""), FULL.calls[1]))
    assert [part.mark for part in turns.parts(Step("a"))] == [""]


@pytest.mark.parametrize("junk", [[("<|result|>", "x")], [("<|arguments|>", "x")], [("<|wait|>", "")], []])
def test_what_a_policy_writes_out_of_place_is_left_out(junk: list[tuple[str, str]]) -> None:
    assert turns.from_parts([*junk, ("", "a")]) == Step("a")


def test_as_text_and_json() -> None:
    assert turns.written(FULL) == (
        '[ann]\n<think>Hm.</think>\nI look.\n<tool_call>{"name": "look", "arguments": {"q": 1}}</tool_call>\n'
        '<tool_call>{"name": "buy", "arguments": {}}</tool_call>')
    assert turns.heard(FULL) == "error: no\nyes\nIt rains.\nuser: Well?\nbob: Wait."
    assert (turns.written(Step("a")), turns.heard(Step("a"))) == ("a", "")
    assert turns.record(FULL)["calls"] == [{"name": "look", "arguments": '{"q": 1}', "error": "no"},
                                           {"name": "buy", "arguments": "{}", "result": "yes"}]
    assert turns.record(Step("a", ref="x")) == {"text": "a"}
    assert turns.with_tools("Q", "") == "Q"


def test_what_identifies_a_turn_is_what_a_model_reads() -> None:
    assert turns.identity([Step("a", "o", "x", ref="7")]) == [["a", "o", "x"]], "as it was before there were calls"
    same = replace(FULL, ref="other", calls=(replace(FULL.calls[0], id="other"), FULL.calls[1]))
    assert turns.identity([same]) == turns.identity([FULL])
    for other in (replace(FULL, reasoning=""), replace(FULL, calls=FULL.calls[:1]), replace(FULL, context=())):
        assert turns.identity([other]) != turns.identity([FULL])


def test_a_role_nobody_knows_is_an_error() -> None:
    with pytest.raises(InputError, match="a message of role 'crowd' between steps; known are system, user, agent"):
        list(turns.parts(Step("a", context=(Message("crowd", "x"),))))
