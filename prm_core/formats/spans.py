"""Traces as turns: of a tree of spans, a language model's calls are steps and the spans of tools say what came back.

What the spans of a tracing system mean is its format's business (mlflow_traces.py, runs/otlp.py); here they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_core.errors import InputError
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
    named,
    tools_text,
    turn,
)
from prm_core.turns import is_empty, written
from prm_core.types import Step

# What a span stands for; any other is looked through.
MODEL, TOOL, ACTOR = "model", "tool", "agent"


@dataclass(frozen=True, slots=True)
class Span:
    """A span.

    Attributes:
        where: names it in errors.
        id: as labels and scores name it.
        parent: the span it lies in, None for the outermost.
        name: the agent's or the tool's, for these.
        kind: MODEL, TOOL, ACTOR or empty.
        start: Unix time in ns.
        failed: whether it ended with an error.
        error: what it then said, if anything.
        call: id of the call that a tool answers, empty where it does not say.
        tools: definitions of the tools that a model was offered.
        inputs, outputs: JSON values, None where there are none.
        actor: id of an agent, empty where it does not say.
    """

    where: str
    id: str
    parent: str | None
    name: str
    kind: str
    start: int
    failed: bool = False
    error: str = ""
    call: str = ""
    tools: Any = None
    inputs: Any = None
    outputs: Any = None
    actor: str = ""


def read_spans(found: Sequence[Span], where: str, noted: Counter[str]) -> tuple[str, tuple[Step, ...], str]:
    """Prompt, steps and tools of a trace. A step's reference is its span's id; without a model's answer there is none.

    The outermost calls of a model are steps, in order of time. Between two of them come the results of tools, as their
    spans say it or else the next call's messages, and what else those newly say.

    Raises InputError where two spans have one id or lie in each other.
    """
    spans = {span.id: span for span in sorted(found, key=lambda span: span.start)}
    if len(spans) < len(found):
        raise InputError(f"{where}: two spans have one span_id; save the trace anew")
    above = {span.id: _ancestors(span, spans) for span in spans.values()}

    def outermost(kind: str) -> list[Span]:
        return [span for span in spans.values()
                if span.kind == kind and not any(parent.kind == kind for parent in above[span.id])]

    actors = [span for span in spans.values() if span.kind == ACTOR]
    agents = {span.name for span in actors}
    # Told apart by an id, or in that one lies in the other: steps have the name alone.
    alike = len({(span.name, span.actor) for span in actors}) - len(agents) + sum(
        any((span.kind, span.name, span.actor) == (one.kind, one.name, one.actor) for one in above[span.id])
        for span in actors)
    if alike:
        noted["agents of one name read as one"] += alike
    models: list[tuple[Span, Step]] = []
    for span in outermost(MODEL):
        said = _said(span.outputs, f"{span.where}: its output", noted)
        if said is None or is_empty(said):
            noted["calls of a model without an answer left out"] += 1
            continue
        agent = next((one.name for one in above[span.id] if one.kind == ACTOR), "") if len(agents) > 1 else ""
        models.append((span, replace(said, agent=agent, ref=span.id)))
    if not models:
        return "", (), ""
    inputs = [_heard(span.inputs, f"{span.where}: its input") for span, _ in models]
    every_tool = outermost(TOOL)
    turns = Turns(noted)
    for message in inputs[0]:
        # As a tool's reply it would have no call to answer; as a turn it is of another trace.
        at = models[0][0].where
        is_agent = message["role"] == AGENT
        turns.hear("user", written(turn(message, at, noted)) if is_agent else content(message, at, noted))
    for number, (span, step) in enumerate(models):
        turns.say(step)
        last = number + 1 == len(models)
        until = float("inf") if last else models[number + 1][0].start
        tools = [tool for tool in every_tool if span.start <= tool.start < until]
        _between(turns, [] if last else _new(inputs[number + 1], inputs[: number + 1]), tools, span.where)
    offered = next((span.tools for span, _ in models if span.tools), None)
    return *turns.finish(), tools_text(offered, where)


def _ancestors(span: Span, spans: Mapping[str, Span]) -> list[Span]:
    """The spans it lies in, from the inside out. Raises InputError where they lie in each other in a circle."""
    found: list[Span] = []
    at = span
    while at.parent is not None and at.parent in spans:
        at = spans[at.parent]
        if at in found or at is span:
            raise InputError(f"{span.where}: its parents lie in each other in a circle; correct parent_span_id")
        found.append(at)
    return found


def _new(messages: Sequence[Mapping[str, Any]], before: Sequence[Sequence[Mapping[str, Any]]]
         ) -> list[Mapping[str, Any]]:
    """What a model hears in these messages that no model heard in the calls before: what follows on the last call that
    they go on from; where they go on from none (one that is sent only what is new, or a summary), what is not there."""
    for earlier in reversed(before):
        if earlier and list(messages[: len(earlier)]) == list(earlier):
            fresh = messages[len(earlier) :]
            break
    else:
        known = [message for earlier in before for message in earlier]
        fresh = [message for message in messages if message not in known]
    return [message for message in fresh if message["role"] != AGENT]


def _between(turns: Turns, new: Sequence[Mapping[str, Any]], tools: Sequence[Span], where: str) -> None:
    """What came between two calls of a model."""
    silent = [tool for tool in tools if tool.outputs is None and not tool.failed]
    for tool in tools:
        if tool not in silent:
            turns.answer(tool.error if tool.outputs is None else as_text(tool.outputs), id=tool.call, name=tool.name,
                         arguments=tool.inputs, failed=tool.failed)
    for message in new:
        if message["role"] not in TOOLS:
            turns.hear("system" if message["role"] in SYSTEMS else "user", content(message, where, turns.noted),
                       named(message, "name"))
            continue
        id = named(message, "tool_call_id")
        # Most say what a span has said already, of this turn or, after a sub-agent's, of one before.
        known = bool(id) and any(call.id == id for step in turns.steps for call in step.calls)
        if turns.awaits(id) or not (tools or known):
            turns.answer(content(message, where, turns.noted), id=id, name=named(message, "name"))
    for tool in silent:
        if turns.awaits(tool.call):
            turns.answer("", id=tool.call, name=tool.name, arguments=tool.inputs)


def plain(messages: Any) -> Any:
    """Messages with their `parts`, as OpenTelemetry has them, as chat messages; anything else as it is."""
    if not isinstance(messages, list):
        return messages
    return [one for message in messages for one in (
        _plain(message) if isinstance(message, dict) and isinstance(message.get("parts"), list) else [message])]


def _plain(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message may hold the results of several calls."""
    said: list[Any] = []
    calls, replies = [], []
    for part in message["parts"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_call":
            calls.append({"id": part.get("id"), "function": {"name": part.get("name"),
                                                             "arguments": part.get("arguments")}})
        elif kind == "tool_call_response":
            back = part.get("response", part.get("result"))
            replies.append({"role": TOOLS[0], "tool_call_id": part.get("id"),
                            "content": "" if back is None else as_text(back)})
        elif kind in ("text", "reasoning"):
            said.append({"type": kind, "text": part.get("content")})
        else:
            said.append(part)
    own = {name: value for name, value in message.items() if name != "parts"} | {"content": said}
    return [*replies, *([own | ({"tool_calls": calls} if calls else {})] if said or calls or not replies else [])]


def _said(value: Any, where: str, noted: Counter[str]) -> Step | None:
    """The turn in a model's output in the shapes that clients give it, None of any other."""
    if isinstance(value, str):
        return Step(value if value.strip() else "")
    if isinstance(value, list):
        items = [item for item in plain(value) if isinstance(item, dict) and (
            "type" in item or item.get("role") == AGENT or ("role" not in item and "content" in item))]
        # Messages, of which the last is the model's, or items of one response.
        items = items if any("type" in item for item in items) else [{"role": AGENT, **item} for item in items[-1:]]
        turns = conversation(items, where, noted)
        return joined(turns.steps) if turns.steps else None
    if not isinstance(value, dict):
        return None
    for name in ("choices", "output", "messages"):
        inner = value.get(name)
        if isinstance(inner, list) and inner:
            if name == "choices" and len(inner) > 1:
                noted["further choices of a model left out"] += len(inner) - 1
            first = inner[0]
            return _said(plain([first["message"]])[-1] if isinstance(first, dict) and isinstance(
                first.get("message"), dict) else inner, where, noted)
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
    return [check(message, f"{where}: message {index}") for index, message in enumerate(plain(value))
            if not isinstance(message, dict) or "role" in message]
