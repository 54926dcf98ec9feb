"""Rules as a judge: simple checks of typed turns that any agent's trace has. A step is wrong where one of them says so.

A rule registers by name next to its definition. It sees what the agent saw, and knows nothing of the domain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from prm_core.evaluation.judges.base import JUDGES, Case, Judge, Judgement, Setup
from prm_core.registry import Registry
from prm_core.turns import heard
from prm_core.types import Call

# The case and a step's index → what is wrong with that step, None for nothing.
Rule = Callable[[Case, int], str | None]
RULES: Registry[Rule] = Registry("rule")
NAME = "rules"
# With commas between thousands. No part of a word, of a date or of a version.
NUMBER = re.compile(r"(?<![\w.,/:-])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w/:-]|[.,][0-9])")
# The number of a list's item says nothing.
ITEM = re.compile(r"(?m)^\s*[0-9]+[.)]\s")
DIGITS = re.compile(r"[0-9]+")
UNREADABLE = object()


def _parsed(call: Call) -> Any:
    """The arguments as JSON, UNREADABLE where they are none."""
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return UNREADABLE


@lru_cache(maxsize=64)
def _offered(tools: str) -> dict[str, Any]:
    """Name → validator of the arguments by their JSON schema, None for a tool without a schema that can be read.

    Definitions with and without the envelope of chat APIs.
    """
    found = {}
    for tool in json.loads(tools) if tools else ():
        definition = tool["function"] if isinstance(tool.get("function"), dict) else tool
        if isinstance(definition.get("name"), str):
            found[definition["name"]] = _validator(definition.get("parameters") or definition.get("input_schema"))
    return found


def _validator(schema: Any) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry as Schemas

    if not isinstance(schema, dict):
        return None
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError:
        return None
    # With no schemas but this one: a reference in a trace fetches nothing.
    return kind(schema, registry=Schemas())


@RULES.register("failed_call")
def failed_call(case: Case, index: int) -> str | None:
    """A call came back with an error."""
    for call in case.steps[index].calls:
        if call.failed:
            return f"{call.name} failed: {call.result}"
    return None


@RULES.register("repeated_call")
def repeated_call(case: Case, index: int) -> str | None:
    """A call was made before with the same arguments, and did not fail then."""
    before = [(call.name, _parsed(call)) for step in case.steps[:index] for call in step.calls if not call.failed]
    for call in case.steps[index].calls:
        made = call.name, _parsed(call)
        if made[1] is not UNREADABLE and made in before:
            return f"{call.name} was called with the same arguments before"
        before.append(made)
    return None


@RULES.register("bad_arguments")
def bad_arguments(case: Case, index: int) -> str | None:
    """A call's arguments are no JSON object, or not what the tool's definition asks for."""
    offered = _offered(case.tools)
    for call in case.steps[index].calls:
        arguments = _parsed(call)
        if not isinstance(arguments, dict):
            return f"the arguments of {call.name} are no JSON object"
        if fault := _misfit(arguments, offered.get(call.name)):
            return f"the arguments of {call.name} do not fit its definition: {fault}"
    return None


def _misfit(arguments: dict[str, Any], validator: Any) -> str | None:
    """What of the arguments the schema refuses; nothing where it refers to what is not there."""
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        fault = validator and best_match(validator.iter_errors(arguments))
    except (Unresolvable, RecursionError, re.error):
        return None
    return fault.message if fault else None


@RULES.register("unknown_tool")
def unknown_tool(case: Case, index: int) -> str | None:
    """A tool was called that was not offered; nothing where no tools are known."""
    offered = _offered(case.tools)
    for call in case.steps[index].calls:
        if offered and call.name not in offered:
            return f"{call.name} is no tool that was offered"
    return None


def numbers(text: str) -> Iterator[str]:
    """The numbers in a text without their signs, each written one way: without commas, leading and closing zeros."""
    for found in NUMBER.findall(ITEM.sub(" ", text)):
        whole, _, part = found.lstrip("-").replace(",", "").partition(".")
        part = part.rstrip("0")
        # No int: a run of digits may be longer than Python reads.
        yield (whole.lstrip("0") or "0") + (f".{part}" if part else "")


@RULES.register("unheard_number")
def unheard_number(case: Case, index: int) -> str | None:
    """The answer of an agent with tools quotes a number that neither the question nor anything heard has."""
    steps = case.steps
    if index < len(steps) - 1 or steps[index].calls or not any(heard(step) for step in steps[:index]):
        return None
    known = {number for text in (case.prompt, *map(heard, steps[:index])) for number in _loose(text)}
    for number in numbers(steps[index].text):
        if number not in known:
            return f"nobody told the number {number}"
    return None


def _loose(text: str) -> Iterator[str]:
    """All runs of digits in what was heard: as numbers, and inside of words and dates too, which may be quoted."""
    yield from numbers(text)
    for run in DIGITS.findall(text):
        yield run.lstrip("0") or "0"


@RULES.register("empty_turn")
def empty_turn(case: Case, index: int) -> str | None:
    """The agent neither says nor calls anything."""
    step = case.steps[index]
    return None if step.calls or step.text.strip() else "says and calls nothing"


def broken(case: Case, index: int, rules: Sequence[str]) -> str:
    """The first of the rules that a step breaks, with why; empty for none."""
    for name in rules:
        if said := RULES[name](case, index):
            return f"{name}: {said}"
    return ""


class RulesJudge(Judge):
    """All registered rules, or those of a comma-separated list; a step is right that breaks none.

    Raises InputError for a rule that is not registered.
    """

    decides = True

    def __init__(self, source: str, setup: Setup) -> None:
        self.rules = tuple(source.split(",")) if source else tuple(RULES)
        for name in self.rules:
            _ = RULES[name]
        self.about = f"rules: {', '.join(self.rules)}"

    def judge(self, case: Case, seed: int) -> Judgement:
        """See `Judge.judge`; the score is 0 or 1."""
        reasons = tuple(broken(case, index, self.rules) for index in range(len(case.steps)))
        verdicts = tuple(not reason for reason in reasons)
        return Judgement(tuple(map(float, verdicts)), verdicts, reasons)


JUDGES.register(NAME)(RulesJudge)
