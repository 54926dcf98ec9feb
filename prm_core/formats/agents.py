"""AgentProcessBench: trajectories of tool-using agents as chat messages, with a rating for each agent's message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, get, label_of, rating_of, register, rest, shown
from prm_core.types import Step


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") if isinstance(part, dict) else "" for part in content)
    if not isinstance(content, str):
        raise InputError(f"{where}: content is {shown(content)}, expected a text")
    return content


def _calls(message: Mapping[str, Any], where: str) -> str:
    """Tool calls as the agent wrote them, in the tags most chat templates use."""
    lines = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}: a tool call is {shown(call)}, expected an object with function.name and "
                             "function.arguments")
        arguments = function.get("arguments") or "{}"
        lines.append(f'<tool_call>{{"name": "{function["name"]}", "arguments": '
                     f"{arguments if isinstance(arguments, str) else shown(arguments)}}}</tool_call>")
    return "\n".join(lines)


def _spoken(message: Mapping[str, Any], where: str) -> str:
    text = _content(message, where)
    # A tool's reply needs no name; anything else said between two steps does.
    return text if message["role"] == "tool" else f"{message['role']}: {text}"


@register
class AgentProcessBench(RowFormat):
    """AgentProcessBench (Fan et al. 2026): `messages`, `tools`, `step_labels` ({"message index": -1, 0 or 1}).

    What precedes the agent's first message is the prompt. Each of its messages is a step, its text what it said and the
    tools it called; the replies up to its next message are the step's observation.
    """

    name = "agentprocessbench"
    rated = unlabelled = observations = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        messages = get(row, "messages", list, where)
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise InputError(f"{where}: message {index} is {shown(message)}, expected an object with `role` and "
                                 "`content`")
        agents = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not agents:
            raise InputError(f"{where}: field messages holds no assistant message, so there is no step to judge")
        given = get(row, "step_labels", dict, where)
        foreign = set(given) - {str(index) for index in agents}
        if foreign:
            raise InputError(f"{where}: step_labels names message {shown(min(foreign))}, which is no assistant's; "
                             f"those are {', '.join(map(str, agents))}")
        steps, labels, indices = [], [], []
        for index, following in zip(agents, [*agents[1:], len(messages)], strict=True):
            at = f"{where}: message {index}"
            text = "\n".join(filter(None, (_content(messages[index], at).strip(), _calls(messages[index], at))))
            if not text:
                noted["messages without text or tool call left out"] += 1
                continue
            heard = [_spoken(messages[n], f"{where}: message {n}") for n in range(index + 1, following)]
            steps.append(Step(text, "\n".join(heard)))
            labels.append(label_of(given.get(str(index)), neutral, f"{where}: step_labels {index}"))
            indices.append(index)
        if not steps:
            raise InputError(f"{where}: no assistant message has text or a tool call; remove the record")
        prompt = "\n\n".join(_content(message, where) for message in messages[:agents[0]])
        final = row.get("final_label")
        meta = {"rest": rest(row, "step_labels"), "indices": indices, "ratings": given}
        return LabelledChain(prompt, tuple(steps), tuple(labels), None,
                             None if final not in (-1, 1) else final == 1, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        if not own:
            messages = _messages(chain)
            indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            own = {"rest": {"question": chain.prompt, "messages": messages, "tools": [],
                            "final_label": {None: None, True: 1, False: -1}[chain.outcome]},
                   "indices": indices, "ratings": {}}
        labels = dict(own["ratings"])
        for index, label in zip(own["indices"], chain.labels, strict=True):
            rating = rating_of(label, labels.pop(str(index), None))
            if rating is not None:
                labels[str(index)] = rating
        return {**own["rest"], "step_labels": labels}


def _messages(chain: LabelledChain) -> Sequence[dict[str, str]]:
    messages = [{"role": "user", "content": chain.prompt}]
    for step in chain.steps:
        messages.append({"role": "assistant", "content": step.text})
        if step.observation:
            messages.append({"role": "tool", "content": step.observation})
    return messages
