"""Steps as JSON and as Parquet values: read with every field checked, written without those that are empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.turns import SPOKEN, is_empty, is_plain
from prm_core.types import Call, Message, Step

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("text", "observation", "agent", "reasoning", "ref")
FIELDS = (*TEXTS, "calls", "context")
# Written even where they are empty: files had them before there was more.
ALWAYS = ("text", "observation", "agent")
CALL_FIELDS, MESSAGE_FIELDS = ("name", "arguments", "result", "failed", "id"), ("role", "text", "name")


def schema() -> pa.DataType:
    """The Parquet type of a step."""
    import pyarrow as pa

    call = pa.struct([(name, pa.bool_() if name == "failed" else pa.string()) for name in CALL_FIELDS])
    message = pa.struct([(name, pa.string()) for name in MESSAGE_FIELDS])
    return pa.struct([*((name, pa.string()) for name in TEXTS), ("calls", pa.list_(call)),
                      ("context", pa.list_(message))])


def to_record(step: Step) -> dict[str, Any]:
    """A step as JSON values."""
    values: dict[str, Any] = {name: getattr(step, name) for name in TEXTS}
    values["calls"] = [{name: getattr(call, name) for name in CALL_FIELDS} for call in step.calls]
    values["context"] = [{name: getattr(message, name) for name in MESSAGE_FIELDS} for message in step.context]
    return {name: value for name, value in values.items() if value or name in ALWAYS}


def written_step(values: Mapping[str, Any]) -> Step:
    """The step of a record that this project wrote: not checked again, and there are many. A policy may have written
    what is refused of people, such as a failed call without a result."""
    found = {name: value for name, value in values.items() if value is not None}
    for name, part in (("calls", Call), ("context", Message)):
        if name in found:
            found[name] = tuple(part(**one) for one in found[name])
    return Step(**found)


def parse_steps(raw: Any, where: str) -> tuple[Step, ...]:
    """Steps from JSON: a list of texts or of objects with `text` and what else a step has.

    Raises InputError naming `where` for an empty list, an empty step, a wrong type or an unknown field.
    """
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{where}: `steps` must be a non-empty list of texts or of objects with `text`")
    return tuple(parse_step(item, where, index) for index, item in enumerate(raw))


def parse_step(item: Any, where: str, index: int) -> Step:
    """A step from JSON; see `parse_steps`."""
    if isinstance(item, str):
        if item:
            return Step(item)
        item = {"text": item}
    if not isinstance(item, Mapping) or set(item) - set(FIELDS):
        raise InputError(f"{where}: step {index} must be a text or an object of {', '.join(FIELDS)}")
    # Parquet has null for what a row lacks.
    fields = {name: value for name, value in item.items() if value is not None}
    for name in TEXTS:
        if not isinstance(fields.get(name, ""), str):
            raise InputError(f"{where}: {name} of step {index} is {fields[name]!r}, expected a text")
    calls = tuple(_call(call, f"{where}: call {number} of step {index}")
                  for number, call in enumerate(_list(fields, "calls", f"{where}: step {index}")))
    context = tuple(_message(message, f"{where}: context {number} of step {index}")
                    for number, message in enumerate(_list(fields, "context", f"{where}: step {index}")))
    step = Step(**{"text": "", **fields, "calls": calls, "context": context})
    if is_empty(step):
        raise InputError(f"{where}: step {index} is empty; remove it or give its text")
    return step


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise InputError(f"{where}: `{name}` is {str(value)[:60]!r}, expected a list")
    return value


def _object(item: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping) or set(item) - set(names):
        raise InputError(f"{where} must be an object of {', '.join(names)}")
    return {name: value for name, value in item.items() if value is not None}


def _call(item: Any, where: str) -> Call:
    fields = _object(item, CALL_FIELDS, where)
    arguments = fields.get("arguments", {})
    if not isinstance(arguments, str):
        try:
            fields["arguments"] = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            # YAML has dates, bytes and numbers without end.
            raise InputError(f"{where}: its arguments hold what JSON has not ({error}); write it as a text") from None
    for name in ("name", "result", "id"):
        if not isinstance(fields.get(name, ""), str):
            raise InputError(f"{where}: {name} is {str(fields[name])[:60]!r}, expected a text")
    if "name" not in fields:
        raise InputError(f"{where} has no name; name the tool")
    if not isinstance(fields.get("failed", False), bool):
        raise InputError(f"{where}: failed is {str(fields['failed'])[:60]!r}, expected true or false")
    if fields.get("failed") and "result" not in fields:
        raise InputError(f"{where} failed and has no result; give what came back as its `result`, it may be empty")
    return Call(**fields)


def _message(item: Any, where: str) -> Message:
    fields = _object(item, MESSAGE_FIELDS, where)
    for name in MESSAGE_FIELDS:
        if not isinstance(fields.get(name, ""), str):
            raise InputError(f"{where}: {name} is {str(fields[name])[:60]!r}, expected a text")
    if fields.get("role") not in SPOKEN:
        raise InputError(f"{where} has the role {str(fields.get('role'))[:60]!r}; known are {', '.join(SPOKEN)}")
    return Message(**{"text": "", **fields})


def texts(step: Step) -> list[str]:
    """Every text in a step that a model may read."""
    if is_plain(step):
        return [step.text]
    return [step.text, step.observation, step.agent, step.reasoning,
            *(text for call in step.calls for text in (call.name, call.arguments, call.result or "")),
            *(text for message in step.context for text in (message.name, message.text))]
