"""Chat messages, as several formats hold them: their text, the tools they call, and how a reply reads as context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import shown


def check(message: Any, where: str) -> Mapping[str, Any]:
    """A message. Raises InputError where it has no role."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where} is {shown(message)}, expected an object with `role` and `content`")
    return message


def content(message: Mapping[str, Any], where: str) -> str:
    """What a message says, its parts joined; empty where it only calls tools."""
    said = message.get("content")
    if said is None:
        return ""
    if isinstance(said, list):
        said = "".join((part.get("text") or "") if isinstance(part, dict) else "" for part in said)
    if not isinstance(said, str):
        raise InputError(f"{where}: content is {shown(said)}, expected a text")
    return said


def calls(message: Mapping[str, Any], where: str) -> str:
    """Tool calls as the agent wrote them, in the tags most chat templates use."""
    lines = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}: a tool call is {shown(call)}, expected an object with function.name and "
                             "function.arguments")
        lines.append(call_text(function["name"], function.get("arguments") or "{}"))
    return "\n".join(lines)


def call_text(name: str, arguments: Any) -> str:
    """A tool call as the agent wrote it; the arguments are JSON or a text that holds some."""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def spoken(message: Mapping[str, Any], where: str) -> str:
    """A message as context: a tool's reply needs no name, anything else said between two steps does."""
    text = content(message, where)
    return text if message["role"] == "tool" else f"{message['role']}: {text}"


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
