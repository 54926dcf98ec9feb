r"""The value of a mathematical expression written in LaTeX or plain text, as a key that equal expressions share.

Equality is decided by value, so it is an equivalence by construction: constants are exact fractions where they are
rational and thirty digits where they are not, and expressions with unknowns are evaluated at three fixed points
(identity testing, Schwartz 1980 and Zippel 1979): two that agree at all of them are the same function but for a chance
far below one in a billion.

Read as people write it: `2(3)` and `2x` are products, `3\frac{1}{2}` and `3 1/2` mixed numbers, `1,000`, `10\,000` and
`1.234,5` one number each, `-3^2` is -9, `\frac12` is a half, `\log` has base 10. Time and memory are bounded for any
text of `MAX_LENGTH` characters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from prm_core.maths import values
from prm_core.maths.values import Key, Unreadable

MAX_LENGTH = 300
MAX_DEPTH = 40


class _Token(NamedTuple):
    """A piece of an expression; `spaced` when white space stands before it."""

    kind: str
    text: str
    spaced: bool


_CONSTANTS = {"pi": "pi", "e": "e", "i": "i"}
_GREEK = frozenset((
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar").split())
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_FUNCTIONS = frozenset((*_TRIGONOMETRIC, *(f"arc{name}" for name in ("sin", "cos", "tan")),
                        "sinh", "cosh", "tanh", "ln", "log", "lg", "exp"))
_NAMES = sorted({*_FUNCTIONS, "sqrt", "pi", "binom"}, key=len, reverse=True)
# Single letters that name a function when a bracket follows.
_FUNCTION_LETTERS = frozenset("fghFGHPQ")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.]))?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<letters>[^\W\d_]+)"
    r"|(?P<operator>\*\*|[-+*/^!%|_])"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<other>.)", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# A whole number with its thousands marked, in every spelling: 1,000 10 000 1'000 1_000 1.000.000 1.234,5 1,00,000.
_GROUPED = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:[ '’]\d{3})+(?:[.,]\d+)?|\d{1,3}(?:_\d{3})+(?![\d}])"
    r"|\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,2}(?:,\d{2})+,000)(?![\d]|[.,]\d)")
# 0.\overline{3}, 0.1\dot{6}, 0.333...
_REPEATED = (re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30}?)\s?\\(?:overline|bar|dot)\s?\{?(\d{1,30})(?!\d)\}?"),
             re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30}?)(\d{1,12}?)(?:\3){2,30}(?!\d)\s?(?:\.{3}|…|\\(?:l|c)?dots)"),
             re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30}?)(\d{2,12})\3(?!\d)\s?(?:\.{3}|…|\\(?:l|c)?dots)"))
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])|\\nicefrac(?![A-Za-z])|\\sfrac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:times|cdot|ast|bullet)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:[lr]?vert|mid)(?![A-Za-z])|\\\|"), "|"),
    (re.compile(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|textstyle|limits|quad|qquad|phantom|operatorname"
                r"|mathrm|mathbf|mathit|boldsymbol|bm|rm|bf)\*?(?![A-Za-z])\.?"), " "),
    (re.compile(r"\\[,;:! ]"), " "),
    (re.compile(r"\^\s{0,3}\{?\s{0,3}\\(?:circ|degree)(?![A-Za-z])\s{0,3}\}?|\\degree(?![A-Za-z])|°"), "°"),
    (re.compile(r"\{,\}"), ","),
    # In the brackets of a group TeX writes "{1 \over 2}".
    (re.compile(r"\{([^{}]{1,60})\\over(?![A-Za-z])([^{}]{1,60})\}"), r"\\frac{\1}{\2}"),
    # TeX takes one digit for each part: \frac12, \frac1{72}, \frac{17}7.
    (re.compile(r"\\frac\s{0,3}([0-9A-Za-z])"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\{[^{}]{0,60}\})\s{0,3}([0-9A-Za-z])"), r"\1{\2}"),
    (re.compile(r"\\binom\s{0,3}([0-9A-Za-z])\s{0,3}([0-9A-Za-z])"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<=[0-9)])\s{0,3}[xX]\s{0,3}(?=10\s{0,3}\^)"), "*"),
)


def _plain(text: str) -> str:
    for pattern, replacement in _REPLACED if "\\" in text or "{" in text or "°" in text or "x" in text.lower() else ():
        text = pattern.sub(replacement, text)
    for pattern in _REPEATED if "." in text and ("\\" in text or "..." in text or "…" in text) else ():
        text = pattern.sub(_repeated, text)
    return _GROUPED.sub(_ungrouped, text)


def _repeated(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1666... is (0/1 + 1/10 + 6/90)."""
    whole, fixed, period = match.groups()
    below = 10 ** len(fixed) * (10 ** len(period) - 1)
    above = int(whole + fixed + period) - int(whole + fixed or 0)
    return f"({above}/{below})"


def _ungrouped(match: re.Match[str]) -> str:
    """`1,234.5`, `1.234,5` and their kin without marks of thousands."""
    digits = re.sub(r"[ '’_]", "", match.group())
    if digits.count(",") == 1 and (digits.count(".") != 1 or digits.index(".") < digits.index(",")):
        whole, _, decimals = digits.partition(",")
        # One comma before three digits marks thousands; after marked thousands, or blanks, it is the decimal comma.
        if "." in whole or digits != match.group():
            return whole.replace(".", "") + "." + decimals
    if digits.count(".") > 1:
        return digits.replace(".", "")
    return digits.replace(",", "")


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    spaced = False
    for match in _TOKEN.finditer(_plain(text)):
        kind, piece = str(match.lastgroup), match.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "letters":
            for name in _split_letters(piece):
                function = name in _FUNCTIONS or name in ("sqrt", "binom")
                tokens.append(_Token("function" if function else "symbol", name, spaced))
                spaced = False
        elif kind == "command":
            tokens.append(_command(piece[1:], spaced))
        elif kind == "other" and piece != "°":
            raise Unreadable(f"{piece!r} is no mathematics")
        else:
            tokens.append(_Token("operator" if piece == "°" else kind, piece, spaced))
        spaced = False
    return tokens


def _split_letters(run: str) -> list[str]:
    """`2xsin` as x and sin: names of functions whole, everything else letter by letter."""
    names, rest = [], run
    while rest:
        name = next((name for name in _NAMES if rest.startswith(name)), rest[0])
        names.append(name)
        rest = rest[len(name) :]
    # "pens", "area": a word of four letters is no product, and nothing here says what it stands for.
    if len(run) > 3 and len(names) > 3 and all(len(name) == 1 for name in names):
        raise Unreadable(f"{run!r} is a word")
    return names


def _command(name: str, spaced: bool) -> _Token:
    if name in _FUNCTIONS or name in ("sqrt", "frac", "binom"):
        return _Token("function", name, spaced)
    if name in ("pm", "mp"):
        return _Token("operator", f"\\{name}", spaced)
    if name in _GREEK:
        return _Token("symbol", f"\\{name}", spaced)
    if name == "pi":
        return _Token("symbol", "pi", spaced)
    if name in ("lfloor", "lceil"):
        return _Token("open", f"\\{name}", spaced)
    if name in ("rfloor", "rceil"):
        return _Token("close", f"\\{name}", spaced)
    raise Unreadable(f"\\{name} is no mathematics that is read here")


# A node is a function of the point (what the unknowns are worth there) and of the sign that ± stands for.
Node = Callable[["_Point"], Any]


class _Parser:
    """Recursive descent over tokens; sums, products (also without a sign), signs, powers, what follows, atoms."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.signs = False

    def whole(self) -> Node:
        node = self._sum()
        if self.position < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.position].text!r} out of place")
        return node

    def _peek(self, offset: int = 0) -> _Token | None:
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else None

    def _take(self, *texts: str) -> str | None:
        token = self._peek()
        if token is None or token.kind == "symbol" or token.text not in texts:
            return None
        self.position += 1
        return token.text

    def _sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = self._product()
        while operator := self._take("+", "-", r"\pm", r"\mp"):
            node = _binary(values.add, node, self._signed(operator, self._product()))
        self.depth -= 1
        return node

    def _signed(self, operator: str, node: Node) -> Node:
        if operator in (r"\pm", r"\mp"):
            self.signs = True
            turned = -1 if operator == r"\mp" else 1
            return lambda point: values.multiply(Fraction(point.sign * turned), node(point))
        return node if operator == "+" else lambda point: values.multiply(Fraction(-1), node(point))

    def _product(self) -> Node:
        node = self._signs()
        while True:
            operator = self._take("*", "/")
            if operator is None and not self._starts_factor():
                return node
            factor = self._signs() if operator else self._power()
            node = _binary(values.divide if operator == "/" else values.multiply, node, factor)

    def _starts_factor(self) -> bool:
        token = self._peek()
        # Two numbers side by side are no product; "x2" is none either.
        return token is not None and token.kind in ("open", "symbol", "function")

    def _signs(self) -> Node:
        if operator := self._take("+", "-", r"\pm", r"\mp"):
            return self._signed(operator, self._signs())
        return self._power()

    def _power(self) -> Node:
        base = self._postfix()
        return self._exponent(base)

    def _exponent(self, base: Node) -> Node:
        if not self._take("^", "**"):
            return base
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        exponent = self._signs()
        self.depth -= 1
        return _binary(values.power, base, exponent)

    def _postfix(self) -> Node:
        node = self._atom()
        while operator := self._take("!", "%", "°"):
            node = _unary({"!": values.factorial, "%": values.percent, "°": values.degrees}[operator], node)
        return node

    def _atom(self) -> Node:
        token = self._peek()
        if token is None:
            raise Unreadable("it ends with an operator")
        self.position += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "open":
            node = self._sum()
            closing = _CLOSING.get(token.text, token.text.replace(r"\l", r"\r"))
            if not self._take(closing):
                raise Unreadable("a bracket that is not closed")
            rounding = {r"\lfloor": values.floor, r"\lceil": values.ceil}.get(token.text)
            return _unary(rounding, node) if rounding else node
        if token.text == "|":
            node = self._sum()
            if not self._take("|"):
                raise Unreadable("a bar that is not closed")
            return _unary(values.absolute, node)
        if token.kind == "function":
            return self._function(token.text)
        if token.kind == "symbol":
            return self._symbol(token.text)
        raise Unreadable(f"{token.text!r} out of place")

    def _number(self, token: _Token) -> Node:
        value = Fraction(token.text) if len(token.text) < MAX_LENGTH else None
        if value is None or values.bits(value) > values.MAX_BITS:
            raise Unreadable("a number too long")
        fraction = self._fraction_of_mixed_number() if token.text.isdigit() else None
        total = value if fraction is None else value + fraction
        return lambda point: total

    def _fraction_of_mixed_number(self) -> Fraction | None:
        r"""The 1/2 of `3 1/2` and `3\frac{1}{2}`: whole numbers, above smaller than below."""
        texts = [token.text if token else "" for token in map(self._peek, range(7))]
        if texts[0] == "frac" and texts[1] == texts[4] == "{" and texts[3] == texts[6] == "}":
            parts, length = (texts[2], texts[5]), 7
        elif texts[1] == "/" and self.tokens[self.position].spaced:
            parts, length = (texts[0], texts[2]), 3
        else:
            return None
        if not all(part.isdigit() for part in parts) or not 0 < int(parts[0]) < int(parts[1]):
            return None
        self.position += length
        return Fraction(int(parts[0]), int(parts[1]))

    def _symbol(self, name: str) -> Node:
        following = self._peek()
        if name in _FUNCTION_LETTERS and following is not None and following.text == "(" and not following.spaced:
            arguments = self._postfix()
            return lambda point: point.unknown(name, arguments(point))
        name += self._subscript()
        if name in _CONSTANTS:
            return lambda point: values.constant(name)
        return lambda point: point.symbol(name)

    def _subscript(self) -> str:
        if not self._take("_"):
            return ""
        depth, pieces = 0, []
        while (token := self._peek()) is not None:
            self.position += 1
            depth += (token.kind == "open") - (token.kind == "close")
            pieces.append(token.text)
            if depth <= 0:
                break
        return "_" + "".join(pieces).strip("{}")

    def _function(self, name: str) -> Node:
        if name == "frac":
            return _binary(values.divide, self._group(), self._group())
        if name == "binom":
            return _binary(values.binomial, self._group(), self._group())
        if name == "sqrt":
            index = self._atom() if (token := self._peek()) is not None and token.text == "[" else None
            return _binary(values.root, self._exponent_free(), index or (lambda point: Fraction(2)))
        if name == "log" and self._take("_"):
            base = self._atom()
            return _binary(lambda x, b: values.divide(values.apply("ln", x), values.apply("ln", b)), self._argument(),
                           base)
        power = self._signs() if self._take("^", "**") else None
        applied = _unary(lambda x: values.apply(name, x), self._argument())
        if power is None:
            return applied

        def raised(point: _Point) -> Any:
            exponent = power(point)
            if exponent == -1 and name in _TRIGONOMETRIC[:3]:
                raise Unreadable("an inverse function or a reciprocal")
            return values.power(applied(point), exponent)

        return raised

    def _group(self) -> Node:
        token = self._peek()
        if token is None or token.text != "{":
            raise Unreadable("a fraction without its parts")
        return self._atom()

    def _exponent_free(self) -> Node:
        r"""What a root stands over: `\sqrt{2}`, `\sqrt 2`, `√2`, `sqrt(2)`."""
        return self._atom()

    def _argument(self) -> Node:
        r"""What a function is of: `\sin(x)`, or without brackets the product up to the next sign: `\sin 5x \cos x`."""
        token = self._peek()
        if token is not None and token.text in ("(", "["):
            return self._postfix()
        node = self._power_sign()
        while (token := self._peek()) is not None and (
                token.kind in ("symbol", "open") or token.text in ("frac", "sqrt")):
            node = _binary(values.multiply, node, self._power())
        return node

    def _power_sign(self) -> Node:
        if self._take("-"):
            node = self._power()
            return lambda point: values.multiply(Fraction(-1), node(point))
        node = self._power()
        while self._take("/"):
            node = _binary(values.divide, node, self._power())
        return node


def _binary(operation: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return lambda point: operation(left(point), right(point))


def _unary(operation: Callable[[Any], Any], inner: Node) -> Node:
    return lambda point: operation(inner(point))


def _worth(name: str) -> float:
    """A number from 0.5 to 1.5 that the name decides: never whole, so that (-1)^n is nothing special."""
    return 0.5 + (int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") + 0.5) / 2**48


class _Point:
    """What the unknowns are worth: numbers that depend on their names alone, so that x + 1 is not y + 1.

    Attributes:
        index: 0 has positive numbers, 1 negative ones, 2 complex ones: √(x²) is x at the first only.
        sign: what ± stands for.
        symbols: those met.
    """

    def __init__(self, index: int, sign: int = 1) -> None:
        self.index = index
        self.sign = sign
        self.symbols: set[str] = set()

    def symbol(self, name: str) -> Any:
        self.symbols.add(name)
        value = values.context().mpf(_worth(f"{self.index} {name}"))
        if self.index == 2:
            return values.context().mpc(value, _worth(f"imaginary {name}"))
        return value if self.index == 0 else -value

    def unknown(self, name: str, argument: Any) -> Any:
        """The value of a function nothing is known of."""
        self.symbols.add(f"{name}()")
        return values.context().mpf(_worth(f"{name} {values.key_of(argument)}"))


class Expression(NamedTuple):
    """What an expression is worth.

    Attributes:
        keys: one key, or two where it holds ±; equal for equal expressions.
        symbols: its unknowns.
        points: its values at the three points; one where it is constant.
    """

    keys: tuple[Key, ...]
    symbols: frozenset[str]
    points: tuple[Any, ...]


@lru_cache(maxsize=65536)
def read_expression(text: str) -> Expression:
    """Reads and evaluates an expression. Raises Unreadable."""
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    parser = _Parser(_tokens(text))
    node = parser.whole()
    with values.LOCK:
        found = [_values(node, sign) for sign in ((1, -1) if parser.signs else (1,))]
    return Expression(tuple(dict.fromkeys(key for key, _, _ in found)), found[0][1], found[0][2])


def _values(node: Node, sign: int) -> tuple[Key, frozenset[str], tuple[Any, ...]]:
    try:
        first = _Point(0, sign)
        value = node(first)
        if not first.symbols:
            return values.key_of(value), frozenset(), (value,)
        points = (value, *(node(_Point(index, sign)) for index in (1, 2)))
        keys = [values.key_of(value) for value in points]
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(str(error)) from None
    # x - x + 5 is 5.
    return (keys[0] if len(set(keys)) == 1 else ("expression", *keys)), frozenset(first.symbols), points


def relation_key(left: Expression, right: Expression, kind: str) -> Key:
    """Two sides of `=`, `<`, `<=` or `!=` as a key that does not change when both are scaled. Raises Unreadable.

    2x + 4y = 3 and 4x + 8y - 6 = 0 are the same line; an inequality may be scaled by positive numbers only.
    """
    with values.LOCK:
        try:
            points = [[side.points[index % len(side.points)] for index in range(3)] for side in (left, right)]
            differences = [values.add(a, values.multiply(Fraction(-1), b)) for a, b in zip(*points, strict=True)]
            if any(difference == 0 for difference in differences):
                raise Unreadable("both sides are equal")
            ratios = [values.key_of(values.divide(difference, differences[0])) for difference in differences[1:]]
            sign = "" if kind in ("=", "!=") else "+" if values.real(differences[0]) > 0 else "-"
        except (ArithmeticError, ValueError, TypeError) as error:
            raise Unreadable(str(error)) from None
    return (kind, sign, *ratios)
