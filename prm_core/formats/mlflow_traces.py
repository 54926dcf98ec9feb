"""Traces as MLflow saves them (trace schema 3): the calls of a language model are steps, tools' spans their replies.

MLflow's server translates a dozen dialects of OpenTelemetry into this, so that reading it reads those too. In a trace's
JSON a span's id is base64; in assessments, and everywhere else, it is the same number in hex, which is how `meta`
names a step's span.

Source: `mlflow` 3.17.2, `Trace.to_json` and `entities/assessment.py`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, get, get_list, label_between, register, shown
from prm_core.formats.messages import (
    AGENT,
    SYSTEMS,
    TOOLS,
    Turns,
    as_text,
    check,
    content,
    conversation,
    joined,
    tools_text,
    turn,
)
from prm_core.turns import is_empty
from prm_core.types import Step

MODEL_TYPES, TOOL_TYPE, AGENT_TYPE = ("CHAT_MODEL", "LLM"), "TOOL", "AGENT"
LABEL = "step_label"
RUNNING, FAILED = "IN_PROGRESS", "STATUS_CODE_ERROR"


@dataclass(frozen=True, slots=True)
class _Span:
    """A span, its attributes decoded.

    Attributes:
        where: names it in errors.
        id: hex, as assessments have it.
        parent: the span it lies in, None for the outermost.
        kind: MLflow's span type.
        start: Unix time in ns.
        failed: whether it ended with an error.
        tools: definitions of the tools that a model was offered.
        inputs, outputs: JSON values, None where there are none.
    """

    where: str
    id: str
    parent: str | None
    name: str
    kind: str
    start: int
    failed: bool
    tools: Any
    inputs: Any
    outputs: Any


def _hex(value: Any, where: str) -> str:
    try:
        return base64.b64decode(value, validate=True).hex()
    except (binascii.Error, ValueError, TypeError):
        raise InputError(f"{where} is {shown(value)}, expected an id in base64, as a trace's JSON has it") from None


def _decoded(attributes: Mapping[str, Any], name: str, where: str) -> Any:
    """An attribute: each holds JSON in a text."""
    value = attributes.get(f"mlflow.{name}")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise InputError(f"{where}: attribute mlflow.{name} is {shown(value)}, expected JSON in a text") from None


def _span(raw: Any, where: str) -> _Span:
    if not isinstance(raw, dict):
        raise InputError(f"{where} is {shown(raw)}, expected an object")
    attributes = get({"attributes": {}, **raw}, "attributes", dict, where)
    parent = raw.get("parent_span_id")
    return _Span(
        where, _hex(raw.get("span_id"), f"{where}: span_id"),
        None if not parent else _hex(parent, f"{where}: parent_span_id"), str(raw.get("name") or ""),
        str(_decoded(attributes, "spanType", where) or ""), get(raw, "start_time_unix_nano", int, where),
        isinstance(raw.get("status"), dict) and raw["status"].get("code") == FAILED,
        _decoded(attributes, "chat.tools", where),
        _decoded(attributes, "spanInputs", where), _decoded(attributes, "spanOutputs", where))


def _ancestors(span: _Span, spans: Mapping[str, _Span]) -> list[_Span]:
    """The spans it lies in, from the inside out. Raises InputError where they lie in each other in a circle."""
    found: list[_Span] = []
    at = span
    while at.parent is not None and at.parent in spans:
        at = spans[at.parent]
        if at in found or at is span:
            raise InputError(f"{span.where}: its parents lie in each other in a circle; correct parent_span_id")
        found.append(at)
    return found


def _said(value: Any, where: str, noted: Counter[str]) -> Step | None:
    """The turn in a model's output in the shapes that clients give it, None of any other."""
    if isinstance(value, str):
        return Step(value.strip())
    if isinstance(value, list):
        items = [item for item in value if isinstance(item, dict) and (
            "type" in item or item.get("role") == AGENT or ("role" not in item and "content" in item))]
        # Messages, of which the last is the model's, or items of one response.
        items = items if any("type" in item for item in items) else [{"role": AGENT, **item} for item in items[-1:]]
        turns = conversation(items, where, noted)
        steps = [step for step in turns.steps if not is_empty(step)]
        return joined(steps) if steps else None
    if not isinstance(value, dict):
        return None
    for inner in (value.get("choices"), value.get("output"), value.get("messages")):
        if isinstance(inner, list) and inner:
            first = inner[0]
            return _said(first["message"] if isinstance(first, dict) and isinstance(first.get("message"), dict)
                         else inner, where, noted)
    if value.get("content") is None and not value.get("tool_calls"):
        return None
    return turn(value, where, noted)


def _heard(value: Any, where: str) -> list[Mapping[str, Any]]:
    """The messages of a model's input; a text is one of the user."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("messages", "input", "prompt", "contents") if name in value), None)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return []
    return [check(message, f"{where}: message {index}") for index, message in enumerate(value)
            if not isinstance(message, dict) or "role" in message]


@register
class MlflowTrace(RowFormat):
    """A trace a record: `info`, `data.spans`. Assessments named `step_label` on a step's span, with a value from 0 to
    1, are labels; a trace that is still running is left out."""

    name = "mlflow_trace"
    soft = unlabelled = observations = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "has spans, which only its own chains have; write atif"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        info = get(row, "info", dict, where)
        if info.get("state") == RUNNING:
            noted["traces that are still running left out"] += 1
            return None
        raw = get(get(row, "data", dict, where), "spans", list, f"{where}: data")
        spans = {span.id: span for span in
                 sorted((_span(one, f"{where}: span {index}") for index, one in enumerate(raw)),
                        key=lambda span: span.start)}
        if len(spans) < len(raw):
            raise InputError(f"{where}: two spans have one span_id; save the trace anew")
        above = {span.id: _ancestors(span, spans) for span in spans.values()}

        def outermost(*kinds: str) -> list[_Span]:
            return [span for span in spans.values()
                    if span.kind in kinds and not any(parent.kind in kinds for parent in above[span.id])]

        agents = {span.name for span in spans.values() if span.kind == AGENT_TYPE}
        models: list[tuple[_Span, Step]] = []
        for span in outermost(*MODEL_TYPES):
            said = _said(span.outputs, f"{span.where}: mlflow.spanOutputs", noted)
            if said is None or is_empty(said):
                noted["calls of a model without an answer left out"] += 1
                continue
            agent = next((one.name for one in above[span.id] if one.kind == AGENT_TYPE), "") if len(agents) > 1 else ""
            models.append((span, replace(said, agent=agent, ref=span.id)))
        if not models:
            noted["traces without a model's answer left out"] += 1
            return None
        inputs = [_heard(span.inputs, f"{span.where}: mlflow.spanInputs") for span, _ in models]
        every_tool = outermost(TOOL_TYPE)
        turns = Turns(noted)
        for message in inputs[0]:
            # As a tool's reply it would have no call to answer.
            turns.hear("user", content(message, models[0][0].where, noted))
        for number, (span, step) in enumerate(models):
            turns.say(step)
            last = number + 1 == len(models)
            until = float("inf") if last else models[number + 1][0].start
            tools = [tool for tool in every_tool if span.start <= tool.start < until]
            _between(turns, inputs[number], [] if last else inputs[number + 1], tools, span.where)
        prompt, steps = turns.finish()
        offered = next((span.tools for span, _ in models if span.tools), None)
        ids = [step.ref for step in steps]
        return LabelledChain(prompt, steps, _labels(info, ids, where), source=self.name,
                             meta={"record": row, "spans": ids}, tools=tools_text(offered, where))

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        record, ids = chain.meta["record"], chain.meta["spans"]
        info = record["info"]
        if _labels(info, ids, "") == chain.labels:
            return record
        kept = [one for one in get_list(info, "assessments", "") if not _is_label(one, ids)]
        trace = info.get("trace_id")
        given = [{"assessment_name": LABEL, "trace_id": trace, "span_id": span, "feedback": {"value": label},
                  "source": {"source_type": "CODE", "source_id": "prm"}, "valid": True}
                 for span, label in zip(ids, chain.labels, strict=True) if label is not None]
        return {**record, "info": {**info, "assessments": [*kept, *given]}}


def _between(
    turns: Turns, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], tools: Sequence[_Span],
    where: str,
) -> None:
    """What came between two calls of a model: what tools replied, as their spans say it or else the next call's
    messages, and what users and systems said."""
    new = [message for message in after[len(before):] if message["role"] != AGENT] if (
        list(after[: len(before)]) == list(before)) else []
    for tool in tools:
        turns.answer("" if tool.outputs is None else as_text(tool.outputs), name=tool.name, failed=tool.failed)
    for message in new:
        if message["role"] in TOOLS and not tools:
            turns.answer(content(message, where, turns.noted), id=message.get("tool_call_id"))
        elif message["role"] not in TOOLS:
            turns.hear("system" if message["role"] in SYSTEMS else "user", content(message, where, turns.noted))


def _is_label(assessment: Any, ids: Sequence[str]) -> bool:
    return (isinstance(assessment, dict) and assessment.get("assessment_name") == LABEL
            and assessment.get("valid") is not False and assessment.get("span_id") in ids)


def _labels(info: Mapping[str, Any], ids: Sequence[str], where: str) -> tuple[float | None, ...]:
    """Labels of the steps, the last one where a span has several."""
    found: dict[str, float] = {}
    for assessment in get_list(info, "assessments", where):
        if _is_label(assessment, ids):
            given = assessment.get("feedback") or assessment.get("expectation") or {}
            value = given.get("value") if isinstance(given, dict) else None
            at = f"{where}: the assessment of span {assessment['span_id']}"
            found[assessment["span_id"]] = float(value) if isinstance(value, bool) else label_between(value, at)
    return tuple(found.get(span) for span in ids)
