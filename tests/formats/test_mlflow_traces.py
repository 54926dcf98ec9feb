"""MLflow's traces: which spans are steps, what stands between them, ids in base64 and hex, labels on spans."""

from __future__ import annotations

import base64
import copy
import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from prm_core.types import Step
from tests.builders import tracking_store, warm_python
from tests.builders.junk import with_junk

TRACE = FORMATS["mlflow_trace"]
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}
LOOK = '<tool_call>{"name": "look", "arguments": {"q": "x"}}</tool_call>'
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
    span(1, "AGENT", {"q": 1}), span(4, "TOOL", {"q": "x"}, {"name": "Ann"}, parent=1),
    chat(2, [SYSTEM, USER], ASKS, parent=1), span(3, "LLM", "inner", "inner", parent=2),
    chat(5, [SYSTEM, USER, ASKS, {"role": "tool", "content": "Ann"}, {"role": "user", "content": "Sure?"}],
         said("Ann."), parent=1))


def test_the_outermost_calls_of_a_model_are_steps_in_order_of_time(tmp_path: Path) -> None:
    (chain,), noted = read(tmp_path, WHOLE)
    assert chain.prompt == "Be brief.\n\nWho?"
    assert chain.steps == (Step(f"I look.\n{LOOK}", '{"name": "Ann"}\nuser: Sure?'), Step("Ann."))
    assert (chain.labels, chain.meta["spans"], noted) == (
        (None, None), ["0000000000000002", "0000000000000005"], Counter())


def test_without_tool_spans_the_next_call_s_messages_say_what_came_back(tmp_path: Path) -> None:
    record = copy.deepcopy(WHOLE)
    del record["data"]["spans"][1]
    assert read(tmp_path, record)[0][0].steps[0].observation == "Ann\nuser: Sure?"


def test_agents_are_named_where_there_are_several(tmp_path: Path) -> None:
    record = trace(span(1, "AGENT", name="lead"), chat(2, [USER], said("Ask."), parent=1),
                   span(3, "AGENT", name="help", parent=1), chat(4, [USER], said("Ann."), parent=3))
    assert [step.agent for step in read(tmp_path, record)[0][0].steps] == ["lead", "help"]


@pytest.mark.parametrize(("output", "text"), [
    ("Ann.", "Ann."),
    (said("Ann."), "Ann."),
    ([USER, said("Ann.")], "Ann."),
    ({"messages": [said("Ann.")]}, "Ann."),
    ({"role": "assistant", "content": [{"type": "text", "text": "Ann."},
                                       {"type": "tool_use", "name": "look", "input": {"q": "x"}}]}, f"Ann.\n{LOOK}"),
    ({"output": [{"type": "reasoning", "summary": []},
                 {"type": "message", "content": [{"type": "output_text", "text": "Ann."}]},
                 {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"q": "x"}'}]},
     f"Ann.\n{LOOK}"),
    ({"choices": [{"message": ASKS | {"content": None}}]}, LOOK),
])
def test_answers_in_the_shapes_of_clients(tmp_path: Path, output: Any, text: str) -> None:
    (chain,), noted = read(tmp_path, trace(span(1, "CHAT_MODEL", {"input": "Who?"}, output)))
    assert (chain.prompt, chain.steps, noted) == ("Who?", (Step(text),), Counter())


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    chains, noted = read(tmp_path, trace(chat(1, [USER], said("Ann.")), state="IN_PROGRESS"), trace(span(1, "TOOL")),
                         trace(span(1, "LLM", "Who?"), span(2, "LLM", "Who?", 3), chat(3, [USER], said("Ann."))))
    assert [chain.steps for chain in chains] == [(Step("Ann."),)]
    assert noted == {"traces that are still running left out": 1, "traces without a model's answer left out": 1,
                     "calls of a model without an answer left out": 2}


def test_labels_are_written_on_the_very_span(tmp_path: Path) -> None:
    theirs = {"assessment_name": "other", "span_id": f"{2:016x}", "feedback": {"value": 1}}
    before = [theirs, label(2, 0.25, valid=False), label(2, True), label(2, 0.5), label(9, 1.0)]
    record = WHOLE | {"info": WHOLE["info"] | {"assessments": before}}
    (chain,), _ = read(tmp_path, record)
    assert chain.labels == (0.5, None)
    assert write(tmp_path, [chain]) == [record]
    (again,) = write(tmp_path, [LabelledChain(chain.prompt, chain.steps, (0.5, 0.75), source=TRACE.name,
                                              meta=chain.meta)])
    assert again["info"]["assessments"][:3] == [before[0], before[1], before[4]]
    assert [(one["span_id"], one["feedback"]) for one in again["info"]["assessments"][3:]] == [
        ("0000000000000002", {"value": 0.5}), ("0000000000000005", {"value": 0.75})]
    assert read(tmp_path, again)[0][0].labels == (0.5, 0.75)


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
    assert chain.steps == (Step(f"I look.\n{LOOK}", "Ann"),)
    assert (chain.labels, chain.meta["spans"], noted) == ((0.75,), [model], Counter())


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


def test_junk_anywhere_is_taken_or_refused_in_words(tmp_path: Path) -> None:
    for record in with_junk(WHOLE | {"info": WHOLE["info"] | {"assessments": [label(2, 0.5)]}}):
        with suppress(InputError):
            write(tmp_path, read(tmp_path, record)[0])
