"""The language of predicates: an expression over a call and what came before it, with no way out to Python.

    name == "order" and args.boxes > limits.boxes and not any(earlier, it.name == "ask" and it.args.about == "yes")

Values are those of JSON. `and`, `or`, `not`, `in`, `not in`, comparisons, `+ - * /`, texts in either quote, numbers,
lists, true, false, null; NAMES; FUNCTIONS; and `any`, `all`, `count` over a list, in which `it` is the element. What is
not there is null, which is in no order and no list. An order (`<`) of a value that is neither a number, a text that
spells one, nor null cannot be decided, and `Undecided` is raised: who asks takes that for a broken rule, or a call
could get past a limit by writing it in words.
"""

from __future__ import annotations

import math
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of an expression within an expression: what nobody writes, and Python's own recursion is far beyond.
DEEPEST = 50
# What an expression may speak of; `args`, `it` and `limits` have fields.
NAMES = ("name", "args", "readable", "text", "reasoning", "agent", "prompt", "earlier", "limits", "it")
QUANTIFIERS = ("any", "all", "count")
WORDS = ("and", "or", "not", "in", "true", "false", "null")
_TOKEN = re.compile(r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?)
  | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign>==|!=|<=|>=|[<>+\-*/().,\[\]])
)""", re.VERBOSE)
_ESCAPES = re.compile(r"\\(.)")

Scope = Mapping[str, Any]
# What an expression is worth in a scope.
Expression = Callable[[Scope], Any]


class Fault(ValueError):
    """An expression that is none. Its text says why and where."""


class Undecided(ValueError):
    """A value that an expression cannot be decided on. Its text says which."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def words(value: Any) -> list[str]:
    """The words of a text, or of all texts in a value, in lower case."""
    if isinstance(value, Mapping):
        return [word for one in value.values() for word in words(one)]
    if isinstance(value, list):
        return [word for one in value for word in words(one)]
    return re.findall(r"[^\W_]+", str(value).lower()) if isinstance(value, str | int | float) else []


def _command(value: Any) -> list[str]:
    """A shell command as words; one that cannot be split is undecided."""
    try:
        return shlex.split(_text(value))
    except ValueError as error:
        raise Undecided(f"{_shown(value)} is no command ({error})") from None


def _outside(path: Any, folder: Any) -> bool:
    """Whether a path leads out of a folder, from which it goes where it is not absolute. What a shell would make
    another path of (`~`, `$`, braces) does."""
    told = _text(path)
    if told.startswith("~") or set("$`{") & set(told):
        return True
    base = posixpath.normpath(_text(folder) or ".")
    found = posixpath.normpath(posixpath.join(base, told))
    return found != base and not found.startswith(base.rstrip("/") + "/")


def _without(value: Any, left_out: Any) -> str:
    """A text without the words in a list."""
    known = words(left_out)
    return " ".join(part for part in _text(value).split() if not set(words(part)) & set(known))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | Mapping) else 0


# Name → how many values it takes, and what it gives.
FUNCTIONS: Mapping[str, tuple[int, Callable[..., Any]]] = {
    "lower": (1, lambda value: _text(value).lower()),
    "len": (1, _length),
    "words": (1, words),
    "command": (1, _command),
    "contains": (2, lambda whole, part: _text(part).lower() in _text(whole).lower() if _text(part) else False),
    "starts": (2, lambda whole, part: bool(_text(part)) and _text(whole).startswith(_text(part))),
    "ends": (2, lambda whole, part: bool(_text(part)) and _text(whole).endswith(_text(part))),
    "outside": (2, _outside),
    "without": (2, _without),
}


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:
        # More digits than Python writes.
        return "a number this long"


def _number(value: Any) -> float | None:
    """A number, or a text that spells one; None of null. Raises Undecided for anything else, also for NaN, which is
    neither above nor below any limit."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        found = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise Undecided(f"{_shown(value)} is no number")
    return found


def _ordered(holds: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    def compare(left: Any, right: Any) -> bool:
        first, second = _number(left), _number(right)
        return first is not None and second is not None and holds(first, second)

    return compare


def _equal(left: Any, right: Any) -> bool:
    # True is 1 to Python.
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _within(part: Any, whole: Any) -> bool:
    if isinstance(whole, str):
        return isinstance(part, str) and part in whole
    return isinstance(whole, list) and any(_equal(part, one) for one in whole)


def _calculated(found: Callable[[float, float], float]) -> Callable[[Any, Any], float | None]:
    def calculate(left: Any, right: Any) -> float | None:
        first, second = _number(left), _number(right)
        if first is None or second is None:
            return None
        try:
            return found(first, second)
        except (ZeroDivisionError, OverflowError):
            raise Undecided(f"{_shown(left)} and {_shown(right)} cannot be calculated with") from None

    return calculate


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": _equal, "!=": lambda left, right: not _equal(left, right), "in": _within,
    "not in": lambda left, right: not _within(left, right),
    "<": _ordered(lambda a, b: a < b), "<=": _ordered(lambda a, b: a <= b),
    ">": _ordered(lambda a, b: a > b), ">=": _ordered(lambda a, b: a >= b),
}
_SUMS = {"+": _calculated(lambda a, b: a + b), "-": _calculated(lambda a, b: a - b)}
_PRODUCTS = {"*": _calculated(lambda a, b: a * b), "/": _calculated(lambda a, b: a / b)}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    value: str
    at: int


def _tokens(source: str) -> list[_Token]:
    found, at = [], 0
    while source[at:].strip():
        match = _TOKEN.match(source, at)
        if match is None:
            at += len(source[at:]) - len(source[at:].lstrip())
            raise Fault(f"{source[at]!r} at character {at + 1} is nothing that an expression has")
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    return [*found, _Token("end", "", len(source))]


def parse(source: str) -> Expression:
    """The expression of a text. Raises Fault for one that is none, saying where."""
    parser = _Parser(_tokens(source))
    found = parser.either()
    parser.expect("end")
    return found


class _Parser:
    """Reads tokens from left to right, a method a level of binding, the loosest first."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        # Whether `it` means something.
        self._inside = 0

    @property
    def _here(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *values: str) -> str:
        """The next token's text where it is one of these, else nothing."""
        if self._here.kind in ("sign", "name") and self._here.value in values:
            self._next += 1
            return self._tokens[self._next - 1].value
        return ""

    def expect(self, value: str) -> None:
        """Takes a token. Raises Fault where another one stands."""
        if value == "end" and self._here.kind == "end":
            return
        if not self._take(value):
            raise self._fault("the end" if value == "end" else repr(value))

    def _fault(self, wanted: str) -> Fault:
        shown = "the end" if self._here.kind == "end" else repr(self._here.value)
        return Fault(f"expected {wanted}, found {shown} at character {self._here.at + 1}")

    def either(self) -> Expression:
        """`or`, and all that binds closer."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise Fault(f"expressions within expressions, more than {DEEPEST} deep")
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else lambda scope: any(bool(part(scope)) for part in parts)

    def _both(self) -> Expression:
        parts = [self._denied()]
        while self._take("and"):
            parts.append(self._denied())
        return parts[0] if len(parts) == 1 else lambda scope: all(bool(part(scope)) for part in parts)

    def _denied(self) -> Expression:
        denials = 0
        while self._take("not"):
            denials += 1
        inner = self._compared()
        return inner if not denials else lambda scope: bool(inner(scope)) == (denials % 2 == 0)

    def _compared(self) -> Expression:
        left = self._chained(_SUMS, lambda: self._chained(_PRODUCTS, self._signed))
        sign = self._take(*(name for name in _COMPARISONS if name != "not in"))
        if not sign and self._here.value == "not" and self._here.kind == "name":
            self._next += 1
            self.expect("in")
            sign = "not in"
        if not sign:
            return left
        right, holds = self._chained(_SUMS, lambda: self._chained(_PRODUCTS, self._signed)), _COMPARISONS[sign]
        if self._here.value in _COMPARISONS and self._here.kind in ("sign", "name"):
            raise self._fault("`and` between two comparisons")
        return lambda scope: holds(left(scope), right(scope))

    def _chained(self, signs: Mapping[str, Callable[[Any, Any], Any]], inner: Callable[[], Expression]) -> Expression:
        left = inner()
        while sign := self._take(*signs):
            left = _applied(signs[sign], left, inner())
        return left

    def _signed(self) -> Expression:
        if self._take("-"):
            inner = self._value()
            return _applied(_SUMS["-"], lambda scope: 0, inner)
        return self._value()

    def _value(self) -> Expression:
        token = self._here
        if self._take("("):
            found = self.either()
            self.expect(")")
            return found
        if self._take("["):
            items = [] if self._here.value == "]" else [self.either()]
            while self._take(","):
                items.append(self.either())
            self.expect("]")
            return lambda scope: [item(scope) for item in items]
        self._next += 1
        if token.kind == "number":
            number = float(token.value) if "." in token.value else int(token.value)
            return lambda scope: number
        if token.kind == "text":
            text = _ESCAPES.sub(r"\1", token.value[1:-1])
            return lambda scope: text
        if token.kind == "name" and token.value in ("true", "false", "null"):
            constant = {"true": True, "false": False, "null": None}[token.value]
            return lambda scope: constant
        self._next -= 1
        if token.kind != "name" or token.value in WORDS:
            raise self._fault("a value")
        return self._named()

    def _named(self) -> Expression:
        token = self._here
        self._next += 1
        if self._take("("):
            return self._called(token)
        if token.value not in NAMES or (token.value == "it" and not self._inside):
            self._next -= 1
            raise self._fault(f"one of {', '.join(NAMES[:-1])} or a function ({', '.join((*QUANTIFIERS, *FUNCTIONS))})"
                              " or, in any, all and count, `it`")
        fields = []
        while self._take("."):
            if self._here.kind != "name":
                raise self._fault("a field")
            fields.append(self._here.value)
            self._next += 1
        return lambda scope: _field(scope.get(token.value), fields)

    def _called(self, token: _Token) -> Expression:
        if token.value in QUANTIFIERS:
            over = self.either()
            self.expect(",")
            self._inside += 1
            holds = self.either()
            self._inside -= 1
            self.expect(")")
            return _quantified(token.value, over, holds)
        if token.value not in FUNCTIONS:
            raise Fault(f"no function {token.value!r} at character {token.at + 1}; known: "
                        f"{', '.join((*QUANTIFIERS, *FUNCTIONS))}")
        count, function = FUNCTIONS[token.value]
        given = [self.either()]
        while self._take(","):
            given.append(self.either())
        self.expect(")")
        if len(given) != count:
            raise Fault(f"{token.value} at character {token.at + 1} takes {count}, found {len(given)}")
        return lambda scope: function(*(one(scope) for one in given))


def _applied(function: Callable[[Any, Any], Any], left: Expression, right: Expression) -> Expression:
    return lambda scope: function(left(scope), right(scope))


def _field(value: Any, names: Sequence[str]) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _quantified(how: str, over: Expression, holds: Expression) -> Expression:
    def found(scope: Scope) -> Any:
        values = over(scope)
        each = (bool(holds({**scope, "it": value})) for value in (values if isinstance(values, list) else []))
        return {"any": any, "all": all, "count": sum}[how](each)

    return found
