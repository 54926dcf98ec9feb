"""OpenHands' events: in order of time, parallel actions are one turn, and a critic's place takes the score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused


def event(number: int, kind: str, source: str = "environment", **more: Any) -> dict[str, Any]:
    return {"id": f"e{number}", "timestamp": f"2026-09-23T09:42:{number:02}", "source": source, "kind": kind, **more}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def action(number: int, call: str, response: str, thought: str = "", **more: Any) -> dict[str, Any]:
    return event(number, "ActionEvent", "agent", thought=[text(thought)], tool_name="look", tool_call_id=call,
                 tool_call={"id": call, "name": "look", "arguments": '{"q": "x"}'}, llm_response_id=response, **more)


def back(number: int, call: str, said: str, *, is_error: bool = False) -> dict[str, Any]:
    return event(number, "ObservationEvent", tool_name="look", tool_call_id=call, action_id="e0",
                 observation={"content": [text(said)], "is_error": is_error, "kind": "LookObservation"})


def message(number: int, source: str, said: str, **more: Any) -> dict[str, Any]:
    role = "assistant" if source == "agent" else "user"
    return event(number, "MessageEvent", source, llm_message={"role": role, "content": [text(said)]}, **more)


EVENTS = [
    event(0, "SystemPromptEvent", "agent", system_prompt=text("Be brief."), tools=[{"name": "look"}]),
    message(1, "user", "Who?", extended_content=[text(" (a hint)")]),
    action(2, "a", "r1", "I look.", reasoning_content="hm"), action(3, "b", "r1"),
    back(4, "b", "2", is_error=True), back(5, "a", "1"), event(6, "PauseEvent", "user"),
    action(7, "c", "r2"), event(8, "UserRejectObservation", tool_name="look", tool_call_id="c", rejection_reason="no"),
    action(9, "d", "r3"), event(10, "AgentErrorEvent", "agent", tool_name="look", tool_call_id="d", error="bad"),
    event(11, "Condensation", forgotten_event_ids=["e2"], summary="so far", llm_response_id="r9"),
    message(12, "agent", "Ann.", llm_response_id="r4"), message(13, "user", "Sure?", sender="Bo")]


def call(id: str, result: str | None, *, failed: bool = False) -> Call:
    return Call("look", '{"q": "x"}', result, failed, id)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("openhands", tmp_path)


@pytest.mark.parametrize("events", [EVENTS, EVENTS[::-1]], ids=["in order", "as a folder may list them"])
def test_a_conversation(files: Files, events: list[Any]) -> None:
    (chain,) = files.read(*events)
    assert (chain.prompt, chain.tools) == ("Be brief.\n\nWho? (a hint)", '[{"name": "look"}]')
    assert chain.steps == (
        Step("I look.", reasoning="hm", calls=(call("a", "1"), call("b", "2", failed=True)), ref="e2"),
        Step("", calls=(call("c", "no", failed=True),), ref="e7"),
        Step("", calls=(call("d", "bad", failed=True),), ref="e9"),
        Step("Ann.", context=(Message("user", "Sure?", "Bo"),), ref="e12"))
    assert files.noted == {"events of kind PauseEvent left out": 1,
                           "condensations, after which the agent saw less, left out": 1}
    assert files.write(chain) == events


def test_an_action_of_a_response_that_was_answered_between_is_of_the_same_turn(files: Files) -> None:
    (chain,) = files.read(action(1, "a", "r1"), back(2, "a", "1"), action(3, "b", "r1"), back(4, "b", "2"))
    assert [step.calls for step in chain.steps] == [(call("a", "1"), call("b", "2"))]


def test_a_score_stands_where_a_critic_s_does(files: Files) -> None:
    critic = {"score": 0.5, "message": "fine", "metadata": {"version": "critic"}}
    events = [EVENTS[1], action(2, "a", "r1", critic_result=critic), back(3, "a", "1"), message(4, "agent", "Ann.")]
    (chain,) = files.read(*events)
    assert (chain.labels, chain.scores, chain.scorer) == ((None, None), (0.5, None), "critic")
    assert files.write(chain) == events
    again = files.write(replace(chain, scores=(None, 0.25), scorer="v1"))
    assert [one.get("critic_result") for one in again] == [
        None, None, None, {"score": 0.25, "message": None, "metadata": {"version": "v1"}}]
    (chain,) = files.read(*again)
    assert (chain.scores, chain.scorer) == ((None, 0.25), "v1")


@pytest.mark.parametrize(("events", "said"), [
    ([{"kind": "ActionEvent"}], "expected an event with kind, id and timestamp; a folder that is still being written"),
    ([event(1, "PauseEvent"), event(1, "PauseEvent")], "two events of the file have one id"),
    ([event(1, "ActionEvent", tool_name=None)], "field tool_name is null"),
    ([event(1, "MessageEvent", "agent", llm_message=3)], "field llm_message is 3"),
    ([event(1, "ObservationEvent")], "field observation is missing"),
])
def test_bad_events_are_named(files: Files, events: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:1.*{said}"):
        files.read(*events)


def test_no_step_is_counted_and_labels_have_no_place(files: Files) -> None:
    assert files.read(EVENTS[1]) == []
    assert files.noted == {"conversations without an agent's step left out": 1}
    (chain,) = files.read(*EVENTS)
    for change in ({"labels": (1.0,) * 4}, {"source": "chat"}):
        with pytest.raises(InputError, match="openhands has no place for labels, and events, which only its own"):
            files.write(replace(chain, **change))


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    with_junk_is_taken_or_refused("openhands", *EVENTS)
