"""OTLP: the two generations of the conventions and OpenInference give the same turns; what is left out; evaluations."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("otlp", tmp_path)


def value(given: Any) -> dict[str, Any]:
    match given:
        case bool():
            return {"boolValue": given}
        case str():
            return {"stringValue": given}
        case int():
            return {"intValue": str(given)}
        case float():
            return {"doubleValue": given}
        case list():
            return {"arrayValue": {"values": [value(one) for one in given]}}
        case _:
            return {"kvlistValue": {"values": attributes(given)}}


def attributes(given: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value(inner)} for key, inner in given.items()]


def span(own: int, more: dict[str, Any], *, parent: int = 0, events: list[Any] | None = None, trace: str = TRACE,
         start: int | str | None = None) -> dict[str, Any]:
    return {"traceId": trace, "spanId": f"{own:016x}", "parentSpanId": f"{parent:016x}" if parent else "", "name": "s",
            "startTimeUnixNano": str(own) if start is None else start, "endTimeUnixNano": str(own + 1),
            "attributes": attributes(more)} | ({"events": events} if events else {})


def request(*spans: dict[str, Any], logs: list[Any] | None = None) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]} | (
        {} if logs is None else {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]})


def event(name: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "timeUnixNano": "1", "attributes": attributes(more)}


def log(own: int, name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"traceId": TRACE, "spanId": f"{own:016x}", "eventName": name, "body": value(body)}


CHAT = {"gen_ai.operation.name": "chat"}
CALLS = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}]
TOOLS = [
    span(3, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look", "gen_ai.tool.call.id": "b",
             "gen_ai.tool.call.result": "2"}, parent=1),
    span(4, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look", "gen_ai.tool.call.id": "a",
             "gen_ai.tool.call.result": "1"}, parent=1)]


def parts(role: str, *given: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(given)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


ASKED = [parts("user", text("Who?"))]
LOOKED = parts("assistant", {"type": "reasoning", "content": "hm"}, text("I look."),
               {"type": "tool_call", "id": "a", "name": "look", "arguments": {"q": "x"}})
BACK = parts("tool", {"type": "tool_call_response", "id": "a", "response": "1"})
NEW = request(
    span(1, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "lead"}),
    span(2, CHAT | {"gen_ai.system_instructions": json.dumps([text("Be brief.")]),
                    "gen_ai.input.messages": json.dumps(ASKED), "gen_ai.output.messages": json.dumps([LOOKED]),
                    "gen_ai.tool.definitions": json.dumps([{"type": "function", "name": "look"}])}, parent=1),
    span(5, CHAT | {"gen_ai.system_instructions": json.dumps([text("Be brief.")]),
                    "gen_ai.input.messages": json.dumps([*ASKED, LOOKED, BACK, parts("user", text("Sure?"))]),
                    "gen_ai.output.messages": json.dumps([parts("assistant", text("Ann."))])}, parent=1))
# The same in events, as 1.36 has it: one call's on its span, the other's as logs.
OLD = request(
    span(1, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "lead"}),
    span(2, CHAT, parent=1, events=[
        event("gen_ai.system.message", {"content": "Be brief."}), event("gen_ai.user.message", {"content": "Who?"}),
        event("gen_ai.choice", {"index": 0, "finish_reason": "tool_calls", "message": json.dumps(
            {"role": "assistant", "content": "I look.", "tool_calls": CALLS})})]),
    span(5, CHAT, parent=1), logs=[
        log(5, "gen_ai.system.message", {"content": "Be brief."}), log(5, "gen_ai.user.message", {"content": "Who?"}),
        log(5, "gen_ai.assistant.message", {"content": "I look.", "tool_calls": CALLS}),
        log(5, "gen_ai.tool.message", {"content": "1", "id": "a"}),
        log(5, "gen_ai.user.message", {"content": "Sure?"}),
        log(5, "gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "Ann."}})])


def inference(prefix: str, *messages: dict[str, Any]) -> dict[str, Any]:
    return {f"llm.{prefix}_messages.{index}.message.{name}": inner
            for index, message in enumerate(messages) for name, inner in message.items()}


LLM = {"openinference.span.kind": "LLM"}
HEARD = ({"role": "system", "content": "Be brief."},
         {"role": "user", "contents.0.message_content.type": "text", "contents.0.message_content.text": "Who?"})
SPOKE = {"role": "assistant", "content": "I look.", "tool_calls.0.tool_call.id": "a",
         "tool_calls.0.tool_call.function.name": "look", "tool_calls.0.tool_call.function.arguments": '{"q": "x"}'}
OPEN = request(
    span(1, {"openinference.span.kind": "AGENT", "agent.name": "lead"}),
    span(2, LLM | inference("input", *HEARD) | inference("output", SPOKE)
         | {"llm.tools.0.tool.json_schema": '{"type": "function", "name": "look"}'}, parent=1),
    span(3, {"openinference.span.kind": "TOOL", "tool.name": "look", "input.value": '{"q": "x"}', "output.value": "1"},
         parent=1),
    span(5, LLM | inference("input", *HEARD, SPOKE, {"role": "tool", "tool_call_id": "a", "content": "1"},
                            {"role": "user", "content": "Sure?"}) | {"output.value": "Ann."}, parent=1))
FIRST = Step("I look.", calls=(Call("look", '{"q": "x"}', "1", id="a"),), context=(Message("user", "Sure?"),),
             ref=f"{2:016x}")


@pytest.mark.parametrize(("record", "reasoning", "tools"), [
    (NEW, "hm", '[{"type": "function", "name": "look"}]'), (OLD, "", ""),
    (OPEN, "", '[{"type": "function", "name": "look"}]')], ids=["attributes", "events", "openinference"])
def test_each_dialect_gives_the_same_turns(files: Files, record: Any, reasoning: str, tools: str) -> None:
    (chain,) = files.read(record)
    assert chain.prompt == "Be brief.\n\nWho?"
    assert chain.steps == (replace(FIRST, reasoning=reasoning), Step("Ann.", ref=f"{5:016x}"))
    assert (chain.id, chain.tools, chain.labels, chain.scores) == (TRACE, tools, (None, None), ())
    assert not files.noted
    assert files.write(chain) == [record]


def test_tools_that_end_out_of_order_answer_by_id(files: Files) -> None:
    both = parts("assistant", *({"type": "tool_call", "id": id, "name": "look", "arguments": {}} for id in "ab"))
    (chain,) = files.read(request(*TOOLS, span(2, CHAT | {"gen_ai.output.messages": json.dumps([both])})))
    assert [(call.id, call.result) for call in chain.steps[0].calls] == [("a", "1"), ("b", "2")]


def test_agents_of_one_name_are_counted(files: Files) -> None:
    def agent(own: int, id: str, parent: int = 0) -> dict[str, Any]:
        return span(own, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "help",
                          "gen_ai.agent.id": id}, parent=parent)

    def chat(own: int, parent: int) -> dict[str, Any]:
        said = json.dumps([parts("assistant", text(str(own)))])
        return span(own, CHAT | {"gen_ai.output.messages": said}, parent=parent)

    (chain,) = files.read(request(agent(1, "a"), chat(2, 1), agent(3, "b"), chat(4, 3), agent(5, "b"), chat(6, 5)))
    assert [(step.text, step.agent) for step in chain.steps] == [("2", ""), ("4", ""), ("6", "")]
    assert files.noted == {"agents of one name read as one": 1}


def test_details_of_a_call_may_stand_in_an_event(files: Files) -> None:
    said = json.dumps([parts("assistant", text("A"))])
    details = event("gen_ai.client.inference.operation.details", {
        "gen_ai.input.messages": json.dumps(ASKED), "gen_ai.output.messages": said})
    (chain,) = files.read(request(span(2, CHAT, events=[details])))
    assert (chain.prompt, chain.steps) == ("Who?", (Step("A", ref=f"{2:016x}"),))


def test_a_text_that_reads_like_a_number_stays_a_text(files: Files) -> None:
    (chain,) = files.read(request(span(2, LLM | {"input.value": "7?", "output.value": "5"})))
    assert (chain.prompt, chain.steps[0].text) == ("7?", "5")


def test_what_is_left_out_is_counted(files: Files) -> None:
    image = {"type": "blob", "modality": "image", "content": "x"}
    said = span(2, CHAT | {"gen_ai.input.messages": json.dumps([parts("user", text("Who?"), image)]),
                           "gen_ai.output.messages": json.dumps([parts("assistant", text("A")),
                                                                 parts("assistant", text("B"))])})
    other = span(3, CHAT, trace="f" * 32)
    (chain,) = files.read(request(said, other, logs=[{"traceId": "e" * 32, "spanId": "0" * 16}]),
                          {"resourceLogs": [{"scopeLogs": [{"logRecords": [log(2, "gen_ai.choice", {})]}]}]})
    assert (chain.prompt, [step.text for step in chain.steps]) == ("Who?", ["A"])
    assert files.noted == {
        "images, sounds and other parts that are no text left out": 1, "further choices of a model left out": 1,
        "calls of a model without an answer left out": 1, "traces without a model's answer left out": 1,
        "logs about no trace of their record left out": 2}


def test_labels_and_scores_are_events_on_the_very_span(files: Files) -> None:
    two = copy.deepcopy(NEW)
    more = span(9, CHAT | {"gen_ai.output.messages": json.dumps([parts("assistant", text("Bo."))])}, trace="f" * 32)
    two["resourceSpans"].append({"scopeSpans": [{"spans": [more]}]})
    one, other = files.read(two)
    assert (other.id, files.write(one, other)) == ("f" * 32, [two])
    given = [replace(one, labels=(None, 0.0), scores=(0.25, None), scorer="v1"), replace(other, scores=(0.75,))]
    (again,) = files.write(*given)
    spans = again["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert ["events" in one for one in spans] == [False, True, True]
    assert {one["key"]: one["value"] for one in spans[1]["events"][0]["attributes"]} == {
        "gen_ai.evaluation.name": {"stringValue": "prm_step"},
        "gen_ai.evaluation.score.value": {"doubleValue": 0.25},
        "gen_ai.evaluation.score.label": {"stringValue": "wrong"},
        "gen_ai.evaluation.explanation": {"stringValue": "step 0: right with probability 0.25, says v1"},
        "prm.version": {"stringValue": "v1"}}
    back = files.read(again)
    assert [(chain.labels, chain.scores, chain.scorer) for chain in back] == [
        ((None, 0.0), (0.25, None), "v1"), ((None,), (0.75,), "")]
    assert files.write(*back) == [again]
    # Scores that go take their events with them.
    bare = (replace(chain, labels=(None,) * len(chain.steps), scores=(), scorer="") for chain in back)
    assert files.write(*bare) == [two]


@pytest.mark.parametrize(("record", "said"), [
    ({"x": 1}, "field resourceSpans is missing"), ({"resourceSpans": 3}, "field resourceSpans is 3"),
    (request({"spanId": "1"}), "spans 0 is"), (request(span(1, CHAT), span(1, CHAT)), "two spans have one span_id"),
    (request(span(1, CHAT, start="soon")), 'startTimeUnixNano is "soon"'),
    (request(span(1, CHAT, parent=2), span(2, CHAT, parent=1)), "lie in each other in a circle"),
    ({"resourceSpans": [3]}, "resourceSpans holds 3"), ({"resourceSpans": [{"scopeSpans": [3]}]}, "scopeSpans holds 3"),
])
def test_bad_requests_are_named(files: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        files.read(record)
    assert said in str(error.value)
    assert "in.jsonl" in str(error.value)


def test_a_trace_in_two_records_is_refused(files: Files) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:2: trace {TRACE} has spans in a record before; gather"):
        files.read(NEW, OLD)


def test_other_chains_have_no_spans(files: Files) -> None:
    (chain,) = files.read(NEW)
    with pytest.raises(InputError, match="otlp has spans, which only its own chains have"):
        files.write(replace(chain, source="atif"))


@pytest.mark.parametrize("record", [NEW, OLD, OPEN], ids=["attributes", "events", "openinference"])
def test_junk_anywhere_is_taken_or_refused_in_words(record: Any) -> None:
    with_junk_is_taken_or_refused("otlp", record)
