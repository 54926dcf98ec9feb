"""How a turn reads: what an agent wrote and what it heard, as parts for a model, as text for people and other models.

The renderer has a version, which is part of a reward model's identity: a model reads what it was trained to read.
Version 2 puts a mark before each part of a turn. A mark is a token that no text can spell, so that two different turns
never read alike and what is read can be told apart again. Version 1, of models trained before, has no marks: it reads
the turn's text and what was heard, one after the other.

No version reads ids, references or what a trajectory cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step

RENDERER = 2
# The boundary that ends the prompt and every step, where a step's score is read.
BOUNDARY = "<|step|>"
AGENT, REASONING, TEXT, CALL, ARGUMENTS = "<|agent|>", "<|reasoning|>", "<|text|>", "<|call|>", "<|arguments|>"
# Written by an agent that waits for what comes back; a policy's turn stops there.
WAIT = "<|wait|>"
RESULT, ERROR, PENDING, OBSERVATION = "<|result|>", "<|error|>", "<|pending|>", "<|observation|>"
SPOKEN = {"system": "<|system|>", "user": "<|user|>", "agent": "<|other|>"}
# Each with the text that it takes the place of, from which a model that never saw the mark takes its first meaning.
MARKS = {
    AGENT: "\nagent: ", REASONING: "\nthinking: ", TEXT: "\n", CALL: "\ncall: ", ARGUMENTS: " arguments: ",
    WAIT: "\n", RESULT: "\nresult: ", ERROR: "\nerror: ", PENDING: "\nno result", OBSERVATION: "\nresult: ",
    SPOKEN["system"]: "\nsystem: ", SPOKEN["user"]: "\nuser: ", SPOKEN["agent"]: "\nagent: ",
}
ROLES = {mark: role for role, mark in SPOKEN.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a turn.

    Attributes:
        mark: one of MARKS, empty for text that opens the turn.
        text: may be empty.
        written: whether the agent wrote it, as against heard it.
    """

    mark: str
    text: str
    written: bool


def is_empty(step: Step) -> bool:
    """Whether the agent wrote nothing."""
    return not (step.text or step.reasoning or step.calls)


def is_plain(step: Step) -> bool:
    """Whether a turn is a text alone, as most are: what is done to many of them need not look further."""
    return not (step.observation or step.agent or step.reasoning or step.calls or step.context)


def parts(step: Step) -> Iterator[Part]:
    """The parts of a turn as version 2 reads them: the agent's name, what it thought, said and called, that it waits,
    what came back of each call, and what others said. A text alone is one part without a mark."""
    if step.agent:
        yield Part(AGENT, step.agent, False)
    if step.reasoning:
        yield Part(REASONING, step.reasoning, True)
    if step.text:
        yield Part(TEXT if step.agent or step.reasoning else "", step.text, True)
    for call in step.calls:
        yield Part(CALL, call.name, True)
        yield Part(ARGUMENTS, call.arguments, True)
    if step.calls or step.observation or step.context:
        yield Part(WAIT, "", True)
    # Calls of one turn are made before any of them has answered.
    for call in step.calls:
        mark = ERROR if call.failed else PENDING if call.result is None else RESULT
        yield Part(mark, call.result or "", False)
    if step.observation:
        yield Part(OBSERVATION, step.observation, False)
    for message in step.context:
        if message.role not in SPOKEN:
            raise InputError(f"a message of role {message.role!r} between steps; known are {', '.join(SPOKEN)}")
        yield Part(SPOKEN[message.role], message.name or message.text, False)
        if message.name:
            yield Part(TEXT, message.text, False)


def from_parts(given: Iterable[tuple[str, str]]) -> Step:
    """The turn of (mark, text) pairs, as `parts` gives them; what stands where no turn has it is left out."""
    step = Step("")
    answers = 0
    heard: list[Message] = []
    for mark, text in given:
        if mark in ("", TEXT):
            if heard:
                heard[-1] = replace(heard[-1], name=heard[-1].text, text=text)
            else:
                step = replace(step, text=step.text + text)
        elif mark == AGENT:
            step = replace(step, agent=text)
        elif mark == REASONING:
            step = replace(step, reasoning=text)
        elif mark == CALL:
            step = replace(step, calls=(*step.calls, Call(text)))
        elif mark == ARGUMENTS and step.calls:
            step = replace(step, calls=(*step.calls[:-1], replace(step.calls[-1], arguments=text)))
        elif mark in (RESULT, ERROR, PENDING) and answers < len(step.calls):
            call = replace(step.calls[answers], result=None if mark == PENDING else text, failed=mark == ERROR)
            step = replace(step, calls=(*step.calls[:answers], call, *step.calls[answers + 1 :]))
            answers += 1
        elif mark == OBSERVATION:
            step = replace(step, observation=text)
        elif mark in ROLES:
            heard.append(Message(ROLES[mark], text))
    return replace(step, context=tuple(heard))


def written(step: Step) -> str:
    """What the agent wrote, as text: calls in the tags that most chat templates use."""
    said = [f"[{step.agent}]" if step.agent else "", f"<think>{step.reasoning}</think>" if step.reasoning else "",
            step.text, *(f'<tool_call>{{"name": "{call.name}", "arguments": {call.arguments}}}</tool_call>'
                         for call in step.calls)]
    return "\n".join(filter(None, said))


def heard(step: Step) -> str:
    """What came back and what others said, as text; empty for nothing."""
    back = [f"error: {call.result}" if call.failed else call.result for call in step.calls if call.result is not None]
    said = [f"{message.name or message.role}: {message.text}" for message in step.context]
    return "\n".join(filter(None, [*back, step.observation, *said]))


def unheard(step: Step) -> Step:
    """A step as it was written, before anything came of it."""
    return replace(step, calls=tuple(replace(call, result=None, failed=False) for call in step.calls), observation="",
                   context=())


def with_tools(prompt: str, tools: str) -> str:
    """A question as a model reads it where tools are offered: without seeing them nobody can judge a choice."""
    return f"{prompt}\n\nTools: {tools}" if tools else prompt


def record(step: Step) -> dict[str, Any]:
    """A turn as JSON, fields that are empty left out; what nobody should judge by (ids, references) too."""
    calls = [{"name": call.name, "arguments": call.arguments} | ({} if call.result is None else {
        "error" if call.failed else "result": call.result}) for call in step.calls]
    context = [{"role": message.role, "text": message.text} | ({"name": message.name} if message.name else {})
               for message in step.context]
    values = {"agent": step.agent, "reasoning": step.reasoning, "text": step.text, "calls": calls,
              "observation": step.observation, "context": context}
    return {name: value for name, value in values.items() if value or name == "text"}


def unnamed(step: Step) -> Step:
    """The turn without ids and references: two turns are the same where these are equal, whatever their sources call
    them."""
    if step.ref or any(call.id for call in step.calls):
        return replace(step, ref="", calls=tuple(replace(call, id="") for call in step.calls))
    return step


def identity(steps: Sequence[Step]) -> list[list[Any]]:
    """What of the turns a score or a label depends on, for digests; a turn of text, observation and agent alone is
    these three, as it always was."""
    found: list[list[Any]] = []
    for step in steps:
        if not (step.reasoning or step.calls or step.context):
            found.append([step.text, step.observation, step.agent])
            continue
        more = {name: value for name, value in record(step).items() if name in ("reasoning", "calls", "context")}
        found.append([step.text, step.observation, step.agent, more])
    return found
