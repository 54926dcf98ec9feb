"""Exact value of an arithmetic expression, and whether two of them are equal. Rational numbers only; no `eval`.

Bounded in time and memory for any input: numbers, exponents and nesting have limits, past which nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from prm_core.maths.equations import Equation, Token

MAX_DIGITS = 60
MAX_BITS = 4096
MAX_DEPTH = 40
MAX_FACTORIAL = 150


class Undecided(Exception):
    """The expression has no value here: not rational arithmetic, ambiguous, or beyond the limits."""


class _Reader:
    """Recursive descent over tokens. `ambiguous` where another reading exists, `calculates` where there is an operator.

    Precedence as in mathematics: `-3^2` is -9, `2^3^2` is 2^9.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = [token for token in tokens if token.kind not in ("unit", "currency")]
        self.position = 0
        self.depth = 0
        self.ambiguous = False
        self.calculates = False

    def value(self) -> Fraction:
        result = self._sum()
        if self.position < len(self.tokens):
            raise Undecided(f"{self.tokens[self.position].text!r} out of place")
        return result

    def _peek(self, offset: int = 0) -> Token | None:
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else None

    def _take(self, *texts: str) -> str | None:
        token = self._peek()
        if token is None or token.text not in texts:
            return None
        self.position += 1
        return token.text

    def _sum(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Undecided("nested too deeply")
        result = self._product()
        while operator := self._take("+", "-"):
            self.calculates = True
            addend = self._product()
            # "80 + 20%" may mean 96.
            self.ambiguous |= self.tokens[self.position - 1].kind == "percent"
            result = _bounded(result + addend if operator == "+" else result - addend)
        self.depth -= 1
        return result

    def _product(self) -> Fraction:
        result = self._unary()
        divided = False
        while True:
            operator = self._take("*", "/")
            following = self._peek()
            if operator is None:
                if following is None or following.kind not in ("open", "fraction"):
                    return result
                self.ambiguous |= following.kind == "fraction"
            # 6/2(1+2) has two readings, and so have 60/3/4 and 2\frac{1}{2}.
            self.ambiguous |= divided and operator != "*"
            self.calculates = True
            factor = self._unary()
            # "9/27 * 100% = 33.3": the sign may be a unit.
            self.ambiguous |= factor == 1 and self.tokens[self.position - 1].kind == "percent"
            if operator == "/":
                divided = True
                if not factor:
                    raise Undecided("division by zero")
                result = _bounded(result / factor)
            elif operator is None and following is not None and following.kind == "fraction":
                result = _bounded(result + factor)
            else:
                result = _bounded(result * factor)

    def _unary(self) -> Fraction:
        sign = 1
        while self._take("-"):
            sign = -sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self.calculates = True
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Undecided("nested too deeply")
        exponent = self._unary()
        self.depth -= 1
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) * size > MAX_BITS or (not base and exponent <= 0):
            raise Undecided("not a power within the limits")
        return base ** int(exponent)

    def _postfix(self) -> Fraction:
        result = self._atom()
        while (token := self._peek()) is not None and token.kind in ("percent", "factorial"):
            self.position += 1
            if token.kind == "percent":
                result /= 100
                continue
            self.calculates = True
            if result.denominator != 1 or not 0 <= result <= MAX_FACTORIAL:
                raise Undecided("not a factorial within the limits")
            result = Fraction(math.factorial(int(result)))
        return result

    def _atom(self) -> Fraction:
        token = self._peek()
        if token is None:
            raise Undecided("a side ends with an operator")
        self.position += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "open":
            result = self._sum()
            self._close(token)
            return result
        if token.kind == "fraction":
            self.calculates = True
            numerator, denominator = self._group(), self._group()
            if not denominator:
                raise Undecided("division by zero")
            return numerator / denominator
        raise Undecided(f"{token.text!r} is not rational arithmetic")

    def _number(self, token: Token) -> Fraction:
        if len(token.text) > MAX_DIGITS:
            raise Undecided("a number too long")
        if token.text[0] == "0" and token.text[1:2].isdigit():
            raise Undecided("a time or a number of another base")
        whole = Fraction(token.text.replace(",", ""))
        parts = [self._peek(offset) for offset in range(3)]
        kinds = [part and (part.text if part.kind == "operator" else part.kind) for part in parts]
        if kinds == ["number", "/", "number"] and whole.denominator == 1:
            # "2 1/2" is a mixed number, or two numbers that stand beside each other.
            self.ambiguous = self.calculates = True
            self.position += 3
            above, below = (Fraction(part.text.replace(",", "")) for part in (parts[0], parts[2]) if part)
            if not below:
                raise Undecided("division by zero")
            return whole + above / below
        return whole

    def _group(self) -> Fraction:
        token = self._peek()
        if token is None or token.text != "{":
            raise Undecided("a fraction without its parts")
        self.position += 1
        result = self._sum()
        self._close(token)
        return result

    def _close(self, opened: Token) -> None:
        if not self._take({"(": ")", "[": "]", "{": "}"}[opened.text]):
            raise Undecided("a bracket that is not closed")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Undecided("a number too long")
    return value


def evaluate(tokens: Sequence[Token]) -> Fraction:
    """Value of an expression. Raises Undecided where it has none."""
    return _Reader(tokens).value()


@lru_cache(maxsize=65536)
def holds(equation: Equation) -> bool | None:
    """Whether the two sides are equal, None where that cannot be said exactly.

    Not said: equality of two plain numbers (a conversion of units), and a difference that may come from another
    reading, from units that differ, or from rounding that the step does not state (`10/3 = 3.33`).

    Raises Undecided when a side is no rational arithmetic.
    """
    readers = _Reader(equation.left), _Reader(equation.right)
    left, right = (reader.value() for reader in readers)
    percent = any(token.kind == "percent" for token in (*equation.left, *equation.right))
    if not percent and not any(reader.calculates for reader in readers):
        return None
    # "30/120 * 100 = 25%": the sign as a unit.
    as_unit = readers[1].tokens[-1].kind == "percent" and left == right * 100
    if left == right or as_unit:
        return True
    if equation.doubtful or len(_units(equation)) > 1 or any(reader.ambiguous for reader in readers):
        return None
    return None if _may_be_rounded(equation, readers, abs(left - right)) else False


def _units(equation: Equation) -> set[str]:
    """The units named, singular: `miles/hour` is one."""
    units = set()
    for side in (equation.left, equation.right):
        run: list[str] = []
        for token in (*side, None):
            if token is not None and token.kind == "unit":
                run.append(token.text.lower().rstrip("s"))
            elif run:
                units.add(" ".join(run))
                run = []
            if token is not None and token.kind == "currency":
                units.add(token.text)
    return units


def _may_be_rounded(equation: Equation, readers: Sequence[_Reader], difference: Fraction) -> bool:
    """Whether one side is a plain number that the other rounds (or cuts) to, decimals or a percentage being there."""
    texts = [token.text for side in (equation.left, equation.right) for token in side]
    if not any("." in text or text == "%" for text in texts):
        return False
    for reader in readers:
        numbers = [token for token in reader.tokens if token.text != "-"]
        kinds = [token.kind for token in numbers]
        if kinds in (["number"], ["number", "percent"]):
            last_place = Fraction(1, 10 ** len(numbers[0].text.partition(".")[2]))
            if difference < (last_place / 100 if len(kinds) == 2 else last_place):
                return True
    return False
