"""Messages as turns: what is a step, which result answers which call, and that what is written is read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.formats.messages import conversation, text_of, to_messages, tools_text
from prm_core.turns import unnamed
from prm_core.types import Call, Message, Step
from tests.builders.junk import with_junk
from tests.builders.turns import ANY, turns

USER, SYSTEM = {"role": "user", "content": "Who?"}, {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": "Ann."}


def called(*ids: str, content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [
        {"id": id, "type": "function", "function": {"name": f"look_{id}", "arguments": '{"q": 1}'}} for id in ids]}


def call(id: str, result: str | None = None, *, failed: bool = False) -> Call:
    return Call(f"look_{id}", '{"q": 1}', result, failed, id)


def result(id: str | None, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **({} if id is None else {"tool_call_id": id}), **more}


def read(*messages: Any, agent: str = "") -> tuple[str, tuple[Step, ...], Counter[str]]:
    noted = Counter[str]()
    return *conversation(messages, "in", noted, agent=agent).finish(), noted


def test_what_precedes_the_first_turn_is_the_prompt_and_what_follows_is_context() -> None:
    prompt, steps, noted = read(
        SYSTEM, USER, SAID, {"role": "developer", "content": "Go on."},
        {"role": "user", "name": "Bo", "content": "Sure?"}, {"role": "environment", "content": "Rain."},
        {"role": "assistant", "name": "b", "content": "Yes."}, agent="a")
    assert prompt == "Be brief.\n\nWho?"
    assert steps == (
        Step("Ann.", "Rain.", "a", context=(Message("system", "Go on."), Message("user", "Sure?", "Bo")), ref="2"),
        Step("Yes.", agent="b", ref="6"))
    assert not noted


def test_parallel_results_out_of_order_answer_their_own_calls() -> None:
    _, (step,), noted = read(USER, called("a", "b", "c"), result("c", "3", status="error"), result("a", "1"),
                             result("b", "2"))
    assert step.calls == (call("a", "1"), call("b", "2"), call("c", "3", failed=True))
    assert not noted


def test_results_without_ids_answer_by_name_else_in_order() -> None:
    without = {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": {}}} for name in "xyz"]}
    _, (step,), noted = read(USER, without, result(None, "1", name="y"), result(None, "2"), result(None, "3"))
    assert [call.result for call in step.calls] == ["2", "1", "3"]
    assert not noted


def test_an_id_that_is_used_again_means_the_last_call_of_it() -> None:
    _, steps, noted = read(USER, called("a"), called("a"), result("a", "1"), result("a", "0"))
    assert [step.calls[0].result for step in steps] == ["0", "1"]
    assert not noted


def test_a_late_result_finds_its_call() -> None:
    _, steps, noted = read(USER, called("a"), SAID, result("a", "1"))
    assert (steps[0].calls, steps[1].observation, noted) == ((call("a", "1"),), "", Counter())


def test_a_result_without_a_call_and_a_call_without_a_result_are_counted() -> None:
    _, steps, noted = read(USER, called("a"), result("x", "nobody asked"), SAID, result(None, "nor here"))
    assert steps == (Step("", "nobody asked", calls=(call("a"),), ref="1"), Step("Ann.", "nor here", ref="3"))
    # What follows a turn without a typed call may answer one that its text spells.
    assert noted == {"results that answer no call, read as observations": 1, "calls without a result": 1}
    prompt, _, noted = read(result("x", "cut off"), SAID)
    assert (prompt, noted) == ("cut off", {"results that answer no call, read as observations": 1})


def test_a_call_s_empty_result_is_a_result() -> None:
    _, (step,), noted = read(USER, called("a", content=""), result("a", ""))
    assert (step.calls, noted) == ((call("a", ""),), Counter())


def test_items_of_one_response_are_one_turn() -> None:
    prompt, steps, noted = read(
        USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "look_a", "arguments": '{"q": 1}'},
        {"type": "custom_tool_call", "call_id": "b", "name": "run", "input": "1 + 1"},
        {"type": "mcp_call", "id": "c", "name": "fetch", "arguments": "{}", "output": None, "error": "gone"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "2"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "1"}],
         "status": "incomplete"},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})
    assert prompt == "Who?"
    assert steps == (
        Step("I look.", reasoning="hm", ref="1", calls=(
            call("a", "1", failed=True), Call("run", "1 + 1", "2", id="b"), Call("fetch", "{}", "gone", True, "c"))),
        Step("No.", ref="9"))
    assert noted == {"items of type web_search_call left out": 1,
                     "reasoning that only its service can read left out": 1}


def test_parts_of_anthropic_s_clients() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "x"}}
    _, steps, noted = read(
        USER,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"},
                                          {"type": "redacted_thinking", "data": "x"},
                                          {"type": "text", "text": "I look."},
                                          {"type": "tool_use", "id": "a", "name": "look_a", "input": {"q": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [
            {"type": "text", "text": "1"}, image]}, {"type": "text", "text": "And?"}]})
    assert steps == (Step("I look.", reasoning="hm", calls=(call("a", "1", failed=True),),
                          context=(Message("user", "And?"),), ref="1"),)
    assert noted == {"reasoning that only its service can read left out": 1,
                     "images, sounds and other parts that are no text left out": 1}


@pytest.mark.parametrize(("message", "step"), [
    ({"content": "a", "reasoning": "hm", "reasoning_content": "hm"}, Step("a", reasoning="hm")),
    ({"content": [{"type": "reasoning", "reasoning": "x", "redacted": True, "summary": "hm"},
                  {"type": "text", "text": "a"}]}, Step("a", reasoning="hm")),
    ({"content": None, "refusal": "No."}, Step("No.")),
    ({"function_call": {"name": "f", "arguments": ""}}, Step("", calls=(Call("f"),))),
    ({"tool_calls": [{"id": "a", "type": "function", "function": {"name": "", "arguments": "{}"}}]},
     Step("", calls=(Call("", id="a"),))),
    ({"tool_calls": [{"id": 3, "name": "f", "arguments": {"x": "ü"}}]},
     Step("", calls=(Call("f", '{"x": "ü"}', id="3"),))),
    ({"tool_calls": [{"id": "a", "function": "f", "arguments": {}}]}, Step("", calls=(Call("f", id="a"),))),
    ({"tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "1 + 1"}}]},
     Step("", calls=(Call("f", "1 + 1", id="a"),))),
    ({"content": {"text": " a\n\nb "}, "name": 3}, Step(" a\n\nb ", agent="3")),
])
def test_a_turn_in_the_shapes_of_clients(message: Any, step: Step) -> None:
    _, (found,), _ = read(USER, {"role": "assistant", **message})
    assert found == replace(step, ref="1")


def test_turns_that_say_nothing_are_counted() -> None:
    _, steps, noted = read(USER, {"role": "assistant", "content": ""}, {"role": "assistant", "content": None}, SAID)
    assert ([step.ref for step in steps], noted) == (["3"], {"agent's turns without text or tool call left out": 2})


@pytest.mark.parametrize(("message", "said"), [
    (3, "in: message 1 is 3"), ({"content": "x"}, "message 1 is"), ({"role": 3}, "message 1 is"),
    ({"role": "robot", "content": "x"}, 'in: message 1 has the role "robot"; known are assistant and user, human'),
    ({"role": "user", "content": 3}, "message 1: content is 3"),
    ({"role": "assistant", "tool_calls": 3}, "message 1: field tool_calls is 3"),
    ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "message 1: a tool call is"),
    ({"role": "assistant", "tool_calls": [None]}, "message 1: a tool call is null"),
    ({"type": "function_call", "call_id": "a"}, "message 1: a function_call has the name null"),
])
def test_bad_messages_are_named(message: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(USER, message)
    assert said in str(error.value)


@given(prompt=ANY, steps=st.lists(turns(roles=("user", "system")), min_size=1, max_size=4))
def test_what_is_written_is_read_as_the_same_turns(prompt: str, steps: list[Step]) -> None:
    again, found, noted = read(*to_messages(prompt, steps))
    assert again == prompt
    assert [unnamed(step) for step in found] == [unnamed(step) for step in steps]
    assert set(noted) <= {"calls without a result"}
    assert noted.total() == sum(call.result is None for step in steps for call in step.calls)


def test_another_agent_s_words_are_a_user_s_of_its_name() -> None:
    _, (step,), _ = read(*to_messages("p", [Step("a", context=(Message("agent", "b", "bo"),))]))
    assert step.context == (Message("user", "b", "bo"),)


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    whole = [SYSTEM, USER, called("a", content="x"), result("a", [{"type": "text", "text": "1"}], name="f"),
             {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
             {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "b", "output": "1"},
             {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "2"}]}]
    for messages in with_junk(whole):
        try:
            read(*messages)
        except InputError as error:
            assert str(error).startswith("in: message")  # noqa: PT017


@pytest.mark.parametrize(("tools", "text"), [
    (None, ""), ([], ""), ("", ""), ([{"type": "function", "function": {"name": "f"}}], '[{"name": "f"}]'),
    ([{"name": "ü"}], '[{"name": "ü"}]'), ('[{"name":"f"}]', '[{"name": "f"}]')])
def test_tools_are_their_definitions(tools: Any, text: str) -> None:
    assert tools_text(tools, "in") == text


@pytest.mark.parametrize("tools", [3, [3], {"name": "f"}, "look(q)", '"f"'])
def test_tools_that_are_none_are_named(tools: Any) -> None:
    with pytest.raises(InputError, match=r"in: tools is .*expected a list of function definitions"):
        tools_text(tools, "in")


def test_a_text_or_messages_as_a_text() -> None:
    assert text_of("a", "in") == "a"
    assert text_of([SYSTEM, USER], "in") == "Be brief.\n\nWho?"
    with pytest.raises(InputError, match="in is empty"):
        text_of([], "in")
