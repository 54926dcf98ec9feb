"""OpenHands: the events of one conversation. OpenHands keeps a folder with a file for each; here they are one file,
gathered as an array or line by line, in any order: their times order them.

A step is what one response of the model did: a message, or the actions of one `llm_response_id`. A score stands where
OpenHands keeps a critic's, `critic_result` of the step's first event, whose id is the step's `ref`.

Source: `openhands-sdk` 1.58.2, sdk/event/ and sdk/critic/result.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, get, get_list, register, score_in, shown
from prm_core.formats.messages import AGENT, Turns, as_text, content, joined, named, tools_text, turn
from prm_core.platform.records import Row
from prm_core.types import Call, Step

CRITIC = "critic_result"


@register
class OpenHands(Format):
    """Events of a conversation, a record each; a file is a conversation."""

    name = "openhands"
    unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.source != self.name or any(label is not None for label in chain.labels):
            return "has no place for labels, and events, which only its own chains have; write atif"
        return None

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        events = list(rows)
        for where, event in events:
            if not all(isinstance(event.get(name), str) and event[name] for name in ("kind", "id", "timestamp")):
                raise InputError(f"{where} is {shown(event)}, expected an event with kind, id and timestamp; a folder "
                                 "that is still being written has such")
        if len({event["id"] for _, event in events}) < len(events):
            raise InputError(f"{events[0][0]}: two events of the file have one id; gather one conversation in a file")
        found = _Conversation(noted)
        for where, event in sorted(events, key=lambda one: one[1]["timestamp"]):
            found.add(event, where)
        prompt, steps = found.turns.finish()
        if not steps:
            noted["conversations without an agent's step left out"] += 1
            return
        kept = [event for _, event in events]
        yield LabelledChain(prompt, steps, (None,) * len(steps), source=self.name, meta={"events": kept},
                            tools=found.tools, **_scores(kept, steps))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for chain in chains:
            events = chain.meta["events"]
            same = _scores(events, chain.steps) == {"scores": chain.scores, "scorer": chain.scorer}
            given = {} if same else {
                step.ref: score for step, score in zip(
                    chain.steps, chain.scores or (None,) * len(chain.steps), strict=True)}
            for event in events:
                if event["id"] not in given:
                    yield event
                    continue
                score = given[event["id"]]
                kept = {name: value for name, value in event.items() if name != CRITIC}
                yield kept if score is None else kept | {
                    CRITIC: {"score": score, "message": None, "metadata": {"version": chain.scorer}}}


def _scores(events: Iterable[Mapping[str, Any]], steps: Iterable[Step]) -> dict[str, Any]:
    """The critic's scores of the steps, and its version where it says one."""
    critics = {event["id"]: event[CRITIC] for event in events if isinstance(event.get(CRITIC), dict)}
    found = [critics.get(step.ref, {}) for step in steps]
    scores = tuple(score_in(critic.get("score")) for critic in found)
    if all(score is None for score in scores):
        return {"scores": (), "scorer": ""}
    said = [critic["metadata"] for critic in found if isinstance(critic.get("metadata"), dict)]
    return {"scores": scores, "scorer": next((named(one, "version") for one in said if "version" in one), "")}


class _Conversation:
    """Reads events in order of time.

    Attributes:
        turns: so far.
        tools: that were offered, as JSON.
    """

    def __init__(self, noted: Counter[str]) -> None:
        self.turns, self.tools, self._noted = Turns(noted), "", noted
        self._responses: dict[str, int] = {}

    def add(self, event: Mapping[str, Any], where: str) -> None:
        """An event."""
        match event["kind"]:
            case "SystemPromptEvent":
                self.turns.hear("system", _text(event.get("system_prompt"), where, self._noted))
                self.turns.hear("system", _text(event.get("dynamic_context"), where, self._noted))
                self.tools = tools_text(event.get("tools"), where)
            case "MessageEvent":
                self._message(event, where)
            case "ActionEvent":
                self._action(event, where)
            case "ObservationEvent":
                seen = get(event, "observation", dict, where)
                text = _text(seen.get("content"), where, self._noted)
                self._answer(event, text, bool(seen.get("is_error")))
            case "UserRejectObservation":
                self._answer(event, as_text(event.get("rejection_reason") or ""), True)
            case "AgentErrorEvent":
                self._answer(event, as_text(event.get("error") or ""), True)
            case "Condensation":
                self._noted["condensations, after which the agent saw less, left out"] += 1
            case kind:
                self._noted[f"events of kind {kind} left out"] += 1

    def _answer(self, event: Mapping[str, Any], text: str, failed: bool) -> None:
        self.turns.answer(text, id=named(event, "tool_call_id"), name=named(event, "tool_name"), failed=failed)

    def _message(self, event: Mapping[str, Any], where: str) -> None:
        message = get(event, "llm_message", dict, where)
        more = "".join(_text(part, where, self._noted) for part in get_list(event, "extended_content", where))
        if event.get("source") == "agent" and message.get("role") == AGENT:
            self._say(replace(turn(message, where, self._noted), agent=named(event, "sender")), event)
        else:
            role = "user" if event.get("source") == "user" else "system"
            self.turns.hear(role, content(message, where, self._noted) + more, named(event, "sender"))

    def _action(self, event: Mapping[str, Any], where: str) -> None:
        call = get({"tool_call": None, **event}, "tool_call", (dict, type(None)), where) or {}
        name = named(event, "tool_name") or named(call, "name")
        if not name:
            raise InputError(f"{where}: field tool_name is {shown(event.get('tool_name'))}, expected a text")
        thought = "".join(_text(part, where, self._noted) for part in get_list(event, "thought", where))
        arguments = call.get("arguments", event.get("action"))
        self._say(Step(thought, reasoning=named(event, "reasoning_content"), calls=(
            Call(name, "{}" if arguments in (None, "") else as_text(arguments), id=named(event, "tool_call_id")),)),
            event)

    def _say(self, step: Step, event: Mapping[str, Any]) -> None:
        """A turn, or more of one: parallel calls are events of one response."""
        response = named(event, "llm_response_id")
        at = self._responses.get(response)
        if response and at is not None:
            self.turns.steps[at] = joined([self.turns.steps[at], step])
            return
        count = len(self.turns.steps)
        self.turns.say(replace(step, ref=event["id"]))
        if len(self.turns.steps) > count and response:
            self._responses[response] = count


def _text(value: Any, where: str, noted: Counter[str]) -> str:
    """A text, a content part or a list of them."""
    return content({"content": value}, where, noted)
