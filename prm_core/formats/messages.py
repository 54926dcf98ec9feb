"""Messages of a conversation, in the shapes that clients exchange, as turns: steps of the agent and what it heard.

Chat messages (a `role` each) and items of the Responses API (a `type` each) are both read, mixed too. A call is paired
with its result by id, whatever order results come in; where there are no ids, in order. What is not read is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import get_list, shown
from prm_core.turns import is_empty
from prm_core.types import Call, Message, Step

AGENT, USERS, SYSTEMS, TOOLS = "assistant", ("user", "human"), ("system", "developer"), ("tool", "function", "ipython")
# Said by the world rather than by anybody.
WORLD = ("environment", "observation")
TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text", "reasoning", "thinking")
THOUGHTS = ("reasoning", "thinking", "redacted_thinking")
# Of the Responses API: what a model writes, and what comes back. Items that only say that the service did something of
# its own stand for a call and its result in one.
CALLS = {"function_call": "arguments", "custom_tool_call": "input", "mcp_call": "arguments"}
CALLS_WITHOUT_RESULT = "calls without a result"
SEALED = "reasoning that only its service can read left out"
RESULTS = ("function_call_output", "custom_tool_call_output")


@dataclass(slots=True)
class Turns:
    """Collects a conversation: what precedes the agent's first turn is the prompt, then each turn is a step.

    Args:
        noted: what is left out is counted here.

    Attributes:
        prompt: paragraphs.
        steps: so far.
    """

    noted: Counter[str]
    prompt: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def say(self, step: Step) -> None:
        """A turn of the agent; counted where it is empty."""
        if is_empty(step):
            self.noted["agent's turns without text or tool call left out"] += 1
            return
        self.steps.append(step)

    def awaits(self, id: str = "") -> bool:
        """Whether a call of this id has no result yet; without an id, whether any of the last turn has none."""
        if id:
            return self._called(id) is not None
        return bool(self.steps) and any(call.result is None for call in self.steps[-1].calls)

    def answer(self, text: str, *, id: str = "", name: str = "", arguments: Any = None, failed: bool = False) -> None:
        """What a tool gave: the result of the last turn's open call of this id that there is. Where the result or the
        call has no id, it is an open call of the last turn: of this name and these arguments, else of this name, else
        the first. Where there is none either it is an observation; counted, unless it has no id and follows a turn
        that calls nothing, as where agents spell their calls in their text.

        Args:
            arguments: JSON value, None where the result does not repeat them.
        """
        found = self._called(id) if id else None
        if found is None and self.steps:
            last = len(self.steps) - 1
            here = [number for number, call in enumerate(self.steps[last].calls)
                    if call.result is None and not (id and call.id)]
            named = [number for number in here if self.steps[last].calls[number].name == name]
            exact = [number for number in named if arguments is not None
                     and from_text(self.steps[last].calls[number].arguments) == arguments]
            found = next(((last, number) for number in (*exact, *named, *here)), None)
        if found is None:
            if id or not self.steps or self.steps[-1].calls:
                self.noted["results that answer no call, read as observations"] += 1
            self.observe(text)
            return
        at, number = found
        calls = list(self.steps[at].calls)
        calls[number] = replace(calls[number], result=text, failed=failed)
        self.steps[at] = replace(self.steps[at], calls=tuple(calls))

    def _called(self, id: str) -> tuple[int, int] | None:
        """Turn and number of the open call of an id; clients that count anew in each turn use one again."""
        for at in range(len(self.steps) - 1, -1, -1):
            for number, call in enumerate(self.steps[at].calls):
                if call.id == id and call.result is None:
                    return at, number
        return None

    def observe(self, text: str) -> None:
        """What the environment said."""
        if not text:
            return
        if not self.steps:
            self.prompt.append(text)
            return
        last = self.steps[-1]
        self.steps[-1] = replace(last, observation="\n".join(filter(None, (last.observation, text))))

    def hear(self, role: str, text: str, name: str = "") -> None:
        """What somebody else said; role as of `Message`."""
        if not text:
            return
        if not self.steps:
            self.prompt.append(text)
            return
        self.steps[-1] = replace(self.steps[-1], context=(*self.steps[-1].context, Message(role, text, name)))

    def finish(self) -> tuple[str, tuple[Step, ...]]:
        """Prompt and steps."""
        # A run may end with calls that nobody answered.
        open_calls = sum(call.result is None for step in self.steps for call in step.calls)
        if open_calls:
            self.noted[CALLS_WITHOUT_RESULT] += open_calls
        return "\n\n".join(self.prompt), tuple(self.steps)


def conversation(messages: Sequence[Any], where: str, noted: Counter[str], *, agent: str = "") -> Turns:
    """The turns of chat messages or Responses items. The reference of a step is the index of its first message.

    Args:
        agent: name of the agent whose turns these are, where several act.

    Raises InputError naming a message of an unknown role or shape.
    """
    turns = Turns(noted)
    # Items of one response are one turn: it ends with what comes back.
    pending: Step | None = None
    for index, message in enumerate(messages):
        at = f"{where}: message {index}"
        if isinstance(message, dict) and "role" not in message and isinstance(message.get("type"), str):
            said = _item(message, at, noted)
            if said is not None:
                pending = said if pending is None else _joined(pending, said)
                pending = replace(pending, ref=pending.ref or str(index))
                continue
            if message["type"] not in RESULTS:
                continue
            if pending is not None:
                turns.say(pending)
                pending = None
            turns.answer(content({"content": message.get("output")}, at, noted), id=named(message, "call_id"),
                         failed=message.get("status") == "incomplete")
            continue
        role = check(message, at)["role"]
        if role == AGENT and pending is not None and message.get("type") == "message":
            pending = _joined(pending, Step(content(message, at, noted)))
            continue
        if pending is not None:
            turns.say(pending)
            pending = None
        if role == AGENT and message.get("type") == "message":
            pending = Step(content(message, at, noted), agent=agent, ref=str(index))
        elif role == AGENT:
            turns.say(replace(turn(message, at, noted), agent=named(message, "name") or agent, ref=str(index)))
        elif role in TOOLS:
            turns.answer(content(message, at, noted), id=named(message, "tool_call_id"), name=named(message, "name"),
                         failed=bool(message.get("error")) or message.get("status") == "error")
        elif role in WORLD:
            turns.observe(content(message, at, noted))
        elif role in (*USERS, *SYSTEMS):
            _hear(turns, message, "user" if role in USERS else "system", at)
        else:
            raise InputError(f"{at} has the role {shown(role)}; known are {AGENT} and "
                             f"{', '.join((*USERS, *SYSTEMS, *TOOLS, *WORLD))}: rename it or remove the message")
    if pending is not None:
        turns.say(pending)
    return turns


def _hear(turns: Turns, message: Mapping[str, Any], role: str, where: str) -> None:
    """A user's or a system's message; Anthropic's clients send the results of tools as the user's."""
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.get("type") == "tool_result":
            turns.answer(content(part, where, turns.noted), id=named(part, "tool_use_id"),
                         failed=bool(part.get("is_error")))
    turns.hear(role, content(message, where, turns.noted), named(message, "name"))


def joined(steps: Sequence[Step]) -> Step:
    """Pieces of one turn as the turn."""
    first, *more = steps
    for second in more:
        first = _joined(first, second)
    return first


def _joined(first: Step, second: Step) -> Step:
    return replace(first, text="\n".join(filter(None, (first.text, second.text))),
                   reasoning="\n".join(filter(None, (first.reasoning, second.reasoning))),
                   calls=(*first.calls, *second.calls))


def _item(item: Mapping[str, Any], where: str, noted: Counter[str]) -> Step | None:
    """What a Responses item adds to a turn; None of one that is no model's, counted where it is not read."""
    kind = item["type"]
    if kind == "message":
        return Step(content(item, where, noted))
    if kind == "reasoning":
        said = [*get_list(item, "summary", where), *get_list(item, "content", where)]
        if not said and item.get("encrypted_content"):
            noted[SEALED] += 1
        return Step("", reasoning=content({"content": said}, where, noted))
    if kind in CALLS:
        if not isinstance(item.get("name"), str) or not item["name"]:
            raise InputError(f"{where}: a {kind} has the name {shown(item.get('name'))}, expected a text")
        back, error = item.get("output"), item.get("error")
        result = None if back is None and error is None else as_text(error if error is not None else back)
        return Step("", calls=(Call(item["name"], as_text(item.get(CALLS[kind]) or "{}"), result, error is not None,
                                    named(item, "call_id") or named(item, "id")),))
    if kind not in RESULTS:
        noted[f"items of type {kind} left out"] += 1
    return None


def turn(message: Mapping[str, Any], where: str, noted: Counter[str]) -> Step:
    """What an agent's chat message says, thinks and calls; the parts that Anthropic's clients use too."""
    parts = message.get("content")
    parts = parts if isinstance(parts, list) else []
    # Servers that know both names give the same under either.
    thought = [next((message[name] for name in ("reasoning_content", "reasoning") if message.get(name)), None)]
    for part in parts:
        if isinstance(part, dict) and part.get("type") in THOUGHTS:
            sealed = part.get("redacted") is True or part["type"] == "redacted_thinking"
            if sealed:
                noted[SEALED] += 1
            thought.append(part.get("summary") if sealed else
                           part.get("thinking") or part.get("reasoning") or part.get("text"))
    used = [{"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}}
            for part in parts if isinstance(part, dict) and part.get("type") == "tool_use"]
    called = [*get_list(message, "tool_calls", where), *used]
    # As OpenAI's clients said it before there were several.
    if isinstance(message.get("function_call"), dict):
        called.append({"function": message["function_call"]})
    said, refused = content(message, where, noted), message.get("refusal")
    return Step(said or (refused if isinstance(refused, str) else ""),
                calls=tuple(_call(call, where) for call in called),
                reasoning="\n".join(text for text in thought if isinstance(text, str) and text))


def _call(call: Any, where: str) -> Call:
    # tau2 and inspect have the name and the arguments beside the id.
    function = call.get("function") or call.get("custom") or call if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else function
    # An agent may call a tool by an empty name: that is what it did, and it is judged for it.
    if not isinstance(name, str):
        raise InputError(f"{where}: a tool call is {shown(call)}, expected an object with function.name and "
                         "function.arguments")
    inner = function if isinstance(function, dict) else call
    given = inner.get("arguments", inner.get("input"))
    return Call(name, "{}" if given in (None, "") else as_text(given), id=named(call, "id"))


def as_text(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def from_text(text: str) -> Any:
    """The JSON value in a text, None where it holds none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def named(value: Mapping[str, Any], field: str) -> str:
    """An id or a name as text, empty for none."""
    found = value.get(field)
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""


def check(message: Any, where: str) -> Mapping[str, Any]:
    """A message. Raises InputError where it has no role."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where} is {shown(message)}, expected an object with `role` and `content`")
    return message


def content(message: Mapping[str, Any], where: str, noted: Counter[str] | None = None) -> str:
    """What a message says, its parts joined; empty where it only calls tools. Parts that are no text are counted."""
    said = message.get("content")
    if said is None:
        return ""
    if isinstance(said, dict):
        said = [said]
    if isinstance(said, list):
        texts = []
        for part in said:
            kind = part.get("type", "text") if isinstance(part, dict) else None
            if isinstance(part, str):
                texts.append(part)
            elif kind in TEXTS and not (kind in THOUGHTS and "role" in message):
                text = next((part[name] for name in ("text", "refusal") if isinstance(part.get(name), str)), "")
                texts.append(text)
            elif kind not in (*THOUGHTS, "tool_use", "tool_result") and noted is not None:
                noted["images, sounds and other parts that are no text left out"] += 1
        said = "".join(texts)
    if not isinstance(said, str):
        raise InputError(f"{where}: content is {shown(said)}, expected a text")
    return said


def call_ids(step: Step, index: int) -> list[str]:
    """Ids of the calls of step `index`: their own where they tell them apart."""
    own = [call.id for call in step.calls]
    return own if all(own) and len(set(own)) == len(own) else [f"call_{index}_{number}" for number in range(len(own))]


def to_messages(prompt: str, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Chat messages of a chain: what `conversation` reads as the same prompt and turns, given ids to the calls. What
    another agent said is the user's there, under that agent's name."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    for index, step in enumerate(steps):
        ids = call_ids(step, index)
        called = [{"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                  for id, call in zip(ids, step.calls, strict=True)]
        messages.append({"role": AGENT, "content": step.text}
                        | ({"name": step.agent} if step.agent else {})
                        | ({"reasoning_content": step.reasoning} if step.reasoning else {})
                        | ({"tool_calls": called} if called else {}))
        messages += [{"role": "tool", "tool_call_id": id, "content": call.result}
                     | ({"error": True} if call.failed else {})
                     for id, call in zip(ids, step.calls, strict=True) if call.result is not None]
        if step.observation:
            messages.append({"role": WORLD[0], "content": step.observation})
        messages += [{"role": "user" if said.role == "agent" else said.role, "content": said.text}
                     | ({"name": said.name} if said.name else {}) for said in step.context]
    return messages


def tools_text(tools: Any, where: str) -> str:
    """Tools that were offered as JSON of their definitions, empty for none. Raises InputError where they are no list of
    objects."""
    if tools in (None, [], ""):
        return ""
    if isinstance(tools, str):
        tools = from_text(tools) or tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{where}: tools is {shown(tools)}, expected a list of function definitions")
    return json.dumps([tool.get("function") or tool for tool in tools], ensure_ascii=False)


def text_of(value: Any, where: str) -> str:
    """A text, given as one or as chat messages, whose contents stand in paragraphs.

    Raises InputError on anything else.
    """
    if isinstance(value, str):
        return value
    given = value if isinstance(value, list) else [value]
    if not given:
        raise InputError(f"{where} is empty; give a text or chat messages")
    return "\n\n".join(content(check(message, f"{where} {index}"), f"{where} {index}")
                       for index, message in enumerate(given))
