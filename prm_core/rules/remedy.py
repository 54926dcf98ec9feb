"""What keeps a rule: a step to be taken first, after which what broke the rule may be done, or one in place of it. Its
texts may speak of the call that broke the rule.

    first: {calls: [{name: confirm, arguments: {question: "Pay {args.amount} to {args.to}?"}}]}
    instead: {calls: [{name: search, arguments: {words: "{without(args.words, limits.names)}"}}]}

What stands in braces is an expression of the language of predicates; `{{` and `}}` are braces. An argument that is one
expression and nothing else is what that is worth, and not a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prm_core.rules import language
from prm_core.turns import is_empty
from prm_core.types import Call, Step

# A brace that stands for itself, an expression, or a brace that belongs to neither.
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_Filled = Callable[[language.Scope], Any]


class _Unknown(Exception):
    """A text speaks of what is not there."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A step to be filled in.

    Attributes:
        first: whether what broke the rule may be done after it.
        text: of the step.
        calls: name and arguments of each call.
    """

    first: bool
    text: _Text
    calls: tuple[tuple[str, _Value], ...]

    def fill(self, scope: language.Scope) -> Step | None:
        """The step for what is in scope; None where it speaks of what is not there."""
        try:
            found = Step(self.text.fill(scope), calls=tuple(
                Call(name, json.dumps(arguments.fill(scope), ensure_ascii=False, allow_nan=False))
                for name, arguments in self.calls))
        except (_Unknown, language.Undecided, RecursionError, ValueError):
            return None
        return None if is_empty(found) else found

    def may_be(self, step: Step) -> bool:
        """Whether a step is this one, filled in for whatever there may be."""
        if not self.text.may_be(step.text) or [name for name, _ in self.calls] != [call.name for call in step.calls]:
            return False
        try:
            return all(arguments.may_be(json.loads(call.arguments))
                       for (_, arguments), call in zip(self.calls, step.calls, strict=True))
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True, slots=True)
class _Text:
    """A text with expressions in it.

    Attributes:
        parts: texts, no two beside each other, and expressions.
    """

    parts: tuple[str | language.Expression, ...]

    def fill(self, scope: language.Scope) -> str:
        return "".join(part if isinstance(part, str) else _spelled(_known(part, scope)) for part in self.parts)

    def may_be(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        at, after_expression = 0, False
        for number, part in enumerate(self.parts, 1):
            if not isinstance(part, str):
                after_expression = True
                continue
            if after_expression and number == len(self.parts):
                return at + len(part) <= len(value) and value.endswith(part)
            # Behind an expression the first place is as good as any: the rest has the more room.
            found = value.find(part, at) if after_expression else at if value.startswith(part, at) else -1
            if found < 0:
                return False
            at, after_expression = found + len(part), False
        return after_expression or at == len(value)


@dataclass(frozen=True, slots=True)
class _Value:
    """A JSON value with expressions in its texts; a text that is one expression is any value."""

    written: Any

    def fill(self, scope: language.Scope) -> Any:
        if isinstance(self.written, Mapping):
            return {name: one.fill(scope) for name, one in self.written.items()}
        if isinstance(self.written, list):
            return [one.fill(scope) for one in self.written]
        if isinstance(self.written, _Text):
            only = self.written.parts[0] if len(self.written.parts) == 1 else ""
            return self.written.fill(scope) if isinstance(only, str) else _known(only, scope)
        return self.written

    def may_be(self, value: Any) -> bool:
        if isinstance(self.written, Mapping):
            return (isinstance(value, Mapping) and value.keys() == self.written.keys()
                    and all(one.may_be(value[name]) for name, one in self.written.items()))
        if isinstance(self.written, list):
            return (isinstance(value, list) and len(value) == len(self.written)
                    and all(one.may_be(other) for one, other in zip(self.written, value, strict=True)))
        if isinstance(self.written, _Text):
            only = self.written.parts[0] if len(self.written.parts) == 1 else ""
            return not isinstance(only, str) or self.written.may_be(value)
        return bool(self.written == value)


def read(step: Step, *, first: bool) -> Remedy:
    """The remedy that a step of a rules file is. Raises language.Fault for one that is no step still to be taken, or
    has an expression that is none."""
    if step != Step(step.text, calls=tuple(Call(one.name, one.arguments) for one in step.calls)):
        raise language.Fault("it is still to be taken: a text, or `text` and `calls` of `name` and `arguments`")
    calls = []
    for call in step.calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise language.Fault(f"the arguments of its call {call.name} are no mapping")
        calls.append((call.name, _value(arguments)))
    return Remedy(first, _text(step.text), tuple(calls))


def _value(value: Any) -> _Value:
    if isinstance(value, Mapping):
        return _Value({name: _value(one) for name, one in value.items()})
    if isinstance(value, list):
        return _Value([_value(one) for one in value])
    return _Value(_text(value) if isinstance(value, str) else value)


def _text(source: str) -> _Text:
    parts: list[str | language.Expression] = []
    end = 0
    for match in _PART.finditer(source):
        if match[0] in ("{", "}"):
            raise language.Fault(f"the brace at character {match.start() + 1} of {source!r} has no other; write "
                                 "{{ or }} for a brace")
        parts += [source[end : match.start()], match[0][0] if match[1] is None else language.parse(match[1])]
        end = match.end()
    parts.append(source[end:])
    merged: list[str | language.Expression] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part:
            merged.append(part)
    return _Text(tuple(merged))


def _known(expression: language.Expression, scope: language.Scope) -> Any:
    if (value := expression(scope)) is None:
        raise _Unknown
    return value


def _spelled(value: Any) -> str:
    """A value as it stands in a text: texts as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
