"""MLflow's traces: which spans are steps, what stands between them, ids in base64 and hex, labels on spans."""

from __future__ import annotations

import base64
import copy
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from prm_core.types import Call, Message, Step
from tests.builders import tracking_store, warm_python
from tests.builders.formats import with_junk_is_taken_or_refused

TRACE = FORMATS["mlflow_trace"]
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}
LOOK = Call("look", '{"q": "x"}', id="c")
USER, SYSTEM = {"role": "user", "content": "Who?"}, {"role": "system", "content": "Be brief."}
ASKS = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}


def number(value: int) -> str:
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def span(own: int, kind: str, inputs: Any = None, outputs: Any = None, parent: int | None = None, name: str = "s",
         start: int | None = None) -> dict[str, Any]:
    attributes = {"mlflow.spanType": kind, "mlflow.spanInputs": inputs, "mlflow.spanOutputs": outputs}
    return {"span_id": number(own), "parent_span_id": None if parent is None else number(parent), "name": name,
            "start_time_unix_nano": own if start is None else start,
            "attributes": {key: json.dumps(value) for key, value in attributes.items() if value is not None}}


def chat(own: int, messages: list[Any], answer: Any, **more: Any) -> dict[str, Any]:
    return span(own, "CHAT_MODEL", {"messages": messages}, {"choices": [{"message": answer}]}, **more)


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def trace(*spans: dict[str, Any], **info: Any) -> dict[str, Any]:
    return {"info": {"trace_id": "tr-1", "state": "OK", **info}, "data": {"spans": list(spans)}}


def label(own: int, value: Any, **more: Any) -> dict[str, Any]:
    return {"assessment_name": "step_label", "span_id": f"{own:016x}", "feedback": {"value": value}, **more}


def read(tmp_path: Path, *records: Any) -> tuple[list[LabelledChain], Counter[str]]:
    path, noted = tmp_path / "in.jsonl", Counter[str]()
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return list(TRACE.read(path, noted=noted)), noted


def write(tmp_path: Path, chains: list[LabelledChain]) -> list[dict[str, Any]]:
    TRACE.write(tmp_path / "out.jsonl", chains)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n") if line]


WHOLE = trace(
    span(1, "AGENT", {"q": 1}), span(4, "TOOL", {"q": "x"}, {"name": "Ann"}, parent=1, name="look"),
    chat(2, [SYSTEM, USER], ASKS, parent=1), span(3, "LLM", "inner", "inner", parent=2),
    chat(5, [SYSTEM, USER, ASKS, {"role": "tool", "content": "Ann"}, {"role": "user", "content": "Sure?"}],
         said("Ann."), parent=1))


def test_the_outermost_calls_of_a_model_are_steps_in_order_of_time(tmp_path: Path) -> None:
    (chain,), noted = read(tmp_path, WHOLE)
    assert chain.prompt == "Be brief.\n\nWho?"
    assert chain.steps == (
        Step("I look.", calls=(replace(LOOK, result='{"name": "Ann"}'),), context=(Message("user", "Sure?"),),
             ref="0000000000000002"),
        Step("Ann.", ref="0000000000000005"))
    assert (chain.labels, chain.id, noted) == ((None, None), "tr-1", Counter())


def test_without_tool_spans_the_next_call_s_messages_say_what_came_back(tmp_path: Path) -> None:
    record = copy.deepcopy(WHOLE)
    del record["data"]["spans"][1]
    (chain,), noted = read(tmp_path, record)
    assert chain.steps[0].calls == (replace(LOOK, result="Ann"),)
    assert (chain.steps[0].context, noted) == ((Message("user", "Sure?"),), Counter())


def asks(*calls: tuple[str, str, str]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [
        {"id": id, "function": {"name": name, "arguments": json.dumps({"q": q})}} for id, name, q in calls]}


def test_tools_that_end_out_of_order_answer_their_own_calls(tmp_path: Path) -> None:
    record = trace(chat(1, [USER], asks(("a", "look", "x"), ("b", "look", "y"), ("c", "add", "z"))),
                   span(2, "TOOL", {"q": "z"}, "3", name="add"), span(3, "TOOL", {"q": "y"}, "2", name="look"),
                   span(4, "TOOL", {"q": "x"}, name="look") | {
                       "status": {"code": "STATUS_CODE_ERROR", "message": "down"}})
    (chain,), noted = read(tmp_path, record)
    assert [(call.result, call.failed) for call in chain.steps[0].calls] == [("down", True), ("2", False), ("3", False)]
    assert not noted


def test_a_tool_whose_span_keeps_its_output_to_itself(tmp_path: Path) -> None:
    first = chat(1, [USER], asks(("a", "look", "x"), ("b", "look", "y")))
    told = {"role": "tool", "tool_call_id": "b", "content": "2"}
    record = trace(first, span(2, "TOOL", name="look"), span(3, "TOOL", name="look"),
                   chat(4, [USER, told], said("Ann.")))
    (chain,), noted = read(tmp_path, record)
    # The next call's messages say what one gave; the other has ended all the same.
    assert [call.result for call in chain.steps[0].calls] == ["", "2"]
    assert not noted
    (chain,), noted = read(tmp_path, trace(first))
    assert [call.result for call in chain.steps[0].calls] == [None, None]
    assert noted == {"calls without a result": 2}


@pytest.mark.parametrize(("inputs", "heard"), [
    # All of it, only what is new, a summary in its place.
    ([[USER], [USER, said("Yes."), USER]], ["Who?"]),
    ([[USER], [{"role": "user", "content": "Sure?"}]], ["Sure?"]),
    ([[SYSTEM, USER], [SYSTEM, {"role": "user", "content": "So far: yes."}]], ["So far: yes."]),
])
def test_what_a_model_newly_hears_is_context(tmp_path: Path, inputs: list[Any], heard: list[str]) -> None:
    (chain,), noted = read(tmp_path, trace(chat(1, inputs[0], said("Yes.")), chat(2, inputs[1], said("Ann."))))
    assert [message.text for message in chain.steps[0].context] == heard
    assert not noted


def test_a_caller_does_not_hear_its_own_talk_again_after_a_sub_agent_s(tmp_path: Path) -> None:
    inner = {"role": "user", "content": "Find Ann."}
    record = trace(chat(1, [USER], asks(("a", "ask", "x"))), span(2, "TOOL", {"q": "x"}, "found", name="ask"),
                   chat(3, [inner], said("Here."), parent=2),
                   chat(4, [USER, asks(("a", "ask", "x")), {"role": "tool", "tool_call_id": "a", "content": "found"}],
                        said("Ann.")))
    (chain,), noted = read(tmp_path, record)
    assert [step.context for step in chain.steps] == [(Message("user", "Find Ann."),), (), ()]
    assert (chain.steps[0].calls[0].result, noted) == ("found", Counter())


def test_what_was_said_before_the_trace_is_prompt_with_its_calls(tmp_path: Path) -> None:
    before = [USER, ASKS, {"role": "tool", "tool_call_id": "c", "content": "Ann"}, {"role": "user", "content": "Sure?"}]
    (chain,), noted = read(tmp_path, trace(chat(1, before, said("Yes."))))
    assert chain.prompt == (
        'Who?\n\nI look.\n<tool_call>{"name": "look", "arguments": {"q": "x"}}</tool_call>\n\nAnn\n\nSure?')
    assert ([step.text for step in chain.steps], noted) == (["Yes."], Counter())


def test_agents_are_named_where_there_are_several(tmp_path: Path) -> None:
    record = trace(span(1, "AGENT", name="lead"), chat(2, [USER], said("Ask."), parent=1),
                   span(3, "AGENT", name="help", parent=1), chat(4, [USER], said("Ann."), parent=3))
    assert [step.agent for step in read(tmp_path, record)[0][0].steps] == ["lead", "help"]


def test_agents_of_one_name_are_counted(tmp_path: Path) -> None:
    record = trace(span(1, "AGENT", name="lead"), span(2, "AGENT", name="help", parent=1),
                   span(3, "AGENT", name="help", parent=2), chat(4, [USER], said("Ask."), parent=1),
                   chat(5, [USER], said("Ann."), parent=3))
    (chain,), noted = read(tmp_path, record)
    assert [step.agent for step in chain.steps] == ["lead", "help"]
    assert noted == {"agents of one name read as one": 1}


@pytest.mark.parametrize(("output", "step"), [
    (" Ann.\n", Step(" Ann.\n")),
    (said("Ann."), Step("Ann.")),
    ([USER, said("Ann.")], Step("Ann.")),
    ({"messages": [said("Ann.")]}, Step("Ann.")),
    ({"role": "assistant", "content": [{"type": "text", "text": "Ann."},
                                       {"type": "tool_use", "id": "c", "name": "look", "input": {"q": "x"}}]},
     Step("Ann.", calls=(LOOK,))),
    ({"output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                 {"type": "message", "content": [{"type": "output_text", "text": "Ann."}]},
                 {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"q": "x"}'}]},
     Step("Ann.", reasoning="hm", calls=(LOOK,))),
    ({"choices": [{"message": ASKS | {"content": None}}]}, Step("", calls=(LOOK,))),
    # As OpenTelemetry has it.
    ([{"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "Ann."}, {
        "type": "tool_call", "id": "c", "name": "look", "arguments": {"q": "x"}}]}],
     Step("Ann.", reasoning="hm", calls=(LOOK,))),
])
def test_answers_in_the_shapes_of_clients(tmp_path: Path, output: Any, step: Step) -> None:
    (chain,), noted = read(tmp_path, trace(span(1, "CHAT_MODEL", {"input": "Who?"}, output)))
    assert (chain.prompt, chain.steps) == ("Who?", (replace(step, ref=f"{1:016x}"),))
    assert noted == Counter({"calls without a result": len(step.calls)} if step.calls else {})


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    chains, noted = read(tmp_path, trace(chat(1, [USER], said("Ann.")), state="IN_PROGRESS"), trace(span(1, "TOOL")),
                         trace(span(1, "LLM", "Who?"), span(2, "LLM", "Who?", 3), chat(3, [USER], said("Ann."))),
                         trace(span(1, "LLM", "Who?", {"choices": [{"message": said("a")}, {"message": said("b")}]})))
    assert [[step.text for step in chain.steps] for chain in chains] == [["Ann."], ["a"]]
    assert noted == {"traces that are still running left out": 1, "traces without a model's answer left out": 1,
                     "calls of a model without an answer left out": 2, "further choices of a model left out": 1}


def test_labels_are_written_on_the_very_span(tmp_path: Path) -> None:
    theirs = {"assessment_name": "other", "span_id": f"{2:016x}", "feedback": {"value": 1}}
    before = [theirs, label(2, 0.25, valid=False), label(2, True), label(2, 0.5), label(9, 1.0)]
    record = WHOLE | {"info": WHOLE["info"] | {"assessments": before}}
    (chain,), _ = read(tmp_path, record)
    assert chain.labels == (0.5, None)
    assert write(tmp_path, [chain]) == [record]
    (again,) = write(tmp_path, [replace(chain, labels=(0.5, 0.75))])
    assert again["info"]["assessments"][:3] == [before[0], before[1], before[4]]
    assert [(one["span_id"], one["feedback"]) for one in again["info"]["assessments"][3:]] == [
        ("0000000000000002", {"value": 0.5}), ("0000000000000005", {"value": 0.75})]
    assert read(tmp_path, again)[0][0].labels == (0.5, 0.75)


def test_a_model_s_scores_are_written_on_the_very_span(tmp_path: Path) -> None:
    (chain,), _ = read(tmp_path, WHOLE)
    assert (chain.scores, chain.scorer) == ((), "")
    (once,) = write(tmp_path, [replace(chain, scores=(0.25, None), scorer="prm/1")])
    assert once["info"]["assessments"] == [{
        "assessment_name": "prm_step", "trace_id": "tr-1", "span_id": f"{2:016x}", "feedback": {"value": 0.25},
        "source": {"source_type": "CODE", "source_id": "prm/1"}, "metadata": {"step_index": "0"}, "valid": True}]
    (chain,), _ = read(tmp_path, once)
    assert (chain.labels, chain.scores, chain.scorer) == ((None, None), (0.25, None), "prm/1")
    assert write(tmp_path, [chain]) == [once]
    # A second model's take the place of the first's.
    (twice,) = write(tmp_path, [replace(chain, scores=(0.5, 0.75), scorer="prm/2")])
    assert len(twice["info"]["assessments"]) == 2
    assert read(tmp_path, twice)[0][0].scores == (0.5, 0.75)


MAKE = f"""
import json
import sys

import mlflow

with mlflow.start_span("agent", span_type="AGENT") as root:
    with mlflow.start_span("model", span_type="CHAT_MODEL") as model:
        model.set_inputs({{"messages": [{USER}]}})
        model.set_outputs({{"choices": [{{"message": {ASKS}}}]}})
    with mlflow.start_span("look", span_type="TOOL") as tool:
        tool.set_outputs("Ann")
mlflow.log_feedback(trace_id=root.trace_id, span_id=model.span_id, name="step_label", value=0.75)
json.dump([model.span_id, json.loads(mlflow.get_trace(root.trace_id).to_json())], open(sys.argv[1], "w"))
"""


def test_a_trace_that_mlflow_made(tmp_path: Path) -> None:
    # In a process of its own: where a process has traced to, it traces on.
    tracking_store.place(tmp_path / "mlflow.db")
    (tmp_path / "tracing.py").write_text(MAKE)
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    done = warm_python.run("tracing", "saved.json", cwd=tmp_path, env={**os.environ, **uri})
    assert done.returncode == 0, done.stderr
    model, saved = json.loads((tmp_path / "saved.json").read_text())
    (chain,), noted = read(tmp_path, saved)
    assert chain.steps == (Step("I look.", calls=(replace(LOOK, result="Ann"),), ref=model),)
    assert (chain.labels, noted) == ((0.75,), Counter())


@pytest.mark.parametrize(("record", "reason"), [
    ({"data": {}}, "field info is missing"),
    ({"info": {}, "data": {"spans": 3}}, "field spans is 3"),
    (trace(3), "span 0 is 3, expected an object"),
    (trace(span(1, "LLM") | {"span_id": "no base64!"}), 'span_id is "no base64!", expected an id in base64'),
    (trace(span(1, "LLM") | {"span_id": None}), "span_id is null"),
    (trace(span(1, "LLM") | {"start_time_unix_nano": "1"}), "field start_time_unix_nano"),
    (trace(span(1, "LLM") | {"attributes": {"mlflow.spanType": "LLM"}}), "expected JSON in a text"),
    (trace(span(1, "LLM"), span(1, "LLM")), "two spans have one span_id"),
    (trace(span(1, "LLM", parent=2), span(2, "LLM", parent=1)), "its parents lie in each other in a circle"),
    (trace(span(1, "LLM", parent=1)), "its parents lie in each other in a circle"),
    (trace(chat(1, [{"content": "x"}], said("a"))), None),
    (trace(chat(1, [3], said("a"))), "message 0 is 3"),
    (trace(chat(1, [USER], said("a")), assessments=[label(1, 7)]), "the assessment of span 0000000000000001 is 7"),
])
def test_bad_traces_are_named(tmp_path: Path, record: Any, reason: str | None) -> None:
    if reason is None:
        assert read(tmp_path, record)[0][0].prompt == ""
        return
    with pytest.raises(InputError) as error:
        read(tmp_path, record)
    assert reason in str(error.value)
    assert "in.jsonl" in str(error.value)


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    given = [label(2, 0.5), label(5, 0.5) | {"assessment_name": "prm_step"}]
    with_junk_is_taken_or_refused("mlflow_trace", WHOLE | {"info": WHOLE["info"] | {"assessments": given}})
