"""Traces in OpenTelemetry's JSON (OTLP): one export request a record, one chain a trace.

Read are the conventions for generative AI in their two generations, attributes (1.37 and later) and events for each
message (1.36 and before, on the span or as logs of the same record), and OpenInference's attributes. A step's `ref` is
its span's id, in hex as OTLP's JSON has it.

Source: OpenTelemetry semantic conventions for generative AI; `openinference-semantic-conventions` 0.1.42.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, Labels, get, get_list, register, score_in, shown
from prm_core.formats.messages import from_text
from prm_core.formats.runs.evaluation import EVENT, NAME, STEP_LABEL, STEP_SCORE, VALUE, VERSION, result
from prm_core.formats.spans import ACTOR, MODEL, TOOL, Span, read_spans
from prm_core.platform.records import Row

OPERATIONS = {"chat": MODEL, "generate_content": MODEL, "text_completion": MODEL, "execute_tool": TOOL,
              "invoke_agent": ACTOR}
# OpenInference's.
KINDS = {"LLM": MODEL, "TOOL": TOOL, "AGENT": ACTOR}
# Events of 1.36 and before, by the role of the message that they hold; and the one that holds a call's attributes.
MESSAGES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
CHOICE, DETAILS = "gen_ai.choice", "gen_ai.client.inference.operation.details"
ERROR = (2, "STATUS_CODE_ERROR")
NUMBER = re.compile(r"[0-9]+")


@dataclass(slots=True)
class _Trace:
    """A trace of a record: its spans as they stand there, each with its place, and what logs say of each."""

    spans: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def _value(value: Any) -> Any:
    """An attribute's value as JSON."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    (kind, inner), = value.items()
    if kind == "intValue":
        return int(inner) if isinstance(inner, str) and NUMBER.fullmatch(inner.removeprefix("-")) else inner
    values = inner.get("values") if isinstance(inner, dict) else None
    if kind == "arrayValue":
        return [_value(one) for one in values] if isinstance(values, list) else []
    return _values(values) if kind == "kvlistValue" else inner


def _values(attributes: Any) -> dict[str, Any]:
    """Attributes by name."""
    return {one["key"]: _value(one.get("value")) for one in attributes
            if isinstance(one, dict) and isinstance(one.get("key"), str)} if isinstance(attributes, list) else {}


def _json(value: Any) -> Any:
    """Structured values stand in texts, where attributes cannot hold them."""
    found = from_text(value) if isinstance(value, str) else value
    return found if isinstance(found, dict | list) else value


def _nested(attributes: Mapping[str, Any], prefix: str) -> list[Any]:
    """OpenInference's lists, `prefix.0.name.more`, as objects in order."""
    tree: dict[str, Any] = {}
    for name, value in attributes.items():
        if name.startswith(prefix):
            *path, last = name.removeprefix(prefix).split(".")
            at = tree
            for key in path:
                inner = at.setdefault(key, {})
                at = inner if isinstance(inner, dict) else {}
            at[last] = value

    def listed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        values = {key: listed(value) for key, value in node.items()}
        return [values[key] for key in sorted(values, key=int)] if values and all(map(NUMBER.fullmatch, values)
                                                                                  ) else values

    found = listed(tree)
    return found if isinstance(found, list) else []


def _open_inference(entries: Iterable[Any]) -> list[dict[str, Any]]:
    """OpenInference's messages as chat messages."""
    found = []
    for entry in entries:
        message = entry.get("message") if isinstance(entry, dict) else None
        if not isinstance(message, dict):
            continue
        message = dict(message)
        calls = [call["tool_call"] for call in message.pop("tool_calls", None) or ()
                 if isinstance(call, dict) and isinstance(call.get("tool_call"), dict)]
        parts = [{"type": part["message_content"].get("type"), "text": part["message_content"].get("text")}
                 for part in message.pop("contents", None) or ()
                 if isinstance(part, dict) and isinstance(part.get("message_content"), dict)]
        found.append(message | ({"tool_calls": calls} if calls else {})
                     | ({"content": parts} if parts and message.get("content") is None else {}))
    return found


def _events(raw: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of events on a span or logs about it."""
    for event in raw:
        if not isinstance(event, dict):
            continue
        attributes = _values(event.get("attributes"))
        name = event.get("eventName") or event.get("name") or attributes.get("event.name")
        body = _value(event.get("body"))
        body = body if isinstance(body, dict) else _json(attributes.get("gen_ai.event.content"))
        yield str(name), attributes | body if isinstance(body, dict) else attributes


def _messages(events: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """What a model heard and what it said, of events for each message."""
    heard, said = [], []
    for name, values in events:
        if name in MESSAGES:
            body = {"role": MESSAGES[name]} | {key: _json(values[key]) if key == "tool_calls" else values[key]
                                               for key in ("role", "content", "tool_calls") if values.get(key)}
            heard.append(body | ({"tool_call_id": values["id"]} if values.get("id") else {}))
        elif name == CHOICE:
            message = _json(values.get("message"))
            message = message if isinstance(message, dict) else {"content": message}
            calls = _json(values.get("tool_calls"))
            said.append({"message": {"role": "assistant", **({"tool_calls": calls} if calls else {}), **message}})
    return heard, said


def _span(where: str, raw: Mapping[str, Any], logs: Sequence[Any]) -> Span:
    events = list(_events([*get_list(raw, "events", where), *logs]))
    attributes = _values(raw.get("attributes"))
    for name, values in events:
        attributes = values | attributes if name == DETAILS else attributes
    kind = OPERATIONS.get(str(attributes.get("gen_ai.operation.name"))) or KINDS.get(
        str(attributes.get("openinference.span.kind")), "")
    start, status = raw.get("startTimeUnixNano"), raw.get("status") if isinstance(raw.get("status"), dict) else {}
    if isinstance(start, bool) or not NUMBER.fullmatch(str(start)):
        raise InputError(f"{where}: startTimeUnixNano is {shown(start)}, expected a time in nanoseconds")

    def first(*names: str) -> Any:
        return next((attributes[name] for name in names if attributes.get(name) is not None), None)

    inputs, outputs, tools, name = None, None, None, ""
    if kind == MODEL:
        heard, said = _messages(events)
        instructions = _json(attributes.get("gen_ai.system_instructions"))
        system = [{"role": "system", "parts": instructions}] if isinstance(instructions, list) else []
        given = _json(attributes.get("gen_ai.input.messages"))
        inputs = [*system, *given] if isinstance(given, list) else (
            heard or _open_inference(_nested(attributes, "llm.input_messages.")) or _json(first("input.value")))
        given = _json(attributes.get("gen_ai.output.messages"))
        # Of several, each is a choice.
        outputs = {"choices": [{"message": message} for message in given]} if isinstance(given, list) and given else (
            {"choices": said} if said else _open_inference(_nested(attributes, "llm.output_messages."))
            or _json(first("output.value")))
        tools = _json(first("gen_ai.tool.definitions")) or [
            _json(one["tool"].get("json_schema")) for one in _nested(attributes, "llm.tools.")
            if isinstance(one, dict) and isinstance(one.get("tool"), dict)]
    elif kind == TOOL:
        name = str(first("gen_ai.tool.name", "tool.name") or raw.get("name") or "")
        inputs, outputs = _json(first("gen_ai.tool.call.arguments", "input.value")), first(
            "gen_ai.tool.call.result", "output.value")
    elif kind == ACTOR:
        name = str(first("gen_ai.agent.name", "agent.name") or raw.get("name") or "")
    parent = raw.get("parentSpanId")
    return Span(where, raw["spanId"], parent if isinstance(parent, str) and parent else None, name, kind, int(start),
                status.get("code") in ERROR, str(status.get("message") or ""),
                str(first("gen_ai.tool.call.id", "tool_call.id") or ""), tools, inputs, outputs,
                str(first("gen_ai.agent.id") or ""))


def _traces(record: Mapping[str, Any], where: str, noted: Counter[str]) -> dict[str, _Trace]:
    """The traces of a record by id, in order of their first span."""
    traces: dict[str, _Trace] = {}
    for number, (at, span) in enumerate(_inside(record, "resourceSpans", "scopeSpans", "spans", where)):
        if not isinstance(span, dict) or not all(isinstance(span.get(name), str) and span[name]
                                                 for name in ("traceId", "spanId")):
            raise InputError(f"{at} is {shown(span)}, expected an object with traceId and spanId")
        traces.setdefault(span["traceId"], _Trace()).spans.append((f"{where}: span {number}", span))
    for _, log in _inside(record, "resourceLogs", "scopeLogs", "logRecords", where):
        if (isinstance(log, dict) and isinstance(log.get("spanId"), str) and isinstance(log.get("traceId"), str)
                and log["traceId"] in traces):
            traces[log["traceId"]].logs.setdefault(log["spanId"], []).append(log)
        else:
            noted["logs about no trace of their record left out"] += 1
    return traces


def _inside(record: Mapping[str, Any], outer: str, middle: str, inner: str, where: str) -> Iterator[tuple[str, Any]]:
    for resource in get_list(record, outer, where):
        if not isinstance(resource, dict):
            raise InputError(f"{where}: {outer} holds {shown(resource)}, expected an object")
        for scope in get_list(resource, middle, where):
            if not isinstance(scope, dict):
                raise InputError(f"{where}: {middle} holds {shown(scope)}, expected an object")
            for index, one in enumerate(get_list(scope, inner, where)):
                yield f"{where}: {inner} {index}", one


def _results(trace: _Trace, ids: Sequence[str], name: str) -> tuple[Labels, str]:
    """Values of evaluation events of this name on the steps' spans, and the version that the last names."""
    found: dict[str, float] = {}
    version = ""
    for _, span in trace.spans:
        for event, values in _events([*get_list(span, "events", ""), *trace.logs.get(span["spanId"], ())]):
            value = score_in(values.get(VALUE)) if event == EVENT and values.get(NAME) == name else None
            if value is not None:
                found[span["spanId"]], version = value, str(values.get(VERSION) or "")
    values = tuple(found.get(span) for span in ids)
    return (values, version) if any(value is not None for value in values) else ((), "")


@register
class Otlp(Format):
    """OTLP in JSON: `resourceSpans`, perhaps `resourceLogs`. Events `gen_ai.evaluation.result` of a step's span are
    labels where they are named `step_label`, and a model's scores where they are named `prm_step`."""

    name = "otlp"
    soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "has spans, which only its own chains have; write atif"

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        seen: set[str] = set()
        for where, row in rows:
            get({"resourceSpans": None, **row}, "resourceSpans", (list, type(None)), where)
            if "resourceSpans" not in row and "resourceLogs" not in row:
                raise InputError(f"{where}: field resourceSpans is missing, expected an export request of traces")
            traces = _traces(row, where, noted)
            if again := seen & set(traces):
                raise InputError(f"{where}: trace {min(again)} has spans in a record before; gather all of a trace in "
                                 "one record, so that it is read whole")
            seen |= set(traces)
            for id, trace in traces.items():
                spans = [_span(at, span, trace.logs.get(span["spanId"], ())) for at, span in trace.spans]
                prompt, steps, tools = read_spans(spans, f"{where}: trace {id}", noted)
                if not steps:
                    noted["traces without a model's answer left out"] += 1
                    continue
                ids = [step.ref for step in steps]
                labels, _ = _results(trace, ids, STEP_LABEL)
                yield LabelledChain(prompt, steps, labels or (None,) * len(steps), None, None, self.name,
                                    {"document": where, "record": row}, tools, id, *_results(trace, ids, STEP_SCORE))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for _, group in itertools.groupby(chains, lambda chain: chain.meta["document"]):
            same = list(group)
            record = copy.deepcopy(same[0].meta["record"])
            traces = _traces(record, "", Counter())
            for chain in same:
                trace, ids = traces[chain.id], [step.ref for step in chain.steps]
                labels, _ = _results(trace, ids, STEP_LABEL)
                if (labels or (None,) * len(ids)) != chain.labels:
                    _put(trace, STEP_LABEL, ids, chain.labels, "")
                if _results(trace, ids, STEP_SCORE) != (chain.scores, chain.scorer):
                    _put(trace, STEP_SCORE, ids, chain.scores or (None,) * len(ids), chain.scorer)
            yield record


def _put(trace: _Trace, name: str, ids: Sequence[str], values: Labels, version: str) -> None:
    """Puts values on spans as events, in place of those of this name that spans hold."""
    given = {id: (index, value) for index, (id, value) in enumerate(zip(ids, values, strict=True))}
    for _, span in trace.spans:
        if span["spanId"] not in given:
            continue
        events = [one for one in get_list(span, "events", "") if not any(
            event == EVENT and found.get(NAME) == name for event, found in _events([one]))]
        index, value = given[span["spanId"]]
        if value is not None:
            events.append({"timeUnixNano": span.get("endTimeUnixNano") or span["startTimeUnixNano"], "name": EVENT,
                           "attributes": result(name, index, value, version)})
        span.pop("events", None)
        if events:
            span["events"] = events
